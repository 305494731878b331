"""The workers' loops at the moments at which the host goes."""

from __future__ import annotations

from typing import Any, final

import pytest

from trio_console._console import workers as _workers
from trio_console._console.backend import ConsoleSharedState, Lane
from trio_console._console.ring import LaneRing


@final
class _Returns:
    """A device that returns these chunks, whatever size is asked for, and then end of file."""

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
    lane = ConsoleSharedState(8, 256 * kib)._tx
    monkeypatch.setattr(_workers, "wait_for_room", lambda lane, _size: lane.abandon())
    lane.ring.push(bytes(100 * kib))
    _workers.pump_from_device(_Returns(bytes(200 * kib)), lane)  # more than there is room
    assert _counts(lane) == (300 * kib, 0, 300 * kib)


def test_what_is_read_when_the_host_leaves_is_counted_as_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = ConsoleSharedState(1, 100)._tx
    offer = LaneRing.offer

    def leave_and_offer(ring: LaneRing, chunk: bytes) -> int:
        lane.abandon()
        return offer(ring, chunk)

    monkeypatch.setattr(LaneRing, "offer", leave_and_offer)
    _workers.pump_from_device(_Returns(bytes(100)), lane)
    assert _counts(lane) == (100, 0, 100)


# Results that a device must not return


@final
class _Answers:
    """A device whose calls return the given results, and after them ordinary ones."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.written = b""

    def __repr__(self) -> str:
        return "<the odd device>"

    def read(self, max_bytes: int) -> Any:
        return self._answers.pop(0) if self._answers else b""

    def write(self, data: memoryview) -> Any:
        answer = self._answers.pop(0) if self._answers else len(data)
        self.written += data[:answer] if type(answer) is int and answer > 0 else b""
        return answer

    def close_write(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("answer", "error", "delivered"),
    [
        (-1, ValueError, 20),
        (-(2**70), ValueError, 20),
        (31, ValueError, 50),
        (None, TypeError, 50),
        ("10", TypeError, 50),
        (10.0, TypeError, 50),
        (True, TypeError, 50),
    ],
)
def test_a_count_that_cannot_be_ends_the_direction_and_says_so(
    answer: Any, error: type[Exception], delivered: int
) -> None:
    lane = ConsoleSharedState()._rx
    lane.ring.push(bytes(50))
    lane.finish()
    device = _Answers(20, answer)
    _workers.pump_to_device(device, lane)
    assert lane.abandoned
    assert type(lane.cause) is error
    assert str(lane.cause).startswith("<the odd device>: write() returned ")
    assert f"{answer!r} for 30 bytes" in str(lane.cause)
    # Bytes given to a write that returned count as delivered, unless the write said that it had failed.
    assert _counts(lane) == (50, delivered, 50 - delivered)


@pytest.mark.parametrize("answer", [None, "text", "", 0, 5, ["x"], object])
def test_what_is_no_bytes_ends_the_direction_and_says_so(answer: Any) -> None:
    lane = ConsoleSharedState()._tx
    _workers.pump_from_device(_Answers(b"before", answer, b"never read"), lane)
    assert lane.finished
    assert type(lane.cause) is TypeError
    assert str(lane.cause).startswith("<the odd device>: read() returned ")
    assert lane.ring.pop() == b"before"
    assert lane.ring.pop() is None


@pytest.mark.parametrize("kind", [bytearray, memoryview, lambda data: memoryview(data).cast("H")])
def test_what_is_bytes_like_is_read(kind: Any) -> None:
    lane = ConsoleSharedState()._tx
    _workers.pump_from_device(_Answers(kind(b"abcd"), memoryview(b"a-b-")[::2]), lane)
    assert lane.cause is None
    assert lane.ring.take(100) == b"abcdab"


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_want_of_memory_for_what_was_read_is_the_cause_and_it_is_counted(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_ring: LaneRing, _chunk: bytes) -> int:
        raise MemoryError

    lane = ConsoleSharedState()._tx
    monkeypatch.setattr(LaneRing, "offer", no_memory)
    _workers.pump_from_device(_Answers(kind(b"abcd")), lane)
    assert isinstance(lane.cause, MemoryError)
    assert _counts(lane) == (4, 0, 4)


# Small rings


@pytest.mark.parametrize("size", [4, 100, 64 * 1024, 512 * 1024])
def test_a_ring_of_any_size_is_filled_while_it_is_read(size: int) -> None:
    lane = ConsoleSharedState(2048, size)._tx
    asked: list[int] = []
    queued: list[int] = []

    class Endless:
        def read(self, max_bytes: int) -> bytes:
            asked.append(max_bytes)
            queued.append(lane.ring.nbytes)
            if len(asked) == 4:
                lane.abandon()
                return b""
            return bytes(max_bytes)

    _workers.pump_from_device(Endless(), lane)  # type: ignore[arg-type]
    assert max(queued) == 3 * asked[0] >= size // 2 or asked[0] == 128 * 1024
