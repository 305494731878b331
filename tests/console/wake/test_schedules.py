"""A console under load: a device's threads at one end, tasks at the other, in as many schedules as time allows.

The stepper tries all schedules of a few steps; this tries random schedules of many steps. Bounds, sizes, stalls,
ways to read and write, and the moment and kind of the end are drawn from a seed. The schedule is the machine's
own, with an interpreter that changes threads as often as it can. Each direction carries a fixed sequence of bytes,
so every piece can be compared with the bytes that belong at its place, also when the end comes early.
"""

from __future__ import annotations

import random
import select
import threading
import time
import zlib
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.tools.conserved import conserved
from tests.tools.limits import HANG
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState
from trio_console._console.stream import ConsoleStream

if TYPE_CHECKING:
    from collections.abc import Callable

#: The stream repeats after a prime number of bytes, which no sum of whole chunks or slices is likely to be.
PATTERN: Final = random.Random("pattern").randbytes(131_071)
DOUBLE: Final = PATTERN * 2

#: How a round ends; most often when everything was passed on.
ENDINGS: Final = ("all", "all", "close", "drop", "guest goes", "guest fails")


class Way:
    """One direction: what has passed its sender, or its receiver, piece by piece."""

    def __init__(self) -> None:
        self.position = 0
        self.count = 0
        self.checksum = 0

    def next(self, size: int) -> bytes:
        start = self.position % len(PATTERN)
        return DOUBLE[start : start + size]

    def note(self, piece: bytes) -> None:
        assert piece == self.next(len(piece)), f"wrong bytes at {self.position}"
        self.position += len(piece)
        self.count += 1
        self.checksum = zlib.crc32(piece, self.checksum)


