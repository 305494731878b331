"""Numbered chunks through a console, both ways at once.

    python -m tests.console.wake.stress [--chunks N] [--bare]

A device's two threads and two tasks pass chunks as fast as they can, and each chunk carries the next number. So a
chunk that is lost, doubled or overtaken is found, and so is a side that sleeps although it has work. ``--bare``
leaves out the mutex between store and read (see `trio_console._console.ring.FencedRing`), to see whether this
machine's processor needs it. An AMD processor has not shown it, in a million chunks in each direction with CPython
3.14; `tests/model/wake.pml` and `test_weak_memory` show that a machine may need it.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import select
import sys
import threading
import time
from array import array
from typing import TYPE_CHECKING, Any, Final

import trio

from tests.tools.limits import HANG
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState
from trio_console._console.build import FREE_THREADED
from trio_console._console.ring import FencedRing
from trio_console._console.stream import ConsoleStream

if TYPE_CHECKING:
    from trio_console._console.backend import Lane

WIDTH: Final = 4


class Lost(AssertionError):
    """A chunk or a wake-up was lost."""


class Numbers:
    """The receiver's side of one direction: whole numbers, each the next."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.next = 0
        self._part = b""

    def take(self, data: bytes) -> None:
        data = self._part + data
        whole = len(data) - len(data) % WIDTH
        self._part = data[whole:]
        count = whole // WIDTH
        if data[:whole] != array("I", range(self.next, self.next + count)).tobytes():
            raise Lost(f"{self.way}: not the numbers from {self.next} on: {array('I', data[:whole])[:9]} ...")
        self.next += count

    def end(self, count: int) -> None:
        if self.next != count or self._part:
            raise Lost(f"{self.way}: it ended after {self.next} of {count} numbers and {self._part!r}")


class NoMutex:
    """Stands for the ring's mutex, and does nothing."""

    def __setitem__(self, _index: int, _value: None) -> None:
        pass


class Stress:
    """One console and its four ends.

    Args:
        chunks: sent each way.
        capacity: of each ring, in chunks.
        max_bytes: of each ring.
        bare: without the mutex; only on rings that have one.
    """

    def __init__(self, chunks: int, capacity: int, max_bytes: int, *, bare: bool = False) -> None:
        self.chunks = chunks
        self.shared = ConsoleSharedState(capacity, max_bytes)
        self.backend = AgentConsoleBackend(self.shared)
        self.host = ConsoleStream(self.shared)
        self.failures: list[BaseException] = []
        self._sent = 0
        self._numbers = Numbers("from the device")
        if bare:
            for lane in (self.shared._tx, self.shared._rx):
                assert isinstance(lane.ring, FencedRing), (
                    "this Python has the interpreter lock: no ring has a mutex"
                )
                mutex: Any = NoMutex()
                lane.ring._fence = mutex  # type: ignore[misc]

    def run(self) -> None:
        """Move everything.

        Raises:
            Lost: a chunk or a wake-up was lost, or an order.
        """
        threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._writes, self._reads)]
        for thread in threads:
            thread.start()
        try:
            with contextlib.suppress(trio.BrokenResourceError):  # a thread has failed: it says why
                trio.run(self._host)
        finally:
            self.shared.host_gone()
            for thread in threads:
                thread.join()
        if self.failures:
            raise self.failures[0]
        for lane in (self.shared._tx, self.shared._rx):
            told = lane.statistics()
            assert told.bytes_in == WIDTH * self.chunks == told.bytes_out + told.bytes_dropped, told
            assert not told.current_buffer_bytes, told
        assert self.shared._tx.statistics().bytes_dropped == 0
        self.shared.close_wakes()

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as exc:
            self.failures.append(exc)
            self.shared.guest_gone(exc)

    def _writes(self) -> None:
        write, wait = self.backend.write, self.backend.wait_until_writable
        for number in range(self.chunks):
            chunk = number.to_bytes(WIDTH, sys.byteorder)
            while True:
                try:
                    write(chunk)
                    break
                except BlockingIOError:
                    if not wait(HANG):
                        self._lost(self.shared._tx, "the device's writer", self.shared._tx.ring.fits(WIDTH))
        self.shared._tx.finish()

    def _reads(self) -> None:
        numbers = Numbers("to the device")
        poller = select.poll()
        poller.register(self.backend.read_wake_fd(), select.POLLIN)
        while True:
            try:
                data = self.backend.read(4096)
            except BlockingIOError:
                if not poller.poll(HANG * 1000):
                    self._lost(self.shared._rx, "the device's reader", bool(self.shared._rx.ring))
                continue
            if not data:
                break
            numbers.take(data)
        numbers.end(self.chunks)

    async def _host(self) -> None:
        async with self.host, trio.open_nursery() as nursery:
            nursery.start_soon(self._watches)
            async with trio.open_nursery() as both:
                both.start_soon(self._sends)
                both.start_soon(self._receives)
            nursery.cancel_scope.cancel()

    async def _sends(self) -> None:
        for number in range(self.chunks):
            self._sent = number
            await self.host.send_all(number.to_bytes(WIDTH, sys.byteorder))
        await self.host.send_eof()

    async def _receives(self) -> None:
        while data := await self.host.receive_some():
            self._numbers.take(data)
        self._numbers.end(self.chunks)

    async def _watches(self) -> None:
        """Of the tasks; each thread does it for itself."""
        sent = received = -1
        while True:
            await trio.sleep(HANG)
            if sent == self._sent:
                self._lost(self.shared._rx, "the sending task", self.shared._rx.ring.fits(WIDTH))
            if received == self._numbers.next:
                self._lost(self.shared._tx, "the receiving task", bool(self.shared._tx.ring))
            sent, received = self._sent, self._numbers.next

    @staticmethod
    def _lost(lane: Lane, who: str, could_move: bool) -> None:
        """Raise the error for a side that has slept for long: if it had work, a wake-up was lost."""
        if could_move:
            raise Lost(f"{who} sleeps beside {lane.ring!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=5_000_000, help="each way")
    parser.add_argument("--capacity", type=int, nargs="+", default=[3, 2048], help="of each ring, in chunks")
    parser.add_argument("--max-bytes", type=int, default=1024 * 1024, help="of each ring")
    parser.add_argument("--bare", action="store_true", help="without the mutex")
    options = parser.parse_args()
    lock = "without the interpreter lock" if FREE_THREADED else "with the interpreter lock"
    print(f"Python {platform.python_version()}, {lock}{', no mutex' if options.bare else ''}")
    for capacity in options.capacity:
        stress = Stress(options.chunks, capacity, options.max_bytes, bare=options.bare)
        start = time.perf_counter()
        stress.run()
        seconds = time.perf_counter() - start
        wakes = ", ".join(f"{lane.ring.wakes:,}" for lane in (stress.shared._tx, stress.shared._rx))
        print(
            f"rings of {capacity} chunks and {options.max_bytes:,} bytes: {options.chunks:,} chunks each way, in "
            f"order, none lost; {seconds:.0f} s; wake-ups up and down: {wakes}",
            flush=True,
        )


if __name__ == "__main__":
    main()
