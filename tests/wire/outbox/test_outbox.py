"""The outbox: whole frames or none, control before bulk, fair reservations, and an error for all at the end."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.tools.gated_stream import GatedStream, running, settle
from tests.tools.limits import HANG
from trio_console._wire.outbox import Outbox

# Order


async def test_a_control_frame_overtakes_bulk_frames_that_were_queued_before() -> None:
    async with running() as (outbox, stream):
        await outbox.send_bulk(bytes(1))  # is being sent
        await settle()
        big = bytes([7]) * 65_536
        await outbox.send_bulk(big)
        await outbox.send_bulk(big)
        outbox.send_control(b"control")
        stream.let(10)
        await settle()
        assert b"".join(stream.sent) == bytes(1) + b"control" + big + big


async def test_a_flood_of_control_frames_does_not_starve_bulk() -> None:
    async with running() as (outbox, stream):
        for _ in range(4):
            await outbox.send_bulk(bytes(65_536))
        for sends in range(1, 5):
            outbox.send_control(bytes(100_000))
            await settle()
            stream.let()
            await settle()
            assert b"".join(stream.sent).count(bytes(65_536)) >= sends


async def test_a_frame_once_begun_is_not_cut_by_a_control_frame() -> None:
    async with running() as (outbox, stream):
        await outbox.send_bulk(b"bulk-bulk-bulk")
        await settle()
        assert stream.started == [b"bulk-bulk-bulk"]
        outbox.send_control(b"control")
        stream.let(2)
        await settle()
        assert stream.sent == [b"bulk-bulk-bulk", b"control"]


async def test_order_is_kept_inside_each_lane() -> None:
    async with running() as (outbox, stream):
        outbox.send_control(b"first")
        await settle()
        for number in b"123":
            await outbox.send_bulk(b"b%c " % number)
            outbox.send_control(b"c%c " % number)
        stream.open()
        await settle()
        assert b"".join(stream.sent) == b"firstc1 c2 c3 b1 b2 b3 "


async def test_small_frames_are_joined_into_one_send() -> None:
    async with running() as (outbox, stream):
        await outbox.send_bulk(b"x")
        await settle()
        for _ in range(50):
            await outbox.send_bulk(b"abc")
        stream.open()
        await settle()
        assert stream.sent == [b"x", b"abc" * 50]


async def test_bulk_is_joined_only_while_the_send_stays_small() -> None:
    async with running() as (outbox, stream):
        await outbox.send_bulk(b"x")
        await settle()
        for _ in range(3):
            await outbox.send_bulk(bytes(30_000))
        stream.open()
        await settle()
        assert [len(data) for data in stream.sent] == [1, 60_000, 30_000]


async def test_a_frame_of_any_size_goes_alone_through_an_empty_lane() -> None:
    async with running(is_open=True, bulk_budget=100) as (outbox, stream):
        await outbox.send_bulk(bytes(5000))
        await settle()
        assert stream.sent == [bytes(5000)]


async def test_a_lone_frame_is_sent_by_reference() -> None:
    seen: list[Any] = []

    class Keeps(GatedStream):
        async def send_all(self, data: Any) -> None:
            await trio.lowlevel.checkpoint()
            seen.append(data)

    outbox = Outbox(Keeps())
    frame = bytes(1000)
    outbox.send_control(frame)
    outbox.close()
    await outbox.run()
    assert seen[0] is frame


# Cancellation


async def test_a_cancelled_send_leaves_the_whole_frame_or_nothing() -> None:
    async with running(bulk_budget=10) as (outbox, stream):
        await outbox.send_bulk(bytes(10))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.send_bulk, b"never")
                await settle()
                scope.cancel()
        stream.open()
        await outbox.send_bulk(b"next")
        await settle()
        assert b"".join(stream.sent) == bytes(10) + b"next"


async def test_an_already_cancelled_send_queues_nothing() -> None:
    async with running(is_open=True) as (outbox, stream):
        with trio.CancelScope() as scope:
            scope.cancel()
            await outbox.send_bulk(b"never")
        assert scope.cancelled_caught
        await settle()
        assert stream.sent == []


async def test_a_cancelled_reservation_is_given_back() -> None:
    async with running(bulk_budget=10) as (outbox, _):
        await outbox.reserve(10)
        for _ in range(3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(outbox.reserve, 5)
                    await settle()
                    scope.cancel()
        outbox.release(10)
        with trio.fail_after(HANG):
            await outbox.reserve(10)
        outbox.release(10)


async def test_a_reservation_granted_as_it_is_cancelled_is_either_had_or_not() -> None:
    async with running(bulk_budget=10) as (outbox, _):
        await outbox.reserve(10)
        had = False

        async def reserve_it() -> None:
            nonlocal had
            await outbox.reserve(10)
            had = True

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reserve_it)
                await settle()
                outbox.release(10)  # grants
                scope.cancel()
        assert had
        outbox.release(10)
        await outbox.reserve(10)
        outbox.release(10)


async def test_when_the_first_in_line_leaves_a_smaller_one_behind_it_is_admitted() -> None:
    async with running(bulk_budget=10) as (outbox, _):
        await outbox.reserve(8)
        order: list[str] = []

        async def reserve(name: str, size: int, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            with trio.CancelScope() as scope:
                task_status.started(scope)
                await outbox.reserve(size)
                order.append(name)

        async with trio.open_nursery() as nursery:
            large = await nursery.start(reserve, "large", 5)
            await settle()
            await nursery.start(reserve, "small", 2)
            await settle()
            assert order == []
            large.cancel()
            await settle()
            assert order == ["small"]


async def test_cancelling_the_writer_breaks_the_outbox() -> None:
    stream = GatedStream()
    outbox = Outbox(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        await settle()
        nursery.cancel_scope.cancel()
    assert outbox.closed
    with pytest.raises(trio.BrokenResourceError):
        outbox.send_control(b"x")


# Reservations


async def test_reservations_are_given_in_the_order_they_were_asked_for() -> None:
    async with running(bulk_budget=10) as (outbox, _):
        await outbox.reserve(10)
        order: list[int] = []

        async def session(number: int, size: int) -> None:
            await outbox.reserve(size)
            order.append(number)
            await trio.lowlevel.checkpoint()
            outbox.release(size)

        async with trio.open_nursery() as nursery:
            for number, size in enumerate((9, 6, 10, 7, 8, 6)):
                nursery.start_soon(session, number, size)
                await settle()
            outbox.release(10)
        assert order == [0, 1, 2, 3, 4, 5]


async def test_a_small_reservation_does_not_overtake_a_large_one_that_waits() -> None:
    async with running(bulk_budget=10) as (outbox, _):
        await outbox.reserve(6)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.reserve, 8)
            await settle()
            late = trio.Event()

            @nursery.start_soon
            async def _small() -> None:
                await outbox.reserve(1)
                late.set()

            await settle()
            assert not late.is_set()
            outbox.release(6)
        assert late.is_set()


async def test_sessions_that_send_for_ever_get_equal_turns() -> None:
    async with running(is_open=True, bulk_budget=1000) as (outbox, _):
        counts = [0] * 5

        async def session(number: int) -> None:
            while sum(counts) < 500:
                await outbox.send_bulk(bytes(600))
                counts[number] += 1

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(session, number)
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("size", "blocks"), [(39, False), (40, False), (41, True)])
async def test_the_budget_bounds_queued_and_promised_bytes(size: int, blocks: bool) -> None:
    async with running(bulk_budget=100) as (outbox, _):
        await outbox.send_bulk(bytes(50))
        await outbox.reserve(10)
        with trio.move_on_after(0) as scope:
            await outbox.reserve(size)
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            @nursery.start_soon
            async def _reserves() -> None:
                if scope.cancelled_caught:
                    await outbox.reserve(size)
                done.set()

            await settle()
            assert done.is_set() is not blocks
            nursery.cancel_scope.cancel()


async def test_bytes_count_until_they_were_sent() -> None:
    async with running(bulk_budget=10) as (outbox, stream):
        await outbox.send_bulk(bytes(10))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.send_bulk, b"later")
            await settle()
            assert stream.started == [bytes(10)]
            stream.open()
        await settle()
        assert stream.sent == [bytes(10), b"later"]


async def test_a_reservation_larger_than_its_frame_is_given_back() -> None:
    async with running(bulk_budget=10) as (outbox, _):
        await outbox.reserve(10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.reserve, 6)
            await settle()
            outbox.commit(b"abcd", 10)


async def test_after_everything_was_sent_the_whole_budget_is_free() -> None:
    async with running(is_open=True, bulk_budget=100) as (outbox, _):
        for size in (1, 100, 30, 250, 7):
            await outbox.send_bulk(bytes(size))
        await outbox.reserve(20)
        outbox.commit(bytes(29), 20)
        await settle()
        await outbox.reserve(100)
        assert outbox._bulk_used == 100


# Control budget


async def test_waiting_for_control_room_returns_at_once_where_there_is_some() -> None:
    async with running(control_budget=10) as (outbox, _):
        await outbox.send_bulk(b"busy")
        await settle()
        outbox.send_control(bytes(9))
        with trio.move_on_after(0) as scope:
            await outbox.wait_control_room()
        assert not scope.cancelled_caught


async def test_control_frames_above_the_budget_hold_back_everybody_who_causes_them() -> None:
    async with running(control_budget=10) as (outbox, stream):
        await outbox.send_bulk(b"busy")
        await settle()
        outbox.send_control(bytes(10))
        waiting = 0

        async def waits() -> None:
            nonlocal waiting
            waiting += 1
            await outbox.wait_control_room()
            waiting -= 1

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(waits)
                await settle()
            assert waiting == 3
            stream.open()
        assert waiting == 0


async def test_who_waits_for_control_room_is_let_go_when_the_stream_breaks() -> None:
    async with running(control_budget=10) as (outbox, stream):
        await outbox.send_bulk(b"busy")
        await settle()
        outbox.send_control(bytes(10))
        stream.error = trio.BrokenResourceError("gone")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(outbox.wait_control_room)
                await settle()
            stream.open()


# Endings


@pytest.mark.parametrize("error", [trio.BrokenResourceError("gone"), trio.ClosedResourceError("closed")])
async def test_a_broken_stream_is_told_to_everybody(error: Exception) -> None:
    stream = GatedStream()
    outbox = Outbox(stream, bulk_budget=10)

    async def expect_broken() -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await outbox.send_bulk(bytes(10))
        assert caught.value.__cause__ is error

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            await outbox.send_bulk(bytes(10))
            for _ in range(3):
                nursery.start_soon(expect_broken)
            await settle()
            stream.error = error
            stream.open()
        await expect_broken()
        with pytest.raises(trio.BrokenResourceError):
            outbox.send_control(b"x")
        with pytest.raises(trio.BrokenResourceError):
            outbox.commit(b"x", 1)
    assert outbox.closed


async def test_an_unexpected_error_of_the_stream_is_raised_and_told() -> None:
    stream = GatedStream(is_open=True)
    stream.error = OSError("no such thing")
    outbox = Outbox(stream)
    outbox.send_control(b"x")
    with pytest.raises(OSError, match="no such thing"):
        await outbox.run()
    with pytest.raises(trio.BrokenResourceError):
        outbox.send_control(b"x")


async def test_close_sends_what_is_queued_and_then_ends_the_writer() -> None:
    stream = GatedStream()
    outbox = Outbox(stream)
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            await outbox.send_bulk(bytes(65_536))
            await settle()
            await outbox.send_bulk(b"bulk")
            outbox.send_control(b"control")
            outbox.close()
            outbox.close()
            await settle()
            stream.open()
    assert b"".join(stream.sent) == bytes(65_536) + b"control" + b"bulk"


async def test_a_closed_outbox_refuses_frames() -> None:
    outbox = Outbox(GatedStream())
    outbox.close()
    assert outbox.closed
    with pytest.raises(trio.ClosedResourceError):
        outbox.send_control(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await outbox.send_bulk(b"x")
    await outbox.run()


async def test_who_waits_for_a_reservation_learns_of_the_close() -> None:
    async with running(bulk_budget=10) as (outbox, _):
        await outbox.reserve(10)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _waits() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await outbox.reserve(1)

            await settle()
            outbox.close()


async def test_a_reservation_taken_before_the_close_cannot_be_used_after_it() -> None:
    async with running() as (outbox, _):
        await outbox.reserve(5)
        outbox.close()
        with pytest.raises(trio.ClosedResourceError):
            outbox.commit(b"12345", 5)
        assert outbox._bulk_used == 0


@pytest.mark.parametrize("way", ["reserve", "send_bulk"])
async def test_taking_a_reservation_is_a_checkpoint(way: str) -> None:
    async with running(is_open=True) as (outbox, _):
        with trio.testing.assert_checkpoints():
            if way == "reserve":
                await outbox.reserve(1)
            else:
                await outbox.send_bulk(b"x")


async def test_over_a_real_stream_frames_arrive_whole_whoever_is_cancelled() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    outbox = Outbox(ours, bulk_budget=1000)
    received = bytearray()
    sent = 0

    async def receives() -> None:
        async for chunk in theirs:
            received.extend(chunk)

    async def session(number: int) -> None:
        nonlocal sent
        for size in range(1, 120):
            with trio.move_on_after(0 if size % 5 == 0 else HANG) as scope:
                await outbox.send_bulk(bytes([number, size]) + bytes([number]) * size)
            sent += 0 if scope.cancelled_caught else 1
            if size % 7 == 0:
                outbox.send_control(b"\xff\x00")

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receives)

            @nursery.start_soon
            async def _writes() -> None:
                await outbox.run()
                await ours.aclose()

            async with trio.open_nursery() as sessions:
                for number in range(6):
                    sessions.start_soon(session, number)
            outbox.close()
    frames = 0
    position = 0
    while position < len(received):
        number, size = received[position : position + 2]
        assert received[position + 2 : position + 2 + size] == bytes([number]) * size
        position += 2 + size
        frames += number != 255
    assert frames == sent
