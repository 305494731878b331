"""The inflow of a session: the bytes it accepts, how long the router waits for it, and the credit it grants."""

from __future__ import annotations

import os

import trio
import trio.testing

from tests.tools.memory import held_by
from trio_console.agent._held import Held, Holding
from trio_console.agent._inflow import Inflow, Put

#: More than a chunk costs beside its data.
ROOM = 4096


def uncredited(budget: int) -> Inflow:
    return Inflow(lambda _size: None, window=None, budget=budget, patience=1.0, since=trio.current_time())


def credited(window: int) -> tuple[Inflow, list[int]]:
    granted: list[int] = []
    holding = Holding(Held(1 << 30), 0, window, window)
    inflow = Inflow(granted.append, window=holding, budget=0, patience=1.0, since=trio.current_time())
    return inflow, granted


async def test_a_window_may_be_filled_to_the_last_byte_and_not_beyond() -> None:
    inflow, _ = credited(10)
    assert await inflow.put(bytes(9)) is Put.TAKEN
    assert await inflow.put(bytes(2)) is Put.OVER_WINDOW
    assert await inflow.put(bytes(1)) is Put.TAKEN
    assert await inflow.put(bytes(1)) is Put.OVER_WINDOW


async def test_a_chunk_that_could_not_be_written_is_granted_anew() -> None:
    inflow, granted = credited(10)
    await inflow.put(bytes(10))
    inflow.pop()
    assert granted == [10]


async def test_what_was_granted_may_be_sent_again() -> None:
    inflow, granted = credited(10)
    for _ in range(3):
        assert await inflow.put(bytes(10)) is Put.TAKEN
        inflow.pop()
    assert granted == [10, 10, 10]


async def test_what_was_taken_makes_room_at_once(autojump_clock: trio.testing.MockClock) -> None:
    inflow = uncredited(10 * ROOM)
    for _ in range(10):
        await inflow.put(bytes(4 * ROOM))
        inflow.pop()
    begin = trio.current_time()
    for _ in range(2):
        assert await inflow.put(bytes(4 * ROOM)) is Put.TAKEN
    assert trio.current_time() == begin


async def test_input_without_credit_is_refused_once_nothing_was_taken_for_as_long_as_patience_lasts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    inflow = uncredited(10 * ROOM)
    await inflow.put(bytes(8 * ROOM))
    begin = trio.current_time()
    assert await inflow.put(bytes(8 * ROOM)) is Put.FULL
    assert trio.current_time() == begin + 1.0


async def test_patience_begins_anew_whenever_something_was_taken(autojump_clock: trio.testing.MockClock) -> None:
    inflow = uncredited(10 * ROOM)
    await inflow.put(bytes(ROOM))
    await inflow.put(bytes(8 * ROOM))

    async def take() -> None:
        for pause in (0.8, 0.8):
            await trio.sleep(pause)
            inflow.pop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        assert await inflow.put(bytes(8 * ROOM)) is Put.TAKEN


async def test_a_taker_that_takes_a_little_now_and_then_delays_nobody_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    inflow = uncredited(100 * ROOM)
    for _ in range(25):
        assert await inflow.put(bytes(3 * ROOM)) is Put.TAKEN

    async def take() -> None:
        while True:
            await trio.sleep(0.5)
            inflow.pop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        begin = trio.current_time()
        assert await inflow.put(bytes(80 * ROOM)) is Put.FULL
        assert trio.current_time() == begin + 3.0
        for _ in range(100):  # without waiting again
            assert await inflow.put(bytes(80 * ROOM)) is Put.FULL
        assert trio.current_time() == begin + 3.0
        assert await inflow.put(bytes(20 * ROOM)) is Put.TAKEN  # there is room
        await trio.sleep(6.1)  # now half of the budget is free
        begin = trio.current_time()
        assert await inflow.put(bytes(80 * ROOM)) is Put.FULL
        assert trio.current_time() == begin + 3.0
        nursery.cancel_scope.cancel()


