"""The door of a relay: who gets in, how fast clients are read, and those that do nothing."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.relay.router._world import RawClient, World, serving
from tests.tools.limits import HANG
from tests.tools.peer import settle
from trio_console import ClientLimits, RelayOptions, Rights
from trio_console import _wire as wire
from trio_console._addresses import Peer
from trio_console._relay import server as _server
from trio_console._relay.door import Rate, has_hung_up

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

OWN = os.geteuid()
ONE, OTHER = OWN + 1, OWN + 2  # users


def served(tmp_path: Path, **options: object) -> AbstractAsyncContextManager[World]:
    """A relay with these options for three users."""
    rights = {OWN: Rights(), ONE: Rights(), OTHER: Rights()}
    made = RelayOptions(**{"rights": rights, **options})  # type: ignore[arg-type]
    return serving(tmp_path, options=made._for_server())


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The users of the next clients, as the kernel would tell them; then this process's own."""
    coming: list[int] = []

    def peer_of(_sock: object) -> Peer:
        return Peer(1, coming.pop(0) if coming else OWN)

    monkeypatch.setattr(_server, "peer_of", peer_of)
    return coming


async def connect(world: World, users: list[int], uid: int) -> RawClient:
    users.append(uid)
    return await world.connect()


async def is_refused(world: World, users: list[int], uid: int) -> bool:
    """Whether a client of a user is disconnected without a byte."""
    users.append(uid)
    client = await world.dial()
    with trio.fail_after(HANG):
        refused = await client.stream.receive_some() == b""
    await client.leave()
    return refused


# Rates


@pytest.mark.parametrize("per_second", [1, 3, 7, 10, 1000])
def test_a_rate_lets_as_many_through_at_once_and_then_one_after_the_other(per_second: int) -> None:
    rate = Rate(per_second)
    assert [rate.take(5.0) for _ in range(per_second)] == [5.0] * per_second
    assert rate.take(5.0) == pytest.approx(5.0 + 1 / per_second)
    assert rate.take(5.0) == pytest.approx(5.0 + 2 / per_second)


@pytest.mark.parametrize("per_second", [1, 3, 10])
def test_a_second_without_frames_makes_room_for_a_second_of_frames(per_second: int) -> None:
    rate = Rate(per_second)
    for _ in range(per_second):
        rate.take(0.0)
    assert [rate.take(1.0) for _ in range(per_second)] == [1.0] * per_second
    assert rate.take(1.0) > 1.0


@pytest.mark.parametrize("per_second", [1, 3, 10])
def test_a_long_time_without_frames_makes_room_for_no_more_than_a_second_of_frames(per_second: int) -> None:
    rate = Rate(per_second)
    rate.take(0.0)
    assert [rate.take(1000.0) for _ in range(per_second)] == [1000.0] * per_second
    assert rate.take(1000.0) > 1000.0


def test_frames_that_come_no_faster_than_the_rate_never_wait() -> None:
    rate = Rate(10)
    times = [number / 10 for number in range(1000)]
    assert [rate.take(time) for time in times] == times


async def test_a_closed_connection_has_hung_up_although_bytes_are_to_be_read() -> None:
    ours, theirs = socket.socketpair()
    with trio.socket.from_stdlib_socket(ours) as sock:
        assert not has_hung_up(sock)
        theirs.sendall(b"last words")
        theirs.shutdown(socket.SHUT_WR)
        assert not has_hung_up(sock)
        theirs.close()
        assert has_hung_up(sock)


async def ask_many(client: RawClient, count: int) -> None:
    data = b"".join(wire.encode(wire.Ping(), client.ids[10 + number]) for number in range(count))
    await client.stream.send_all(data)


