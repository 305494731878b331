"""Clients that do not read, with an agent that counts no credit: the policies.

The agent is like one of another make: generation 7, chunks of 4096 bytes, exit status -1 for signals, no credit.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from tests.relay.router._world import RawClient, World, serving
from tests.tools.limits import HANG
from tests.tools.peer import settle
from trio_console import _wire as wire
from trio_console._relay.router.limits import RouterLimits
from trio_console._relay.server import ServerOptions, SlowClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

MIB = 1024 * 1024
CHUNK = wire.ExecStdout(bytes(4096))
LIMITS = RouterLimits(client_budget=MIB // 2, total_budget=2 * MIB, answers_budget=MIB)


class Slow:
    """A client that runs a command and does not read, and another one that does."""

    def __init__(self, world: World, client: RawClient, other: RawClient) -> None:
        self.world = world
        self.client = client
        self.other = other
        self.id = client.ids[0]

    async def flood(self, size: int) -> None:
        for _ in range(size // 4096):
            await self.world.agent.send(CHUNK, self.id)
        await settle()

    async def ping(self) -> None:
        """A round trip of the other client."""
        await self.other.send(wire.Ping(), self.other.ids[0])
        while (await self.world.agent.expect(wire.Message))[1] != wire.Ping():
            pass
        await self.world.agent.send(wire.Pong(), self.other.ids[0])
        await self.other.expect(wire.Pong)

    async def received(self) -> list[tuple[int, wire.Message]]:
        got = []
        while (one := await self.client.receive()) is not None:
            got.append(one)
            if isinstance(one[1], wire.ExecExited):
                break
        return got


@asynccontextmanager
async def slow_client(tmp_path: Path, policy: SlowClient, *, drops: bool = False) -> AsyncIterator[Slow]:
    options = ServerOptions(limits=LIMITS, slow_client=policy, slow_client_timeout=10)
    async with serving(tmp_path, window=None, options=options) as world:
        client, other = await world.connect(), await world.connect()
        request = wire.ExecRequest(cmd="yes", drops=True) if drops else wire.ExecRequest(cmd="yes")
        await client.send(request, client.ids[0])
        await world.agent.expect(wire.ExecRequest)
        yield Slow(world, client, other)
        await client.leave()
        await other.leave()


async def test_cut_waits_for_its_time(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with slow_client(tmp_path, SlowClient.CUT) as slow:
        await slow.flood(MIB)
        await trio.sleep(9.5)
        assert slow.world.server.statistics().clients_cut == 0
        await trio.sleep(1)
        assert slow.world.server.statistics().clients_cut == 1
        assert slow.world.server.statistics().clients == 1


async def test_until_a_client_is_cut_others_go_on(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with slow_client(tmp_path, SlowClient.CUT) as slow:
        start = trio.current_time()
        await slow.flood(MIB)
        await slow.ping()
        assert trio.current_time() == start


async def test_a_burst_above_the_budget_does_not_cut_at_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with slow_client(tmp_path, SlowClient.CUT) as slow:
        await slow.flood(7 * MIB // 4)
        assert slow.world.server.statistics().clients_cut == 0
        assert slow.world.server.statistics().bytes_queued > MIB


async def test_beyond_the_total_everybody_waits_until_the_cut(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with slow_client(tmp_path, SlowClient.CUT) as slow:
        start = trio.current_time()
        await slow.flood(8 * MIB)
        assert slow.world.server.statistics().bytes_queued <= 2 * MIB + 8192
        await slow.ping()
        assert 9.5 <= trio.current_time() - start <= 10.5
        assert slow.world.server.statistics().clients == 1


async def test_a_client_that_reads_in_time_is_not_cut(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with slow_client(tmp_path, SlowClient.CUT) as slow:
        await slow.flood(MIB)
        await trio.sleep(9)
        await slow.world.agent.send(wire.ExecExited(-1), slow.id)
        got = await slow.received()
        assert sum(len(m.data) for _, m in got if isinstance(m, wire.ExecStdout)) == MIB
        await trio.sleep(30)
        assert slow.world.server.statistics().clients_cut == 0


async def test_a_client_that_has_read_what_was_queued_is_read_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with slow_client(tmp_path, SlowClient.CUT) as slow:
        first, second = slow.client.ids[1:3]
        await slow.flood(MIB)
        await slow.client.send(wire.Ping(), first)  # the relay reads this one, and then no more
        assert (await slow.world.agent.expect(wire.Ping))[0] == first
        await settle()
        await slow.client.send(wire.Ping(), second)
        await settle()
        for _ in range(MIB // 4096):
            await slow.client.expect(wire.ExecStdout)
        # No other frame comes for it in the meantime, from either side.
        with trio.fail_after(HANG):
            assert (await slow.world.agent.expect(wire.Ping))[0] == second


async def test_what_was_queued_for_a_cut_client_is_counted(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with slow_client(tmp_path, SlowClient.CUT) as slow:
        await slow.flood(MIB)
        queued = slow.world.server.statistics().bytes_queued
        await trio.sleep(11)
        assert slow.world.server.statistics().bytes_dropped == queued
        assert slow.world.server.statistics().bytes_queued == 0
        assert "it has read nothing for 10 s" in caplog.text


async def test_a_cut_client_has_its_command_killed(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with slow_client(tmp_path, SlowClient.CUT) as slow:
        await slow.flood(MIB)
        await slow.world.finish_slot(kill=(slow.id,))
        assert slow.world.server.statistics().slots_quarantined == 0


async def test_pause_loses_nothing_and_holds_up_everybody(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with slow_client(tmp_path, SlowClient.PAUSE) as slow:
        await slow.flood(4 * MIB)
        assert slow.world.server.statistics().bytes_queued <= MIB // 2 + 8192
        await trio.sleep(1000)
        await slow.other.send(wire.Ping(), slow.other.ids[0])
        while (await slow.world.agent.expect(wire.Message))[1] != wire.Ping():
            pass
        await slow.world.agent.send(wire.Pong(), slow.other.ids[0])
        await slow.world.agent.send(wire.ExecExited(-1), slow.id)
        assert await slow.other.pending() == []
        got = await slow.received()
        assert sum(len(m.data) for _, m in got if isinstance(m, wire.ExecStdout)) == 4 * MIB
        assert got[-1][1] == wire.ExecExited(-1)
        await slow.other.expect(wire.Pong)
        assert slow.world.server.statistics().bytes_dropped == 0


async def test_pause_ends_when_the_slow_client_leaves(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with slow_client(tmp_path, SlowClient.PAUSE) as slow:
        await slow.flood(4 * MIB)
        await slow.client.leave()
        await slow.ping()


async def test_drop_drops_output_and_counts_it_and_says_so_and_keeps_the_rest(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with slow_client(tmp_path, SlowClient.DROP, drops=True) as slow:
        await slow.flood(4 * MIB)
        await slow.world.agent.send(wire.ExecStdinError(message="kept"), slow.id)
        await slow.world.agent.send(wire.ExecExited(-1), slow.id)
        await slow.ping()
        got = await slow.received()
        assert [type(m) for _, m in got if not isinstance(m, wire.ExecStdout)] == [
            wire.ExecStdinError,
            wire.ExecDropped,
            wire.ExecExited,
        ]
        count = sum(isinstance(m, wire.ExecStdout) for _, m in got)
        lost = MIB * 4 // 4096 - count
        assert lost > 0
        assert lost * 4096 < slow.world.server.statistics().bytes_dropped <= lost * len(wire.encode(CHUNK, 1))


async def test_drop_cuts_a_client_that_would_not_be_told(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with slow_client(tmp_path, SlowClient.DROP) as slow:
        await slow.flood(MIB)
        assert slow.world.server.statistics().clients_cut == 1
        assert "cannot be told that output of its commands is dropped" in caplog.text
        await slow.ping()


async def test_answers_alone_are_not_queued_for_ever(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with slow_client(tmp_path, SlowClient.DROP) as slow:
        error = wire.ExecStdinError(message="x" * 4096)
        for _ in range(1000):
            await slow.world.agent.send(error, slow.id)
        await settle()
        assert slow.world.server.statistics().clients_cut == 1
        assert "it does not read" in caplog.text


async def test_an_agent_that_is_silent_about_unknown_ids_costs_one_slot_only(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with slow_client(tmp_path, SlowClient.CUT) as slow:
        await slow.client.leave()
        # It ends the command and answers the last request, and sends nothing else.
        await slow.world.finish_slot(kill=(slow.id,))
        again = await slow.world.connect()
        assert again.ids[0] == slow.id
        for message in (wire.ExecStdin(b"x"), wire.ExecSignal(9), wire.TcpEof()):
            await again.send(message, again.ids[5])
        assert await again.pending() == []
        await again.leave()


async def test_no_credit_and_no_cancel_is_ever_spoken_to_it(tmp_path: Path) -> None:
    async with slow_client(tmp_path, SlowClient.CUT) as slow:
        await slow.flood(MIB // 4)
        await slow.client.send(wire.Credit("stdout", 100), slow.id)
        await slow.client.send(wire.Cancel(), slow.id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.client.pending)
        got = {type(message) for _, message in await slow.world.agent.pending()}
        assert not got & {wire.Credit, wire.Cancel}


async def test_an_overflowing_client_of_an_agent_with_credit_is_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ServerOptions(limits=LIMITS)
    async with serving(tmp_path, options=options) as world:
        client = await world.connect()
        with trio.fail_after(HANG):
            for _ in range(1000):  # for ids without a request
                await world.agent.send(CHUNK, client.ids[7])
        await settle()
        assert world.server.statistics().clients_cut == 1
        assert "are kept for it" in caplog.text
        await client.leave()
