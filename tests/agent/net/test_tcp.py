"""Connections: their start, their data, and all their endings."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.agent._host import wait_gone
from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory

KIB = 1024
MIB = 1024 * 1024
STEP = (2**32 - 1) // 128


class Server:
    """A server in the guest."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self.port: int = listener.socket.getsockname()[1]

    async def accept(self) -> trio.SocketStream:
        with trio.fail_after(HANG):
            return await self._listener.accept()

    async def connect(self, host: Host, sid: int, **fields: Any) -> trio.SocketStream:
        """Connect as session ``sid``; return the other end."""
        await host.send(wire.TcpConnect("127.0.0.1", self.port, **fields), sid)
        peer = await self.accept()
        assert await host.receive(sid) == wire.TcpConnected()
        return peer


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield Server(listener)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


async def read_exactly(peer: trio.SocketStream, size: int) -> bytes:
    data = b""
    with trio.fail_after(HANG):
        while len(data) < size:
            part = await peer.receive_some(size - len(data))
            assert part, "closed too early"
            data += part
    return data


async def read_end(peer: trio.SocketStream) -> bytes:
    """All bytes up to the end of file, which must be an orderly one."""
    data = b""
    with trio.fail_after(HANG):
        async for part in peer:
            data += part
    return data


async def is_reset(peer: trio.SocketStream) -> bool:
    """Whether the other side is gone, after all bytes that were still on their way."""
    with trio.fail_after(HANG):
        try:
            while await peer.receive_some(65536):
                pass
            while True:
                await peer.send_all(bytes(65536))
        except trio.BrokenResourceError:
            return True


async def ends_in_reset(peer: trio.SocketStream) -> bool:
    """Whether the bytes end in a reset, and not in an end of file."""
    with trio.fail_after(HANG):
        try:
            async for _ in peer:
                pass
        except trio.BrokenResourceError:
            return True
    return False


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


# --- connecting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"window": 1000}])
async def test_bytes_go_both_ways(host: Host, server: Server, fields: dict[str, int]) -> None:
    async with await server.connect(host, 5, **fields) as peer:
        await host.send(wire.TcpData(b"ping"), 5)
        assert await read_exactly(peer, 4) == b"ping"
        await peer.send_all(b"pong")
        assert await host.receive(5) == wire.TcpData(b"pong")
        await host.send(wire.TcpClose(), 5)


async def test_names_are_resolved_in_the_guest(host: Host, server: Server) -> None:
    await host.send(wire.TcpConnect("localhost", server.port), 5)
    async with await server.accept():
        assert await host.receive(5) == wire.TcpConnected()


async def test_a_refused_connection_says_so(host: Host) -> None:
    port = unused_port()
    for name in ("127.0.0.1", "localhost"):
        await host.send(wire.TcpConnect(name, port), 5)
        expected = f"connect {name}:{port}: Connection refused (os error 111)"
        assert await host.receive(5) == wire.TcpFailed(expected)


async def test_an_unknown_name_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("trio.socket.getaddrinfo", unknown)
    await host.send(wire.TcpConnect("no.such.name", 80), 5)
    why = "failed to lookup address information: Name or service not known"
    assert await host.receive(5) == wire.TcpFailed(f"connect no.such.name:80: {why}")


