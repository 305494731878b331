"""The agent in Linux namespaces of its own, which bubblewrap makes: a sandbox with this machine's kernel.

Who dies when: the agent is process 1 of its process namespace, so all that runs in there ends with it. bubblewrap
tells its process id, and it is not given its program before the warden knows it. So it can be killed from outside,
whatever a command in the guest has made of it.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.namespaces import advice, layout
from trio_console._guests.namespaces.cgroups import limited
from trio_console._guests.namespaces.inside import Inside, child_of
from trio_console._guests.namespaces.runtime import find_runtime
from trio_console._guests.process import PROGRAM
from trio_console._guests.roots import Limits, Root, check_shares
from trio_console._guests.spec import GuestSpec
from trio_console._guests.supervisor import Ours, TheirEnds, beyond_standard, check_workers, start, watch
from trio_console._guests.warden import guarded
from trio_console._processes import GUEST_MARK
from trio_console._trio.ending import see_through
from trio_console._trio.sockets import enlarge_buffer
from trio_console._trio.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trio_console._guests.namespaces.cgroups import Cgroups
    from trio_console._guests.roots import PathLike, Share
    from trio_console._guests.spec import GuestHost
    from trio_console._guests.supervisor import Workers

__all__ = ["BubblewrapGuest"]

#: The environment of the agent, and so of its commands, but for its mark and for what the user gives.
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": layout.HOME,
}


@final
class BubblewrapGuest(GuestSpec):
    """The agent in namespaces of its own, made by bubblewrap: a sandbox on this machine's kernel.

    Its commands see the programs of ``root``, read-only, an empty home (``/home/guest``), an empty ``/tmp``, a
    ``/proc`` and a ``/dev`` of their own, what ``shares`` names, and in ``/run/trio-console`` the agent's Python.
    They see no other file, process or user of this machine, have no network but ``lo``, and no capability. What
    they write outside of writable shares is in memory, and gone with the guest.

    **What it does not isolate**: the kernel is this machine's, and a fault in it is a way out; processor time and,
    without ``limits``, memory are shared with all. A Unix socket in a share can be connected to. docs/isolation.md
    has the list.

    It ends with the block, and if this program is killed. It needs the program ``bwrap``, and a system that lets
    this user make user namespaces.

    Args:
        root: `Root.HOST`, the default, or the path of a directory that is to be the guest's root, such as an
            unpacked image; it need have no Python. Its ``home``, ``run`` and ``tmp`` are not seen.
        shares: what else of this machine the guest sees: paths in the guest, and for each a path of this machine,
            which is read-only, or a `Share`. By default nothing. A path in the guest is made where it is missing,
            but inside of ``root`` it must be there.
        env: environment of the commands, besides ``PATH``, ``HOME`` and ``TRIO_CONSOLE_GUEST``; by default
            nothing.
        user: the user, by number or name, as whom the guest runs, and who must be able to read all that it is to
            see; `None`, the default, for this program's. Only root may name another.
        limits: the most memory and processes; by default there are none. They need a cgroup that this program may
            divide.
        workers: what moves the console's bytes in this program: ``"tasks"``, the default, or ``"threads"``. Tasks
            need no threads and less processor time; docs/embedding.md says when to take which.

    Raises:
        ValueError: ``root`` is `Root.MINIMAL`, which only a virtual machine has; a path in ``shares`` is not
            valid; or ``workers`` is none of the two.

    Opening it raises:
        FileNotFoundError: bubblewrap is not installed, or a path is not there. The message says which.
        PermissionError: the limits or the user are more than this program may have here. The message says what
            would help.
        LookupError: there is no such user.
        GuestLostError: bubblewrap could not make the guest, because there are no user namespaces for example. The
            message says what would help.
    """

    def __init__(
        self,
        *,
        root: Root | PathLike = Root.HOST,
        shares: Mapping[str, PathLike | Share] = {},
        env: Mapping[str, str] = {},
        user: int | str | None = None,
        limits: Limits = Limits(),  # noqa: B008  (it is immutable)
        workers: Workers = "tasks",
    ) -> None:
        if root is Root.MINIMAL:
            raise ValueError(
                "Root.MINIMAL is for a MicroVMGuest, which would have to load what it is to see: here Root.HOST "
                "costs nothing, and for less give the path of a directory"
            )
        self._root = None if root is Root.HOST else os.path.abspath(os.fspath(root))
        self._shares = check_shares(shares)
        self._env = dict(env)
        self._user = user
        self._limits = limits
        self._workers = check_workers(workers)

    def __repr__(self) -> str:
        return "BubblewrapGuest()" if self._root is None else f"BubblewrapGuest(root={self._root!r})"

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        """See `GuestSpec.run`. If cancelled, the guest is ended by force."""
        account = layout.find_account(self._user)
        bwrap = advice.find_bwrap()
        runtime = await in_thread("to find the guest's interpreter", find_runtime)
        arguments = layout.arguments(self._root, self._shares, runtime)
        settings = {**_ENVIRONMENT, **self._env}
        program = layout.program(runtime, account, settings, etc=self._root is None) + PROGRAM
        mark = secrets.token_hex(16)
        inside = Inside(mark)
        async with guarded(mark, whole=True) as guard:
            with limited(self._limits) as cgroups:
                try:
                    await self._run_bwrap(
                        bwrap,
                        [*arguments, *runtime.command, "-"],
                        program,
                        {**_ENVIRONMENT, GUEST_MARK: mark},
                        account,
                        _Watched(inside, guard, cgroups),
                        task_status,
                    )
                finally:
                    await see_through(inside.end)  # noqa: ASYNC102  (shields itself)

    @trio.lowlevel.enable_ki_protection
    async def _run_bwrap(
        self,
        bwrap: str,
        arguments: list[str],
        program: str,
        env: Mapping[str, str],
        account: layout.Account,
        watched: _Watched,
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
            ends.error_pipe() as news,
        ):
            their_err, their_in, their_news = ends.numbers
            process = await start(
                [bwrap, "--info-fd", str(their_news), *arguments, "--fd", str(theirs.fileno())],
                stdin=their_in,
                stdout=subprocess.DEVNULL,
                stderr=their_err,
                pass_fds=(theirs.fileno(), their_news),
                env=env,
                cwd="/",
                **account.identity,
            )
            watched.guard(process.pid)
            theirs.close()
            ends.close()

            def started(host: GuestHost) -> None:
                ours.hand_over(watched.improve(host), task_status)

            async def prepare() -> None:
                if await watched.learn(news):
                    if process.returncode is None:
                        await tell(program)
                    else:  # the agent would live on for a moment, and look like a guest
                        watched.kill()

            await watch(process, "bwrap", ours.device, stderr, started, prepare, kill_inside=watched.kill)


@final
class _Watched:
    """What is done for a guest between the start of bubblewrap and the agent's program."""

    def __init__(self, inside: Inside, guard: Callable[[int], None], cgroups: Cgroups) -> None:
        self.guard: Final = guard
        self.kill: Final = inside.kill
        self._inside = inside
        self._cgroups = cgroups

    async def learn(self, news: trio.abc.ReceiveStream) -> bool:
        """Wait until the namespaces are there, put their first process under guard and limits.

        Returns whether there is one; if not, bubblewrap has ended, and says why.
        """
        pid = await child_of(news)
        if pid is None or not self._inside.learn(pid):
            return False
        self.guard(pid)
        with suppress(ProcessLookupError):
            self._cgroups.add(pid)
        return True

    def improve(self, host: GuestHost) -> GuestHost:
        """The same guest, with a reason that says what would help."""
        return replace(host, explain=partial(self._explain, host))

    async def _explain(self, host: GuestHost) -> str:
        reason = "" if host.explain is None else await host.explain()
        return advice.advised(reason, out_of_memory=self._cgroups.out_of_memory())
