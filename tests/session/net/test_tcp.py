"""Connections that the guest makes."""

from __future__ import annotations

import errno
import socket
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import (
    check_half_closeable_stream,
    lockstep_stream_pair,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

import trio_console
from tests.session._fake import WINDOW, Talk, begin, talking
from tests.session.net._fake_tcp import TcpAgent, serving_tcp
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console.testing import console_stream_pair

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream

FLOWS = pytest.mark.parametrize("window", [WINDOW, None], ids=["credit", "no-credit"])


def listen(tcp: TcpAgent, port: int = 80, pair: Any = memory_stream_pair) -> HalfCloseableStream:
    """A server at a port: the far end of the connection that will be made to it."""
    near, far = pair()
    tcp.listeners[port] = lambda: near
    return far


async def connected(talk: Talk) -> tuple[int, HalfCloseableStream]:
    """A connection through a scripted agent."""
    connecting = begin(talk.nursery, lambda: talk.guest.open_tcp_stream("h", 1))
    id_, _ = await talk.agent.expect(wire.TcpConnect)
    await talk.agent.send(wire.TcpConnected(), id_)
    return id_, await connecting.wait()


@FLOWS
async def test_it_is_a_half_closeable_stream(window: int | None) -> None:
    async with serving_tcp(window=window) as (talk, tcp):

        async def make() -> Any:
            far = listen(tcp)
            return await talk.guest.open_tcp_stream("h", 80), far

        async def make_clogged() -> Any:
            far = listen(tcp, pair=lambda: console_stream_pair(max_bytes=4096))
            stream = await talk.guest.open_tcp_stream("h", 80)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(64 * WINDOW))
                nursery.start_soon(far.send_all, bytes(64 * WINDOW))
                await wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            return stream, far

        with trio.fail_after(HANG):
            # Without credit only the whole console clogs, and this stream does not control that.
            await check_half_closeable_stream(make, make_clogged if window else None)


async def test_the_request_has_what_was_asked_for() -> None:
    async with serving_tcp() as (talk, tcp):
        listen(tcp, 8080)
        async with await talk.guest.open_tcp_stream("example.org", 8080):
            assert tcp.requests == [wire.TcpConnect("example.org", 8080, WINDOW)]


async def test_an_agent_without_credit_is_not_spoken_to_of_it() -> None:
    async with serving_tcp(window=None) as (talk, tcp):
        far = listen(tcp)
        async with await talk.guest.open_tcp_stream("h", 80) as stream:
            assert tcp.requests == [wire.TcpConnect("h", 80)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(far.send_all, bytes(3 * WINDOW))
                size = 0
                while size < 3 * WINDOW:
                    size += len(await stream.receive_some())


async def test_a_connection_nobody_reads_holds_up_its_own_peer_only() -> None:
    async with serving_tcp() as (talk, tcp):
        far = listen(tcp, pair=lockstep_stream_pair)
        other = listen(tcp, 81)
        stream = await talk.guest.open_tcp_stream("h", 80)
        sending = begin(talk.nursery, lambda: far.send_all(bytes(4 * WINDOW)))
        await wait_all_tasks_blocked()
        assert not sending.done.is_set()
        async with await talk.guest.open_tcp_stream("h", 81) as second:
            await other.send_all(b"x")
            assert await second.receive_some() == b"x"
        size = 0
        while size < 4 * WINDOW:
            size += len(await stream.receive_some())
        await sending.wait()


async def test_a_peer_that_reads_nothing_holds_up_the_sender_at_the_window() -> None:
    async with talking() as talk:
        id_, stream = await connected(talk)
        sending = begin(talk.nursery, lambda: stream.send_all(bytes(2 * WINDOW)))
        size = 0
        while size < WINDOW:
            _, data = await talk.agent.expect(wire.TcpData)
            assert len(data.data) <= 65536
            size += len(data.data)
        await talk.agent.nothing_more()
        assert not sending.done.is_set()
        await talk.agent.send(wire.Credit(stream="data", bytes=WINDOW), id_)
        await sending.wait()


@pytest.mark.parametrize(
    ("text", "cls", "number"),
    [
        ("connect h:1: Connection refused (os error 111)", ConnectionRefusedError, errno.ECONNREFUSED),
        ("connect h:1 timed out", TimeoutError, errno.ETIMEDOUT),
        ("connect h:1: Connection timed out (os error 110)", TimeoutError, errno.ETIMEDOUT),
        ("connect h:1: No route to host (os error 113)", OSError, errno.EHOSTUNREACH),
        (
            "connect h:1: failed to lookup address information: Name or service not known",
            socket.gaierror,
            socket.EAI_NONAME,
        ),
        (
            "connect h:1: failed to lookup address information: Temporary failure in name resolution",
            socket.gaierror,
            socket.EAI_AGAIN,
        ),
        ("connect h:1: failed to lookup address information: nothing known", socket.gaierror, socket.EAI_FAIL),
    ],
)
async def test_why_a_connection_failed_is_told(text: str, cls: type[OSError], number: int | None) -> None:
    async with talking() as talk:
        connecting = begin(talk.nursery, lambda: talk.guest.open_tcp_stream("h", 1))
        id_, _ = await talk.agent.expect(wire.TcpConnect)
        await talk.agent.send(wire.TcpFailed(text), id_)
        with pytest.raises(cls) as caught:
            await connecting.wait()
        assert "connect h:1" in "".join(traceback.format_exception_only(caught.value))
        assert type(caught.value) is cls
        assert caught.value.errno == number
        assert talk.connection.active_sessions == 0


async def test_a_reset_comes_after_the_bytes_before_it() -> None:
    async with talking() as talk:
        id_, stream = await connected(talk)
        await talk.agent.send(wire.TcpData(b"last words"), id_)
        await talk.agent.send(wire.TcpFailed("read: Connection reset by peer (os error 104)"), id_)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError, match="reset") as sending:
            await stream.send_all(b"x")
        assert isinstance(sending.value.__cause__, ConnectionResetError)
        assert await stream.receive_some() == b"last words"
        with pytest.raises(trio.BrokenResourceError, match="reset") as receiving:
            await stream.receive_some()
        assert isinstance(receiving.value.__cause__, ConnectionResetError)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_eof()


