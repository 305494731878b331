"""Many chunks in one call, and one chunk at once or not at all."""

from __future__ import annotations

from itertools import accumulate, count
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.console.stream.stream_pair import pair
from tests.tools.streams import fill, receive_all
from trio_console._buffers import joined

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNKS = st.lists(st.binary(max_size=40), max_size=30)

KINDS: list[Any] = [list, tuple, iter]


# Joining


@pytest.mark.parametrize("kind", KINDS)
@given(chunks=CHUNKS, limit=st.integers(1, 60))
def test_joined_chunks_are_the_same_bytes_within_the_limit(kind: Any, chunks: list[bytes], limit: int) -> None:
    got = list(joined(kind(chunks), limit))
    assert b"".join(got) == b"".join(chunks)
    assert all(len(one) <= limit or any(one is chunk for chunk in chunks) for one in got)
    ends = list(accumulate(map(len, chunks)))
    assert all(end in ends for end in accumulate(map(len, got))), "each chunk is in one of them"


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_joined_as_far_as_they_fit(kind: Any) -> None:
    assert list(joined(kind([b"ab"] * 6), 4)) == [b"abab"] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_chunk_is_passed_on_by_reference(kind: Any) -> None:
    chunk = bytes(range(9))
    [got] = joined(kind([b"", chunk, b""]), 5)
    assert got is chunk


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_all_sizes_and_kinds_are_joined(kind: Any) -> None:
    chunks = [b"a", bytearray(b"bc"), memoryview(b"d-e-")[::2], b"f" * 50, b"", b"g"]
    assert list(joined(kind(chunks), 10)) == [b"abcde", b"f" * 50, b"g"]


def test_an_iterator_is_asked_for_one_chunk_more_than_is_joined() -> None:
    taken = []

    def chunks() -> Iterator[bytes]:
        for number in range(10):
            taken.append(number)
            yield b"xx"

    assert next(joined(chunks(), 6)) == b"xxxxxx"
    assert taken == [0, 1, 2, 3]


# Many chunks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 16, 99, 100, 101, 70_000])
async def test_all_chunks_arrive_in_order_whatever_their_size(kind: Any, size: int) -> None:
    chunks = [bytes([number]) * size for number in range(50)]
    async with pair(max_bytes=100) as (host, guest), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _sends() -> None:
            await host.send_pieces(kind(chunks))
            await host.send_eof()

        assert await receive_all(guest) == b"".join(chunks)


async def test_small_chunks_take_one_place_in_the_ring() -> None:
    async with pair(capacity=1) as (host, guest):
        await host.send_pieces([b"x"] * 1000)
        assert await guest.receive_some() == b"x" * 1000


async def test_a_large_chunk_passes_by_reference() -> None:
    chunk = bytes(100_000)
    async with pair() as (host, guest):
        await host.send_pieces([chunk])
        assert await guest.receive_some() is chunk


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    max_bytes=st.integers(1, 20),
    taken=st.integers(0, 6),
)
def test_a_cancelled_call_has_queued_the_first_chunks_and_each_of_them_whole(
    sizes: list[int], max_bytes: int, taken: int
) -> None:
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)]

    async def main() -> bytes:
        got = b""
        async with pair(max_bytes=max_bytes) as (host, guest):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.send_pieces, chunks)
                for _ in range(taken):
                    await trio.testing.wait_all_tasks_blocked()
                    with trio.move_on_after(0):
                        got += await guest.receive_some()
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            await host.send_eof()
            return got + await receive_all(guest)

    got = trio.run(main)
    assert got in [b"".join(chunks[:count]) for count in range(len(chunks) + 1)]


async def test_no_chunks_are_a_checkpoint() -> None:
    async with pair() as (host, _):
        with trio.testing.assert_checkpoints():
            await host.send_pieces([])


async def turns_of_others(monkeypatch: pytest.MonkeyPatch, seconds: float) -> int:
    """How often another task runs while 49 slices of small chunks are sent, by a clock that runs by looks."""
    looks = count()
    monkeypatch.setattr("trio_console._trio.turns.perf_counter", lambda: next(looks) * seconds)
    async with pair(max_bytes=2**24, capacity=2**16) as (host, _):
        ran = 0

        async def run() -> None:
            nonlocal ran
            while True:
                ran += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await host.send_pieces([bytes(16)] * 200_000)
            nursery.cancel_scope.cancel()
        return ran


async def test_other_tasks_run_while_many_chunks_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await turns_of_others(monkeypatch, 0.001) >= 48


async def test_chunks_that_take_no_time_are_sent_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await turns_of_others(monkeypatch, 0) <= 2


async def test_an_iterable_that_raises_leaves_what_came_before() -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(60_000)
        yield bytes(60_000)
        raise ValueError("no more")

    async with pair() as (host, guest):
        with pytest.raises(ValueError, match="no more"):
            await host.send_pieces(chunks())
        assert len(await guest.receive_some()) == 60_000


async def test_what_is_no_bytes_is_a_type_error_and_the_stream_goes_on() -> None:
    async with pair() as (host, guest):
        for wrong in ("text", 3, None):
            with pytest.raises(TypeError):
                await host.send_pieces([wrong])  # type: ignore[list-item]
            with pytest.raises(TypeError):
                host.send_nowait(wrong)  # type: ignore[arg-type]
        await host.send_pieces([b"x"])
        assert await guest.receive_some() == b"x"


# One chunk, at once


async def test_a_chunk_that_fits_is_queued_at_once() -> None:
    async with pair() as (host, guest):
        chunk = bytes(100)
        with trio.testing.assert_no_checkpoints():
            host.send_nowait(chunk)
            host.send_nowait(b"")
        assert await guest.receive_some() is chunk


@pytest.mark.parametrize("limits", [{"capacity": 3}, {"max_bytes": 3}])
async def test_a_chunk_that_does_not_fit_would_block(limits: dict[str, int]) -> None:
    async with pair(**limits) as (host, guest):
        assert await fill(host) == 3
        with pytest.raises(trio.WouldBlock):
            host.send_nowait(b"y")
        assert await guest.receive_some() == b"xxx"
        host.send_nowait(b"y")
        assert await guest.receive_some() == b"y"


async def test_a_chunk_larger_than_the_ring_fits_into_an_empty_one() -> None:
    async with pair(max_bytes=10) as (host, guest):
        host.send_nowait(bytes(100))
        with pytest.raises(trio.WouldBlock):
            host.send_nowait(b"x")
        assert await guest.receive_some() == bytes(100)


async def test_nobody_else_sends_beside_a_task_that_waits_for_room() -> None:
    async with pair(capacity=1) as (host, _):
        host.send_nowait(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.send_pieces, [b"y"])
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                host.send_nowait(b"z")
            with pytest.raises(trio.BusyResourceError):
                await host.send_pieces([b"z"])
            nursery.cancel_scope.cancel()


async def test_after_an_end_both_say_which() -> None:
    async with pair() as (host, guest):
        await guest.aclose()
        with pytest.raises(trio.BrokenResourceError):
            host.send_nowait(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await host.send_pieces([b"x"])
        await host.aclose()
        with pytest.raises(trio.ClosedResourceError):
            host.send_nowait(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await host.send_pieces([b"x"])


async def test_a_call_that_waits_is_told_of_the_end() -> None:
    async with pair(capacity=1) as (host, guest):
        host.send_nowait(b"x")
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _sends() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await host.send_pieces([b"y"])

            await trio.testing.wait_all_tasks_blocked()
            await guest.aclose()
