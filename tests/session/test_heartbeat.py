"""Which guests a heartbeat gives up, and which not. Both clocks are virtual, unless a test says otherwise."""

from __future__ import annotations

import math
import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.session._fake import Talk, begin, talking
from trio_console import GuestLostError, UnsupportedByPeer
from trio_console import _wire as wire
from trio_console._session.heartbeat import Heartbeat, check_heartbeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from trio.testing import MockClock

    from trio_console._session.connection import Connection

PIPE = subprocess.PIPE
SECONDS = 2.0


def watched(
    *, clock: Callable[[], float] | None = trio.current_time, patience: float = 100_000.0, **options: Any
) -> AbstractAsyncContextManager[Talk]:
    """A guest with a heartbeat of two seconds."""
    more = {name: options.pop(name) for name in ("carried", "force") if name in options}
    if clock is not None:
        more["clock"] = clock

    def watch(connection: Connection) -> Any:
        return Heartbeat(connection, SECONDS, **more).run

    return talking(watch=watch, patience=patience, **options)


async def answer(talk: Talk, delay: float = 0.0, times: list[float] | None = None) -> None:
    """Answer pings, for ever."""
    async for id_, message in talk.agent:
        assert isinstance(message, wire.Ping)
        if times is not None:
            times.append(trio.current_time())
        await trio.sleep(delay)
        await talk.agent.send(wire.Pong(), id_)


async def test_a_guest_that_answers_no_ping_is_lost_within_twice_the_number_and_a_second(
    autojump_clock: MockClock,
) -> None:
    forced = []
    async with watched(force=lambda: forced.append(trio.current_time())) as talk:
        lost = await talk.guest.wait_lost()
        assert 2 * SECONDS <= trio.current_time() < 2 * SECONDS + 1
        assert "silent" in lost.reason
        assert "heartbeat=2" in lost.reason
        assert forced == [trio.current_time()]
        with pytest.raises(GuestLostError, match="silent"):
            await talk.guest.ping()


async def test_a_guest_that_answers_is_pinged_once_in_so_many_seconds_of_silence(
    autojump_clock: MockClock,
) -> None:
    times: list[float] = []
    async with watched() as talk:
        talk.nursery.start_soon(answer, talk, 0.0, times)
        await trio.sleep(100)
        assert talk.connection.lost is None
    assert 30 < len(times) <= 50
    assert min(b - a for a, b in pairwise(times)) >= SECONDS


async def test_a_late_answer_is_early_enough(autojump_clock: MockClock) -> None:
    async with watched() as talk:
        talk.nursery.start_soon(answer, talk, SECONDS - 0.3)
        await trio.sleep(100)
        assert talk.connection.lost is None


async def test_any_byte_is_life_and_saves_the_ping(autojump_clock: MockClock) -> None:
    async with watched() as talk:
        for _ in range(100):
            await trio.sleep(SECONDS - 0.3)
            await talk.agent.send_raw(wire.encode_frame(99, 0, b"for nobody"))
        await talk.agent.nothing_more()


async def test_an_unanswered_ping_is_forgiven_as_long_as_other_bytes_come(autojump_clock: MockClock) -> None:
    async with watched() as talk:
        for _ in range(10):
            await trio.sleep(2 * SECONDS - 0.5)
            await talk.agent.send_raw(wire.encode_frame(99, 0, b"for nobody"))
        assert talk.connection.lost is None
        assert isinstance(await talk.agent.expect(wire.Ping), tuple)
        await talk.agent.nothing_more()  # one is enough
        assert (await talk.guest.wait_lost()).reason


# What this program does


async def test_a_loop_that_stood_still_while_a_ping_was_on_its_way_kills_no_guest(
    autojump_clock: MockClock,
) -> None:
    # (A jump of trio's clock would move the answer with it.)
    stood = 0.0
    pinged = trio.Event()
    async with watched(clock=lambda: trio.current_time() + stood) as talk:

        async def answer_late() -> None:
            id_, _ = await talk.agent.expect(wire.Ping)
            pinged.set()
            await trio.sleep(SECONDS / 2)
            await talk.agent.send(wire.Pong(), id_)

        talk.nursery.start_soon(answer_late)
        await pinged.wait()
        while trio.current_time() < 1.4 * SECONDS:
            await trio.sleep(0.1)  # in the middle of a nap
            stood += 1000
        await trio.sleep(SECONDS / 2)
        assert talk.connection.lost is None


