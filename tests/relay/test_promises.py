"""What a client has sent before it closed a connection reaches the agent, also if the client goes at once."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.relay.router._world import RawClient, World, serving
from tests.tools.limits import HANG
from tests.tools.peer import Peer, frame, ready_message, settle
from trio_console import Guest, connect_guest
from trio_console import _wire as wire
from trio_console._relay import client as _client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: The agent's window here, and what the clients send: more than that.
WINDOW = 1000
SENT = 2500


async def send_and_close(world: World) -> tuple[RawClient, int]:
    """A client that has sent on a connection, and closed it; the agent has taken a window of it."""
    client = await world.connect()
    id_ = client.ids[0]
    await client.send(wire.TcpConnect("h", 1, window=100), id_)
    await client.send(wire.TcpData(bytes(SENT)), id_)
    await client.send(wire.TcpClose(), id_)
    return client, id_


async def take(world: World, last: type[wire.Message], *, grant: bool = True) -> list[wire.Message]:
    """What the agent gets, up to a message of a class; it grants what it gets of data, if it grants at all."""
    got: list[wire.Message] = []
    with trio.fail_after(HANG):
        while not got or not isinstance(got[-1], last):
            one = await world.agent.receive()
            assert one is not None
            got.append(one[1])
            if grant and isinstance(one[1], wire.TcpData):
                await world.agent.send(wire.Credit("data", len(one[1].data)), one[0])
    return got


def in_order(got: list[wire.Message]) -> tuple[int, list[type[wire.Message]]]:
    size = sum(len(message.data) for message in got if isinstance(message, wire.TcpData))
    kinds = [type(message) for message in got if not isinstance(message, wire.TcpData)]
    return size, kinds


async def test_that_a_client_has_gone_is_said_behind_what_waits_for_credit(tmp_path: Path) -> None:
    async with serving(tmp_path, window=WINDOW) as world:
        client, _ = await send_and_close(world)
        await client.leave()
        await settle()
        assert in_order(await take(world, wire.ClientDisconnected)) == (
            SENT,
            [wire.TcpConnect, wire.TcpClose, wire.ClientDisconnected],
        )


async def test_that_a_client_has_gone_is_said_behind_what_waits_for_the_console(tmp_path: Path) -> None:
    console, far = trio.testing.lockstep_stream_pair()
    agent_says, to_relay = trio.testing.memory_stream_pair()
    guest = trio.StapledStream(console.send_stream, to_relay.receive_stream)
    theirs = trio.StapledStream(agent_says.send_stream, far.receive_stream)
    async with serving(tmp_path, streams=(guest, theirs)) as world:
        client, _ = await send_and_close(world)
        await settle()
        await client.leave()
        await settle()
        assert in_order(await take(world, wire.ClientDisconnected)) == (
            SENT,
            [wire.TcpConnect, wire.TcpClose, wire.ClientDisconnected],
        )


async def test_commands_of_a_client_that_has_gone_do_not_wait_for_that(tmp_path: Path) -> None:
    async with serving(tmp_path, window=WINDOW) as world:
        client, id_ = await send_and_close(world)
        await client.send(wire.ExecRequest("sleep"), id_ + 1)
        await settle()
        await client.leave()
        assert (await take(world, wire.ExecSignal, grant=False))[-1] == wire.ExecSignal(9)
        assert wire.ClientDisconnected not in [type(message) for _, message in await world.agent.pending()]


async def test_a_client_that_reads_nothing_any_more_is_still_heard_to_its_end(tmp_path: Path) -> None:
    async with serving(tmp_path, window=WINDOW) as world:
        client, id_ = await send_and_close(world)
        await client.send(wire.TcpConnect("h", 2, window=100), id_ + 1)
        await client.leave()
        await world.agent.send(wire.TcpConnected(), id_)  # for a socket that takes no more
        assert in_order(await take(world, wire.ClientDisconnected))[0] == SENT


async def test_what_the_agent_does_not_take_holds_up_the_end_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_client, "_PROMISE_TIME", 0.05)
    async with serving(tmp_path, window=WINDOW) as world:
        client, _ = await send_and_close(world)
        await client.leave()
        await take(world, wire.ClientDisconnected, grant=False)


async def test_a_connection_that_fails_in_the_guest_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_client, "_PROMISE_TIME", 1e9)
    async with serving(tmp_path, window=WINDOW) as world:
        client, id_ = await send_and_close(world)
        await client.leave()
        await settle()
        await world.agent.send(wire.TcpFailed("reset (os error 104)"), id_)
        await take(world, wire.ClientDisconnected, grant=False)


@pytest.mark.parametrize("by_client", [True, False])
async def test_the_order_to_shut_down_goes_behind_what_was_sent(tmp_path: Path, by_client: bool) -> None:
    async with serving(tmp_path, window=WINDOW) as world:
        client, _ = await send_and_close(world)
        if by_client:
            await client.send(wire.Shutdown())
        await settle()
        if not by_client:
            world.server.shut_down()
        await settle()
        assert in_order(await take(world, wire.Shutdown)) == (
            SENT,
            [wire.TcpConnect, wire.TcpClose, wire.Shutdown],
        )
        assert world.server.shutdown_requested.is_set() is by_client
        await client.leave()


@pytest.mark.parametrize("who", ["client", "relay"])
async def test_a_guest_is_told_how_long_its_end_is_waited_for(tmp_path: Path, who: str) -> None:
    async with serving(tmp_path, window=WINDOW) as world:
        client = await world.connect()
        if who == "client":
            await client.send(wire.Shutdown(16_000))
        else:
            world.server.shut_down(20.0)
        await settle()
        assert (await take(world, wire.Shutdown))[-1] == wire.Shutdown(16_000)
        await client.leave()


async def test_the_order_to_shut_down_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with serving(tmp_path, window=WINDOW) as world:
        client, _ = await send_and_close(world)
        await settle()
        world.server.shut_down()
        await take(world, wire.Shutdown, grant=False)
        await client.leave()


# The client's side


@asynccontextmanager
async def a_relay_that_reads_late(tmp_path: Path, grace: float) -> AsyncIterator[tuple[Guest, Peer]]:
    """A client, and the end of a relay that it is connected to."""
    path = str(tmp_path / "relay.sock")
    tmp_path.chmod(0o700)
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen()
        async with trio.open_nursery() as nursery:
            peers: list[Peer] = []

            async def greet() -> None:
                end, _ = await listener.accept()
                peers.append(Peer(trio.SocketStream(end)))
                greeting = struct.pack(">II", 1, 1000) + wire.encode_again(frame(ready_message(1_000_000)))
                await peers[0].stream.send_all(greeting)

            nursery.start_soon(greet)
            async with connect_guest(path, grace=grace) as guest:
                yield guest, peers[0]
            await peers[0].close()


async def a_connection(nursery: trio.Nursery, guest: Guest, relay: Peer) -> trio.abc.HalfCloseableStream:
    made: list[trio.abc.HalfCloseableStream] = []

    async def connect() -> None:
        made.append(await guest.open_tcp_stream("h", 1))

    nursery.start_soon(connect)
    id_, _ = await relay.expect(wire.TcpConnect)
    await relay.send(wire.TcpConnected(), id_)
    await settle()
    return made[0]


async def test_a_client_leaves_when_its_relay_has_what_was_sent(tmp_path: Path) -> None:
    # More than its socket holds, and not more than that and the queue behind it.
    size = 400_000
    async with trio.open_nursery() as nursery:
        got: list[wire.Message] = []

        async def read(relay: Peer) -> None:
            await trio.testing.wait_all_tasks_blocked()  # until the client waits to leave
            while not got or not isinstance(got[-1], wire.TcpClose):
                one = await relay.receive()
                assert one is not None
                got.append(one[1])

        with trio.fail_after(HANG):
            async with a_relay_that_reads_late(tmp_path, grace=1e9) as (guest, relay):
                stream = await a_connection(nursery, guest, relay)
                await stream.send_all(bytes(size))
                await stream.aclose()
                nursery.start_soon(read, relay)
        assert in_order(got) == (size, [wire.TcpClose])


async def test_a_client_does_not_wait_for_its_relay_for_longer_than_its_grace(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(HANG):
            async with a_relay_that_reads_late(tmp_path, grace=0.05) as (guest, relay):
                stream = await a_connection(nursery, guest, relay)
                await stream.send_all(bytes(400_000))
                await stream.aclose()