@pytest.mark.parametrize("name", ["", "\0", "a" * 64 + ".x", "ä" * 100, "x y", "1.2.3.4.5"])
async def test_a_name_that_is_none_fails(host: Host, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trio.socket.getaddrinfo

    async def only_numeric(host: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain(host, *args, **kwargs)
        with trio.move_on_after(0.2):  # a resolver may take its time
            return await result
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr("trio.socket.getaddrinfo", only_numeric)
    await host.send(wire.TcpConnect(name, 9), 5)
    message = await host.receive(5)
    assert message.error.startswith("connect ")


async def test_a_name_too_long_to_repeat_is_not_repeated(host: Host) -> None:
    await host.send(wire.TcpConnect("x" * 1_000_000, 9), 5)
    assert await host.receive(5) == wire.TcpFailed("connect: the host name is too long")


async def test_a_connection_that_takes_too_long_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_console.agent._net.tcp._CONNECT_TIMEOUT", 0.01)
    never_connect(monkeypatch)
    await host.send(wire.TcpConnect("host.name", 80), 5)
    assert await host.receive(5) == wire.TcpFailed("connect host.name:80 timed out")


def never_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("trio.open_tcp_stream", never)


@pytest.mark.parametrize("ending", ["cancel", "close", "left", "bad frame"])
async def test_a_connection_under_way_can_be_ended(
    host: Host, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    never_connect(monkeypatch)
    monkeypatch.setattr("trio_console.agent._net.tcp._LINGER", 0.01)
    await host.send(wire.TcpConnect("host.name", 80), 5)
    if ending == "cancel":
        await host.send(wire.Cancel(), 5)
        assert await host.receive(5) == wire.TcpClosed()
    elif ending == "close":
        await host.send(wire.TcpClose(), 5)
    elif ending == "left":
        await host.send(wire.ClientDisconnected(1, STEP))
    else:
        await host.send_raw(wire.encode_frame(5, 0, b"\xff"))
        assert (await host.receive(5)).kind == "malformed_message"
    assert await host.nothing_for(5)
    await host.send(wire.TcpData(b"x"), 5)
    assert await host.receive(5) == wire.TcpFailed("unknown TCP session: 5")


@pytest.mark.parametrize("fields", [{}, {"window": 1000}])
async def test_what_is_sent_before_the_connection_stands_is_delivered(
    host: Host, server: Server, fields: dict[str, int]
) -> None:
    await host.send_raw(
        wire.encode(wire.TcpConnect("127.0.0.1", server.port, **fields), 5)
        + wire.encode(wire.TcpData(b"early"), 5)
        + wire.encode(wire.TcpEof(), 5)
    )
    async with await server.accept() as peer:
        assert await read_end(peer) == b"early"
        assert await host.receive(5) == wire.TcpConnected()


# --- data -----------------------------------------------------------------------------------------


async def test_empty_data_means_nothing(host: Host, server: Server) -> None:
    async with await server.connect(host, 5) as peer:
        for data in (b"", b"a", b"", b"b"):
            await host.send(wire.TcpData(data), 5)
        assert await read_exactly(peer, 2) == b"ab"


@pytest.mark.parametrize("window", [None, 100_000])
async def test_megabytes_go_both_ways_at_once(agent: AgentFactory, server: Server, window: int | None) -> None:
    size = 4 * MIB
    async with agent(over_socket=True, stdin_window=64 * KIB) as host, trio.open_nursery() as nursery:
        peer = await server.connect(host, 5, **({} if window is None else {"window": window}))
        pattern = bytes(range(256)) * 256

        async def echo() -> None:
            async with peer:
                async for part in peer:
                    await peer.send_all(part)

        nursery.start_soon(echo)
        sent, got, credit = 0, b"", 64 * KIB if window else size
        while len(got) < size:
            while sent < size and credit >= len(pattern) and sent - len(got) < MIB:
                await host.send(wire.TcpData(pattern), 5)
                sent += len(pattern)
                credit -= len(pattern)
            message = await host.receive(5)
            if isinstance(message, wire.Credit):
                assert window is not None
                assert message.stream == "data"
                credit += message.bytes
            else:
                assert 0 < len(message.data) <= 64 * KIB
                got += message.data
                if window:
                    await host.send(wire.Credit("data", len(message.data)), 5)
        assert got == pattern * (size // len(pattern))
        await host.send(wire.TcpEof(), 5)
        while isinstance(last := await host.receive(5), wire.Credit):
            pass
        assert last == wire.TcpEof()
        if window:
            assert await host.receive(5) == wire.TcpClosed()


async def test_no_more_than_a_window_comes_without_being_granted(host: Host, server: Server) -> None:
    async with await server.connect(host, 5, window=1000) as peer:
        await peer.send_all(bytes(2500))
        for expected in (1000, 1000, 500):
            got = 0
            while got < expected:
                got += len((await host.receive(5)).data)
            assert got == expected
            assert await host.nothing_for(5)
            await host.send(wire.Credit("stdout", 1000), 5)  # of another stream
            assert await host.nothing_for(5)
            await host.send(wire.Credit("data", 1000), 5)


async def test_delivered_bytes_are_granted_anew_by_half_windows(agent: AgentFactory, server: Server) -> None:
    async with agent(stdin_window=1000) as host, await server.connect(host, 5, window=1) as peer:
        await host.send(wire.TcpData(b"x" * 499), 5)
        await read_exactly(peer, 499)
        assert await host.nothing_for(5)
        await host.send(wire.TcpData(b"x"), 5)
        assert await host.receive(5) == wire.Credit("data", 500)


@pytest.mark.parametrize("excess", [0, 1])
async def test_the_whole_window_is_taken_and_not_a_byte_more(
    agent: AgentFactory, monkeypatch: pytest.MonkeyPatch, excess: int
) -> None:
    never_connect(monkeypatch)
    async with agent(stdin_window=1000) as host:
        await host.send(wire.TcpConnect("host.name", 80, window=1), 5)
        await host.send(wire.TcpData(bytes(600)), 5)
        await host.send(wire.TcpData(bytes(400 + excess)), 5)
        if excess:
            error = await host.receive(5)
            assert (error.kind, error.offending_type) == ("invalid_session", "core.tcp.data")
        else:
            assert await host.nothing_for(5)


async def test_a_peer_that_reads_slowly_holds_a_client_without_credit_up_and_loses_nothing(
    agent: AgentFactory, server: Server
) -> None:
    async with (
        agent(stdin_budget=100_000) as host,
        await server.connect(host, 5) as peer,
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            for _ in range(100):
                await host.send(wire.TcpData(bytes(50_000)), 5)
            await host.send(wire.TcpEof(), 5)

        nursery.start_soon(send)
        assert len(await read_end(peer)) == 5_000_000


async def test_a_peer_that_reads_nothing_delays_nobody_for_long(agent: AgentFactory, server: Server) -> None:
    async with (
        agent(stdin_budget=100_000, stdin_patience=0.05) as host,
        await server.connect(host, 5) as peer,
    ):
        while await host.nothing_for(5):
            await host.send(wire.TcpData(bytes(MIB)), 5)
        expected = "write: the queue is full, and the connection takes no data"
        assert await host.receive(5) == wire.TcpFailed(expected)
        assert await is_reset(peer)


async def test_a_client_that_pauses_pauses_its_connection_and_nobody_else(
    agent: AgentFactory, server: Server
) -> None:
    async with agent(over_socket=True) as host, await server.connect(host, 5, window=1000) as peer:
        with trio.move_on_after(0.2) as stuck:
            await peer.send_all(bytes(100 * MIB))
        assert stuck.cancelled_caught
        assert (await host.run("echo", "hi")).stdout == b"hi\n"


# --- half closed, and closed ----------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"window": 1000}])
async def test_the_client_may_end_first_and_still_receive(
    host: Host, server: Server, fields: dict[str, int]
) -> None:
    async with await server.connect(host, 5, **fields) as peer:
        await host.send(wire.TcpData(b"question"), 5)
        await host.send(wire.TcpEof(), 5)
        assert await read_end(peer) == b"question"
        await peer.send_all(b"answer")
        await peer.send_eof()
        assert await host.receive(5) == wire.TcpData(b"answer")
        assert await host.receive(5) == wire.TcpEof()
        if fields:
            assert await host.receive(5) == wire.TcpClosed()
        assert await host.nothing_for(5)


async def test_the_peer_may_end_first_and_still_receive(host: Host, server: Server) -> None:
    async with await server.connect(host, 5) as peer:
        await peer.send_all(b"hello")
        await peer.send_eof()
        assert await host.receive(5) == wire.TcpData(b"hello")
        assert await host.receive(5) == wire.TcpEof()
        await host.send(wire.TcpData(b"goodbye"), 5)
        await host.send(wire.TcpEof(), 5)
        assert await read_end(peer) == b"goodbye"


async def test_without_credit_the_session_stays_until_the_client_closes(host: Host, server: Server) -> None:
    async with await server.connect(host, 5) as peer:
        await host.send(wire.TcpEof(), 5)
        await peer.send_eof()
        assert await host.receive(5) == wire.TcpEof()
        await host.send(wire.TcpData(b"ignored"), 5)
        assert await host.nothing_for(5)
        await host.send(wire.TcpClose(), 5)
        assert await host.nothing_for(5)
        await host.send(wire.TcpData(b"x"), 5)
        assert await host.receive(5) == wire.TcpFailed("unknown TCP session: 5")


async def test_close_is_not_answered_and_frees_the_id(host: Host, server: Server) -> None:
    for _ in range(20):
        async with await server.connect(host, 5, window=1000) as peer:
            await host.send(wire.TcpClose(), 5)
            assert await read_end(peer) == b""
    assert await host.nothing_for(5)


@pytest.mark.parametrize("ending", [(), (wire.ClientDisconnected(1, STEP),)])
async def test_what_was_sent_before_the_close_is_delivered(
    host: Host, server: Server, ending: tuple[wire.Message, ...]
) -> None:
    # Also if the client leaves right after: it is the same as when a program closes its own socket.
    data = bytes(range(256)) * 1000
    for early in (True, False):
        frames = wire.encode(wire.TcpData(data), 5) + wire.encode(wire.TcpClose(), 5)
        frames += b"".join(map(wire.encode, ending))
        if early:
            request = wire.TcpConnect("127.0.0.1", server.port)
            await host.send_raw(wire.encode(request, 5) + frames)
            peer = await server.accept()
        else:
            peer = await server.connect(host, 5)
            await host.send_raw(frames)
        async with peer:
            await trio.testing.wait_all_tasks_blocked()
            assert await read_end(peer) == data
    assert await host.nothing_for(5)


async def test_a_peer_that_does_not_take_the_rest_is_left_after_a_while(
    host: Host, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_console.agent._net.tcp._LINGER", 0.05)
    async with await server.connect(host, 5) as peer:
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpClose(), 5)
        await host.send(wire.TcpConnect("127.0.0.1", unused_port()), 5)  # the id is free meanwhile
        assert "refused" in (await host.receive(5)).error
        await trio.sleep(0.1)
        with trio.fail_after(HANG):
            got = 0
            try:
                async for part in peer:
                    got += len(part)
            except trio.BrokenResourceError:
                pass
        assert got < 8_000_000
    assert await host.nothing_for(5)


async def test_nothing_is_said_after_the_close(host: Host, server: Server) -> None:
    async with await server.connect(host, 5) as peer:
        await host.send(wire.TcpData(bytes(4_000_000)), 5)  # keeps it lingering
        await host.send(wire.TcpClose(), 5)
        await host.ping()
        await peer.send_all(b"too late")
        await peer.send_eof()
        assert await host.nothing_for(5)
        assert len(await read_end(peer)) == 4_000_000
    assert await host.nothing_for(5)


async def test_a_peer_that_goes_on_sending_loses_nothing_of_what_came_before_the_close(
    host: Host, server: Server
) -> None:
    async with await server.connect(host, 5) as peer:
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpClose(), 5)
        await host.ping()
        # More bytes than the connection can hold. They are taken, although no program reads them.
        with trio.fail_after(HANG):
            await peer.send_all(bytes(20_000_000))
        assert len(await read_end(peer)) == 4_000_000
    assert await host.nothing_for(5)


# --- failures -------------------------------------------------------------------------------------


async def test_a_reset_fails_the_session(host: Host, server: Server) -> None:
    peer = await server.connect(host, 5)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await peer.aclose()
    assert await host.receive(5) == wire.TcpFailed("read: Connection reset by peer (os error 104)")
    assert await host.nothing_for(5)
    await host.send(wire.TcpEof(), 5)
    await host.send(wire.TcpClose(), 5)
    assert await host.nothing_for(5)


async def test_writing_to_a_peer_that_is_gone_fails_the_session(host: Host, server: Server) -> None:
    peer = await server.connect(host, 5)
    await peer.aclose()
    assert await host.receive(5) == wire.TcpEof()
    while await host.nothing_for(5):
        await host.send(wire.TcpData(b"x"), 5)
    message = await host.receive(5)
    assert message in (
        wire.TcpFailed("write: Broken pipe (os error 32)"),
        wire.TcpFailed("write: Connection reset by peer (os error 104)"),
    )


async def test_a_cancelled_connection_is_closed_at_once(host: Host, server: Server) -> None:
    for fields in ({}, {"window": 1}):
        async with await server.connect(host, 5, **fields) as peer:
            await peer.send_all(bytes(1000))
            await host.send(wire.Cancel(), 5)
            outcome = await host.collect(5)
            assert outcome.last == wire.TcpClosed()
            assert await is_reset(peer)
    assert await host.nothing_for(5)


async def test_a_bad_frame_ends_the_connection_it_belongs_to(host: Host, server: Server) -> None:
    async with await server.connect(host, 5) as peer, await server.connect(host, 6) as other:
        await host.send_raw(wire.encode_frame(5, 0, b"\xff"))
        assert (await host.receive(5)).kind == "malformed_message"
        assert await is_reset(peer)
        await host.send(wire.TcpData(b"x"), 6)
        assert await read_exactly(other, 1) == b"x"


async def test_an_id_in_use_is_refused_and_its_connection_ends(host: Host, server: Server) -> None:
    async with await server.connect(host, 5) as peer:
        await host.send(wire.TcpConnect("127.0.0.1", server.port), 5)
        assert (await host.receive(5)).kind == "invalid_session"
        assert await is_reset(peer)
    assert await host.nothing_for(5)


async def test_file_data_for_a_connection_is_a_mistake(host: Host, server: Server) -> None:
    async with await server.connect(host, 5):
        await host.send(wire.FsData(b"x"), 5)
        assert (await host.receive(5)).kind == "invalid_session"


# --- clients that leave, and the end --------------------------------------------------------------


async def test_a_client_that_left_has_its_connections_reset_silently(host: Host, server: Server) -> None:
    # It has not said that there are no more bytes, so there may have been more.
    async with await server.connect(host, 5) as mine, await server.connect(host, STEP + 1) as theirs:
        await host.send(wire.TcpData(b"a part"), 5)
        assert await read_exactly(mine, 6) == b"a part"
        await host.send(wire.ClientDisconnected(1, STEP))
        assert await ends_in_reset(mine)
        assert await host.nothing_for(5)
        await host.send(wire.TcpData(b"x"), STEP + 1)
        assert await read_exactly(theirs, 1) == b"x"


async def test_nothing_of_an_old_connection_reaches_the_next_owner_of_its_id(host: Host, server: Server) -> None:
    for _ in range(20):
        async with await server.connect(host, 5) as peer:
            await peer.send_all(bytes(300_000))
            await host.receive(5)
            await host.send(wire.ClientDisconnected(1, STEP))
            await host.ok(wire.OpStat("/", True), sid=STEP - 1)  # as the last request of a relay
            host._kept.pop(5, None)
            await host.ok(wire.OpStat("/", True), sid=STEP - 1)
            assert await host.nothing_for(5)


@pytest.mark.parametrize("ending", ["console", "shutdown"])
async def test_the_agents_end_closes_all_connections(agent: AgentFactory, server: Server, ending: str) -> None:
    async with agent() as host:
        peers = [await server.connect(host, sid) for sid in (5, 6, 7)]
        await host.send(wire.TcpClose(), 7)
        if ending == "shutdown":
            await host.send(wire.Shutdown())
            assert await host.gone() == []
    for peer, closed in zip(peers, (False, False, True), strict=True):
        async with peer:
            assert await ends_in_reset(peer) is not closed


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_guest_that_shuts_down_delivers_what_a_closed_connection_was_sent(
    agent: AgentFactory, server: Server, replaced: bool
) -> None:
    async with agent(shutdown_grace=0.0) as host:
        peer = await server.connect(host, 5)
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpClose(), 5)
        if replaced:
            await host.send(wire.TcpConnect("127.0.0.1", unused_port()), 5)
            assert "refused" in (await host.receive(5)).error
        await host.request("sleep", "1000", sid=6)
        sleeper = (await host.receive(6)).pid
        await host.send(wire.Shutdown())
        await wait_gone(sleeper)  # commands are not given more time for that
        async with peer:
            assert len(await read_end(peer)) == 8_000_000
        assert await host.gone() == []


@pytest.mark.parametrize("ending", ["console", "shutdown"])
async def test_what_cannot_be_delivered_ends_in_a_reset(
    agent: AgentFactory, server: Server, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_console.agent._net.tcp._LINGER", 0.05)
    async with agent() as host:
        peer = await server.connect(host, 5)
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpClose(), 5)
        if ending == "shutdown":
            await host.send(wire.Shutdown())
            assert await host.gone() == []
    async with peer:
        assert await ends_in_reset(peer)


async def test_a_guest_shuts_down_while_a_closed_connection_lingers(agent: AgentFactory, server: Server) -> None:
    async with agent() as host:
        peer = await server.connect(host, 5)
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpClose(), 5)
        await host.send(wire.Shutdown())
        assert await host.gone() == []
    await peer.aclose()


async def test_idle_connections_take_no_threads(host: Host, server: Server) -> None:
    peers = [await server.connect(host, sid) for sid in range(1, 101)]
    for sid, peer in enumerate(peers, 1):
        await peer.send_all(b"%d" % sid)
        assert await host.receive(sid) == wire.TcpData(b"%d" % sid)
    for peer in peers:
        await peer.aclose()


async def test_connections_count_as_activity_in_bytes(agent: AgentFactory, server: Server, tmp_path: Any) -> None:
    record = tmp_path / "heartbeat.json"
    async with agent(activity_dir=str(tmp_path)) as host, await server.connect(host, 5) as peer:
        await host.send(wire.TcpData(bytes(100)), 5)
        await read_exactly(peer, 100)
        await peer.send_all(bytes(23))
        await host.receive(5)
        with trio.fail_after(HANG):
            while not (record.exists() and b'"tcp_bytes":123' in record.read_bytes()):
                await trio.sleep(0.01)
        assert b'"active_tcp_streams":1' in record.read_bytes()
