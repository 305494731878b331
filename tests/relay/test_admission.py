"""A relay before an agent that counts all that comes over its console: clients share it, and never see it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import cbor2
import pytest
import trio
import trio.testing

from tests.relay.router._world import RawClient, World, serving
from tests.tools.limits import HANG
from tests.tools.peer import frame, settle
from trio_console import _wire as wire
from trio_console._relay import client as _client
from trio_console._wire.ids import TRANSPORT_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: Real time: sockets move while the clock that jumps is not looked at. A slice is 64 KiB.
FRAMES = 256
PIECE = bytes(64 * 1024)


def ready(**more: object) -> wire.Frame:
    said = wire.Ready(1, 2, 3, "newer", workload_transport_barrier_version=2, **more)  # type: ignore[arg-type]
    return frame(said, version=10)


@asynccontextmanager
async def counted(
    tmp_path: Path, said: wire.Frame | None = None
) -> AsyncIterator[tuple[World, RawClient, RawClient]]:
    """A relay with two clients."""
    async with serving(tmp_path, ready=said or ready()) as world:
        one, other = await world.connect(), await world.connect()
        try:
            yield world, one, other
        finally:
            with trio.CancelScope(shield=True):
                await one.leave()
                await other.leave()


class Taken:
    """What an agent has got: it reads everything, and consumes data only of the sessions that are said."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.data: dict[int, int] = {}
        self.others: list[tuple[int, wire.Message]] = []
        self.limits = [8 * 2**20, FRAMES, 32 * 2**20, FRAMES]
        self.sizes = [len(wire.encode(wire.ClockSync(0))), 1, 0, 0]
        self.consumed: set[int] = set()
        self.changed = trio.Event()

    async def run(self) -> None:
        async for id_, message in self.world.agent:
            size = len(wire.encode(message, id_))
            bulk = 2 * isinstance(message, wire.DataMessage | wire.TcpEof)
            self.sizes[bulk] += size
            self.sizes[bulk + 1] += 1
            assert all(used <= limit for used, limit in zip(self.sizes, self.limits, strict=True)), self.sizes
            if isinstance(message, wire.DataMessage):
                self.data[id_] = self.data.get(id_, 0) + len(message.data)
            else:
                self.others.append((id_, message))
            if not bulk or id_ in self.consumed:
                self.limits[bulk] += size
                self.limits[bulk + 1] += 1
                await self.world.agent.tell(wire.TransportCredit(*self.limits), TRANSPORT_ID)
            self.changed.set()

    async def wait(self, id_: int, size: int) -> None:
        while self.data.get(id_, 0) < size:
            self.changed = trio.Event()
            await self.changed.wait()


async def start(client: RawClient) -> int:
    id_ = client.ids.start
    await client.send(wire.ExecRequest(cmd="cat"), id_)
    return id_


async def flood(client: RawClient, id_: int) -> None:
    for _ in range(2 * FRAMES):
        await client.send_raw(wire.encode(wire.ExecStdin(PIECE), id_))


