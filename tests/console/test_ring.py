"""The ring: it is bounded in chunks and in bytes, passes chunks by reference, and wakes only when needed."""

from __future__ import annotations

import random
import threading
import zlib
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.tools.limits import HANG
from trio_console._console import ring as _ring
from trio_console._console.backend import Lane, wait_for_room
from trio_console._console.ring import DEFAULT_CAPACITY, DEFAULT_MAX_BYTES, ChunkRing, LaneRing

if TYPE_CHECKING:
    from collections.abc import Callable


class CountingWake:
    """Stands for a wake pipe, and counts the rings, which would be system calls."""

    def __init__(self) -> None:
        self.calls = 0

    def wake(self) -> None:
        self.calls += 1


def make(capacity: int = 8, max_bytes: int = 100) -> tuple[LaneRing, CountingWake, CountingWake]:
    data, room = CountingWake(), CountingWake()
    ring = LaneRing(capacity, max_bytes, data_wake=data, room_wake=room)  # type: ignore[arg-type]
    ring.disarm_data()
    return ring, data, room


def drain(ring: LaneRing) -> bytes:
    parts = []
    while (chunk := ring.pop()) is not None:
        parts.append(chunk)
    return b"".join(parts)


# Bounds


def test_the_defaults_are_bounded_in_chunks_and_bytes() -> None:
    ring = ChunkRing()
    assert (ring.capacity, ring.max_bytes) == (DEFAULT_CAPACITY, DEFAULT_MAX_BYTES)


@pytest.mark.parametrize("bounds", [(0, 1), (1, 0), (-1, 1), (1, -1)])
def test_a_bound_below_one_is_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ChunkRing(*bounds)


@pytest.mark.parametrize("capacity", [1, 2, 3, 16])
def test_it_takes_as_many_chunks_as_its_capacity_and_no_more(capacity: int) -> None:
    ring = ChunkRing(capacity, 1000)
    for _ in range(capacity):
        ring.push(b"x")
    with pytest.raises(BlockingIOError):
        ring.push(b"x")
    assert len(ring) == capacity
    assert ring.pop() == b"x"
    ring.push(b"x")


@pytest.mark.parametrize(("size", "taken"), [(39, True), (40, True), (41, False)])
def test_it_takes_bytes_up_to_its_budget_and_no_more(size: int, taken: bool) -> None:
    ring = LaneRing(10, 100)
    ring.push(bytes(50))
    ring.push(bytes(10))
    assert ring.fits(size) is taken
    assert ring.offer(bytes(size)) == (size if taken else 0)
    assert ring.nbytes == 60 + size * taken


def test_what_fits_behind_a_large_chunk_is_no_promise_to_smaller_ones() -> None:
    ring = LaneRing(3, 100)
    ring.push(bytes(30))
    taken = [ring.offer(b"x") for _ in range(10)]
    assert taken == [1, 1] + 8 * [0]


@pytest.mark.parametrize("size", [99, 100, 101, 100_000])
def test_a_chunk_of_any_size_is_admitted_into_an_empty_ring(size: int) -> None:
    ring = ChunkRing(10, 100)
    ring.push(bytes(size))
    assert ring.nbytes == size
    assert ring.pop() == bytes(size)
    ring.push(bytes(size))


def test_a_chunk_larger_than_the_budget_is_refused_while_one_byte_is_queued() -> None:
    ring = ChunkRing(10, 100)
    ring.push(b"x")
    with pytest.raises(BlockingIOError):
        ring.push(bytes(101))
    assert ring.nbytes == 1


def test_nothing_follows_a_chunk_larger_than_the_budget() -> None:
    ring = ChunkRing(10, 100)
    ring.push(bytes(101))
    with pytest.raises(BlockingIOError):
        ring.push(b"x")


def test_a_refused_chunk_leaves_no_trace() -> None:
    ring = LaneRing(1, 100)
    ring.push(b"first")
    with pytest.raises(BlockingIOError):
        ring.push(b"second")
    assert (len(ring), ring.nbytes, ring.total_bytes) == (1, 5, 5)
    assert drain(ring) == b"first"


def test_a_chunk_taken_in_part_still_fills_its_place() -> None:
    ring = LaneRing(1, 100)
    ring.push(b"abcdef")
    assert ring.take(2) == b"ab"
    assert (len(ring), ring.nbytes) == (1, 4)
    assert not ring.fits(1)


def test_what_was_taken_of_a_chunk_makes_room_for_bytes() -> None:
    ring = LaneRing(4, 10)
    ring.push(bytes(10))
    ring.take(3)
    assert ring.fits(3)
    assert not ring.fits(4)


