"""A guest whose agent counts all that comes over its console: sessions share what it admits, and go on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.session._fake import FakeAgent, talking
from tests.session.process.test_process import PIPE, opened
from tests.tools.peer import frame, ready_message
from trio_console import _wire as wire
from trio_console._session.boot import Booted
from trio_console._wire.credit import Admission, Admitted
from trio_console._wire.ids import TRANSPORT_ID

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tests.session._fake import Talk

WINDOW = Admitted(control_bytes=10_000, control_frames=8, bulk_bytes=1_000_000, bulk_frames=32)
ALL = wire.TransportCredit(*(10**9,) * 4)
LONG = 100_000  # seconds of the clock that jumps when nothing moves


def counted(limits: Admitted | None = WINDOW) -> AbstractAsyncContextManager[Talk]:
    return talking(window=None, generation=10, admission=Admission(limits), patience=LONG)


async def announce(agent: FakeAgent, limits: Any, id_: int = TRANSPORT_ID) -> None:
    await agent.send(wire.TransportCredit(*limits), id_)
    await trio.testing.wait_all_tasks_blocked()


async def all_that_comes(agent: FakeAgent) -> list[wire.Message]:
    return [message for _, message in await agent.pending()]


@contextlib.asynccontextmanager
async def stuck(talk: Talk) -> Any:
    """A command whose stdin nobody reads, and a task that sends to it."""
    process, _, _ = await opened(talk, stdin=PIPE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.stdin.send_all, bytes(100 * WINDOW.bulk_bytes))
        await trio.sleep(1)
        yield process
        nursery.cancel_scope.cancel()


async def test_the_writer_pauses_before_more_is_sent_than_is_admitted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with counted() as talk, stuck(talk):
        await trio.sleep(10_000)
        frames = [wire.encode(message, 1) for message in await all_that_comes(talk.agent)]
        assert 0 < sum(map(len, frames)) <= WINDOW.bulk_bytes
        assert len(frames) <= WINDOW.bulk_frames


async def test_the_pause_is_a_stall_of_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with counted(Admitted(1000, 100, 0, 0)) as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        with trio.move_on_after(7):
            await process.stdin.send_all(b"x")
        [session] = talk.guest.statistics().sessions
        [stdin] = [one for one in session.streams if one.name == "stdin"]
        assert (stdin.moved, stdin.stalls, stdin.stalled) == (0, 1, pytest.approx(7))


async def test_a_paused_writer_goes_on_when_more_is_admitted(autojump_clock: trio.testing.MockClock) -> None:
    async with counted(Admitted(1000, 100, 0, 0)) as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.stdin.send_all, b"hello")
            await trio.sleep(1000)
            assert await all_that_comes(talk.agent) == []
            await talk.agent.send(ALL, TRANSPORT_ID)
        assert await all_that_comes(talk.agent) == [wire.ExecStdin(b"hello")]


async def test_questions_are_answered_while_data_waits(autojump_clock: trio.testing.MockClock) -> None:
    async with counted() as talk, stuck(talk), trio.open_nursery() as nursery:
        await all_that_comes(talk.agent)
        nursery.start_soon(talk.guest.ping)
        id_, _ = await talk.agent.expect(wire.Ping)
        await talk.agent.send(wire.Pong(), id_)


async def test_a_short_input_of_another_command_goes_while_data_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with counted() as talk, stuck(talk):
        await all_that_comes(talk.agent)
        process, _, _ = await opened(talk, stdin=PIPE)
        await process.stdin.send_all(b"short")
        await process.stdin.aclose()
        said = await all_that_comes(talk.agent)
        assert wire.ExecStdin(b"short") in said
        assert wire.ExecStdin(b"") in said


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(frame(wire.TransportCredit(10**9, 10**9, 10**9, 0), TRANSPORT_ID), id="one that shrinks"),
        pytest.param(frame(ALL, 0), id="under another id"),
        pytest.param(wire.Frame(TRANSPORT_ID, 1, frame(ALL).body), id="with flags"),
        pytest.param(wire.Frame(TRANSPORT_ID, 0, frame(wire.Touched(1)).body), id="of another type"),
        pytest.param(wire.Frame(TRANSPORT_ID, 0, b"\xa0"), id="without an envelope"),
    ],
)
async def test_a_bad_announcement_is_dropped_and_counted_and_changes_nothing(
    bad: wire.Frame, autojump_clock: trio.testing.MockClock
) -> None:
    async with counted(Admitted(1000, 100, 0, 1)) as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        await talk.agent.send_raw(wire.encode_frame(bad.id, bad.flags, bytes(bad.body)))
        with trio.move_on_after(7) as scope:
            await process.stdin.send_all(b"x")
        assert scope.cancelled_caught
        assert talk.guest.statistics().frames_dropped == 1


async def test_without_a_contract_announcements_are_dropped() -> None:
    async with talking() as talk:
        await announce(talk.agent, (0, 0, 0, 0))
        assert talk.guest.statistics().frames_dropped == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.guest.ping)
            id_, _ = await talk.agent.expect(wire.Ping)
            await talk.agent.send(wire.Pong(), id_)


def booted(generation: int, version: int | None) -> Booted:
    ready = wire.Ready(1, 2, 3, workload_transport_barrier_version=wire.UNSET if version is None else version)
    return Booted(ready, frame(ready, version=generation), generation, wire.FrameDecoder())


def test_an_agent_of_this_generation_counts_nothing() -> None:
    assert Booted(ready_message(None), frame(ready_message(None)), 7, wire.FrameDecoder()).admission() is None
    assert booted(8, 2).admission() is None


def test_an_agent_that_says_the_version_of_its_contract_is_sent_no_more_than_that_from_the_start() -> None:
    admission = booted(10, 2).admission()
    assert admission is not None
    assert (admission.admits(2**23, bulk=False), admission.admits(2**23 + 1, bulk=False)) == (True, False)
    assert (admission.admits(2**25, bulk=True), admission.admits(2**25 + 1, bulk=True)) == (True, False)
    for bulk in (False, True):
        for _ in range(256):
            admission.take(1, bulk=bulk)
        assert not admission.admits(1, bulk=bulk)


@pytest.mark.parametrize("version", [None, 1, 3])
def test_of_a_newer_agent_that_does_not_say_that_all_is_counted_until_it_announces(version: int | None) -> None:
    admission = booted(9, version).admission()
    assert admission is not None
    assert admission.admits(2**30, bulk=True)
