"""The server: it greets, refuses and forwards; clients come and go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.relay.router._world import World, serving
from tests.tools.limits import HANG
from tests.tools.peer import Peer, parse, settle
from trio_console import _wire as wire
from trio_console._relay.router.limits import RouterLimits
from trio_console._relay.server import ServerOptions
from trio_console._trio.lost import GuestLostError
from trio_console._wire.ids import MAX_CLIENTS

VECTORS: dict[str, dict[str, Any]] = {
    vector["name"]: vector
    for vector in json.loads((Path(__file__).parents[1] / "wire" / "data" / "vectors.json").read_text())
}
EXEC = wire.ExecRequest(cmd="true")


# Greeting


async def test_the_greeting_is_the_ids_and_the_agents_own_ready_frame(tmp_path: Path) -> None:
    vectors = [VECTORS[f"client_handshake_slot{slot}"] for slot in (0, 1, 127)]
    ready = parse(bytes.fromhex(vectors[0]["frame_hex"])[8:])[0]
    async with serving(tmp_path, ready=ready) as world:
        clients = [await world.connect() for _ in range(MAX_CLIENTS)]
        for slot, vector in zip((0, 1, 127), vectors, strict=True):
            assert clients[slot].greeting == bytes.fromhex(vector["frame_hex"])
        for client in clients:
            await client.leave()


async def test_nothing_but_the_greeting_is_sent_unasked(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        assert await client.pending() == []
        await client.leave()


async def test_the_129th_client_is_refused_without_a_byte(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as world:
        clients = [await world.connect() for _ in range(MAX_CLIENTS)]
        late = await world.dial()
        with trio.fail_after(HANG):
            assert await late.stream.receive_some() == b""
        assert "all 128 slots are taken" in caplog.text
        assert world.server.statistics().clients_refused == 1
        assert world.server.statistics().clients == MAX_CLIENTS
        for client in [*clients, late]:
            await client.leave()


async def test_a_client_waits_for_a_slot_that_the_guest_has_not_finished_with(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        clients = [await world.connect() for _ in range(MAX_CLIENTS)]
        await clients[5].leave()
        await settle()
        late = await world.dial()
        await settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(late.greet)
            await settle()
            await world.finish_slot()
        assert late.ids == clients[5].ids
        assert world.server.statistics().clients_refused == 0
        for client in [*clients, late]:
            await client.leave()


async def test_a_client_does_not_wait_long_for_a_slot(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tmp_path) as world:
        clients = [await world.connect() for _ in range(MAX_CLIENTS)]
        await clients[5].leave()
        await settle()
        start = trio.current_time()
        late = await world.dial()
        await late.expect_eof()
        assert 4 < trio.current_time() - start < 6
        assert world.server.statistics().clients_refused == 1
        for client in [*clients, late]:
            await client.leave()


async def test_the_128th_client_is_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        clients = [await world.connect() for _ in range(MAX_CLIENTS)]
        await clients[-1].send(wire.Ping(), clients[-1].ids[0])
        assert (await world.agent.expect(wire.Ping))[0] == clients[-1].ids[0]
        for client in clients:
            await client.leave()


async def test_the_own_client_has_its_slot_however_many_wait(tmp_path: Path) -> None:
    async with serving(tmp_path, options=ServerOptions(attached=True)) as world:
        clients = [await world.connect() for _ in range(MAX_CLIENTS - 1)]
        async with world.server.attach() as stream:
            assert await stream.receive_some(8) == bytes.fromhex("0000000101ffffff")
        for client in clients:
            await client.leave()


async def test_attaching_to_a_guest_that_has_gone_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, options=ServerOptions(attached=True)) as world:
        await world.agent.stream.aclose()
        await world.server.wait_ended()
        with pytest.raises(GuestLostError, match="closed its console"):
            async with world.server.attach():
                pass


# Forwarding


async def test_frames_pass_both_ways(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        id_ = client.ids[0]
        await client.send(EXEC, id_)
        await world.agent.expect(wire.ExecRequest)
        await client.send(wire.ExecStdin(b"in"), id_)
        assert await world.agent.expect(wire.ExecStdin) == (id_, wire.ExecStdin(b"in"))
        for message in (wire.ExecStarted(1), wire.ExecStdout(b"out"), wire.ExecExited(0)):
            await world.agent.send(message, id_)
            assert await client.receive() == (id_, message)
        await client.leave()


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_frames_split_anywhere_arrive_whole(tmp_path: Path, size: int) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        id_ = client.ids[0]
        raw = wire.encode(EXEC, id_) + wire.encode(wire.ExecStdin(b"abc"), id_) + wire.encode(wire.Ping(), id_ + 1)
        for at in range(0, len(raw), size):
            await client.send_raw(raw[at : at + size])
            await trio.testing.wait_all_tasks_blocked()
        got = [(await world.agent.receive()) for _ in range(3)]
        assert {type(one[1]) for one in got if one} == {wire.ExecRequest, wire.ExecStdin, wire.Ping}
        back = wire.encode(wire.ExecStdout(b"x" * 10), id_) + wire.encode(wire.Pong(), id_ + 1)
        for at in range(0, len(back), size):
            await world.agent.send_raw(back[at : at + size])
        assert sorted([await client.expect(wire.ExecStdout), await client.expect(wire.Pong)], key=lambda m: m[0])
        await client.leave()


async def test_credit_is_given_as_the_socket_takes_the_output(tmp_path: Path) -> None:
    limits = RouterLimits(largest_window=1000)
    async with serving(tmp_path, options=ServerOptions(limits=limits)) as world:
        client = await world.connect()
        id_ = client.ids[0]
        await client.send(EXEC, id_)
        _, request = await world.agent.expect(wire.ExecRequest)
        assert request.window == 4096  # never below the least one
        await world.agent.send(wire.ExecStdout(bytes(3000)), id_)
        assert await world.agent.expect(wire.Credit) == (id_, wire.Credit("stdout", 3000))
        await client.leave()


async def test_a_client_that_stops_reading_holds_up_nobody_else(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        stuck, other = await world.connect(), await world.connect()
        id_ = stuck.ids[0]
        await stuck.send(EXEC, id_)
        _, request = await world.agent.expect(wire.ExecRequest)
        assert isinstance(request.window, int)
        left = request.window
        while left:  # as an agent does: until its window is used up
            await world.agent.send(wire.ExecStdout(bytes(4096)), id_)
            left -= 4096
            for _, message in await world.agent.pending():
                assert isinstance(message, wire.Credit)
                left += message.bytes
        queued = world.server.statistics().bytes_queued
        assert 0 < queued <= request.window + 64 * 1024 + 10000
        await other.send(wire.Ping(), other.ids[0])
        await world.agent.expect(wire.Ping)
        await world.agent.send(wire.Pong(), other.ids[0])
        await other.expect(wire.Pong)
        await stuck.leave()
        await other.leave()


async def test_stdin_that_the_agent_takes_no_more_of_stops_only_its_client(tmp_path: Path) -> None:
    async with serving(tmp_path, window=1000) as world:
        stuck, other = await world.connect(), await world.connect()
        await stuck.send(EXEC, stuck.ids[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stuck.send, wire.ExecStdin(bytes(3_000_000)), stuck.ids[0])
            await settle()
            nursery.start_soon(stuck.send, wire.ExecStdin(bytes(3_000_000)), stuck.ids[0])
            await settle()
            got = await world.agent.pending()
            assert [len(m.data) for _, m in got if isinstance(m, wire.ExecStdin)] == [1000]
            await other.send(wire.Ping(), other.ids[0])
            await world.agent.expect(wire.Ping)
            nursery.cancel_scope.cancel()
        await stuck.leave()
        await other.leave()


# Leaving


async def test_a_client_that_leaves_has_its_commands_killed_and_its_slot_freed(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        await client.send(EXEC, client.ids[0])
        await world.agent.expect(wire.ExecRequest)
        await client.leave()
        await settle()
        assert world.server.statistics().slots_quarantined == 1
        await world.finish_slot(kill=(client.ids[0],))
        assert world.server.statistics().slots_quarantined == 0
        again = await world.connect()
        assert again.ids == client.ids
        assert await again.pending() == []
        await again.leave()


async def test_a_slot_in_quarantine_is_not_given_away(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        await (await world.connect()).leave()
        await settle()
        other = await world.connect()
        assert other.ids[0] != 1
        await other.leave()


async def test_a_half_closed_client_counts_as_gone(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        assert isinstance(client.stream, trio.SocketStream)
        await client.stream.send_eof()
        await world.finish_slot()
        await client.expect_eof()
        await client.leave()


async def test_a_client_that_dies_in_the_middle_of_a_frame_has_just_left(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        await client.send_raw(wire.encode(EXEC, client.ids[0])[:-1])
        await client.leave()
        await world.finish_slot()
        assert world.server.statistics().clients_cut == 0


@pytest.mark.parametrize(
    "raw", [b"\x00\x00\x00\x04", b"\x00\x40\x00\x01", b"\xff" * 4], ids=["short", "long", "huge"]
)
async def test_a_bad_length_cuts_the_client_and_nobody_else(tmp_path: Path, raw: bytes) -> None:
    async with serving(tmp_path) as world:
        client, other = await world.connect(), await world.connect()
        await client.send_raw(raw)
        await client.expect_eof()
        await world.finish_slot()
        assert world.server.statistics().clients_cut == 1
        await other.send(wire.Ping(), other.ids[0])
        await world.agent.expect(wire.Ping)
        await client.leave()
        await other.leave()


async def test_an_id_of_another_cuts_the_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path) as world:
        client, other = await world.connect(), await world.connect()
        await other.send(wire.Ping(), client.ids[0])
        await other.expect_eof()
        assert "cut the client in slot 1: id 1 is not one of this client's" in caplog.text
        await client.leave()
        await other.leave()


async def test_each_client_has_a_cancel_scope_of_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        clients = [await world.connect() for _ in range(3)]
        tasks = next(tasks for tasks in world.server._tasks.values() if tasks.client.slot == 1)
        tasks.scope.cancel()
        await clients[1].expect_eof()
        for client in (clients[0], clients[2]):
            await client.send(wire.Ping(), client.ids[0])
        await settle()
        pings = [id_ for id_, message in await world.agent.pending() if isinstance(message, wire.Ping)]
        assert pings == [clients[0].ids[0], clients[2].ids[0]]
        for client in clients:
            await client.leave()


async def test_old_data_of_a_client_never_reaches_the_next_ones_session(tmp_path: Path) -> None:
    """Data of a client waits for the console, behind control frames. The slot must not be free before that."""
    console, far = trio.testing.lockstep_stream_pair()
    agent_says, to_relay = trio.testing.memory_stream_pair()
    guest = trio.StapledStream(console.send_stream, to_relay.receive_stream)
    theirs = trio.StapledStream(agent_says.send_stream, far.receive_stream)
    async with serving(tmp_path, streams=(guest, theirs)) as world:
        first = await world.connect()
        id_ = first.ids[0]
        await first.send(EXEC, id_)
        await settle()
        # The console takes no bytes now: half of the request has gone, and stdin waits behind it.
        for _ in range(3):
            await first.send(wire.ExecStdin(b"old"), id_)
        await settle()
        await first.leave()
        await settle()
        got: list[tuple[int, wire.Message]] = []
        while not got or not isinstance(got[-1][1], wire.FsData):
            one = await world.agent.receive()
            assert one is not None
            got.append(one)
        # After the question no data of the first client comes any more. (Frames that waited may have been joined.)
        assert (id_, b"old") in [
            (at, message.data[:3]) for at, message in got if isinstance(message, wire.ExecStdin)
        ]
        await world.agent.send(wire.ExecExited(-1), id_)
        await world.agent.send(wire.FsResponse(ok=False), got[-1][0])
        await settle()
        second = await world.connect()
        assert second.ids == first.ids
        await second.send(EXEC, id_)
        assert [type(m) for _, m in await world.agent.pending()] == [wire.ExecRequest]
        await second.leave()


# Endings


async def lose(world: World) -> None:
    await world.agent.stream.aclose()
    with trio.fail_after(HANG):
        await world.server.wait_ended()


async def test_when_the_guest_goes_clients_get_what_is_queued_and_then_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        id_ = client.ids[0]
        await client.send(EXEC, id_)
        await world.agent.expect(wire.ExecRequest)
        got: list[tuple[int, wire.Message]] = []
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                while (one := await client.receive()) is not None:
                    got.append(one)

            for _ in range(60):
                await world.agent.send(wire.ExecStdout(bytes(4096)), id_)
            await world.agent.send(wire.ExecExited(3), id_)
            nursery.start_soon(read)
            nursery.start_soon(lose, world)
        assert sum(len(m.data) for _, m in got if isinstance(m, wire.ExecStdout)) == 60 * 4096
        assert got[-2] == (id_, wire.ExecExited(3))
        assert got[-1][1] == wire.RelayLost("the guest closed its console")
        assert world.server.reason == "the guest closed its console"
        await client.leave()


async def test_when_the_guest_goes_while_input_waits_clients_still_get_what_is_queued(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        id_ = client.ids[0]
        await client.send(EXEC, id_)
        await world.agent.expect(wire.ExecRequest)
        for _ in range(60):
            await world.agent.send(wire.ExecStdout(bytes(4096)), id_)
        await settle()
        # A write to it fails at once now, before its last frames have been read.
        assert isinstance(world.agent.stream, trio.StapledStream)
        await world.agent.stream.receive_stream.aclose()
        await client.send(wire.ExecStdin(bytes(1000)), id_)
        await client.send(wire.ExecSignal(1), id_)
        await settle()
        await world.agent.stream.aclose()
        size = 0
        while (one := await client.receive()) is not None and not isinstance(one[1], wire.RelayLost):
            assert isinstance(one[1], wire.ExecStdout)
            size += len(one[1].data)
        assert size == 60 * 4096
        await client.leave()


async def test_output_held_for_a_clients_credit_is_sent_when_the_guest_goes(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        id_ = client.ids[0]
        await client.send(wire.ExecRequest(cmd="x", window=100), id_)
        await world.agent.expect(wire.ExecRequest)
        for message in (wire.ExecStdout(bytes(100)), wire.ExecStdout(b"rest"), wire.ExecExited(0)):
            await world.agent.send(message, id_)
        await world.agent.stream.aclose()
        assert await client.receive() == (id_, wire.ExecStdout(bytes(100)))
        assert await client.receive() == (id_, wire.ExecStdout(b"rest"))
        assert await client.receive() == (id_, wire.ExecExited(0))
        await client.expect_farewell("closed its console")
        await client.leave()


async def test_a_client_that_does_not_read_does_not_delay_the_end_for_long(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        id_ = client.ids[0]
        await client.send(EXEC, id_)
        await world.agent.expect(wire.ExecRequest)
        for _ in range(80):
            await world.agent.send(wire.ExecStdout(bytes(4096)), id_)
        await settle()
        start = trio.current_time()
        await lose(world)
        assert trio.current_time() - start <= 1.5
        await client.leave()


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (b"", "the guest closed its console"),
        (b"\x00\x00", "out of step"),
        (b"\x00\x00\x00\x04", "out of step"),
        (b"\xff\xff\xff\xff", "out of step"),
    ],
)
async def test_the_reason_of_the_end_is_known(tmp_path: Path, last: bytes, reason: str) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        await world.agent.send_raw(last)
        await lose(world)
        assert reason in world.server.reason
        await client.expect_farewell(reason)
        await client.leave()


async def test_the_reason_of_a_lost_guest_belongs_to_no_session(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        used = {client.ids.start, client.ids[-1]}
        for id_ in used:
            await client.send(EXEC, id_)
            await world.agent.expect(wire.ExecRequest)
        await lose(world)
        id_, _ = await client.expect(wire.RelayLost)
        assert id_ in client.ids
        assert id_ not in used
        await client.leave()


async def test_of_a_long_reason_the_beginning_and_the_end_are_told(tmp_path: Path) -> None:
    async def explain() -> str:
        await trio.lowlevel.checkpoint()
        return "日" * 100_000 + "ValueError"

    async with serving(tmp_path, explain=explain) as world:
        client = await world.connect()
        await lose(world)
        _, told = await client.expect(wire.RelayLost)
        assert told.reason.startswith("the guest closed its console: 日日")
        assert told.reason.endswith("日日ValueError")
        assert len(wire.encode(told)) < 4096
        await client.leave()


async def test_a_guest_that_only_stops_listening_is_lost_as_well(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        assert isinstance(world.agent.stream, trio.StapledStream)
        await world.agent.stream.receive_stream.aclose()
        await client.send(wire.Ping(), client.ids[0])
        with trio.fail_after(HANG):
            await world.server.wait_ended()
        assert "takes no more bytes" in world.server.reason
        await client.expect_farewell("takes no more bytes")
        await client.leave()


async def test_shutting_down_stops_accepting_and_tells_the_guest(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        world.server.shut_down()
        assert (await world.agent.expect(wire.Shutdown))[0] == 0
        late = await world.dial()
        await settle()
        assert world.server.statistics().clients == 1
        await lose(world)
        await client.expect_farewell("the guest was shut down")
        await client.leave()
        await late.leave()


async def test_a_clients_shutdown_is_noted(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        await client.send(wire.Shutdown())
        await world.agent.expect(wire.Shutdown)
        assert world.server.shutdown_requested.is_set()
        await client.leave()


async def test_leaving_at_any_time_leaves_no_task(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        clients = [await world.connect() for _ in range(5)]
        for client in clients:
            await client.send(EXEC, client.ids[0])
        await settle()
    for client in clients:
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(2):
                await client.stream.send_all(b"x")
                await client.expect_eof()
        await client.leave()


async def test_a_flood_of_frames_lets_other_tasks_have_their_turn(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        # Each of these is refused, and so counted.
        await client.send_raw(b"".join(wire.encode(wire.ExecStarted(1), client.ids[0]) for _ in range(1500)))
        turns = 0
        while world.server.statistics().frames_refused < 1500:
            turns += 1
            await trio.lowlevel.checkpoint()
        assert turns >= 1500 // 32
        await client.leave()


async def test_the_log_is_named_after_the_relay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        await client.send(wire.Ping(), 0)
        await client.expect_eof()
        await client.leave()
    assert {record.name for record in caplog.records} == {"trio_console.relay"}


async def test_no_frame_is_lost_or_doubled_for_many_clients_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:

        async def answer() -> None:
            while (got := await world.agent.receive()) is not None:
                if isinstance(got[1], wire.Ping):
                    await world.agent.send(wire.Pong(), got[0])

        async def ask(peer: Peer, ids: range) -> None:
            for id_ in ids[:50]:
                await peer.send(wire.Ping(), id_)
                assert await peer.receive() == (id_, wire.Pong())

        async with trio.open_nursery() as answering:
            answering.start_soon(answer)
            clients = [await world.connect() for _ in range(10)]
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(ask, client, client.ids)
            answering.cancel_scope.cancel()
        for client in clients:
            await client.leave()
