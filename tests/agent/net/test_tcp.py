"""Connections: their start, and their data."""

from __future__ import annotations

import os
import socket
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.agent.net._server import KIB, MIB, STEP, Server, is_reset, read_end, read_exactly, unused_port
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._trio import turns

if TYPE_CHECKING:
    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory


# --- connecting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"window": 1000}])
async def test_bytes_go_both_ways(host: Host, server: Server, fields: dict[str, int]) -> None:
    async with await server.connect(host, 5, **fields) as peer:
        await host.send(wire.TcpData(b"ping"), 5)
        assert await read_exactly(peer, 4) == b"ping"
        await peer.send_all(b"pong")
        assert await host.receive(5) == wire.TcpData(b"pong")
        await host.send(wire.TcpClose(), 5)


async def test_data_in_small_pieces_is_left_alone_until_the_peer_is_sent_something(
    host: Host, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_SMALL_IN_A_ROW", 0.0), ("_LEFT_ALONE", HANG), ("_LONGEST_LEFT_ALONE", HANG)):
        monkeypatch.setattr(turns, name, value)
    async with await server.connect(host, 5) as peer:
        for number in (1, 2):
            await peer.send_all(b"%d" % number)
            if number == 2:
                assert await host.nothing_for(5)
                await host.send(wire.TcpData(b"go on"), 5)
            assert await host.receive(5) == wire.TcpData(b"%d" % number)
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
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("trio_console.agent._net.lookups.socket.getaddrinfo", unknown)
    await host.send(wire.TcpConnect("no.such.name", 80), 5)
    why = "failed to lookup address information: Name or service not known"
    assert await host.receive(5) == wire.TcpFailed(f"connect no.such.name:80: {why}")


@pytest.mark.parametrize("name", ["", "\0", "a" * 64 + ".x", "ä" * 100, "x y", "1.2.3.4.5"])
async def test_a_name_that_is_none_fails(host: Host, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = socket.getaddrinfo

    def only_numeric(host: Any, port: int, *_: object, **kwargs: Any) -> Any:
        """The C library's answer, but nobody is asked: a server may take its time."""
        return plain(host, port, type=kwargs["type"], flags=socket.AI_NUMERICHOST)

    monkeypatch.setattr("trio_console.agent._net.lookups.socket.getaddrinfo", only_numeric)
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

    monkeypatch.setattr("trio_console.agent._net.lookups.Lookups.addresses", never)


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


async def test_the_connections_of_a_client_that_has_gone_do_not_keep_the_loop(host: Host, server: Server) -> None:
    """Each ends in a turn of its own, and until then there are bytes that nobody is sent."""
    count, steps = 40, Counter[trio.lowlevel.Task]()

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task.name.endswith("_pump_in"):
                steps[task] += 1

    peers = [await server.connect(host, sid, window=1000) for sid in range(1, 1 + count)]
    trio.lowlevel.add_instrument(instrument := Steps())
    await host.send(wire.ClientDisconnected(1, STEP))
    await host.ping()  # it is told, and has ended a few
    for peer in peers:
        with suppress(ConnectionResetError):
            os.write(peer.socket.fileno(), b"x")
    for peer in peers:
        async with peer:
            assert await is_reset(peer)
    trio.lowlevel.remove_instrument(instrument)
    assert len(steps) > count // 2
    assert steps.total() < 5 * count


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
