"""A guest that misbehaves on demand: any guest, with faults on its console.

This module must not know how bytes are moved, nor the format of frames.
"""

from __future__ import annotations

import math
import signal
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._console.devices import as_device
from trio_console._guests.carrier import carried
from trio_console._guests.process import ProcessGuest
from trio_console._guests.spec import GuestHost, GuestSpec
from trio_console._guests.supervisor import ProcessHost
from trio_console.testing._faults import Direction, Disconnect, Fault, FiredFault, Signal, Truncate
from trio_console.testing._faulty_device import FaultyDevice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_console.testing._faults import LineStatistics

__all__ = ["FaultyGuest"]

_BOTH: Final[tuple[Direction, Direction]] = ("tx", "rx")


@final
class FaultyGuest(GuestSpec):
    """A guest for tests, with faults on its console: listed before, or made at once by a method.

    It is given to `trio_console.open_guest` or `trio_console.serve_relay` like any guest. It needs no machine and
    no privileges: by default the guest is the real agent in a child process.

    A `FaultyGuest` may be opened again when it has ended; its faults then begin anew. All methods but `wait_fired`
    may be called from any thread. A method that changes something does nothing once the guest has ended.

    Args:
        faults: the faults, see `Fault`; by default none. Their order matters only if two are due at the same
            frame.
        guest: the guest on whose console the faults happen; `None`, the default, is a `trio_console.ProcessGuest`.

    Raises:
        TypeError: ``guest`` is not a `GuestSpec`, or a fault is not a `Fault`.
        ValueError: ``guest`` is a `FaultyGuest`.
    """

    def __init__(self, faults: Iterable[Fault] = (), *, guest: GuestSpec | None = None) -> None:
        self._guest = ProcessGuest() if guest is None else guest
        if not isinstance(self._guest, GuestSpec):
            raise TypeError(f"guest must be a GuestSpec such as ProcessGuest, not {type(guest).__name__}")
        if isinstance(self._guest, FaultyGuest):
            raise ValueError("guest is a FaultyGuest: give all faults to one FaultyGuest")  # noqa: TRY004  (it is a GuestSpec)
        self._fails_its_test = self._guest._fails_its_test
        self._script = list(faults)
        for fault in self._script:
            if not isinstance(fault, Fault):
                raise TypeError(f"faults must be Faults, not {type(fault).__name__}")
        self._device: FaultyDevice | None = None
        self._host: GuestHost | None = None
        self._open = False
        self._fired: list[FiredFault] = []
        self._news = trio.Event()

    def __repr__(self) -> str:
        return f"FaultyGuest({self._script!r}, guest={self._guest!r})"

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        """See `trio_console.GuestSpec.run`. If cancelled, the guest is ended by force."""
        if self._open:
            raise RuntimeError("this FaultyGuest is open: make one FaultyGuest for each guest")
        self._open = True
        self._fired.clear()
        token = trio.lowlevel.current_trio_token()

        def fired(what: FiredFault) -> None:
            self._fired.append(what)
            with suppress(trio.RunFinishedError):  # called by an abandoned worker
                token.run_sync_soon(self._announce)

        try:
            async with carried(self._guest, math.inf) as carrier:
                host = carrier.host
                for fault in self._script:
                    _check_possible(fault, host)
                console = carrier.take_console()
                if isinstance(console, trio.abc.Stream):
                    await trio.aclose_forcefully(console)
                    raise TypeError(f"{self._guest!r} has a stream for its console, and faults need a device")
                self._host = host
                inner = as_device(console)
                device = FaultyDevice(inner, self._script, send_signal=partial(_send_signal, host), fired=fired)
                self._device = device
                task_status.started(GuestHost(device, carrier.kill, carrier.explain))
                await carrier.wait_ended()
                carrier.check()
        finally:
            self._open = False

    def _announce(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    # Faults at once

    def inject(self, fault: Fault) -> None:
        """Add a fault, which counts frames from now on.

        Raises:
            RuntimeError: the guest has never been opened: pass the fault to the constructor.
            ValueError: the fault is a signal, and the guest has no process on this machine.
        """
        device, host = self._opened()
        _check_possible(fault, host)
        device.inject(fault)

    def stall(self, direction: Direction | None = None) -> None:
        """Let no bytes pass until `resume`. Bytes of a device call that runs at this moment may still pass.

        Args:
            direction: ``"tx"`` for bytes that the guest transmits, ``"rx"`` for bytes that it receives; `None`,
                the default, for both.

        Raises:
            RuntimeError: the guest has never been opened.
        """
        self._opened()[0].stall(*(_BOTH if direction is None else (direction,)))

    def resume(self, direction: Direction | None = None) -> None:
        """End a stall, whether `stall` or a fault began it. Arguments and errors are those of `stall`."""
        self._opened()[0].resume(*(_BOTH if direction is None else (direction,)))

    def disconnect(self, error: int | None = None) -> None:
        """Cut the console, at once and for good; see `Disconnect`.

        Args:
            error: errno with which the host's reads fail; `None`, the default, is end of file.

        Raises:
            RuntimeError: the guest has never been opened.
        """
        self._opened()[0].disconnect(Disconnect(error))

    def send_signal(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the guest's process, at once; see `Signal`. Does nothing if the process has ended.

        Args:
            number: the signal's number; by default SIGKILL.

        Raises:
            RuntimeError: the guest has never been opened.
            ValueError: the guest has no process on this machine.
        """
        _, host = self._opened()
        _check_process(host)
        _send_signal(host, number)

    def _opened(self) -> tuple[FaultyDevice, GuestHost]:
        if self._device is None or self._host is None:
            raise RuntimeError("this FaultyGuest has not been opened: give it to trio_console.open_guest first")
        return self._device, self._host

    # Results

    @property
    def fired(self) -> tuple[FiredFault, ...]:
        """The faults that have happened since the guest was opened, in order."""
        return tuple(self._fired)

    async def wait_fired(self, fault: Fault | None = None) -> FiredFault:
        """Wait until a fault has happened, and return it with its frame. If cancelled, nothing changes.

        Args:
            fault: the fault to wait for; `None`, the default, is the first of all.
        """
        await trio.lowlevel.checkpoint()
        while True:
            for fired in self.fired:
                if fault is None or fired.fault is fault:
                    return fired
            await self._news.wait()

    def statistics(self, direction: Direction) -> LineStatistics:
        """The frames and bytes of one direction since the guest was opened.

        Args:
            direction: ``"tx"`` for guest to host, ``"rx"`` for host to guest.

        Raises:
            RuntimeError: the guest has never been opened.
        """
        return self._opened()[0].statistics(direction)


def _check_possible(fault: Fault, host: GuestHost) -> None:
    action = fault.action
    if isinstance(action, Signal) or (isinstance(action, Truncate) and isinstance(action.then, Signal)):
        _check_process(host)


def _check_process(host: GuestHost) -> None:
    if not isinstance(host, ProcessHost):
        message = "this guest has no process on this machine, so no signal can be sent to it"
        raise ValueError(message)  # noqa: TRY004  (its type is right)


def _send_signal(host: GuestHost, number: int) -> None:
    """Send a signal to the guest's process, if it has one that still runs. From any thread."""
    if isinstance(host, ProcessHost):
        host.process.send_signal(number)
