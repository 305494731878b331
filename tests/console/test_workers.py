"""The workers' loops at the moments at which the host leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from trio_console import _workers
from trio_console._console import ConsoleSharedState, Lane
from trio_console._ring import ChunkRing

if TYPE_CHECKING:
    import pytest


@final
class _Returns:
    """A device that returns these chunks, whatever it is asked for, and then the end."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = iter(chunks)

    def read(self, max_bytes: int) -> bytes:
        return next(self._chunks, b"")

    def write(self, data: memoryview) -> int:
        return len(data)

    def close_write(self) -> None: ...

    def close(self) -> None: ...


def _counts(lane: Lane) -> tuple[int, int, int]:
    now = lane.statistics()
    return now.bytes_in, now.bytes_out, now.bytes_dropped


def test_what_waits_for_room_when_the_host_leaves_is_counted_as_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    kib = 1024
    lane = ConsoleSharedState(8, 256 * kib).tx
    monkeypatch.setattr(_workers, "wait_for_room", lambda lane, _size: lane.abandon())
    lane.ring.push(bytes(100 * kib))
    _workers.pump_from_device(_Returns(bytes(200 * kib)), lane)  # more than there is room
    assert _counts(lane) == (300 * kib, 0, 300 * kib)


def test_what_is_read_when_the_host_leaves_is_counted_as_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = ConsoleSharedState(1, 100).tx
    offer = ChunkRing.offer

    def leave_and_offer(ring: ChunkRing, chunk: bytes) -> int:
        lane.abandon()
        return offer(ring, chunk)

    monkeypatch.setattr(ChunkRing, "offer", leave_and_offer)
    _workers.pump_from_device(_Returns(bytes(100)), lane)
    assert _counts(lane) == (100, 0, 100)
