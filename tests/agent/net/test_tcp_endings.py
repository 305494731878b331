"""Connections: all their endings."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.agent._host import wait_gone
from tests.agent.net._server import STEP, Server, ends_in_reset, is_reset, read_end, read_exactly, unused_port
from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory


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
            await host.ok(wire.OpRealPath("/"), sid=STEP - 1)  # as the last request of a relay
            host._kept.pop(5, None)
            await host.ok(wire.OpRealPath("/"), sid=STEP - 1)
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


@pytest.mark.parametrize(("own", "grace"), [(0.0, 3_600_000), (3600.0, 50)], ids=["long", "short"])
async def test_the_hosts_grace_is_that_of_what_was_sent_before_a_close(
    agent: AgentFactory, server: Server, own: float, grace: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_console.agent._net.tcp._LAST_LINGER", own)
    async with agent(shutdown_grace=0.0) as host:
        peer = await server.connect(host, 5)
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpData(bytes(4_000_000)), 5)
        await host.send(wire.TcpClose(), 5)
        await host.request("sleep", "1000", sid=6)
        sleeper = (await host.receive(6)).pid
        await host.send(wire.Shutdown(grace))
        await wait_gone(sleeper)
        if grace < 1000:
            assert await host.gone() == []
        async with peer:
            if grace < 1000:
                assert await ends_in_reset(peer)
            else:
                assert len(await read_end(peer)) == 8_000_000


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
