"""The interface to the ways to start a guest: a `GuestSpec` starts a guest, and a `Host` is a started one.

A `GuestSpec` also ends the guest that it has started, if need be by force.

This module must not know the bytes on the console; ``_open`` joins it with the modules that do.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, final

import trio

from trio_console._console.devices import as_device, close_quietly
from trio_console._trio.interrupts import interrupt_safe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_console._console.devices import ConsoleDevice, GuestDevice

__all__ = ["GuestSpec", "Host", "attached_host"]

#: Bytes of a guest command's error output kept to explain its end.
_STDERR_TAIL: Final = 4096


class GuestSpec(ABC):
    """A way to start a guest or to attach to one; see `ProcessGuest`, `CommandGuest` and `SocketGuest`."""

    @abstractmethod
    def _launch(self) -> Any:
        """An async context manager that yields a `Host`, and on leaving ends by force the process it started."""


@final
class Host:
    """A started guest, for `open_guest`: its console's device, and its process on this machine if it has one."""

    def __init__(self, device: GuestDevice, process: trio.Process | None = None, name: str = "") -> None:
        self.device = device
        self.name: Final = name
        self._process = process
        self._tail = bytearray()
        self._tail_done = trio.Event()

    def keep_tail(self, data: bytes) -> None:
        assert not self._tail_done.is_set(), "what a guest has said is complete when its end is told"
        self._tail += data
        del self._tail[:-_STDERR_TAIL]

    def end_tail(self) -> None:
        self._tail_done.set()

    async def explain(self) -> str:
        """Why the console ended, as far as can be found out. Waits for the process for up to 0.2 seconds."""
        if self._process is None:
            return "the other end of the socket is gone"
        with trio.move_on_after(0.2):
            await self._process.wait()
            await self._tail_done.wait()
        code = self._process.returncode
        if code is None:
            what = f"{self.name} still runs"
        elif code < 0:
            what = f"{self.name} was killed by {_signal_name(-code)}"
        else:
            what = f"{self.name} exited with status {code}"
        said = bytes(self._tail).decode(errors="replace").strip()
        return f"{what}, and said: {said}" if said else what

    async def wait(self) -> None:
        if self._process is not None:
            await self._process.wait()

    @property
    def has_process(self) -> bool:
        """Whether there is a process for `send_signal`."""
        return self._process is not None

    def send_signal(self, number: int) -> None:
        """Send a signal to the guest's process, if it has one that still runs. From any thread."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the guest's process with its whole process group, which it leads. From any thread."""
        # Its number is the group's, and no other process can get it before the process is reaped.
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self.send_signal(signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@interrupt_safe
@asynccontextmanager
async def attached_host(device: ConsoleDevice) -> AsyncIterator[Host]:
    """A guest that was started by other code, which also ends it: only its console is closed here."""
    port = as_device(device)
    try:
        yield Host(port)
    finally:
        close_quietly(port)
