"""The agent in a child process of this program, and the end of whatever that leaves behind."""

from __future__ import annotations

import math
import os
import secrets
import socket
import subprocess
import sys
import warnings
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, final

from trio_console._forked import let_go_in_child
from trio_console._guests.leftovers import GUEST_MARK, kill_marked_processes
from trio_console._guests.spec import GuestSpec, Host
from trio_console._guests.supervisor import TheirEnds, owned, start, watch
from trio_console._trio.clocks import within
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.threads import NoThreadError, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import trio

    from trio_console._guests.leftovers import Leftovers

__all__ = ["ProcessGuest"]

#: Seconds for what a guest has left behind to be found and killed. (Half of it is what the search takes at most.)
_SCAN_TIME: Final = 2.0

#: Bytes of socket buffer asked for in each direction. (Linux gives an ordinary user 208 KiB of them by default,
#: and doubles what it gives.) With a buffer that nobody asked for, a GiB of output took a fourth more of this
#: process's time, 1.57 s instead of 1.26, in runs that vary by a fifth.
_SOCKET_BUFFER: Final = 256 * 1024


@final
class ProcessGuest(GuestSpec):
    """The agent in a child process of this program, on this machine.

    **It isolates nothing**: its commands run as this user, see these files and this network. It is for
    development, tests, and programs that want the same API for local and remote work.

    When it ends, every process of it that still runs is killed, also one that made itself a daemon; it
    is found by an environment variable (``TRIO_CONSOLE_GUEST``), so one that has cleared its environment is
    not found.

    Args:
        env: environment of the agent, and so of its commands; `None` is this program's.
        cwd: working directory of the agent, and so of its commands; `None` is this program's.
    """

    def __init__(self, *, env: Mapping[str, str] | None = None, cwd: str | os.PathLike[str] | None = None) -> None:
        self._env = env
        self._cwd = cwd

    def __repr__(self) -> str:
        return "ProcessGuest()"

    @interrupt_safe
    @asynccontextmanager
    async def _launch(self) -> AsyncIterator[Host]:
        mark = secrets.token_hex(16)
        env = {**(os.environ if self._env is None else self._env), GUEST_MARK: mark}
        ours, theirs = map(let_go_in_child, socket.socketpair())
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        with theirs, owned(ours) as device, TheirEnds() as ends, ends.error_pipe() as stderr:
            # Its modules are found where this program's were, installed or not.
            code = f"import sys; sys.path[:] = {sys.path!r}; from trio_console.agent import main; sys.exit(main())"
            argv = [sys.executable, "-c", code, "--fd", str(theirs.fileno())]
            process = await start(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=ends.numbers[0],
                pass_fds=(theirs.fileno(),),
                env=env,
                cwd=self._cwd,
            )
            theirs.close()
            ends.close()
            try:
                async with watch(Host(device, process, "the agent"), process, stderr) as host:
                    yield host
            finally:
                kill = partial(_kill_left_behind, mark)
                await see_through(kill, grace=math.inf, hurried=math.inf)  # noqa: ASYNC102  (shields itself)


async def _kill_left_behind(mark: str, patience: trio.CancelScope) -> None:
    search = partial(kill_marked_processes, mark)
    result: Leftovers | None = None

    async def look() -> None:
        nonlocal result
        try:
            # Abandoned if need be: looking at a process may take as long as what that process does in the kernel.
            result = await in_thread("to look for processes that a guest has left", search, abandon=True)
        except NoThreadError:
            result = search()  # here, although this blocks everything else for a moment

    with patience:
        await within(_SCAN_TIME, look)
    if result is None or result.left:
        which = "processes of a guest" if result is None else f"the processes {sorted(result.left)} of a guest"
        warnings.warn(f"{which} were killed and may still run", RuntimeWarning, stacklevel=1)
