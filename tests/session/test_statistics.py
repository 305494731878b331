"""What `guest.statistics()` says of sessions that go on: bytes, what waits, and how long senders were stopped."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.session._fake import WINDOW, talking
from tests.session.process.test_process import PIPE, STDOUT, opened
from tests.tools.limits import HANG
from trio_console import SessionStatistics, StreamStatistics
from trio_console import _wire as wire

if TYPE_CHECKING:
    from tests.session._fake import Talk


def stream(name: str, moved: int = 0, **others: Any) -> StreamStatistics:
    return StreamStatistics(name=name, moved=moved, **({"waiting": 0, "stalls": 0, "stalled": 0.0} | others))


def only(talk: Talk) -> SessionStatistics:
    [session] = talk.guest.statistics().sessions
    return session


async def test_a_process_is_told_with_all_its_streams() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        await process.stdin.send_all(b"123")
        await talk.agent.send(wire.ExecStdout(b"12345"), id_)
        await talk.agent.send(wire.ExecStderr(b"1234567"), id_)
        await trio.testing.wait_all_tasks_blocked()
        assert await process.stdout.receive_some(2) == b"12"
        told = only(talk)
        assert (told.kind, told.name) == ("process", process.args[0])
        assert told.streams == (
            stream("stdin", 3, waiting=3),
            stream("stdout", 5, waiting=3),
            stream("stderr", 7, waiting=7),
        )


async def test_what_a_session_has_not_is_not_told() -> None:
    async with talking() as talk:
        await opened(talk, stdin=PIPE, stdout=PIPE, tty=True)
        assert [each.name for each in only(talk).streams] == ["stdin", "stdout"]


async def test_output_that_goes_where_stdout_goes_is_one_stream() -> None:
    async with talking() as talk:
        await opened(talk, stdout=PIPE, stderr=STDOUT)
        assert [each.name for each in only(talk).streams] == ["stdin", "stdout"]


async def test_an_ended_session_is_not_told() -> None:
    async with talking() as talk:
        _, id_, _ = await opened(talk)
        await talk.agent.send(wire.ExecExited(code=0), id_)
        await trio.testing.wait_all_tasks_blocked()
        assert talk.guest.statistics().sessions == ()


async def test_a_connection_is_told_by_its_address() -> None:
    opened: list[Any] = []

    async def connect(talk: Talk) -> None:
        opened.append(await talk.guest.open_tcp_stream("host", 80))

    async with talking() as talk, trio.open_nursery() as nursery:
        nursery.start_soon(connect, talk)
        id_, _ = await talk.agent.expect(wire.TcpConnect)
        await talk.agent.send(wire.TcpConnected(), id_)
        await talk.agent.send(wire.TcpData(b"1234"), id_)
        await trio.testing.wait_all_tasks_blocked()
        assert only(talk) == SessionStatistics(
            kind="connection", name="host:80", streams=(stream("sent"), stream("received", 4, waiting=4))
        )
        await opened[0].aclose()
        assert talk.guest.statistics().sessions == ()


async def test_requests_are_counted_and_not_told() -> None:
    async with talking() as talk, trio.open_nursery() as nursery:
        nursery.start_soon(talk.guest.ping)
        await trio.testing.wait_all_tasks_blocked()
        told = talk.guest.statistics()
        assert (told.active_sessions, told.sessions) == (1, ())
        nursery.cancel_scope.cancel()


async def test_a_sender_without_credit_counts_its_stall_and_the_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk, stdin=PIPE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.stdin.send_all, bytes(WINDOW + 1))
            await trio.testing.wait_all_tasks_blocked()
            assert only(talk).streams[0] == stream("stdin", WINDOW, waiting=WINDOW, stalls=1)
            await trio.sleep(7)
            await talk.agent.send(wire.Credit(stream="stdin", bytes=WINDOW), id_)
        assert only(talk).streams[0] == stream("stdin", WINDOW + 1, waiting=1, stalls=1, stalled=pytest.approx(7))


async def test_a_cancelled_stall_is_counted_too(autojump_clock: trio.testing.MockClock) -> None:
    async with talking() as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        with trio.move_on_after(3):
            await process.stdin.send_all(bytes(WINDOW + 1))
        assert only(talk).streams[0].stalled == pytest.approx(3)


async def test_without_credit_nothing_is_known_of_what_was_read_in_the_guest() -> None:
    async with talking(window=None) as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        await process.stdin.send_all(bytes(10))
        assert only(talk).streams[0] == stream("stdin", 10)


async def test_any_thread_may_ask_while_sessions_come_and_go() -> None:
    async with talking() as talk:
        asked, stop = [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                statistics = talk.guest.statistics()
                asked.append(statistics.active_sessions >= len(statistics.sessions))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            with trio.fail_after(HANG):
                for _ in range(200):
                    _, id_, _ = await opened(talk, stdin=PIPE)
                    await talk.agent.send(wire.ExecExited(code=0), id_)
        finally:
            stop.set()
            thread.join()
        assert asked
