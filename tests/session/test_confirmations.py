"""All ends that a guest does not confirm have one deadline."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.session._fake import begin, talking
from trio_console import _wire as wire
from trio_console._session.confirmations import Confirmations

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.session._fake import Talk

PIPE = subprocess.PIPE
GRACE = 3.0


async def test_a_wait_has_a_grace(mock_clock: MockClock) -> None:
    confirmations = Confirmations(GRACE)
    mock_clock.jump(10)
    assert confirmations.begin() == trio.current_time() + GRACE


@pytest.mark.parametrize("later", [0.0, 1.0, GRACE, 2 * GRACE])
async def test_later_waits_share_the_deadline_of_the_first(later: float, mock_clock: MockClock) -> None:
    confirmations = Confirmations(GRACE)
    first = confirmations.begin()
    mock_clock.jump(later)
    assert confirmations.begin() == first


async def test_a_wait_later_than_two_graces_sets_a_new_deadline(mock_clock: MockClock) -> None:
    confirmations = Confirmations(GRACE)
    confirmations.begin()
    mock_clock.jump(2 * GRACE + 0.001)
    assert confirmations.begin() == trio.current_time() + GRACE


async def test_any_confirmation_clears_the_deadline(mock_clock: MockClock) -> None:
    confirmations = Confirmations(GRACE)
    confirmations.begin()
    mock_clock.jump(1)
    confirmations.confirmed()
    assert confirmations.begin() == trio.current_time() + GRACE


async def test_a_wait_tells_whether_it_was_confirmed_and_clears_the_deadline_if_so(
    autojump_clock: MockClock,
) -> None:
    confirmations = Confirmations(GRACE)
    assert not await confirmations.wait(trio.sleep_forever)
    assert trio.current_time() == GRACE
    assert not await confirmations.wait(trio.sleep_forever)
    assert trio.current_time() == GRACE
    await trio.sleep(GRACE + 1)
    assert await confirmations.wait(trio.lowlevel.checkpoint)
    assert not await confirmations.wait(trio.sleep_forever)
    assert trio.current_time() == 3 * GRACE + 1


# A guest that has been heard


@pytest.mark.parametrize("later", [0.0, GRACE - 0.1, GRACE, GRACE + 1])
async def test_a_guest_that_was_heard_since_gets_a_moment_for_each_wait(
    later: float, mock_clock: MockClock
) -> None:
    heard = 7
    confirmations = Confirmations(GRACE, lambda: heard)
    first = confirmations.begin()
    mock_clock.jump(later)
    assert confirmations.begin() == first
    heard += 1
    for _ in range(2):
        now = trio.current_time()
        assert confirmations.peek() == confirmations.begin() == max(first, now + 0.2)
        assert confirmations.begin(1) == max(first - 1, now + 0.2)
        mock_clock.jump(0.3)


async def test_what_was_heard_before_a_deadline_was_set_is_no_life_behind_it(mock_clock: MockClock) -> None:
    heard = 0
    confirmations = Confirmations(GRACE, lambda: heard)
    confirmations.begin()
    heard += 1
    mock_clock.jump(2 * GRACE + 1)
    second = confirmations.begin()
    mock_clock.jump(GRACE + 1)
    assert confirmations.begin() == second


# Through a guest


async def _leave_stuck(talk: Talk, count: int) -> None:
    """Leave blocks of processes that the guest does not confirm, one after the other."""
    for _ in range(count):
        with pytest.warns(RuntimeWarning, match="did not confirm within 3 seconds"):
            async with talk.guest.open_process(["stuck"], stdin=PIPE, stdout=PIPE, stderr=PIPE):
                pass


async def test_five_stuck_processes_cost_one_grace(autojump_clock: MockClock) -> None:
    async with talking(grace=GRACE) as talk:
        talk.nursery.start_soon(lambda: talk.agent.serve(obey=()))
        blocks = [talk.guest.open_process(["stuck"], stdin=PIPE, stdout=PIPE, stderr=PIPE) for _ in range(5)]
        for block in blocks:
            await block.__aenter__()
        began = trio.current_time()
        for block in reversed(blocks):
            with pytest.warns(RuntimeWarning, match="did not confirm within 3 seconds"):
                await block.__aexit__(None, None, None)
        assert trio.current_time() - began == GRACE


async def test_five_stuck_processes_of_a_guest_that_starts_more_cost_one_grace_and_a_moment_each(
    autojump_clock: MockClock,
) -> None:
    async with talking(grace=GRACE) as talk:
        talk.nursery.start_soon(lambda: talk.agent.serve(obey=()))
        began = trio.current_time()
        await _leave_stuck(talk, 5)
        assert trio.current_time() - began == pytest.approx(GRACE + 4 * 0.2)


async def _serve_but_one(talk: Talk, delay: float) -> None:
    """An agent whose processes end ``delay`` seconds after they are killed, the first of them excepted."""
    stuck = 0
    async for id_, message in talk.agent:
        match message:
            case wire.ExecRequest():
                stuck = stuck or id_
                await talk.agent.send(wire.ExecStarted(100 + id_), id_)
            case wire.ExecSignal() if id_ != stuck:
                await trio.sleep(delay)
                await talk.agent.send(wire.ExecExited(code=-1, signal=9), id_)
            case _:
                pass


async def test_one_stuck_process_costs_a_guest_that_answers_no_other_one(autojump_clock: MockClock) -> None:
    async with talking(grace=GRACE) as talk:
        talk.nursery.start_soon(_serve_but_one, talk, 0.1)
        await _leave_stuck(talk, 1)
        async with talk.guest.open_process(["other"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
            pass
        assert process.returncode == -9  # and there was no warning
        # That has cleared the deadline.
        assert talk.guest._confirmations.peek() == trio.current_time() + GRACE


async def test_a_process_that_is_confirmed_too_late_still_clears_the_deadline(autojump_clock: MockClock) -> None:
    async with talking(grace=GRACE) as talk:
        result = begin(talk.nursery, lambda: _leave_stuck(talk, 1))
        id_ = await talk.agent.expect_start()
        await result.wait()
        await talk.agent.expect(wire.ExecSignal)
        await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
        await trio.testing.wait_all_tasks_blocked()
        talk.nursery.start_soon(lambda: talk.agent.serve(obey=()))
        began = trio.current_time()
        await _leave_stuck(talk, 1)
        assert trio.current_time() - began == GRACE


async def test_the_seconds_of_deliver_cancel_come_before_the_deadline(autojump_clock: MockClock) -> None:
    async def deliver(_process: object) -> None:
        await trio.sleep(10)
        raise ZeroDivisionError

    async with talking(grace=GRACE) as talk:
        talk.nursery.start_soon(lambda: talk.agent.serve(obey=()))
        await _leave_stuck(talk, 1)
        with pytest.warns(RuntimeWarning, match="did not confirm"):  # around the start of the task that warns
            result = begin(
                talk.nursery,
                lambda: talk.guest.run_process(["stuck"], capture_stdout=True, deliver_cancel=deliver),
            )
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            result.scope.cancel()
            with pytest.RaisesGroup(ZeroDivisionError):
                await result.wait()
        assert trio.current_time() - began == 10 + GRACE


async def test_a_shutdown_of_a_guest_that_has_let_others_wait_is_by_force_after_a_moment(
    autojump_clock: MockClock,
) -> None:
    seen: list[tuple[int, wire.Message]] = []

    async def record(talk: Talk) -> None:
        async for id_, message in talk.agent:
            seen.append((id_, message))
            if isinstance(message, wire.ExecRequest):
                await talk.agent.send(wire.ExecStarted(5), id_)

    async with talking(grace=GRACE) as talk:
        talk.nursery.start_soon(record, talk)
        began = trio.current_time()
        await _leave_stuck(talk, 2)
        await talk.guest.shutdown()
        assert trio.current_time() - began == pytest.approx(GRACE + 0.2 + 0.2)
        assert talk.forced == 1
        await trio.testing.wait_all_tasks_blocked()
    assert any(isinstance(message, wire.Shutdown) for _, message in seen)


async def test_a_guest_that_has_let_others_wait_is_waited_for_a_moment_after_deliver_cancel(
    autojump_clock: MockClock,
) -> None:
    async def deliver(_process: object) -> None:
        await trio.lowlevel.checkpoint()

    async with talking(grace=GRACE) as talk:
        talk.nursery.start_soon(lambda: talk.agent.serve(obey=()))
        await _leave_stuck(talk, 1)
        began = trio.current_time()
        with pytest.warns(RuntimeWarning, match="did not confirm"):  # around the start of the task that warns
            result = begin(
                talk.nursery,
                lambda: talk.guest.run_process(["stuck"], capture_stdout=True, deliver_cancel=deliver),
            )
            await trio.testing.wait_all_tasks_blocked()
            result.scope.cancel()
            await result.wait()
        assert trio.current_time() - began == pytest.approx(2 * 0.2)  # to end by itself, and when it was killed


async def test_a_guest_that_had_no_time_but_virtual_is_told_of_with_that(autojump_clock: MockClock) -> None:
    async with talking(grace=GRACE) as talk:
        talk.nursery.start_soon(lambda: talk.agent.serve(obey=()))
        with pytest.warns(RuntimeWarning, match=r"did not confirm.*it may still run.*autojump_clock"):
            async with talk.guest.open_process(["stuck"], stdin=PIPE, stdout=PIPE, stderr=PIPE):
                pass


async def test_looking_at_the_deadline_sets_none(mock_clock: MockClock) -> None:
    confirmations = Confirmations(GRACE)
    assert confirmations.peek() == trio.current_time() + GRACE
    mock_clock.jump(1)
    assert confirmations.begin() == trio.current_time() + GRACE
    assert confirmations.peek() == confirmations.begin()