async def test_a_connection_the_agent_drops_is_broken() -> None:
    async with talking() as talk:
        id_, stream = await connected(talk)
        await talk.agent.send(wire.TcpClosed(), id_)
        with pytest.raises(trio.BrokenResourceError, match="dropped"):
            await stream.receive_some()


async def test_after_both_ends_of_file_closed_changes_nothing() -> None:
    async with talking() as talk:
        id_, stream = await connected(talk)
        await stream.send_eof()
        await talk.agent.expect(wire.TcpEof)
        await talk.agent.send(wire.TcpEof(), id_)
        await talk.agent.send(wire.TcpClosed(), id_)
        await wait_all_tasks_blocked()
        assert await stream.receive_some() == b""
        await stream.aclose()
        await talk.agent.nothing_more()
        assert talk.connection.active_sessions == 0


async def test_close_says_so_once_and_forgets_without_an_answer() -> None:
    async with talking() as talk:
        id_, stream = await connected(talk)
        await stream.send_eof()
        await talk.agent.send(wire.TcpEof(), id_)
        assert await stream.receive_some() == b""
        await stream.aclose()
        await stream.aclose()
        await talk.agent.expect(wire.TcpEof)
        await talk.agent.expect(wire.TcpClose)
        await talk.agent.nothing_more()
        assert talk.connection.active_sessions == 0
        await talk.agent.send(wire.TcpData(b"too late"), id_)
        await wait_all_tasks_blocked()
        assert talk.connection.frames_dropped == 1


async def test_close_goes_out_behind_the_data() -> None:
    async with talking() as talk:
        _, stream = await connected(talk)
        await stream.send_all(b"x" * 100_000)
        await stream.aclose()
        size = 0
        while size < 100_000:
            size += len((await talk.agent.expect(wire.TcpData))[1].data)
        await talk.agent.expect(wire.TcpClose)


async def test_a_connect_that_is_cancelled_is_called_off(caplog: pytest.LogCaptureFixture) -> None:
    async with talking() as talk:
        connecting = begin(talk.nursery, lambda: talk.guest.open_tcp_stream("h", 1))
        id_, _ = await talk.agent.expect(wire.TcpConnect)
        connecting.scope.cancel()
        await talk.agent.expect(wire.Cancel)
        await talk.agent.send(wire.TcpClosed(), id_)
        await wait_all_tasks_blocked()
        assert talk.connection.active_sessions == 0
    assert not caplog.records  # the answer was expected


