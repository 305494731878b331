"""What a guest is for those who open it: a `GuestSpec` starts one, a `Host` is one that was started.

What a spec starts it also ends, by force if need be.

This module must not know what is said over the console; ``_open`` joins it with those who do.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
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
    """A way to come to a guest; see `ProcessGuest`, `CommandGuest` and `SocketGuest`."""

    @abstractmethod
    def _launch(self) -> Any:
        """An async context manager that gives a `Host`, and on leaving ends what it started, by force."""


@final
class Host:
    """A started guest as `open_guest` needs it: its console, and its process on this machine if it has one."""

    def __init__(self, device: GuestDevice, process: trio.Process | None = None, name: str = "") -> None:
        self.device = device
        self.name: Final = name
        self._process = process
        self._tail = bytearray()
        self._tail_done = trio.Event()

    def keep_tail(self, data: bytes) -> None:
        self._tail += data
        del self._tail[:-_STDERR_TAIL]

    def end_tail(self) -> None:
        self._tail_done.set()

    async def explain(self) -> str:
        """Why the console ended, as far as can be told. May wait for the process: the caller sets the bound."""
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
        """Whether `send_signal` reaches anybody."""
        return self._process is not None

    def send_signal(self, number: int) -> None:
        """Send its process a signal, if it has one that still runs. From any thread."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@interrupt_safe
@asynccontextmanager
async def attached_host(device: ConsoleDevice) -> AsyncIterator[Host]:
    """A guest that somebody else has started and will end."""
    port = as_device(device)
    try:
        yield Host(port)
    finally:
        close_quietly(port)
