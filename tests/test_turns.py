"""The turns of tasks that work off what strangers send. The clocks are the tests' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_console._trio import turns
from trio_console._trio.turns import Costly, Line, Meter, Ration, Trickle, Turn, sources_left_alone

if TYPE_CHECKING:
    from trio.testing import MockClock


class Time:
    """The two clocks of work, which stand still until they are told how long something has taken."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(turns, "perf_counter", time)
    monkeypatch.setattr(turns, "thread_time", time)
    return time


class Passes:
    """Counts the turns of the loop: a task that does nothing else."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.count += 1


# One task


async def test_a_turn_is_over_after_half_a_millisecond_of_work(time: Time) -> None:
    turn = Turn()
    time.now += 0.00049
    assert not turn.is_over
    time.now += 0.00002
    assert turn.is_over


@pytest.mark.parametrize(("others", "turn"), [(0.0, 0.0005), (0.0004, 0.0005), (0.002, 0.002), (1.0, 0.004)])
async def test_a_turn_is_as_long_as_the_others_took_before_it_within_bounds(
    time: Time, monkeypatch: pytest.MonkeyPatch, others: float, turn: float
) -> None:
    async def let_others_work() -> None:
        time.now += others

    own = Turn()
    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "checkpoint", let_others_work)
        await own.pause()
    time.now += turn - 0.00001
    assert not own.is_over
    time.now += 0.00002
    assert own.is_over


async def test_a_pause_lets_all_others_run_and_begins_a_new_turn(time: Time) -> None:
    turn, passes = Turn(), Passes()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(passes.run)
        time.now += 1
        for _ in range(3):
            await turn.pause()
        assert passes.count
        assert not turn.is_over
        time.now += 1
        assert turn.is_over
        turn.begin()
        assert not turn.is_over
        nursery.cancel_scope.cancel()


async def test_a_turn_is_long_again_and_again_after_each_half_of_a_millisecond(time: Time) -> None:
    turn = Turn()
    seen = []
    for _ in range(12):
        time.now += 0.0002
        seen.append(turn.is_long())
    assert seen == [False, False, True] * 4
    await turn.pause()
    assert not turn.is_long()
    time.now += 0.0006
    turn.begin()
    assert not turn.is_long()


# Several tasks


def work(meter: Meter, time: Time, seconds: float, *, nbytes: int = 0) -> None:
    meter.begin()
    time.now += seconds
    meter.end(nbytes)


async def test_a_task_may_use_an_eighth_of_the_loop_and_never_wait(time: Time) -> None:
    meter = Meter(Line())
    for _ in range(1000):
        work(meter, time, 0.0001)
        assert not meter.is_over
        time.now += 0.00081


async def test_time_for_which_a_task_had_no_processor_is_not_its_use(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = Time()
    monkeypatch.setattr(turns, "thread_time", processor)
    meter = Meter(Line())
    meter.begin()
    time.now += 0.05
    processor.now += 0.0004
    meter.end(0)
    assert not meter.is_over


async def test_work_that_is_noted_in_parts_is_used_once(time: Time) -> None:
    meter = Meter(Line())
    meter.begin()
    for _ in range(4):
        time.now += 0.0001
        meter.end(0)
    assert not meter.is_over
    time.now += 0.0003
    meter.end(0)
    assert meter.is_over


async def test_a_task_that_uses_more_waits_after_a_turn(time: Time) -> None:
    meter = Meter(Line())
    worked = 0
    while not meter.is_over:
        work(meter, time, 0.0001)
        time.now += 0.00032
        worked += 1
    assert worked == 8  # each time it has used 0.1 ms, and got back 0.04 ms before the next one
    await meter.wait()
    work(meter, time, 0.0004)
    assert not meter.is_over


async def test_when_all_use_much_together_a_task_waits_after_a_little(time: Time) -> None:
    line = Line()
    meters = [Meter(line) for _ in range(5)]
    for meter in meters[:4]:
        work(meter, time, 0.00011)
        assert not meter.is_over
    work(meters[4], time, 0.00011)
    assert all(meter.is_over for meter in meters)


async def test_a_task_that_uses_little_never_waits_whatever_the_others_use(time: Time) -> None:
    line = Line()
    greedy, modest = Meter(line), Meter(line)
    for _ in range(100):
        work(greedy, time, 0.001)
        modest.begin()  # it learns what time has forgiven
        assert not modest.is_over
        work(modest, time, 0.00009)
        assert not modest.is_over


async def test_a_task_that_has_waited_has_a_whole_turn_also_when_all_use_much(time: Time) -> None:
    line = Line()
    greedy, patient = Meter(line), Meter(line)
    work(greedy, time, 0.01)
    work(patient, time, 0.0002)
    assert patient.is_over
    await patient.wait()
    for _ in range(4):
        work(patient, time, 0.0001)
        assert not patient.is_over
    work(patient, time, 0.0002)
    assert patient.is_over


async def test_a_task_that_has_waited_and_rested_waits_again_after_a_little(time: Time) -> None:
    line = Line()
    greedy, other = Meter(line), Meter(line)
    work(other, time, 0.001)
    await other.wait()
    work(other, time, 0.0001)
    time.now += 1
    other.begin()
    work(greedy, time, 0.01)
    work(other, time, 0.0002)
    assert other.is_over


async def test_what_all_have_used_together_is_forgiven_with_time(time: Time) -> None:
    line = Line()
    greedy, other = Meter(line), Meter(line)
    work(greedy, time, 0.01)
    time.now += 0.038
    work(other, time, 0.0002)
    assert other.is_over
    time.now += 0.005
    work(other, time, 0.0002)
    assert not other.is_over


async def test_a_task_is_not_paid_for_time_in_which_it_did_nothing(time: Time) -> None:
    meter = Meter(Line())
    time.now += 3600
    work(meter, time, 0.0006)
    assert meter.is_over


async def test_what_a_long_step_has_used_is_forgiven_with_time(time: Time) -> None:
    meter = Meter(Line())
    work(meter, time, 0.1)
    time.now += 0.79
    work(meter, time, 0.0)
    assert meter.is_over
    time.now += 0.02
    work(meter, time, 0.0)
    assert not meter.is_over


async def test_one_of_those_that_wait_goes_on_in_each_pass_of_the_loop() -> None:
    line, passes = Line(), Passes()
    went: list[tuple[int, int]] = []

    async def go_on(number: int) -> None:
        while True:
            await line.wait()
            went.append((number, passes.count))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(go_on, number)
        nursery.start_soon(passes.run)
        while passes.count < 100:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    went = [(number, count) for number, count in went if count > 0]
    assert len(went) <= 100 + 2, "two tasks went on in one pass"
    numbers = [number for number, _ in went]
    assert numbers[3:] == numbers[:-3], "a task has overtaken another"
    assert len(set(numbers)) == 3


# Rests


async def rests(meter: Meter, behind: int = 0) -> float:
    """The seconds for which a task rests before its next turn."""
    began = trio.current_time()
    await meter.wait(behind)
    return trio.current_time() - began


async def test_a_task_that_uses_much_for_small_pieces_rests_beside_a_modest_one(
    time: Time, autojump_clock: MockClock
) -> None:
    line = Line()
    greedy, modest = Meter(line), Meter(line)
    work(modest, time, 0.0001)
    work(greedy, time, 0.001, nbytes=33_000)
    assert await rests(greedy) == pytest.approx(0.007)


@pytest.mark.parametrize(
    ("behind", "seconds"), [(16 * 1024 - 1, 0.007), (16 * 1024, 0.007), (16 * 1024 + 1, 0.031)]
)
async def test_a_task_that_is_far_behind_with_small_pieces_rests_longest(
    behind: int, seconds: float, time: Time, autojump_clock: MockClock
) -> None:
    line = Line()
    greedy, modest = Meter(line), Meter(line)
    work(modest, time, 0.0001)
    work(greedy, time, 0.001)
    assert await rests(greedy, behind) == pytest.approx(seconds)


async def test_floods_rest_one_behind_the_other_and_no_other_task_rests_behind_them(
    time: Time, autojump_clock: MockClock
) -> None:
    line = Line()
    modest, busy, *floods = (Meter(line) for _ in range(4))
    work(modest, time, 0.0001)
    for meter in (busy, *floods):
        work(meter, time, 0.001)
    rested: dict[str, float] = {}

    async def rest(name: str, meter: Meter, behind: int) -> None:
        rested[name] = await rests(meter, behind)

    async with trio.open_nursery() as nursery:
        for number, flood in enumerate(floods):
            nursery.start_soon(rest, f"flood {number}", flood, 20_000)
        await wait_all_tasks_blocked()
        nursery.start_soon(rest, "busy", busy, 0)
    assert sorted(rested.values()) == pytest.approx([0.007, 0.031, 0.062])
    assert rested["busy"] == pytest.approx(0.007)


async def test_a_task_that_moves_many_bytes_does_not_rest(time: Time, autojump_clock: MockClock) -> None:
    line = Line()
    greedy, modest = Meter(line), Meter(line)
    work(modest, time, 0.0001)
    work(greedy, time, 0.001, nbytes=34_000)
    assert await rests(greedy) == 0


async def test_tasks_that_all_use_much_do_not_rest(time: Time, autojump_clock: MockClock) -> None:
    line = Line()
    meters = [Meter(line) for _ in range(3)]
    for meter in meters:
        work(meter, time, 0.001)
    assert [await rests(meter) for meter in meters] == [0, 0, 0]


async def test_tasks_that_begin_to_use_much_do_not_rest_for_each_other(
    time: Time, autojump_clock: MockClock
) -> None:
    line = Line()
    meters = [Meter(line) for _ in range(2)]
    for seconds in (0.0001, 0.001):
        for meter in meters:
            work(meter, time, seconds)
    assert await rests(meters[1]) == 0
    assert await rests(meters[0]) == 0


async def test_a_task_rests_no_more_when_no_modest_one_has_worked_recently(
    time: Time, autojump_clock: MockClock
) -> None:
    line = Line()
    greedy, modest = Meter(line), Meter(line)
    work(modest, time, 0.0001)
    time.now += 0.101
    work(greedy, time, 0.001)
    assert await rests(greedy) == 0


async def test_a_task_that_has_to_wait_for_what_all_use_does_not_rest(
    time: Time, autojump_clock: MockClock
) -> None:
    line = Line()
    others = [Meter(line) for _ in range(5)]
    for meter in others:
        work(meter, time, 0.0002)
    assert others[-1].is_over
    assert await rests(others[-1]) == 0


async def test_of_several_tasks_one_rests_behind_the_other_and_bulk_waits_for_none(
    time: Time, autojump_clock: MockClock
) -> None:
    line = Line()
    greedy, bulky, modest = [Meter(line) for _ in range(3)], Meter(line), Meter(line)
    work(modest, time, 0.0001)
    done: list[float] = []

    async def go_on(meter: Meter) -> None:
        await meter.wait()
        done.append(trio.current_time() - began)

    for meter in greedy:
        work(meter, time, 0.001)
    work(bulky, time, 0.001, nbytes=1_000_000)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for meter in (*greedy, bulky):
            nursery.start_soon(go_on, meter)
    assert done == pytest.approx([0, 0.007, 0.014, 0.021])


async def test_a_task_that_has_rested_is_no_modest_one_for_a_second(time: Time, autojump_clock: MockClock) -> None:
    line = Line()
    greedy, other = Meter(line), Meter(line)
    found = []
    for seconds in (0.0, 0.05, 1.0):
        time.now += seconds  # what it has used is forgiven, and it begins as a modest one does
        work(other, time, 0.0001)
        for _ in range(2):
            work(greedy, time, 0.0001)
            time.now += 0.001
        work(greedy, time, 0.001)
        found.append(await rests(greedy))
    assert found == pytest.approx([0.0, 0.007, 0.0])


# Sources of small pieces


async def left_alone(source: Trickle, nbytes: int) -> float:
    """The seconds for which a source is left alone after a piece of so many bytes."""
    began = trio.current_time()
    await source.rest(nbytes)
    return trio.current_time() - began


async def test_a_source_of_small_pieces_without_end_is_left_alone(autojump_clock: MockClock) -> None:
    source = Trickle(sources_left_alone())
    pieces = [await left_alone(source, 1023) for _ in range(40)]
    assert pieces[:32] == [0.0] * 32
    assert pieces[32:] == pytest.approx([0.005, 0.005, 0.0, 0.005, 0.005, 0.0, 0.005, 0.005], abs=1e-6)


async def test_a_source_of_a_hundred_pieces_in_a_second_is_never_left_alone(autojump_clock: MockClock) -> None:
    source = Trickle(sources_left_alone())
    for _ in range(1000):
        assert await left_alone(source, 1) == 0
        await trio.sleep(0.0101)


async def test_a_source_of_large_pieces_is_never_left_alone(autojump_clock: MockClock) -> None:
    source = Trickle(sources_left_alone())
    assert {await left_alone(source, 1024) for _ in range(1000)} == {0.0}


async def test_a_source_that_is_sent_something_may_answer_at_once(autojump_clock: MockClock) -> None:
    source = Trickle(sources_left_alone())
    for _ in range(100):
        assert [await left_alone(source, 1) for _ in range(32)] == [0.0] * 32
        source.note_asked()


async def test_a_source_that_is_sent_something_is_left_alone_no_longer(autojump_clock: MockClock) -> None:
    source = Trickle(sources_left_alone())
    for _ in range(32):
        await source.rest(1)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.rest, 1)
        await trio.sleep(0.001)
        source.note_asked()
    assert trio.current_time() - began == pytest.approx(0.001)


async def test_many_sources_make_no_more_work_than_four(autojump_clock: MockClock) -> None:
    alone = sources_left_alone()
    sources = [Trickle(alone) for _ in range(12)]
    ends: list[float] = []

    async def one(source: Trickle) -> None:
        for _ in range(33):
            await source.rest(1)
        ends.append(trio.current_time() - began)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for source in sources:
            nursery.start_soon(one, source)
    assert sorted(ends) == pytest.approx([0.005] * 4 + [0.010] * 4 + [0.015] * 4)


async def test_however_many_there_are_a_source_is_left_alone_for_a_bounded_time(autojump_clock: MockClock) -> None:
    alone = trio.Semaphore(0)  # there are always others before it
    source = Trickle(alone)
    for _ in range(32):
        await source.rest(1)
    assert await left_alone(source, 1) == pytest.approx(0.05)


# Long steps


async def test_a_long_step_is_followed_by_a_rest_that_is_nine_times_as_long(
    time: Time, autojump_clock: MockClock
) -> None:
    costly = Costly()
    assert await costly.run(lambda: step(time, 0.025)) == "done"
    done = trio.current_time()
    await costly.run(lambda: step(time, 0.001))
    assert trio.current_time() == pytest.approx(done + 9 * 0.020)


async def test_a_short_step_is_followed_by_no_rest(time: Time, autojump_clock: MockClock) -> None:
    costly = Costly()
    began = trio.current_time()
    for _ in range(10):
        await costly.run(lambda: step(time, 0.005))
    assert trio.current_time() == began


async def test_a_step_that_fails_is_followed_by_a_rest_too(time: Time, autojump_clock: MockClock) -> None:
    costly = Costly()

    def fail() -> None:
        step(time, 0.105)
        raise LookupError

    with pytest.raises(LookupError):
        await costly.run(fail)
    done = trio.current_time()
    await costly.run(lambda: None)
    assert trio.current_time() == pytest.approx(done + 0.9)


async def test_long_steps_of_many_tasks_are_done_one_after_the_other(
    time: Time, autojump_clock: MockClock
) -> None:
    costly = Costly()
    done: list[tuple[int, float]] = []

    async def work(number: int) -> None:
        await costly.run(lambda: step(time, 0.105))
        done.append((number, trio.current_time()))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(work, number)
    assert [at - began for _, at in done] == pytest.approx([0.0, 0.9, 1.8, 2.7])


async def test_a_step_that_is_cancelled_was_not_done(time: Time, autojump_clock: MockClock) -> None:
    costly = Costly()
    done: list[int] = []
    await costly.run(lambda: step(time, 0.105))
    with trio.move_on_after(0.5):
        await costly.run(lambda: done.append(1))
    assert not done
    await costly.run(lambda: done.append(2))
    assert done == [2]


# Work that is done again and again


async def test_a_burst_of_work_is_followed_by_no_rest(autojump_clock: MockClock) -> None:
    ration = Ration(1 / 4, 0.05)
    assert [ration.rest_after(0.025), ration.rest_after(0.025)] == [0, 0]


async def test_work_without_end_gets_its_part_of_the_time(autojump_clock: MockClock) -> None:
    ration = Ration(1 / 4, 0.05)
    began = trio.current_time()
    worked = 0.0
    while worked < 10:
        await trio.sleep(0.01)  # the work
        worked += 0.01
        await trio.sleep(ration.rest_after(0.01))
    assert 10 / (trio.current_time() - began) == pytest.approx(1 / 4, rel=0.01)


async def test_time_without_work_allows_a_burst_and_no_more(autojump_clock: MockClock) -> None:
    ration = Ration(1 / 4, 0.05)
    ration.rest_after(1.0)
    await trio.sleep(3600)
    assert ration.rest_after(0.05) == 0
    assert ration.rest_after(0.01) == pytest.approx(0.04, abs=0.01)


def step(time: Time, seconds: float) -> str:
    time.now += seconds
    return "done"
