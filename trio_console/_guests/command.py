"""A command of this machine whose stdin and stdout are a guest's console."""

from __future__ import annotations

import os
import secrets
from functools import partial
from typing import TYPE_CHECKING, final

import trio

from trio_console._guests.spec import GuestSpec
from trio_console._guests.supervisor import Ours, TheirEnds, check_workers, start, watch
from trio_console._guests.warden import guarded
from trio_console._processes import GUEST_MARK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_console._guests.spec import GuestHost
    from trio_console._guests.supervisor import Workers

__all__ = ["CommandGuest"]


@final
class CommandGuest(GuestSpec):
    """A command of this machine whose stdin and stdout are the guest's console.

    For example ``["ssh", host, "python3", "-P", "-m", "trio_console.agent", "--stdio"]``, or the same under
    ``docker exec -i``. The last 4 KiB that the command writes to stderr are kept, for the error that
    tells its end. When the guest ends, the command has the rest of the grace to exit, and is then killed.

    The command has a POSIX session of its own: signals for this program's process group (Ctrl-C, ``timeout``) are
    not for it, and it has no terminal. So ssh cannot ask for a password: use keys, an agent or ``SSH_ASKPASS``, or
    open a shared connection (``ControlMaster``) before.

    Args:
        command: a sequence of strings or paths.
        env: environment of the command; `None`, the default, is this program's.
        cwd: working directory of the command; `None`, the default, is this program's.
        workers: what moves the console's bytes in this program: ``"tasks"``, the default, or ``"threads"``. Tasks
            need no threads and less processor time; docs/embedding.md says when to take which.

    Raises:
        TypeError: ``command`` is a single string.
        ValueError: ``command`` is empty, or ``workers`` is none of the two.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        workers: Workers = "tasks",
    ) -> None:
        if isinstance(command, (str, bytes, os.PathLike)):
            raise TypeError(f"command must be a sequence of strings, not {type(command).__name__}")
        self._command = [os.fspath(part) for part in command]
        if not self._command:
            raise ValueError("command must not be empty")
        self._workers = check_workers(workers)
        self._env = env
        self._cwd = cwd

    def __repr__(self) -> str:
        return f"CommandGuest({self._command!r})"

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        """See `GuestSpec.run`. If cancelled, the guest is ended by force."""
        name = os.path.basename(self._command[0])
        mark = secrets.token_hex(16)
        given = os.environ if self._env is None else self._env
        # The mark is only for the moment between the start and the warden's knowledge of it: a process that the
        # command leaves on purpose, such as ssh's shared connection, does not end with this program.
        async with guarded(mark, whole=False) as guard:
            with TheirEnds() as theirs, Ours(theirs.console, self._workers) as ours, theirs.error_pipe() as stderr:
                their_in, their_out, their_err = theirs.numbers
                process = await start(
                    self._command,
                    stdin=their_in,
                    stdout=their_out,
                    stderr=their_err,
                    env={**given, GUEST_MARK: mark},
                    cwd=self._cwd,
                )
                guard(process.pid)
                theirs.close()
                started = partial(ours.hand_over, task_status=task_status)
                await watch(process, name, ours.device, stderr, started)
