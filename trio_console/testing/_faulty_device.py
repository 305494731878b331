"""A console device with faults, between a console's two workers and the real device.

All bytes that a worker reads or writes pass a `FaultLine`. A stall holds the worker inside its call, as a stalled
device would; every other fault happens in the order of the frames.

Three threads meet here: the reading worker, the writing worker, and the test, which stalls, resumes, cuts and adds
faults. One condition guards the switches and the lines. Each line is used by its own worker, and a worker makes no
device call while it holds the condition. The switches ``_closed`` and ``_cut`` only ever change from false to
true, and each is set and announced before the real device is closed. So a worker whose call on the real device
ends, for whatever reason, then sees which of the two switches was set.

This module must not know what is at either end, nor import trio.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Final, final

from trio_console.testing._faults import Disconnect, FaultLine, FiredFault, Signal, Stall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trio_console._console.devices import GuestDevice
    from trio_console.testing._faults import Direction, Fault, LineStatistics

__all__ = ["FaultyDevice"]

#: Bytes of one read from the real device.
_READ_SIZE: Final = 64 * 1024


@final
class FaultyDevice:
    """A `GuestDevice` around the real one.

    Args:
        inner: the real device; it is closed with this one.
        faults: the faults of both directions.
        send_signal: sends a signal to the guest's process.
        fired: called with each fault that has happened, from a worker thread.
    """

    def __init__(
        self,
        inner: GuestDevice,
        faults: Iterable[Fault],
        *,
        send_signal: Callable[[int], None],
        fired: Callable[[FiredFault], None],
    ) -> None:
        self._inner = inner
        self._send_signal = send_signal
        self._fired = fired
        faults = list(faults)
        self._lines: dict[Direction, FaultLine] = {
            "tx": FaultLine(fault for fault in faults if fault.direction == "tx"),
            "rx": FaultLine(fault for fault in faults if fault.direction == "rx"),
        }
        self._changed = threading.Condition()
        self._stalled: set[Direction] = set()
        self._cut: Disconnect | None = None
        self._closed = False
        self._ended = False
        self._in_hand = b""  # bytes that came out of the line and were not returned to the reader yet

    # The test's side, from any thread

    def inject(self, fault: Fault) -> None:
        assert fault.direction is not None, "a fault that was added has one direction"
        with self._changed:
            self._lines[fault.direction].add(fault)

    def stall(self, *directions: Direction) -> None:
        with self._changed:
            self._stalled.update(directions)

    def resume(self, *directions: Direction) -> None:
        with self._changed:
            self._stalled.difference_update(directions)
            self._changed.notify_all()

    def disconnect(self, how: Disconnect) -> None:
        with self._changed:
            if self._cut is None:
                self._cut = how
            self._changed.notify_all()
        self._inner.close()

    def statistics(self, direction: Direction) -> LineStatistics:
        with self._changed:
            return self._lines[direction].statistics()

    # The device's side

    def read(self, max_bytes: int) -> bytes:
        while self._wait_open("tx"):
            if self._in_hand:
                data, self._in_hand = self._in_hand[:max_bytes], self._in_hand[max_bytes:]
                return data
            item = self._take("tx")
            if isinstance(item, FiredFault):
                self._fire(item)
            elif item is not None:
                self._in_hand = item
            elif self._ended:
                return b""
            else:
                self._fill()
        if self._cut is not None and self._cut.error is not None:
            raise OSError(self._cut.error, os.strerror(self._cut.error))
        return b""

    def _fill(self) -> None:
        try:
            data = self._inner.read(_READ_SIZE)
        except OSError:
            if self._cut is None:
                raise
            return  # our own `disconnect` has caused the error; `_wait_open` returns False next
        with self._changed:
            if data:
                self._lines["tx"].feed(data)
            else:
                self._ended = True
                self._lines["tx"].end()

    def write(self, data: memoryview, /) -> int:
        if not self._wait_open("rx"):
            return self._end_of_writing()
        with self._changed:
            self._lines["rx"].feed(data)
        return len(data) if self._write_out() else self._end_of_writing()

    def _write_out(self) -> bool:
        """Write the bytes that have come out of the line; returns `False` if the console ended before that."""
        while (item := self._take("rx")) is not None:
            if isinstance(item, FiredFault):
                self._fire(item)
                continue
            with memoryview(item) as view:
                start = 0
                while start < len(view):
                    if not self._wait_open("rx"):
                        return False
                    count = self._inner.write(view[start:])
                    if not count:
                        return False
                    start += count
        return True

    def _end_of_writing(self) -> int:
        if self._cut is not None and not self._closed:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        return 0

    def close_write(self) -> None:
        with self._changed:
            self._lines["rx"].end()
        if self._write_out() and self._wait_open("rx"):
            self._inner.close_write()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._inner.close()

    # Both workers

    def _take(self, direction: Direction) -> bytes | FiredFault | None:
        with self._changed:
            return self._lines[direction].take()

    def _wait_open(self, direction: Direction) -> bool:
        """Wait while this direction is stalled; returns `False` if the console was cut or closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._cut or direction not in self._stalled)
            return not (self._closed or self._cut)

    def _fire(self, fired: FiredFault) -> None:
        # The effect and the report are one step under the lock. So a thread that sees the effect of a fault, and
        # then takes the lock, finds the fault among those that have fired.
        how = fired.effect
        with self._changed:
            match how:
                case Stall():
                    assert fired.fault.direction is not None, "a fault that has fired has one direction"
                    self._stalled.add(fired.fault.direction)
                case Disconnect():
                    self._cut = self._cut or how
                    self._changed.notify_all()
                case Signal(number):
                    self._send_signal(number)
            self._fired(fired)
        if isinstance(how, Disconnect):
            self._inner.close()
