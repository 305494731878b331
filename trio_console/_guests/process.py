"""The agent in a child process of this program."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.interpreter import absolute_only, command, find_modules
from trio_console._guests.leftovers import kill_left_behind
from trio_console._guests.spec import GuestSpec
from trio_console._guests.supervisor import Ours, TheirEnds, beyond_standard, check_workers, start, watch
from trio_console._guests.warden import guarded
from trio_console._processes import GUEST_MARK, Wanted
from trio_console._trio.ending import see_through
from trio_console._trio.sockets import enlarge_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trio_console._guests.spec import GuestHost
    from trio_console._guests.supervisor import Workers

__all__ = ["PROGRAM", "ProcessGuest"]

#: Where Python finds modules before it runs a program. The agent starts without the relative ones of these; its
#: commands see what was given.
_PATHS: Final = "PYTHONPATH"

#: The agent's program, behind the line that lets it find its modules. Its commands are not to read from where it
#: was read.
PROGRAM: Final = """\
import os
os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
from trio_console.agent.__main__ import main
sys.exit(main())
"""


@final
class ProcessGuest(GuestSpec):
    """The agent in a child process of this program, on this machine.

    **It isolates nothing**: its commands run as this user, see these files and this network. It is for
    development, tests, and programs that want the same API for local and remote work.

    When it ends, every process of it that still runs is killed, also one that has made itself a daemon. The
    processes are found by an environment variable (``TRIO_CONSOLE_GUEST``), so a process that has cleared its
    environment is not found.

    Args:
        env: environment of the agent, and so of its commands; `None`, the default, is this program's.
        cwd: working directory of the agent, and so of its commands; `None`, the default, is this program's.
        python: the interpreter that runs the agent, of version 3.11 or later; `None`, the default, is this
            program's (`sys.executable`). A program that is an application of its own, or has an interpreter built
            in, must name one. It finds modules in its own places, and then where this program finds its own.
        workers: what moves the console's bytes in this program: ``"threads"``, the default, or ``"tasks"``. Tasks
            need no threads and less processor time; docs/embedding.md says when to take which.

    Raises:
        ValueError: ``workers`` is none of the two.

    The agent runs with the flags that this program's interpreter has, and in a POSIX session of its own: signals
    for this program's process group are not for the agent, and no command reaches this program's terminal.
    """

    def __init__(
        self,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        python: str | os.PathLike[str] | None = None,
        workers: Workers = "threads",
    ) -> None:
        self._workers = check_workers(workers)
        self._env = env
        self._cwd = cwd
        self._python = None if python is None else os.fspath(python)

    def __repr__(self) -> str:
        return "ProcessGuest()"

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        """See `GuestSpec.run`. If cancelled, the guest is ended by force."""
        mark = secrets.token_hex(16)
        given = os.environ if self._env is None else self._env
        python = command(self._python)
        env = {**given, GUEST_MARK: mark}
        program = find_modules(also=self._python is not None) + PROGRAM
        if _PATHS in env:
            program = f"import os; os.environ[{_PATHS!r}] = {env[_PATHS]!a}\n{program}"
            env[_PATHS] = absolute_only(env[_PATHS])
        async with guarded(mark, whole=True, python=self._python) as guard:
            await self._run_agent([*python, "-"], program, env, guard, task_status)

    @trio.lowlevel.enable_ki_protection
    async def _run_agent(
        self,
        command: list[str],
        program: str,
        env: Mapping[str, str],
        guard: Callable[[int], None],
        task_status: trio.TaskStatus[GuestHost],
    ) -> None:
        with no_fork():
            our_end, theirs = map(let_go_in_child, socket.socketpair())
        for end in (our_end, theirs):
            enlarge_buffer(end)
        with (
            theirs,
            Ours(lambda: our_end, self._workers) as ours,
            beyond_standard(theirs) as theirs,
            TheirEnds() as ends,
            ends.error_pipe() as stderr,
            ends.text_pipe() as tell,
        ):
            # The agent's program is its standard input, because an argument has a place for 128 KiB only.
            their_err, their_in = ends.numbers
            process = await start(
                [*command, "--fd", str(theirs.fileno())],
                stdin=their_in,
                stdout=subprocess.DEVNULL,
                stderr=their_err,
                pass_fds=(theirs.fileno(),),
                env=env,
                cwd=self._cwd,
            )
            guard(process.pid)
            theirs.close()
            ends.close()
            started = partial(ours.hand_over, task_status=task_status)
            try:
                await watch(process, "the agent", ours.device, stderr, started, partial(tell, program))
            finally:
                kill = partial(kill_left_behind, Wanted(GUEST_MARK, env[GUEST_MARK]))
                await see_through(kill)  # noqa: ASYNC102  (shields itself)