# Chunks


def test_an_empty_ring_has_nothing_to_give() -> None:
    ring = LaneRing()
    assert ring.pop() is None
    assert ring.take(10) == b""
    assert ring.take(10, fill=True) == b""
    assert ring.readinto(memoryview(bytearray(10))) == 0
    assert not ring


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b""), memoryview(b"abc")[1:1]])
def test_an_empty_chunk_is_never_stored(empty: Any) -> None:
    ring = ChunkRing()
    ring.push(empty)
    assert (len(ring), ring.nbytes) == (0, 0)
    assert ring.pop() is None


@pytest.mark.parametrize("empty", [b"", bytearray()])
def test_an_empty_chunk_needs_no_room(empty: Any) -> None:
    ring = ChunkRing(1, 1)
    ring.push(b"x")
    ring.push(empty)
    assert len(ring) == 1


def test_bytes_are_kept_by_reference() -> None:
    chunk = bytes(range(50))
    ring = ChunkRing()
    ring.push(chunk)
    assert ring.pop() is chunk


@pytest.mark.parametrize("fill", [False, True])
def test_a_lone_chunk_that_fits_is_taken_by_reference(fill: bool) -> None:
    chunk = bytes(range(50))
    ring = LaneRing()
    ring.push(chunk)
    assert ring.take(50, fill=fill) is chunk


def test_a_chunk_is_taken_by_reference_when_the_next_does_not_fit_beside_it() -> None:
    chunk = bytes(range(50))
    ring = LaneRing()
    ring.push(chunk)
    ring.push(b"x")
    assert ring.take(50) is chunk


class Subclass(bytes):
    pass


@pytest.mark.parametrize("kind", [bytearray, memoryview, Subclass, lambda data: memoryview(bytearray(data))])
def test_anything_but_bytes_is_copied_at_once(kind: Callable[[bytes], Any]) -> None:
    chunk = kind(b"before")
    ring = ChunkRing()
    ring.push(chunk)
    if isinstance(chunk, bytearray) or (isinstance(chunk, memoryview) and not chunk.readonly):
        chunk[:] = b"after!"
    taken = ring.pop()
    assert type(taken) is bytes
    assert taken == b"before"


def test_a_view_of_wider_items_counts_in_bytes() -> None:
    ring = LaneRing(4, 8)
    ring.push(memoryview(bytes(8)).cast("I"))
    assert ring.nbytes == 8
    assert not ring.fits(1)


def test_a_view_with_gaps_is_copied_as_its_bytes() -> None:
    ring = ChunkRing()
    ring.push(memoryview(b"a-b-c-")[::2])
    assert (ring.nbytes, ring.pop()) == (3, b"abc")


@pytest.mark.parametrize("wrong", ["text", 3, None, [1]])
def test_what_is_not_bytes_like_is_refused(wrong: Any) -> None:
    ring = ChunkRing()
    with pytest.raises(TypeError):
        ring.push(wrong)
    assert ring.nbytes == 0


def test_a_chunk_that_cannot_be_copied_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMemory(bytes):
        def __new__(cls, _source: object) -> Self:
            raise MemoryError

    ring = LaneRing(4, 10)
    monkeypatch.setattr(_ring, "bytes", NoMemory, raising=False)
    with pytest.raises(MemoryError):
        ring.push(bytearray(10))
    assert (len(ring), ring.nbytes, ring.total_bytes) == (0, 0, 0)
    assert ring.fits(10)


def test_it_prints_what_it_holds() -> None:
    ring = ChunkRing(4, 10)
    ring.push(b"abc")
    assert repr(ring) == "<ChunkRing 1/4 chunks, 3/10 bytes>"


# Taking


def filled(*chunks: bytes) -> LaneRing:
    ring = LaneRing(100, 10_000)
    for chunk in chunks:
        ring.push(chunk)
    return ring


@pytest.mark.parametrize(
    ("limit", "fill", "expected"),
    [
        (1, False, [b"a", b"b", b"c", b"d", b"e"]),
        (3, False, [b"abc", b"d", b"efg", b"hi", b""]),
        (4, False, [b"abcd", b"efgh", b"i", b""]),
        (5, False, [b"abcd", b"efghi", b""]),
        (9, False, [b"abcdefghi", b""]),
        (1, True, [b"a", b"b", b"c", b"d", b"e"]),
        (2, True, [b"ab", b"cd", b"ef", b"gh", b"i", b""]),
        (5, True, [b"abcde", b"fghi", b""]),
        (9, True, [b"abcdefghi", b""]),
        (100, True, [b"abcdefghi", b""]),
    ],
)
def test_take_joins_small_chunks_and_splits_only_to_fill(limit: int, fill: bool, expected: list[bytes]) -> None:
    ring = filled(b"abc", b"d", b"efgh", b"i")
    assert [ring.take(limit, fill=fill) for _ in expected] == expected