async def test_a_client_whose_command_does_not_read_is_paused_and_no_other_is(tmp_path: Path) -> None:
    async with counted(tmp_path) as (world, client, other), trio.open_nursery() as nursery:
        taken = Taken(world)
        nursery.start_soon(taken.run)
        id_ = await start(client)
        nursery.start_soon(flood, client, id_)
        await taken.wait(id_, FRAMES // 2 * len(PIECE))
        flowing = await start(other)
        taken.consumed.add(flowing)
        for count in range(1, FRAMES + 1):
            await other.send_raw(wire.encode(wire.ExecStdin(PIECE), flowing))
            await taken.wait(flowing, count * len(PIECE))
        assert taken.data[id_] < FRAMES * len(PIECE)
        assert world.server.statistics().stalls > 0
        nursery.cancel_scope.cancel()


async def test_a_client_that_was_paused_goes_on(tmp_path: Path) -> None:
    async with counted(tmp_path) as (world, client, _other), trio.open_nursery() as nursery:
        taken = Taken(world)
        nursery.start_soon(taken.run)
        id_ = await start(client)
        nursery.start_soon(flood, client, id_)
        await taken.wait(id_, FRAMES // 2 * len(PIECE))
        taken.consumed.add(id_)
        for kind in (2, 3):
            taken.limits[kind] += taken.sizes[kind]
        await world.agent.tell(wire.TransportCredit(*taken.limits), TRANSPORT_ID)
        await taken.wait(id_, 2 * FRAMES * len(PIECE))
        nursery.cancel_scope.cancel()


async def test_other_clients_are_served_while_one_is_paused(tmp_path: Path) -> None:
    async with counted(tmp_path) as (world, client, other), trio.open_nursery() as nursery:
        taken = Taken(world)
        nursery.start_soon(taken.run)
        id_ = await start(client)
        nursery.start_soon(flood, client, id_)
        await taken.wait(id_, FRAMES // 2 * len(PIECE))
        await other.send(wire.Ping(), other.ids.start)
        while (other.ids.start, wire.Ping()) not in taken.others:
            taken.changed = trio.Event()
            await taken.changed.wait()
        await world.agent.tell(wire.Pong(), other.ids.start)
        assert await other.expect(wire.Pong) == (other.ids.start, wire.Pong())
        nursery.cancel_scope.cancel()


async def test_a_client_that_goes_while_its_input_waits_has_its_command_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_client, "_PROMISE_TIME", 0.1)
    async with counted(tmp_path) as (world, client, _other), trio.open_nursery() as nursery:
        taken = Taken(world)
        nursery.start_soon(taken.run)
        id_ = await start(client)
        world.server._outbox._turns._patience = 10 * HANG  # a turn in vain would make room for a frame
        async with trio.open_nursery() as flooding:
            flooding.start_soon(flood, client, id_)
            await taken.wait(id_, FRAMES // 2 * len(PIECE))
            await settle()  # the relay reads no more of it
            flooding.cancel_scope.cancel()
        await client.leave()
        with trio.fail_after(HANG):
            while (id_, wire.ExecSignal(9)) not in taken.others:
                taken.changed = trio.Event()
                await taken.changed.wait()
        nursery.cancel_scope.cancel()


async def test_announcements_stay_in_the_relay(tmp_path: Path) -> None:
    async with counted(tmp_path) as (world, client, other):
        await world.agent.send(wire.TransportCredit(*(10**9,) * 4), TRANSPORT_ID, version=10)
        assert await client.pending() == []
        assert await other.pending() == []
        assert world.server.statistics().frames_dropped == 0


@pytest.mark.parametrize("limits", [(10**9, 10**9, 10**9, 255), (0, 0, 0, 0)])
async def test_an_announcement_that_shrinks_is_dropped_and_counted(
    tmp_path: Path, limits: tuple[int, int, int, int]
) -> None:
    async with counted(tmp_path) as (world, client, _other):
        await world.agent.send(wire.TransportCredit(*limits), TRANSPORT_ID, version=10)
        await settle()
        assert world.server.statistics().frames_dropped == 1
        await client.send(wire.Ping(), client.ids.start)
        await world.agent.expect(wire.Ping)


async def test_a_client_sees_a_newer_agent_as_one_of_this_generation(tmp_path: Path) -> None:
    async with counted(tmp_path) as (_world, client, _other):
        assert client.greeting[8:] == wire.encode(wire.Ready(1, 2, 3, "newer"))


async def test_what_a_newer_agent_can_that_this_relay_does_not_pass_on_is_left_out(tmp_path: Path) -> None:
    payload = {"boot_time_ns": 1, "init_time_ns": 2, "ready_time_ns": 3, "agent_version": "newer"}
    more = {"relay_lease": {"max_format": 1}, "bulk_transport": {"version": 1}}
    body = cbor2.dumps({"v": 10, "t": "core.ready", "p": cbor2.dumps(payload | more)})
    async with counted(tmp_path, wire.Frame(0, 0, body)) as (_, client, _other):
        assert client.greeting[8:] == wire.encode(wire.Ready(1, 2, 3, "newer"))
