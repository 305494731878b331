"""A ring when there is not enough memory: no byte in it is lost, and a device's thread gets no `MemoryError`.

Each test chooses the allocation that fails: a slice, a join, a copy or an append.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Self

import pytest

from trio_console._console import ring as _ring
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState
from trio_console._console.ring import LaneRing
from trio_console._console.stream import ConsoleStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Memory:
    """Fails the allocation with this number, counted from 1."""

    def __init__(self) -> None:
        self.left = 0

    def allocate(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise MemoryError


MEMORY = Memory()


class Chunk(bytes):
    """Bytes whose slices fail when there is no memory."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            MEMORY.allocate()
        return super().__getitem__(key)


class Chunks(deque[Any]):
    """A deque whose copy and append fail when there is no memory."""

    def __init__(self, chunks: Any = (), maxlen: int | None = None) -> None:
        MEMORY.allocate()
        super().__init__(chunks, maxlen)

    def append(self, chunk: Any) -> None:
        MEMORY.allocate()
        super().append(chunk)

    def __iter__(self) -> Iterator[Any]:
        MEMORY.allocate()  # of what is joined
        return super().__iter__()

    def copy(self) -> Self:
        MEMORY.allocate()
        return super().copy()


class View:
    """`memoryview`, for a ring."""

    def __init__(self, data: Any) -> None:
        self._view = memoryview(data)

    def __getitem__(self, key: slice) -> memoryview:
        MEMORY.allocate()
        return self._view[key]


@pytest.fixture(autouse=True)
def _memory_is_scarce(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    MEMORY.left = 0
    monkeypatch.setattr(_ring, "deque", Chunks)
    monkeypatch.setattr(_ring, "memoryview", View, raising=False)
    yield
    MEMORY.left = 0


def fill(ring: LaneRing) -> bytes:
    """Several chunks, of which the first was taken in part."""
    for chunk in (b"abcdef", b"gh", b"ijklm", b"n", b"opqrstuvw"):
        ring.offer(b"")
        ring._pushed += len(chunk)
        ring._chunks.append(Chunk(chunk))
    assert ring.take(2) == b"ab"
    return b"cdefghijklmnopqrstuvw"


def read_into(ring: LaneRing, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: ring.readinto(memoryview(buffer))])


WAYS: list[Callable[[LaneRing], bytes]] = [
    lambda ring: ring.pop() or b"",
    lambda ring: ring.take(1),
    lambda ring: ring.take(9),
    lambda ring: ring.take(9, fill=True),
    lambda ring: ring.take(100),
    lambda ring: ring.take(100, fill=True),
    lambda ring: ring.take_whole(3),
    lambda ring: ring.take_whole(100),
    lambda ring: read_into(ring, 1),
    lambda ring: read_into(ring, 9),
    lambda ring: read_into(ring, 100),
]


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_what_could_not_be_taken_for_want_of_memory_is_still_there(way: int) -> None:
    failed = 0
    for number in range(1, 20):
        ring = LaneRing(100, 1000)
        data = fill(ring)
        MEMORY.left = number
        try:
            first = WAYS[way](ring)
        except MemoryError:
            failed += 1
            first = b""
            assert (ring.nbytes, len(ring)) == (len(data), 5)
        MEMORY.left = 0
        assert ring.nbytes == len(data) - len(first)
        rest = b""
        while piece := ring.take(4):
            rest += piece
        assert first + rest == data
        assert (ring.nbytes, len(ring)) == (0, 0)
    assert failed


def test_a_chunk_that_cannot_be_stored_is_not_counted() -> None:
    ring = LaneRing(4, 10)
    MEMORY.left = 1
    with pytest.raises(MemoryError):
        ring.push(b"abc")
    assert (len(ring), ring.nbytes, ring.total_bytes) == (0, 0, 0)
    ring.push(bytes(10))


@pytest.mark.parametrize(
    "read", [lambda backend: backend.read(100), lambda backend: backend.readinto(bytearray(100)) and b"?"]
)
def test_a_device_that_reads_gets_no_exception_and_the_channel_fails(read: Any) -> None:
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    data = fill(shared.rx_ring)
    MEMORY.left = 1
    assert not read(backend)
    MEMORY.left = 0
    assert not read(backend)
    for lane in (shared._rx, shared._tx):
        assert isinstance(lane.cause, MemoryError)
    now = shared._rx.statistics()
    assert (now.bytes_in, now.bytes_out, now.bytes_dropped) == (len(data) + 2, 2, len(data))
    assert now.abandoned


def test_a_device_that_writes_gets_no_exception_and_the_channel_fails() -> None:
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    MEMORY.left = 1
    assert backend.write(b"abc") == 3
    now = shared._tx.statistics()
    assert (now.bytes_in, now.bytes_out, now.bytes_dropped) == (3, 0, 3)
    assert isinstance(shared._tx.cause, MemoryError)


async def test_a_task_that_receives_gets_the_error_and_the_bytes_the_next_time() -> None:
    shared = ConsoleSharedState()
    stream = ConsoleStream(shared)
    data = fill(shared.tx_ring)
    MEMORY.left = 1
    with pytest.raises(MemoryError):
        await stream.receive_some()
    MEMORY.left = 0
    assert await stream.receive_some() == data
    await stream.aclose()
    shared.close_wakes()
