"""Frames in several pieces: a stream that gathers gets the pieces as they are."""

from __future__ import annotations

import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.tools.gated_stream import GatedStream, running, settle
from tests.tools.limits import HANG
from trio_console._trio.gathering import GatheringStream, Piece
from trio_console._wire.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class GatheringGatedStream(GatedStream, GatheringStream):
    """A gated stream that keeps the pieces as they came."""

    def __init__(self) -> None:
        super().__init__(is_open=True)
        self.pieces: list[list[Piece]] = []

    async def send_gathered(self, pieces: list[Piece]) -> None:
        self.pieces.append(pieces)


async def test_pieces_of_a_frame_are_joined_for_a_stream_that_takes_one_buffer() -> None:
    async with running(is_open=True) as (outbox, stream):
        await outbox.reserve(6)
        outbox.commit((b"abc", b"def"), 6)
        await settle()
        assert stream.sent == [b"abcdef"]


async def test_large_pieces_go_uncopied_to_a_stream_that_gathers() -> None:
    stream = GatheringGatedStream()
    outbox = Outbox(stream)
    data = bytes(100_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        assert outbox.reserve_nowait(len(data))  # the writer has not run yet
        outbox.commit((b"lead", data), len(data))
        outbox.send_control(b"control")
        await settle()
        [[control, lead, sent]] = stream.pieces
        assert (control, lead) == (b"control", b"lead")
        assert sent is data
        nursery.cancel_scope.cancel()


async def test_small_pieces_are_joined_for_every_stream() -> None:
    stream = GatheringGatedStream()
    outbox = Outbox(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        outbox.commit((b"lead", b"data"), 0)
        outbox.commit(b"next", 0)
        await settle()
        assert stream.pieces == [[b"leaddatanext"]]
        nursery.cancel_scope.cancel()


async def test_what_a_frame_in_pieces_takes_of_the_budget_is_all_of_it() -> None:
    async with running(bulk_budget=10) as (outbox, stream):
        await outbox.reserve(6)
        outbox.commit((b"abc", b"def"), 6)
        assert not outbox.reserve_nowait(5)
        assert outbox.reserve_nowait(4)
        outbox.release(4)
        stream.open()
        await settle()
        assert outbox.reserve_nowait(10)


async def test_a_reservation_is_not_taken_before_those_who_wait_have_theirs() -> None:
    async with running(bulk_budget=10) as (outbox, _stream):
        assert outbox.reserve_nowait(8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.reserve, 5)
            await settle()
            assert not outbox.reserve_nowait(1)
            outbox.release(8)
            assert outbox.reserve_nowait(5)
        outbox.close()
        with pytest.raises(trio.ClosedResourceError):
            outbox.reserve_nowait(0)


async def test_a_flood_on_a_stream_that_never_blocks_leaves_others_their_turn() -> None:
    outbox = Outbox(GatheringGatedStream())
    turns = 0

    async def flood() -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # at the end, if the writer is cancelled first
            while True:
                await outbox.send_bulk(bytes(65_536))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        nursery.start_soon(flood)
        with trio.fail_after(HANG):
            for _ in range(100):
                await trio.lowlevel.checkpoint()
                turns += 1
        nursery.cancel_scope.cancel()
    assert turns == 100


@pytest.mark.parametrize("size", [65_536, 131_072])
async def test_what_frames_have_in_front_of_their_data_takes_no_room_from_the_last(size: int) -> None:
    outbox = Outbox(GatedStream())
    for _ in range(262_144 // size):
        assert outbox.reserve_nowait(size)
        outbox.commit((bytes(64), bytes(size)), size)
    assert not outbox.reserve_nowait(size)


# A frame that is handed over while the writer sleeps


class PromptStream(GatheringGatedStream):
    """A stream that takes so many bytes at once, and the others when it is asked to wait."""

    def __init__(self, room: int = 1 << 30) -> None:
        super().__init__()
        self.room = room
        self.taken = b""
        self.broken = False

    def send_gathered_nowait(self, pieces: list[Piece]) -> list[Piece]:
        if self.broken:
            return pieces
        data = b"".join(pieces)
        self.taken += data[: self.room]
        return [memoryview(data)[self.room :]] if len(data) > self.room else []

    async def send_gathered(self, pieces: list[Piece]) -> None:
        if self.broken:
            raise trio.BrokenResourceError
        await super().send_gathered(pieces)
        self.taken += b"".join(pieces)


@asynccontextmanager
async def prompt(room: int = 1 << 30, **budgets: int) -> AsyncIterator[tuple[Outbox, PromptStream]]:
    stream = PromptStream(room)
    outbox = Outbox(stream, **budgets)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        await settle()
        yield outbox, stream
        outbox.close()


async def test_the_first_frame_of_a_turn_is_written_before_another_task_runs() -> None:
    async with prompt() as (outbox, stream):
        outbox.send_control(b"first ")
        assert stream.taken == b"first "
        outbox.send_control(b"second ")
        outbox.commit((b"third", b" fourth"), 0)
        assert stream.taken == b"first "
        await settle()
        assert stream.pieces == [[b"second third fourth"]]  # together, because each costs a system call
        outbox.commit((b"next", b" frame"), 0)
        assert stream.taken.endswith(b"next frame")
        assert outbox.written == outbox.control_written + outbox.bulk_written == len(stream.taken)
        assert (outbox.control_written, outbox.bulk_written) == (outbox.control_queued, outbox.bulk_queued)


async def test_the_frames_of_a_turn_that_is_joined_are_written_together() -> None:
    async with prompt() as (outbox, stream):
        outbox.join_turn()
        outbox.send_control(b"first ")
        outbox.send_control(b"second")
        assert stream.taken == b""
        await settle()
        assert stream.pieces == [[b"first second"]]
        outbox.send_control(b" third")  # of the next turn
        assert stream.taken == b"first second third"


async def test_a_task_that_keeps_the_loop_can_have_its_frames_written() -> None:
    async with prompt() as (outbox, stream):
        outbox.join_turn()
        outbox.send_control(b"first ")
        outbox.commit((b"second ", b"third"), 0)
        assert stream.taken == b""
        outbox.write_now()
        assert stream.taken == b"first second third"
        assert (outbox.control_written, outbox.bulk_written) == (outbox.control_queued, outbox.bulk_queued)
        outbox.send_control(b" fourth")
        assert not stream.taken.endswith(b"fourth")
        await settle()
        assert stream.taken == b"first second third fourth"


async def test_what_the_stream_does_not_take_at_once_is_finished_before_all_others() -> None:
    async with prompt(room=3) as (outbox, stream):
        outbox.join_turn()
        outbox.send_control(b"first ")
        outbox.write_now()
        assert stream.taken == b"fir"
        outbox.send_control(b"second")
        outbox.write_now()  # it is the writer's turn
        assert stream.taken == b"fir"
        await settle()
        assert stream.taken == b"first second"


class HalfTakenStream(PromptStream):
    """A stream that has taken half of what its writer sends, and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = trio.Event()

    async def send_gathered(self, pieces: list[Piece]) -> None:
        data = b"".join(pieces)
        self.taken += data[: len(data) // 2]
        await self.goes_on.wait()
        self.taken += data[len(data) // 2 :]


async def test_nothing_is_written_at_once_while_the_writer_writes() -> None:
    stream = HalfTakenStream()
    outbox = Outbox(stream)
    async with trio.open_nursery() as nursery:
        outbox.send_control(b"abcd")
        nursery.start_soon(outbox.run)
        await settle()
        outbox.send_control(b"efgh")
        outbox.write_now()
        assert stream.taken == b"ab"
        stream.goes_on.set()
        await settle()
        assert stream.taken == b"abcdefgh"
        nursery.cancel_scope.cancel()


async def test_a_frame_that_was_taken_in_part_is_finished_before_all_others() -> None:
    async with prompt(room=3) as (outbox, stream):
        outbox.commit((b"head", b"data"), 0)
        outbox.send_control(b"control")
        assert stream.taken == b"hea"
        assert outbox.written == 0
        await settle()
        assert stream.taken == b"headdatacontrol"
        assert (outbox.bulk_written, outbox.control_written) == (8, 7)


async def test_the_room_of_a_frame_is_given_back_when_all_of_it_was_taken() -> None:
    async with prompt(bulk_budget=10) as (outbox, stream):
        assert outbox.reserve_nowait(8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.reserve, 8)
            await settle()
            outbox.commit(b"12345678", 8)
            assert stream.taken == b"12345678"
        outbox.release(8)
        stream.room = 3
        await settle()
        assert outbox.reserve_nowait(8)
        outbox.commit(b"12345678", 8)
        assert not outbox.reserve_nowait(8)  # a part of it is still to be written
        await settle()
        assert outbox.reserve_nowait(8)
        outbox.release(8)


async def test_who_waits_for_what_is_written_learns_of_a_frame_that_was_written_at_once() -> None:
    async with prompt() as (outbox, _stream):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.wait_written, 5)
            await settle()
            outbox.commit(b"12345", 0)


async def test_a_stream_that_takes_nothing_at_once_because_it_is_broken_breaks_the_outbox() -> None:
    async with prompt() as (outbox, stream):
        stream.broken = True
        outbox.send_control(b"lost")
        await settle()
        with pytest.raises(trio.BrokenResourceError):
            outbox.send_control(b"too late")
        with pytest.raises(trio.BrokenResourceError):
            outbox.commit(b"too late", 0)
        assert stream.taken == b""


class NeverFullStream(GatheringGatedStream):
    """A stream that takes all bytes at once. After each frame it queues the next one, up to a bound."""

    outbox: Outbox

    async def send_gathered(self, pieces: list[Piece]) -> None:
        await super().send_gathered(pieces)
        if len(self.pieces) < 1000 and not self.outbox.closed:
            self.outbox.send_control(b"more")


async def test_a_stream_that_takes_everything_at_once_does_not_keep_the_other_tasks_from_running() -> None:
    stream = NeverFullStream()
    stream.outbox = outbox = Outbox(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        outbox.send_control(b"first")
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        outbox.close()
    assert len(stream.pieces) < 100