async def test_an_agent_without_credit_is_told_of_a_cancelled_connect_by_a_close() -> None:
    async with talking(window=None) as talk:
        connecting = begin(talk.nursery, lambda: talk.guest.open_tcp_stream("h", 1))
        await talk.agent.expect(wire.TcpConnect)
        connecting.scope.cancel()
        await talk.agent.expect(wire.TcpClose)
        assert talk.connection.active_sessions == 0


async def test_a_connection_ends_with_the_reason_when_the_guest_is_lost() -> None:
    async with talking() as talk:
        id_, stream = await connected(talk)
        await talk.agent.send(wire.TcpData(b"before"), id_)
        await wait_all_tasks_blocked()
        sending = begin(talk.nursery, lambda: stream.send_all(bytes(4 * WINDOW)))
        await wait_all_tasks_blocked()
        talk.connection.lose("power cut")
        with pytest.raises(trio_console.GuestLostError, match="power cut"):
            await sending.wait()
        assert await stream.receive_some() == b"before"
        with pytest.raises(trio_console.GuestLostError, match="power cut"):
            await stream.receive_some()
        await stream.aclose()


@pytest.mark.parametrize(
    ("message", "kind"),
    [(wire.FsData(b""), "invalid_session"), (wire.Error(kind="invalid_payload", message="no"), "invalid_payload")],
)
async def test_a_frame_that_has_no_place_ends_the_connection(message: wire.Message, kind: str) -> None:
    async with talking() as talk:
        id_, stream = await connected(talk)
        await talk.agent.send(message, id_)
        with pytest.raises(trio_console.ProtocolError) as caught:
            await stream.receive_some()
        assert caught.value.kind == kind
        await talk.agent.expect(wire.TcpClose)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")
        await stream.aclose()
        assert talk.connection.active_sessions == 0


async def test_bytes_behind_the_end_are_a_mistake_of_the_agent_and_not_read() -> None:
    async with talking() as talk:
        id_, stream = await connected(talk)
        await talk.agent.send(wire.TcpEof(), id_)
        await talk.agent.send(wire.TcpData(b"late"), id_)
        await talk.agent.expect(wire.TcpClose)
        assert await stream.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError, match=r"core\.tcp\.data .* has no place"):
            await stream.send_all(b"x")


async def test_the_last_frame_of_another_kind_of_session_ends_the_connection_only() -> None:
    async with talking() as talk:
        id_, stream = await connected(talk)
        await talk.agent.send(wire.ExecExited(0), id_)
        with pytest.raises(trio_console.ProtocolError):
            await stream.receive_some()
        await talk.agent.expect(wire.TcpClose)
        pinging = begin(talk.nursery, talk.guest.ping)
        id_, _ = await talk.agent.expect(wire.Ping)
        await talk.agent.send(wire.Pong(), id_)
        assert await pinging.wait() >= 0


async def test_an_error_number_that_is_none_fails_the_connection_only() -> None:
    async with talking() as talk:
        id_, stream = await connected(talk)
        await talk.agent.send(wire.TcpFailed("(os error 99999999999999999999)"), id_)
        with pytest.raises(trio.BrokenResourceError, match="os error 9999"):
            await stream.receive_some()


@pytest.mark.parametrize(
    ("host", "port", "error"),
    [
        ("", 1, ValueError),
        ("a\0b", 1, ValueError),
        (None, 1, ValueError),
        (b"\xff", 1, ValueError),
        ("h", "80", TypeError),
        ("h", True, TypeError),
        ("h", -1, ValueError),
        ("h", 65536, ValueError),
    ],
)
async def test_nonsense_is_refused_before_anything_is_sent(host: Any, port: Any, error: type[Exception]) -> None:
    async with talking() as talk:
        with pytest.raises(error):
            await talk.guest.open_tcp_stream(host, port)
        await talk.agent.nothing_more()


async def test_an_old_agent_is_told_apart_and_nothing_sent() -> None:
    async with talking(generation=3) as talk:
        with pytest.raises(trio_console.UnsupportedByPeer):
            await talk.guest.open_tcp_stream("h", 1)
        await talk.agent.nothing_more()