def test_a_chunk_larger_than_the_limit_is_split() -> None:
    ring = filled(b"abcdef", b"g")
    assert [ring.take(4), ring.take(4), ring.take(4)] == [b"abcd", b"efg", b""]


def test_the_ways_of_taking_can_be_mixed_in_the_middle_of_a_chunk() -> None:
    ring = filled(b"abcdef", b"ghi")
    assert ring.take(1) == b"a"
    buffer = bytearray(2)
    assert ring.readinto(memoryview(buffer)) == 2
    assert buffer == b"bc"
    assert ring.pop() == b"def"
    assert ring.take(2, fill=True) == b"gh"
    assert ring.pop() == b"i"
    assert (len(ring), ring.nbytes) == (0, 0)


@pytest.mark.parametrize(("size", "expected"), [(1, b"a"), (3, b"abc"), (4, b"abcd"), (5, b"abcd")])
def test_readinto_fills_the_buffer_across_chunks(size: int, expected: bytes) -> None:
    ring = filled(b"ab", b"c", b"d")
    buffer = bytearray(size)
    assert ring.readinto(memoryview(buffer)) == len(expected)
    assert bytes(buffer[: len(expected)]) == expected
    assert drain(ring) == b"abcd"[len(expected) :]


# Wake-ups


def test_a_push_rings_only_an_armed_consumer_and_only_once() -> None:
    ring, data, _ = make()
    ring.push(b"x")
    assert data.calls == 0
    assert ring.pop() == b"x"
    assert ring.arm_data()
    ring.push(b"x")
    ring.push(b"x")
    assert data.calls == 1


def test_a_consumer_that_has_never_looked_counts_as_asleep() -> None:
    data = CountingWake()
    ring = LaneRing(data_wake=data)  # type: ignore[arg-type]
    ring.push(b"x")
    ring.push(b"x")
    assert data.calls == 1


def test_an_empty_chunk_rings_nobody() -> None:
    ring, data, _ = make()
    ring.arm_data()
    ring.push(b"")
    assert data.calls == 0


def test_a_refused_push_rings_nobody() -> None:
    ring, data, _ = make(capacity=1)
    ring.push(b"x")
    ring._data_armed = True
    assert not ring.offer(b"y")
    assert data.calls == 0


def test_arming_is_refused_while_there_is_something_to_take() -> None:
    ring, data, _ = make()
    ring.push(b"x")
    assert not ring.arm_data()
    ring.push(b"x")
    assert data.calls == 0


def test_a_disarmed_consumer_is_not_rung() -> None:
    ring, data, _ = make()
    ring.arm_data()
    ring.disarm_data()
    ring.push(b"x")
    assert data.calls == 0


def test_arming_for_room_is_refused_while_there_is_room() -> None:
    ring, _, room = make(max_bytes=10)
    ring.push(bytes(6))
    assert not ring.arm_room(4)
    drain(ring)
    assert room.calls == 0


def test_a_disarmed_producer_is_not_rung() -> None:
    ring, _, room = make(max_bytes=10)
    ring.push(bytes(10))
    ring.arm_room(1)
    ring.disarm_room()
    drain(ring)
    assert room.calls == 0


def test_pop_rings_a_producer_as_soon_as_its_chunk_fits() -> None:
    ring, _, room = make(max_bytes=10)
    for _ in range(5):
        ring.push(bytes(2))
    ring.arm_room(4)
    ring.pop()
    assert room.calls == 0
    ring.pop()
    assert room.calls == 1
    ring.pop()
    assert room.calls == 1


def taker(ring: LaneRing) -> None:
    ring.take(1)


def reader(ring: LaneRing) -> None:
    ring.readinto(memoryview(bytearray(1)))


@pytest.mark.parametrize("take_one", [taker, reader])
def test_a_streaming_consumer_rings_a_producer_only_once_the_ring_is_half_empty(
    take_one: Callable[[LaneRing], None],
) -> None:
    ring, _, room = make(capacity=100, max_bytes=10)
    for _ in range(10):
        ring.push(b"x")
    ring.arm_room(1)
    for _ in range(4):
        take_one(ring)
    assert (ring.nbytes, room.calls) == (6, 0)
    take_one(ring)
    assert (ring.nbytes, room.calls) == (5, 1)