class Round:
    """Both directions of one console, until its end.

    Args:
        seed: of everything that is drawn.
        chunks: sent in each direction, if the end does not come before.
    """

    def __init__(self, seed: int, chunks: int) -> None:
        self.seed = seed
        rng = random.Random(seed)
        capacity = rng.choice((1, 2, 3, 8, 64, 2048))
        max_bytes = rng.choice((1, 2, 17, 64, 1000, 65_536))
        self.shared = ConsoleSharedState(capacity, max_bytes)
        self.backend = AgentConsoleBackend(self.shared)
        self.host = ConsoleStream(self.shared)
        self.chunks = chunks
        self.ending = rng.choice(ENDINGS)
        self.stalls = rng.choice((0.0, 0.001, 0.02))
        self.largest = min(rng.choice((1, 20, max_bytes, 2 * max_bytes + 1, 3000)), len(PATTERN))
        self.sent_tx, self.got_tx, self.sent_rx, self.got_rx = Way(), Way(), Way(), Way()
        #: Pieces that have been passed on when the early end comes.
        self.end_after = rng.randrange(chunks)
        self.failures: list[BaseException] = []

    def __str__(self) -> str:
        ring = self.shared.tx_ring
        return (
            f"capacity={ring.capacity} max_bytes={ring.max_bytes} largest={self.largest} stalls={self.stalls} "
            f"ending={self.ending!r} end_after={self.end_after} "
            f"tx={self.sent_tx.count}/{self.got_tx.count} rx={self.sent_rx.count}/{self.got_rx.count}"
        )

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._device_reads, self._device_writes)
        ]
        for thread in threads:
            thread.start()
        try:
            trio.run(self._host)
        finally:
            self.shared.host_gone()  # whatever has happened, the threads end now
            for thread in threads:
                thread.join(HANG)
            assert not any(thread.is_alive() for thread in threads), "a device's thread does not end"
        assert not self.failures, self.failures
        self._check()
        self.shared.close_wakes()

    # The device: two threads

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as exc:
            self.failures.append(exc)
            self.shared.guest_gone(exc)

    def _rng(self, who: str) -> random.Random:
        """A generator for one thread or task. A shared one would make the sizes depend on the threads' order."""
        return random.Random(f"{self.seed} {who}")

    def _size(self, rng: random.Random) -> int:
        """A size, mostly small, because many pieces make more schedules."""
        return rng.randint(1, self.largest if rng.random() < 0.1 else min(16, self.largest))

    def _stall(self, rng: random.Random) -> None:
        if rng.random() < self.stalls:
            time.sleep(rng.random() * 0.002)

    def _device_reads(self) -> None:
        rng = self._rng("reads")
        poller = select.poll()
        poller.register(self.backend.read_wake_fd(), select.POLLIN)
        buffer = bytearray(4096)
        while True:
            self._stall(rng)
            size = rng.choice((1, 7, 333, 4096))
            try:
                if rng.random() < 0.5:
                    data = self.backend.read(size)
                else:
                    data = bytes(buffer[: self.backend.readinto(memoryview(buffer)[:size])])
            except BlockingIOError:
                assert poller.poll(HANG * 1000), "lost wake-up: there is something to read"
                continue
            if not data:
                return
            self.got_rx.note(data)

    def _device_writes(self) -> None:
        rng = self._rng("writes")
        for number in range(self.chunks):
            if number == self.end_after and self.ending.startswith("guest"):
                self.shared.guest_gone(OSError("the device is broken") if "fails" in self.ending else None)
                return
            self._stall(rng)
            piece = self.sent_tx.next(self._size(rng))
            while True:
                try:
                    written = self.backend.write(rng.choice((bytes, bytearray, memoryview))(piece))
                except BlockingIOError:
                    timeout = rng.choice((None, HANG, 0.0001))
                    assert self.backend.wait_until_writable(timeout) or timeout == 0.0001, "lost wake-up: room"
                else:
                    break
            assert written == len(piece)
            self.sent_tx.note(piece)
        self.shared._tx.finish()

    # The host: two tasks

    async def _host(self) -> None:
        with trio.fail_after(HANG + self.chunks / 100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._host_receives)
                await self._host_sends()
            await self.host.aclose()

    async def _pause(self, rng: random.Random) -> None:
        if rng.random() < self.stalls:
            await trio.sleep(rng.random() * 0.002)

    async def _host_sends(self) -> None:
        rng = self._rng("sends")
        try:
            for number in range(self.chunks):
                if number == self.end_after and self.ending in ("close", "drop"):
                    with trio.CancelScope() as scope:
                        if self.ending == "drop":
                            scope.cancel()
                        await self.host.aclose()
                    return
                await self._pause(rng)
                piece = self.sent_rx.next(self._size(rng))
                await self.host.send_all(rng.choice((bytes, bytearray, memoryview))(piece))
                self.sent_rx.note(piece)
            await self.host.send_eof()
        except trio.BrokenResourceError:
            assert self.ending.startswith("guest")

    async def _host_receives(self) -> None:
        rng = self._rng("receives")
        try:
            while data := await self.host.receive_some(rng.choice((None, 1, 7, 333, 65_536))):
                self.got_tx.note(data)
                await self._pause(rng)
            assert self.ending != "guest fails"
        except trio.ClosedResourceError:
            assert self.ending in ("close", "drop")
        except trio.BrokenResourceError as exc:
            if self.ending != "guest fails" or str(exc.__cause__) != "the device is broken":
                raise

    # Afterwards

    def _check(self) -> None:
        now = self.host.statistics()
        for lane in (now.tx, now.rx):
            assert conserved(lane)
        assert now.tx.bytes_in == self.sent_tx.position
        assert now.tx.bytes_out == self.got_tx.position
        assert now.rx.bytes_out == self.got_rx.position
        # A send that its end has interrupted may have queued a part.
        assert self.sent_rx.position <= now.rx.bytes_in
        if self.ending == "all":
            assert now.rx.bytes_in == self.sent_rx.position
        if self.ending in ("all", "guest goes", "guest fails"):
            self._same(self.sent_tx, self.got_tx)
        if self.ending in ("all", "close"):
            assert now.rx.bytes_dropped == 0
            self._same(self.sent_rx, self.got_rx)

    def _same(self, sent: Way, got: Way) -> None:
        assert (got.position, got.checksum) == (sent.position, sent.checksum)


def run_rounds(chunks: int, first_seed: int, *, per_round: int) -> None:
    """Play rounds until so many chunks were passed on in total."""
    passed, seed = 0, first_seed
    while passed < chunks:
        round_ = Round(seed, per_round)
        try:
            round_.run()
        except BaseException as exc:
            exc.add_note(f"Again: run_rounds(1, {seed}, per_round={per_round}), which was {round_}")
            raise
        passed += round_.sent_tx.count + round_.sent_rx.count + 1
        seed += 1


def test_no_byte_is_lost_in_some_schedules() -> None:
    run_rounds(20_000, 0, per_round=300)


@pytest.mark.nightly
def test_no_byte_is_lost_in_many_schedules() -> None:
    run_rounds(250_000, 1_000, per_round=300)
    run_rounds(750_000, 100_000, per_round=20_000)


pytestmark = pytest.mark.usefixtures("hasty_interpreter")