class Heard:
    """The frames that an agent gets, by the time at which they come."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ids: list[int] = []

    async def run(self) -> None:
        while True:
            id_, message = await self._world.agent.expect(wire.Message)
            if isinstance(message, wire.Ping):
                self.ids.append(id_)
                await self._world.agent.send(wire.Pong(), id_)

    def of(self, client: RawClient) -> int:
        return sum(id_ in client.ids for id_ in self.ids)


async def test_a_client_over_its_rate_is_read_more_slowly_and_others_are_not(
    tmp_path: Path, users: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        served(tmp_path, limits=ClientLimits(frames_per_second=10)) as world,
        trio.open_nursery() as nursery,
    ):
        clients = [await connect(world, users, uid) for uid in (ONE, ONE, OTHER)]
        heard = Heard(world)
        nursery.start_soon(heard.run)
        for client, count in zip(clients, (9, 10, 30), strict=True):
            await ask_many(client, count)
        await settle()
        assert [heard.of(client) for client in clients] == [9, 10, 10]
        for seconds, expected in ((0.95, 19), (0.1, 20), (1.0, 30), (5.0, 30)):
            await trio.sleep(seconds)
            await settle()
            assert heard.of(clients[2]) == expected
        assert world.server.statistics().frames_refused == 0
        for client in clients:
            await client.leave()
        nursery.cancel_scope.cancel()


async def test_the_clients_of_a_user_have_one_rate_together_and_a_new_one_changes_nothing(
    tmp_path: Path, users: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    limits = ClientLimits(frames_per_second=10)
    async with served(tmp_path, uid_limits=limits) as world, trio.open_nursery() as nursery:
        first, second = [await connect(world, users, ONE) for _ in range(2)]
        other = await connect(world, users, OTHER)
        heard = Heard(world)
        nursery.start_soon(heard.run)
        for client, count in ((first, 20), (second, 20), (other, 10)):
            await ask_many(client, count)
        await settle()
        assert heard.of(first) + heard.of(second) == 10
        assert heard.of(other) == 10
        late = await connect(world, users, ONE)
        await ask_many(late, 5)
        await settle()
        assert heard.of(late) == 0
        await trio.sleep(3.55)
        await settle()
        assert [heard.of(client) for client in (first, second, late)] == [20, 20, 5]
        for client in (first, second, other, late):
            await client.leave()
        nursery.cancel_scope.cancel()


async def test_a_client_that_goes_while_it_is_read_slowly_does_not_live_on_with_its_commands(
    tmp_path: Path, users: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, limits=ClientLimits(frames_per_second=1)) as world:
        client = await connect(world, users, ONE)
        await client.send(wire.ExecRequest(cmd="yes"), client.ids[0])
        await ask_many(client, 1000)  # for a quarter of an hour
        await client.leave()
        start = trio.current_time()
        await world.agent.expect(wire.ExecRequest)
        while (await world.agent.expect(wire.Message))[1] != wire.ExecSignal(9):
            pass
        assert trio.current_time() - start < 10
        assert world.server.statistics().clients == 0


# Clients that do nothing


async def test_a_client_that_does_nothing_is_cut_after_the_time_and_not_before(
    tmp_path: Path, users: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, idle_timeout=100) as world:
        silent = await connect(world, users, ONE)
        await trio.sleep(30)
        later = await connect(world, users, OTHER)
        await trio.sleep(69)
        await settle()
        assert world.server.statistics().clients == 2
        await trio.sleep(2)
        await silent.expect_eof()
        assert world.server.statistics().clients_cut == 1
        await trio.sleep(27)
        await settle()
        assert world.server.statistics().clients == 1
        await trio.sleep(3)
        await later.expect_eof()
        for client in (silent, later):
            await client.leave()


async def test_a_client_that_pings_or_has_a_session_is_not_idle(
    tmp_path: Path, users: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, idle_timeout=100) as world:
        pings, runs = await connect(world, users, ONE), await connect(world, users, OTHER)
        await runs.send(wire.ExecRequest(cmd="sleep"), runs.ids[0])
        await world.agent.expect(wire.ExecRequest)
        for _ in range(10):
            await trio.sleep(99)
            await pings.send(wire.Ping(), pings.ids[0])
            await world.agent.expect(wire.Ping)
            await world.agent.send(wire.Pong(), pings.ids[0])
            await pings.expect(wire.Pong)
        assert world.server.statistics().clients == 2
        await world.agent.send(wire.ExecExited(0), runs.ids[0])
        await runs.expect(wire.ExecExited)
        await trio.sleep(99)
        await settle()
        assert world.server.statistics().clients == 2  # the time begins with the end of the session
        await trio.sleep(2)
        await runs.expect_eof()
        for client in (pings, runs):
            await client.leave()


async def test_a_client_that_is_read_slowly_is_not_idle(
    tmp_path: Path, users: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, limits=ClientLimits(frames_per_second=1), idle_timeout=100) as world:
        client = await connect(world, users, ONE)
        await client.send_raw(wire.encode(wire.ExecSignal(9), client.ids[0]) * 250)  # which nobody answers
        await trio.sleep(340)
        await settle()
        assert world.server.statistics().clients == 1
        await trio.sleep(20)
        await client.expect_eof()
        await client.leave()


async def test_this_programs_own_client_may_be_idle(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    options = RelayOptions(idle_timeout=10)._for_server(attached=True)
    async with serving(tmp_path, options=options) as world, world.server.attach() as stream:
        await trio.sleep(1000)
        assert world.server.statistics().clients == 1
        assert (await stream.receive_some())[:4] == (1).to_bytes(4, "big")


# The number of clients


async def test_silent_clients_of_one_user_do_not_take_the_slots_of_others(
    tmp_path: Path, users: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, clients_per_uid=3) as world:
        silent = [await connect(world, users, ONE) for _ in range(3)]
        assert await is_refused(world, users, ONE)
        assert f"refused a client of user {ONE}: its user has 3 clients already" in caplog.text
        other = await connect(world, users, OTHER)
        for client in (*silent, other):
            await client.leave()


async def test_one_client_more_than_the_relay_takes_is_refused(
    tmp_path: Path, users: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, clients=2) as world:
        clients = [await connect(world, users, uid) for uid in (ONE, OTHER)]
        assert await is_refused(world, users, OTHER)
        assert "all 2 slots are taken" in caplog.text
        await clients[0].leave()
        await settle()
        clients.append(await connect(world, users, OTHER))
        for client in clients:
            await client.leave()


async def test_a_client_waits_for_the_slot_of_its_users_last_one(tmp_path: Path, users: list[int]) -> None:
    async with served(tmp_path, clients_per_uid=1) as world, trio.open_nursery() as nursery:
        first, other = await connect(world, users, ONE), await connect(world, users, OTHER)
        await first.leave()
        await settle()
        users.append(ONE)
        late = await world.dial()
        await settle()
        assert world.server.statistics().clients == 1
        nursery.start_soon(world.finish_slot)
        with trio.fail_after(HANG):
            await late.greet()
        for client in (late, other):
            await client.leave()


# Rights


async def test_a_client_that_may_not_shut_down_is_told_so_and_others_get_the_agents_own_words(
    tmp_path: Path, users: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    rights = {ONE: Rights(shutdown=False), OTHER: Rights()}
    async with served(tmp_path, rights=rights) as world:
        limited, free = await connect(world, users, ONE), await connect(world, users, OTHER)
        ready = [wire.parse_frame(client.greeting[8:]) for client in (limited, free)]
        messages = [wire.decode(one) for one in ready]
        words = [message.features for message in messages if isinstance(message, wire.Ready)]
        assert words == [[wire.SHUTDOWN], wire.UNSET]
        await limited.send(wire.Shutdown(), 0)
        await limited.send(wire.Shutdown(), limited.ids[3])
        id_, error = await limited.expect(wire.Error)
        assert (id_, error.kind) == (limited.ids[3], "not_permitted")
        assert not world.server.shutdown_requested.is_set()
        assert caplog.text.count("has tried to shut the guest down") == 1
        assert world.server.statistics().frames_refused == 2
        await limited.send(wire.FsRequest(wire.OpStat("/", True)), limited.ids[0])
        await world.agent.expect(wire.FsRequest)
        for client in (limited, free):
            await client.leave()
