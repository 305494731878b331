"""The outbox before a peer that counts: never more than it admits, control before data, a share for each."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.tools.counting import CountingAgent, GatheringAgent
from trio_console import _wire as wire
from trio_console._wire.credit import Admission, Admitted
from trio_console._wire.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LONG = 100_000  # seconds of the clock that jumps when nothing moves
KIB = 1024
SLICE = 4 * KIB
WINDOW = Admitted(control_bytes=8 * KIB, control_frames=16, bulk_bytes=256 * KIB, bulk_frames=32)
STUCK, FLOWING, THIRD = 1, 2, 3


def reads(*sessions: int) -> Callable[[int], bool]:
    return lambda session: session in sessions


@asynccontextmanager
async def counting(
    window: Admitted = WINDOW,
    *,
    first: Admitted | None = WINDOW,
    consumes: Callable[[int], bool] = lambda _: True,
    kind: type[CountingAgent] = CountingAgent,
) -> AsyncIterator[tuple[Outbox, CountingAgent]]:
    agent = kind(window, consumes=consumes)
    outbox = Outbox(agent, admission=Admission(first))
    agent.announce = outbox.announce
    with trio.fail_after(LONG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            await trio.testing.wait_all_tasks_blocked()
            yield outbox, agent
            nursery.cancel_scope.cancel()
    assert agent.violations == []


async def send(outbox: Outbox, session: int, size: int, slice_: int = SLICE) -> None:
    """Send as a session does."""
    for start in range(0, size, slice_):
        piece = bytes(min(slice_, size - start))
        await outbox.reserve(len(piece), session)
        outbox.commit(wire.encode_data(wire.ExecStdin, session, piece), len(piece))


async def test_a_session_whose_bytes_are_taken_sends_any_number_of_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with counting() as (outbox, agent):
        await send(outbox, FLOWING, 10 * WINDOW.bulk_bytes)
        await trio.testing.wait_all_tasks_blocked()
        assert len(agent.data_of(FLOWING)) == 10 * WINDOW.bulk_bytes


@pytest.mark.parametrize("slice_", [1, 100, SLICE, 64 * KIB])
async def test_bytes_that_are_not_taken_pause_their_sender_before_the_limit(
    autojump_clock: trio.testing.MockClock, slice_: int
) -> None:
    async with counting(consumes=reads()) as (outbox, agent):
        with trio.move_on_after(3600) as scope:
            await send(outbox, STUCK, 100 * WINDOW.bulk_bytes, slice_)
        assert scope.cancelled_caught
        assert 0 < agent.used.bulk_frames < WINDOW.bulk_frames
        assert agent.used.bulk_bytes <= WINDOW.bulk_bytes


async def test_a_sender_goes_on_when_its_bytes_are_taken_after_all(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(consumes=reads()) as (outbox, agent), trio.open_nursery() as nursery:
        nursery.start_soon(send, outbox, STUCK, 3 * WINDOW.bulk_bytes)
        await trio.sleep(1000)
        began = trio.current_time()
        agent.consume(STUCK)
        await trio.testing.wait_all_tasks_blocked()
        assert len(agent.data_of(STUCK)) == 3 * WINDOW.bulk_bytes
        assert trio.current_time() == began


@pytest.mark.parametrize("slice_", [1, SLICE, 64 * KIB])
async def test_a_session_whose_bytes_are_not_taken_leaves_others_their_share(
    autojump_clock: trio.testing.MockClock, slice_: int
) -> None:
    async with counting(consumes=reads(FLOWING)) as (outbox, agent), trio.open_nursery() as nursery:
        nursery.start_soon(send, outbox, STUCK, 100 * WINDOW.bulk_bytes, slice_)
        await trio.sleep(5)
        with trio.fail_after(3600):
            await send(outbox, FLOWING, 20 * WINDOW.bulk_bytes)
        nursery.cancel_scope.cancel()
    assert len(agent.data_of(FLOWING)) >= 19 * WINDOW.bulk_bytes


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_frame_that_could_be_written_at_once_waits_to_be_admitted(
    autojump_clock: trio.testing.MockClock, bulk: bool
) -> None:
    async with counting(consumes=reads(), kind=GatheringAgent) as (outbox, agent):
        agent.answers_control = False
        for number in range(2 * WINDOW.bulk_frames):
            if bulk:
                outbox.commit(wire.encode(wire.TcpEof(), number + 1), 0)
            else:
                outbox.send_control(wire.encode(wire.Ping(), number + 1))
            await trio.testing.wait_all_tasks_blocked()
        assert len(agent.frames) == (WINDOW.bulk_frames if bulk else WINDOW.control_frames)


async def test_a_turn_in_vain_is_over_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(consumes=reads()) as (outbox, _):
        await send(outbox, STUCK, SLICE * (WINDOW.bulk_frames // 2 + 2))
        assert outbox.holds_back(SLICE, FLOWING), "it is the turn of another"
        began = trio.current_time()
        await outbox.reserve(SLICE, FLOWING)
        assert trio.current_time() == pytest.approx(began + 0.2)
        outbox.release(SLICE, FLOWING)


async def test_short_inputs_with_their_ends_use_up_nothing_that_a_stuck_session_then_gets(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with counting(consumes=reads(FLOWING)) as (outbox, agent), trio.open_nursery() as nursery:
        nursery.start_soon(send, outbox, STUCK, 100 * WINDOW.bulk_bytes, 1)
        await trio.sleep(5)
        before = len(agent.kept[STUCK])
        for _ in range(10 * WINDOW.bulk_frames):
            await send(outbox, FLOWING, 10)
            outbox.commit(wire.encode(wire.ExecStdin(b""), FLOWING), 0)
            await trio.testing.wait_all_tasks_blocked()
        assert len(agent.kept[STUCK]) <= before + 2
        nursery.cancel_scope.cancel()


async def test_two_that_begin_at_once_are_told_apart(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(consumes=reads(FLOWING)) as (outbox, agent), trio.open_nursery() as nursery:
        nursery.start_soon(send, outbox, STUCK, 100 * WINDOW.bulk_bytes)
        nursery.start_soon(send, outbox, THIRD, 100 * WINDOW.bulk_bytes)
        with trio.fail_after(3600):
            await send(outbox, FLOWING, 20 * WINDOW.bulk_bytes)
        nursery.cancel_scope.cancel()
    assert len(agent.data_of(FLOWING)) >= 19 * WINDOW.bulk_bytes


async def test_a_stuck_session_uses_up_ever_less(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(consumes=reads()) as (outbox, agent), trio.open_nursery() as nursery:
        nursery.start_soon(send, outbox, STUCK, 100 * WINDOW.bulk_bytes, 1)
        await trio.sleep(10)
        after_seconds = agent.used.bulk_frames
        await trio.sleep(1000)
        assert agent.used.bulk_frames - after_seconds <= 7  # turns at twice the distance each
        nursery.cancel_scope.cancel()


async def test_control_frames_go_while_data_waits(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(consumes=reads()) as (outbox, agent), trio.open_nursery() as nursery:
        nursery.start_soon(send, outbox, STUCK, 100 * WINDOW.bulk_bytes)
        await trio.sleep(1)
        for number in range(10 * WINDOW.control_frames):
            outbox.send_control(wire.encode(wire.Ping(), 100 + number))
            await trio.testing.wait_all_tasks_blocked()
        assert [id_ for id_, m in agent.frames if isinstance(m, wire.Ping)] == [*range(100, 260)]
        nursery.cancel_scope.cancel()


async def test_an_end_needs_no_turn(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(consumes=reads()) as (outbox, agent), trio.open_nursery() as nursery:
        nursery.start_soon(send, outbox, STUCK, 100 * WINDOW.bulk_bytes, 1)
        await trio.sleep(1)
        outbox.commit(wire.encode(wire.ExecStdin(b""), THIRD), 0)
        await trio.testing.wait_all_tasks_blocked()
        assert (THIRD, wire.ExecStdin(b"")) in agent.frames
        nursery.cancel_scope.cancel()


async def test_ends_wait_as_well_when_nothing_more_is_admitted(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(consumes=reads()) as (outbox, agent):
        for session in range(2 * WINDOW.bulk_frames):
            outbox.commit(wire.encode(wire.TcpEof(), session + 1), 0)
        await trio.testing.wait_all_tasks_blocked()
        assert agent.used.bulk_frames == WINDOW.bulk_frames
        for session in range(2 * WINDOW.bulk_frames):
            agent.consume(session + 1)
        await trio.testing.wait_all_tasks_blocked()
        assert [id_ for id_, _ in agent.frames] == [*range(1, 2 * WINDOW.bulk_frames + 1)]


async def test_control_frames_wait_for_their_own_credit_and_keep_their_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with counting() as (outbox, agent):
        agent.answers_control = False
        for number in range(3 * WINDOW.control_frames):
            outbox.send_control(wire.encode(wire.Ping(), 1 + number))
        await trio.testing.wait_all_tasks_blocked()
        assert agent.used.control_frames == WINDOW.control_frames
        agent.answers_control = True
        agent.limits = agent.limits._replace(control_frames=1000, control_bytes=1000 * KIB)
        agent.say()
        await trio.testing.wait_all_tasks_blocked()
        assert [id_ for id_, _ in agent.frames] == [*range(1, 3 * WINDOW.control_frames + 1)]


async def test_a_control_frame_may_be_as_large_as_its_credit_and_no_larger(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for more in (0, 1):
        async with counting() as (outbox, agent):
            frame = wire.encode(wire.ExecRequest(cmd=""), 1)
            frame = wire.encode(wire.ExecRequest(cmd="x" * (WINDOW.control_bytes - len(frame) - 3 + more)), 1)
            assert len(frame) == WINDOW.control_bytes + more
            outbox.send_control(frame)
            await trio.testing.wait_all_tasks_blocked()
            assert len(agent.frames) == 1 - more


async def test_data_does_not_overtake_a_request_that_waits(autojump_clock: trio.testing.MockClock) -> None:
    async with counting() as (outbox, agent):
        agent.answers_control = False
        for number in range(WINDOW.control_frames):
            outbox.send_control(wire.encode(wire.Ping(), 100 + number))
        outbox.send_control(wire.encode(wire.ExecRequest(cmd="cat"), 7))
        await send(outbox, 7, 10)
        await trio.testing.wait_all_tasks_blocked()
        assert agent.used.bulk_frames == 0
        agent.limits = agent.limits._replace(control_frames=100, control_bytes=100 * KIB)
        agent.say()
        await trio.testing.wait_all_tasks_blocked()
        assert [type(message) for id_, message in agent.frames if id_ == 7] == [wire.ExecRequest, wire.ExecStdin]


async def test_a_cancelled_wait_gives_back_all_that_was_admitted(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(consumes=reads()) as (outbox, agent):
        with trio.move_on_after(100):
            await send(outbox, STUCK, 100 * WINDOW.bulk_bytes)
        used = agent.used
        assert outbox._admission is not None
        assert outbox._admission.used == used
        await outbox.reserve(10, FLOWING)
        outbox.release(10, FLOWING)
        assert outbox._admission.used == used


async def test_a_turn_that_was_given_back_is_free_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(consumes=reads()) as (outbox, _):
        await send(outbox, STUCK, SLICE * (WINDOW.bulk_frames // 2 + 1))
        await outbox.reserve(10, FLOWING)
        assert outbox.holds_back(10, THIRD)
        outbox.release(10, FLOWING)
        assert not outbox.holds_back(10, THIRD)


async def test_a_frame_of_another_kind_uses_nothing_of_its_reservation(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with counting() as (outbox, agent):
        await outbox.send_bulk(wire.encode(wire.TcpClose(), 5), 5)
        await trio.testing.wait_all_tasks_blocked()
        assert (agent.used.control_frames, agent.used.bulk_frames) == (1, 0)
        assert outbox._admission is not None
        assert outbox._admission.used == agent.used


async def test_waits_for_a_peer_that_admits_no_more_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(consumes=reads()) as (outbox, _):
        await outbox.reserve(WINDOW.bulk_bytes // 2, STUCK)
        outbox.commit(
            wire.encode_data(wire.ExecStdin, STUCK, bytes(WINDOW.bulk_bytes // 2)), WINDOW.bulk_bytes // 2
        )
        with trio.move_on_after(7):
            await outbox.reserve(WINDOW.bulk_bytes // 2, STUCK)
        assert (outbox.stalls, outbox.stalled) == (1, pytest.approx(7))


async def test_without_limits_from_the_start_all_is_counted_until_they_come(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with counting(first=None, consumes=reads()) as (outbox, agent):
        await send(outbox, STUCK, 4 * SLICE)
        outbox.send_control(wire.encode(wire.Ping(), 9))
        await trio.testing.wait_all_tasks_blocked()
        assert outbox._admission is not None
        assert outbox._admission.used == agent.used
        with trio.move_on_after(100):
            await send(outbox, STUCK, 100 * WINDOW.bulk_bytes)


async def test_limits_that_shrink_are_refused_and_change_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with counting() as (outbox, agent):
        for name in WINDOW._fields:
            assert not outbox.announce(WINDOW._replace(**{name: getattr(WINDOW, name) - 1}))
        assert outbox.announce(WINDOW)  # the same once more
        await send(outbox, FLOWING, WINDOW.bulk_bytes // 2)
        assert agent.violations == []


async def test_a_peer_that_may_not_count_is_not_heard(autojump_clock: trio.testing.MockClock) -> None:
    outbox = Outbox(CountingAgent(WINDOW))
    assert not outbox.announce(Admitted(0, 0, 0, 0))
    assert not outbox.holds_back(10**9, STUCK)


async def test_who_waits_for_the_peer_learns_of_the_close(autojump_clock: trio.testing.MockClock) -> None:
    async with counting(Admitted(0, 0, 0, 0), first=Admitted(0, 0, 0, 0)) as (outbox, _):
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await outbox.reserve(1, STUCK)

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            outbox.close()
