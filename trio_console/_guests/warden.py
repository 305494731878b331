"""The warden of a trio run, which ends the guests of this program when the program is killed; see `_warden`.

It is started with the first guest that is a process here, and ended with the last one. It only helps: if it cannot
be started, that is logged, and guests run without it.

This module must not know what the guests are.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.interpreter import executable, place_of_this_package
from trio_console._guests.supervisor import beyond_standard, start
from trio_console._processes import start_time
from trio_console._trio.clocks import within
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["guarded"]

log = logging.getLogger("trio_console.guests")

#: The warden's program. It needs nothing but the standard library and this package.
_PROGRAM: Final = "import sys; sys.path.append({!r}); from trio_console._warden import main; main()"

#: Seconds for the warden to be gone after SIGKILL.
_KILL_TIME: Final = 1.0


@interrupt_safe
@asynccontextmanager
async def guarded(mark: str, *, whole: bool, python: str | None = None) -> AsyncIterator[Callable[[int], None]]:
    """Let a process that is started in the block end when this program dies before the block is left.

    Yields a function that is called with the process's id after its start, before it can have been reaped. If this
    program dies before that, the process is found by its mark.

    Args:
        mark: the value of `GUEST_MARK` in the process's environment.
        whole: whether all other processes with the mark end with it.
        python: the interpreter to use if this program has none; `None`, the default, if there is no other.
    """
    warden = _join()
    try:
        await warden.wait_started(python)
        warden.say(f"+ {mark} {whole:d}")
        try:
            yield partial(warden.tell, mark)
        finally:
            warden.say(f"- {mark}")
    finally:
        warden.users -= 1
        if not warden.users:
            # From here on a new guest starts a new warden.
            _current.set(None)
            await see_through(warden.end, grace=math.inf, hurried=math.inf)  # noqa: ASYNC102  (shields itself)


@final
class _Warden:
    """All of it is used by the tasks of one run."""

    def __init__(self) -> None:
        self.users = 0
        self._begun = False
        self._started = trio.Event()
        self._control: socket.socket | None = None
        self._process: trio.Process | None = None

    async def wait_started(self, python: str | None) -> None:
        """Start the process, or wait for the task that does. The start itself is not cut short."""
        if self._begun:
            await self._started.wait()
            return
        self._begun = True
        try:
            with trio.CancelScope(shield=True):
                await self._start(python)
        except (OSError, RuntimeError) as exc:
            log.warning("guests may outlive this program if it is killed: their warden did not start: %s", exc)
        finally:
            self._started.set()

    async def _start(self, python: str | None) -> None:
        command = [executable(python), "-I", "-S", "-c", _PROGRAM.format(place_of_this_package())]
        with no_fork():
            ours, theirs = map(let_go_in_child, socket.socketpair())
        try:
            with theirs, beyond_standard(theirs) as end:
                self._process = await start(
                    [*command, str(os.getpid()), str(end.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(end.fileno(),),
                    cwd="/",
                )
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        self._control = ours

    def say(self, line: str) -> None:
        """Say a line. A warden that does not hear is given up, once."""
        if self._control is None:
            return
        data = f"{line}\n".encode()
        try:
            if self._control.send(data, socket.MSG_NOSIGNAL) == len(data):
                return
            why = "it does not listen"
        except OSError as exc:
            why = str(exc)
        self._control.close()
        self._control = None
        log.warning("guests may outlive this program if it is killed: their warden is lost: %s", why)

    def tell(self, mark: str, pid: int) -> None:
        """Say which process has a mark."""
        self.say(f"= {mark} {pid} {start_time(pid) or ''}")

    async def end(self, _patience: trio.CancelScope) -> None:
        """End the process; it takes a second at most."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            await within(_KILL_TIME, self._process.wait)


_current: Final[trio.lowlevel.RunVar[_Warden | None]] = trio.lowlevel.RunVar("trio_console.warden", None)


def _join() -> _Warden:
    """The warden of this run, with one user more."""
    warden = _current.get()
    if warden is None:
        warden = _Warden()
        _current.set(warden)
    warden.users += 1
    return warden