async def test_a_taker_that_is_fast_enough_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    inflow = uncredited(10 * ROOM)

    async def take() -> None:
        for _ in range(30):
            await trio.sleep(0.9)
            inflow.pop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        for _ in range(30):
            assert await inflow.put(bytes(8 * ROOM)) is Put.TAKEN


async def test_an_end_frees_whoever_waits_for_room(autojump_clock: trio.testing.MockClock) -> None:
    inflow = uncredited(10 * ROOM)
    await inflow.put(bytes(8 * ROOM))
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def close() -> None:
            await trio.sleep(0.5)
            inflow.close()

        nursery.start_soon(close)
        assert await inflow.put(bytes(8 * ROOM)) is Put.TAKEN  # no task is left to take it
    assert trio.current_time() == begin + 0.5


async def test_a_chunk_that_a_task_is_writing_when_the_queue_is_closed_is_written_and_not_granted() -> None:
    size = 256 * 1024  # more than a pipe holds
    inflow, granted = credited(size)
    await inflow.put(bytes(size))
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inflow.write_first, writer)
            await trio.testing.wait_all_tasks_blocked()
            inflow.close()
            read = 0
            while read < size:
                await trio.lowlevel.wait_readable(reader)
                read += len(os.read(reader, size))
    finally:
        os.close(reader)
        os.close(writer)
    inflow.pop()
    assert not granted


# --- small chunks ---------------------------------------------------------------------------------


async def test_a_window_in_crumbs_holds_little_more_than_its_size() -> None:
    size = 64 * 1024
    inflow, _ = credited(size)
    crumbs = [bytes([number % 256, number // 256 % 256]) for number in range(size // 2)]
    with held_by() as held:
        for crumb in crumbs:
            assert await inflow.put(crumb + b"") is Put.TAKEN
    assert held.size < 1.5 * size
    inflow.put_end()
    got = b""
    while batch := await inflow.batch(1000, 0):
        got += b"".join(batch)
        for _ in batch:
            inflow.pop()
    assert got == b"".join(crumbs)


async def test_crumbs_are_joined_up_to_a_bound() -> None:
    inflow, _ = credited(64 * 1024)
    for size in (8 * 1024 - 2, 1, 1, 1, 8 * 1024, 1):
        await inflow.put(bytes(size))
    inflow.put_end()
    assert [len(chunk) for chunk in await inflow.batch(1 << 20, 0)] == [8 * 1024, 1, 8 * 1024, 1]


async def test_nothing_is_joined_to_a_chunk_that_is_being_written() -> None:
    inflow, granted = credited(10)
    await inflow.put(b"ab")
    assert await inflow.first() == b"ab"
    await inflow.put(b"cd")
    await inflow.put(b"ef")
    inflow.put_end()
    inflow.pop()
    assert await inflow.first() == b"cdef"
    inflow.pop()
    assert granted == [6]


async def test_chunks_are_joined_again_once_the_one_that_was_written_is_gone() -> None:
    inflow, _ = credited(10)
    await inflow.put(b"ab")
    await inflow.first()
    inflow.pop()
    for chunk in (b"cd", b"ef"):
        await inflow.put(chunk)
    assert await inflow.first() == b"cdef"


async def test_nothing_is_joined_to_a_batch_that_is_being_written() -> None:
    inflow, _ = credited(1 << 20)
    for size in (8000, 8000):
        await inflow.put(bytes(size))
    batch = await inflow.batch(16_000, 0)
    for crumb in (b"x", b"y"):
        await inflow.put(crumb)
    inflow.put_end()
    assert [len(chunk) for chunk in batch] == [8000, 8000]
    for _ in batch:
        inflow.pop()
    assert await inflow.first() == b"xy"


async def test_chunks_of_a_client_without_credit_stay_as_they_came() -> None:
    inflow = uncredited(1000)
    for chunk in (b"ab", b"cd"):
        await inflow.put(chunk)
    assert await inflow.batch(100, 0) == [b"ab", b"cd"]