@pytest.mark.parametrize("take_one", [taker, reader])
def test_half_empty_counts_chunks_too(take_one: Callable[[LaneRing], None]) -> None:
    ring, _, room = make(capacity=4, max_bytes=1000)
    for _ in range(4):
        ring.push(b"x")
    ring.arm_room(1)
    take_one(ring)
    assert room.calls == 0
    take_one(ring)
    assert room.calls == 1


def test_a_half_empty_ring_does_not_ring_a_producer_whose_chunk_still_does_not_fit() -> None:
    ring, _, room = make(max_bytes=10)
    ring.push(bytes(6))
    ring.push(bytes(4))
    ring.arm_room(8)
    ring.take(6)
    assert room.calls == 0
    ring.take(4)
    assert room.calls == 1


@pytest.mark.parametrize("capacity", [1, 2, 3])
@pytest.mark.parametrize("max_bytes", [1, 2, 3])
def test_an_emptied_ring_always_rings_an_armed_producer(capacity: int, max_bytes: int) -> None:
    ring, _, room = make(capacity, max_bytes)
    while ring.offer(b"x"):
        pass
    assert ring.arm_room(1000)
    while ring:
        ring.take(1)
    assert room.calls == 1


def test_a_producer_is_rung_once_per_arming() -> None:
    ring, _, room = make(max_bytes=2)
    for rounds in (1, 2):
        ring.push(bytes(2))
        ring.arm_room(1)
        ring.take(1)
        ring.take(1)
        assert room.calls == rounds
        assert ring.wakes == rounds


# Two threads


@pytest.mark.usefixtures("hasty_interpreter")
@pytest.mark.parametrize("way", ["pop", "take", "fill", "readinto", "mixed"])
@pytest.mark.parametrize(("capacity", "max_bytes", "chunks"), [(2, 50, 2_000), (2048, 65_536, 20_000)])
def test_two_threads_pass_every_byte_in_order(way: str, capacity: int, max_bytes: int, chunks: int) -> None:
    lane = Lane(capacity, max_bytes)
    ring = lane.ring
    rng = random.Random(way)
    pool = [rng.randbytes(rng.choice((1, 2, 7, 20, 49, 50, 51, 300))) for _ in range(64)]
    order = [rng.randrange(64) for _ in range(chunks)]
    failures: list[BaseException] = []

    def produce() -> None:
        try:
            for index in order:
                while not ring.offer(pool[index]):
                    wait_for_room(lane, len(pool[index]))
            lane.finish()
        except Exception as exc:
            failures.append(exc)
            lane.finish()

    producer = threading.Thread(target=produce)
    producer.start()
    checksum = received = 0
    taking = consumer(ring, way)
    while True:
        finished = lane.finished
        data = taking()
        if data:
            checksum = zlib.crc32(data, checksum)
            received += len(data)
        elif finished:
            break
        else:
            if ring.arm_data() and not lane.finished:
                assert lane.data_wake.wait(HANG), "lost wake-up"
            ring.disarm_data()
            lane.data_wake.drain()
    producer.join(HANG)
    assert not producer.is_alive()
    assert not failures
    expected = 0
    for index in order:
        expected = zlib.crc32(pool[index], expected)
    assert checksum == expected
    assert received == ring.total_bytes == sum(len(pool[index]) for index in order)
    assert (len(ring), ring.nbytes) == (0, 0)


def consumer(ring: LaneRing, way: str) -> Callable[[], bytes]:
    buffer = bytearray(77)

    def readinto() -> bytes:
        return bytes(buffer[: ring.readinto(memoryview(buffer))])

    ways: dict[str, Callable[[], bytes]] = {
        "pop": lambda: ring.pop() or b"",
        "take": lambda: ring.take(77),
        "fill": lambda: ring.take(77, fill=True),
        "readinto": readinto,
    }
    if way != "mixed":
        return ways[way]
    rng = random.Random(0)
    choices = list(ways.values())
    return lambda: rng.choice(choices)()


def test_take_keeps_to_its_limit_where_the_first_chunk_was_taken_in_part() -> None:
    ring = LaneRing()
    for chunk in (b"a" * 10, b"b" * 4, b"c" * 5):
        ring.push(chunk)
    assert ring.take(5) == b"a" * 5
    assert ring.take(10) == b"a" * 5 + b"b" * 4