async def test_a_loop_that_stood_still_kills_no_guest(autojump_clock: MockClock) -> None:
    async with watched() as talk:
        talk.nursery.start_soon(answer, talk)
        for moment in range(20):
            await trio.sleep(0.37 * moment)
            autojump_clock.jump(1000)  # as time.sleep, SIGSTOP and a debugger do
        assert talk.connection.lost is None


async def test_virtual_time_kills_no_guest(autojump_clock: MockClock) -> None:
    async with watched(clock=None) as talk:  # the machine's clock, as outside of this file
        await trio.sleep(1000)
        assert talk.connection.lost is None


async def test_a_reader_that_is_paused_kills_no_guest(autojump_clock: MockClock) -> None:
    async with watched(window=None) as talk:

        async def body() -> None:
            async with talk.guest.open_process(["cmd"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                paused.set()
                await trio.sleep(1000)
                assert talk.connection.lost is None
                async for _ in process.stdout:
                    pass

        paused = trio.Event()
        result = begin(talk.nursery, body)
        id_ = await talk.agent.expect_start()
        await paused.wait()
        await talk.agent.send(wire.ExecStdout(bytes(3_000_000)), id_)
        with trio.fail_after(2000):
            await result.done.wait()
        with pytest.raises(GuestLostError, match="silent"):
            await result.wait()
        assert trio.current_time() > 1000


async def test_a_nap_that_began_with_a_paused_reader_is_not_silence(autojump_clock: MockClock) -> None:
    async with watched(window=None) as talk:

        async def body() -> None:
            async with talk.guest.open_process(["cmd"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                paused.set()
                await trio.sleep_until(resumed)
                async for _ in process.stdout:
                    pass

        paused = trio.Event()
        resumed = 1000.2  # between two ends of naps, which are quarters of seconds
        result = begin(talk.nursery, body)
        id_ = await talk.agent.expect_start()
        await paused.wait()
        await talk.agent.send(wire.ExecStdout(bytes(3_000_000)), id_)
        _, message = await anext(talk.agent)
        assert isinstance(message, wire.Ping)
        assert trio.current_time() >= resumed + SECONDS
        with pytest.raises(GuestLostError, match="silent"):
            await result.wait()


async def test_an_upload_that_moves_kills_no_guest_before_the_ping_is_through(autojump_clock: MockClock) -> None:
    taken = 0
    async with watched(carried=lambda: (5_000, taken)) as talk:
        for _ in range(100):
            await trio.sleep(SECONDS - 0.3)
            taken += 50
        assert talk.connection.lost is None
        began = trio.current_time()
        await talk.guest.wait_lost()
        assert trio.current_time() - began < SECONDS + 1


async def test_a_ping_that_cannot_be_written_behind_an_upload_that_moves_kills_no_guest(
    autojump_clock: MockClock,
) -> None:
    async with watched(streams=trio.testing.lockstep_stream_pair) as talk:
        begin(talk.nursery, lambda: talk.guest.run_process(["cmd"], stdin=bytes(800_000)))
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        await talk.agent.send(wire.ExecStarted(5), id_)
        pings = 0
        for _ in range(20):
            await trio.sleep(SECONDS - 0.3)  # for each frame
            id_, message = await talk.agent.receive() or (0, None)
            if isinstance(message, wire.Ping):
                pings += 1
                await talk.agent.send(wire.Pong(), id_)
        assert pings > 3
        assert talk.connection.lost is None


async def test_an_upload_that_stands_still_saves_no_guest(autojump_clock: MockClock) -> None:
    async with watched(streams=trio.testing.lockstep_stream_pair) as talk:
        begin(talk.nursery, lambda: talk.guest.run_process(["cmd"], stdin=bytes(800_000)))
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        await talk.agent.send(wire.ExecStarted(5), id_)
        began = trio.current_time()
        await talk.guest.wait_lost()
        assert trio.current_time() - began < 2 * SECONDS + 1


async def test_a_trickling_upload_saves_no_guest(autojump_clock: MockClock) -> None:
    sent = 0
    async with watched(carried=lambda: (sent, sent)) as talk:

        async def trickle() -> None:
            nonlocal sent
            while True:
                await trio.sleep(0.1)
                sent += 1

        talk.nursery.start_soon(trickle)
        await talk.guest.wait_lost()
        assert trio.current_time() < 2 * SECONDS + 1


async def test_a_guest_that_is_told_to_end_may_be_silent(autojump_clock: MockClock) -> None:
    async with watched(grace=1000) as talk:
        talk.nursery.start_soon(talk.guest.shutdown)
        await trio.sleep(900)
        assert talk.connection.lost is None


async def test_a_guest_that_was_told_to_end_and_is_not_waited_for_is_lost_if_it_is_silent(
    autojump_clock: MockClock,
) -> None:
    async with watched(grace=1000) as talk:
        with trio.move_on_after(100) as scope:
            await talk.guest.shutdown()
        assert scope.cancelled_caught
        assert talk.connection.lost is None
        began = trio.current_time()
        lost = await talk.guest.wait_lost()
        assert "silent" in lost.reason
        assert trio.current_time() - began < 2 * SECONDS + 1


async def test_a_guest_that_was_told_to_end_may_be_silent_as_long_as_somebody_waits(
    autojump_clock: MockClock,
) -> None:
    async with watched(grace=1000) as talk:
        talk.nursery.start_soon(talk.guest.shutdown)
        with trio.move_on_after(100):
            await talk.guest.shutdown()
        await trio.sleep(100)
        assert talk.connection.lost is None


async def test_a_guest_that_ends_when_nobody_waits_any_more_was_shut_down(autojump_clock: MockClock) -> None:
    async with watched(grace=1000) as talk:
        with trio.move_on_after(1):
            await talk.guest.shutdown()
        await talk.agent.close()
        assert (await talk.guest.wait_lost()).reason == "the guest was shut down"


async def test_what_force_raises_costs_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def force() -> None:
        raise ZeroDivisionError

    async with watched(force=force) as talk:
        await talk.guest.wait_lost()
        await trio.testing.wait_all_tasks_blocked()
    assert "could not be ended by force" in caplog.text


# What it needs


async def test_an_agent_without_pings_is_refused() -> None:
    with pytest.raises(UnsupportedByPeer):
        async with watched(generation=1):
            pass


@pytest.mark.parametrize(
    ("heartbeat", "error"),
    [("1", TypeError), (True, TypeError), (1j, TypeError)]
    + [(number, ValueError) for number in (0, 0.0, -1, math.inf, math.nan)],
)
def test_what_is_no_heartbeat_is_refused(heartbeat: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="heartbeat must be"):
        check_heartbeat(heartbeat)


@pytest.mark.parametrize("heartbeat", [None, 1, 0.5])
def test_numbers_of_seconds_are_heartbeats(heartbeat: float | None) -> None:
    check_heartbeat(heartbeat)


# The end of a guest


async def test_waiting_for_the_loss_gives_a_new_error_each_time() -> None:
    async with talking() as talk:
        waits = [begin(talk.nursery, talk.guest.wait_lost) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        assert not waits[0].done.is_set()
        await talk.agent.close()
        errors = [await wait.wait() for wait in waits] + [await talk.guest.wait_lost()]
        assert len(set(map(id, errors))) == 3
        assert {type(error) for error in errors} == {GuestLostError}
        assert {error.reason for error in errors} == {"the guest closed its console: nobody knows why"}


async def test_a_cancelled_wait_for_the_loss_leaves_the_guest_alone() -> None:
    async with talking() as talk:
        waiting = begin(talk.nursery, talk.guest.wait_lost)
        await trio.testing.wait_all_tasks_blocked()
        waiting.scope.cancel()
        await waiting.done.wait()
        assert talk.connection.lost is None
