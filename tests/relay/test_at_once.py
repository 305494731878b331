"""Frames that the agent's reader sends to clients itself, while their writers sleep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.relay.router._world import serving
from tests.tools.peer import settle
from tests.tools.turns import large_ping, make_long_steps_endless
from trio_console import _wire as wire
from trio_console._relay.router.limits import RouterLimits
from trio_console._relay.server import ServerOptions, SlowClient
from trio_console._trio import turns
from trio_console._trio.sockets import UnixStream

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from trio_console._trio.gathering import Piece


def watch_sending(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """The sizes of what is sent at once, and of what is sent by writers."""
    at_once: list[int] = []
    by_writers: list[int] = []
    send_at_once, send = UnixStream.send_gathered_nowait, UnixStream.send_gathered

    def nowait(self: UnixStream, pieces: list[Piece]) -> list[Piece]:
        at_once.append(sum(map(len, pieces)))
        return send_at_once(self, pieces)

    async def gathered(self: UnixStream, pieces: list[Piece]) -> None:
        by_writers.append(sum(map(len, pieces)))
        await send(self, pieces)

    monkeypatch.setattr(UnixStream, "send_gathered_nowait", nowait)
    monkeypatch.setattr(UnixStream, "send_gathered", gathered)
    return at_once, by_writers


async def test_the_frames_of_a_turn_are_sent_to_each_client_in_one_call_and_by_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as world:
        one, other = await world.connect(), await world.connect()
        await settle()  # the writers sleep
        at_once, by_writers = watch_sending(monkeypatch)
        monkeypatch.setattr(turns, "perf_counter", lambda: 0.0)  # no turn is ever over
        pongs = [wire.encode(wire.Pong(), id_) for id_ in (one.ids[0], other.ids[0], one.ids[1])]
        await world.agent.send_raw(b"".join(pongs))
        assert await one.expect(wire.Pong) == (one.ids[0], wire.Pong())
        assert await one.expect(wire.Pong) == (one.ids[1], wire.Pong())
        assert await other.expect(wire.Pong) == (other.ids[0], wire.Pong())
        assert at_once == [2 * len(pongs[0]), len(pongs[0])]
        assert by_writers == []
        await one.leave()
        await other.leave()


async def test_what_a_socket_does_not_take_at_once_is_sent_by_the_writer_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path, window=8 * 1024 * 1024) as world:
        client = await world.connect()
        id_ = client.ids[0]
        await client.send(wire.ExecRequest("cat"), id_)
        await world.agent.expect(wire.ExecRequest)
        sent = [bytes([n]) * 100_000 for n in range(8)]
        for data in sent:  # more than a socket takes; each comes in a turn of its own
            await world.agent.send(wire.ExecStdout(data), id_)
            await settle()
        await world.agent.send(wire.ExecExited(0), id_)
        await settle()
        got = [(await client.expect(wire.ExecStdout))[1].data for _ in sent]
        assert [bytes(data) for data in got] == sent
        assert await client.expect(wire.ExecExited) == (id_, wire.ExecExited(0))
        await settle()
        assert world.server.statistics().bytes_queued == 0
        await client.leave()


async def test_the_rest_of_a_frame_needs_no_further_frame_to_be_sent(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        await settle()
        await world.agent.send(wire.ExecStdout(bytes(1_000_000)), client.ids[0])  # more than a socket takes
        assert await client.expect(wire.ExecStdout) == (client.ids[0], wire.ExecStdout(bytes(1_000_000)))
        await client.leave()


async def test_frames_behind_one_that_was_begun_in_the_same_turn_wait_for_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = RouterLimits(client_budget=1000, total_budget=64 * 1024 * 1024, answers_budget=64 * 1024 * 1024)
    options = ServerOptions(limits=limits, slow_client=SlowClient.CUT, slow_client_timeout=1e6)
    async with serving(tmp_path, window=None, options=options) as world:
        client = await world.connect()
        id_ = client.ids[0]
        await client.send(wire.ExecRequest("cat"), id_)
        await world.agent.expect(wire.ExecRequest)
        await settle()
        at_once, _ = watch_sending(monkeypatch)
        monkeypatch.setattr(turns, "perf_counter", lambda: 0.0)  # no turn is ever over
        # The budget is exceeded by each frame, so each is a reason to send at once what there is.
        sent = [bytes([n]) * 1_000_000 for n in range(3)]
        await world.agent.send_raw(b"".join(wire.encode(wire.ExecStdout(data), id_) for data in sent))
        await settle()
        assert len(at_once) == 1
        got = [(await client.expect(wire.ExecStdout))[1].data for _ in sent]
        assert [bytes(data) for data in got] == sent
        await client.leave()


async def test_frames_are_sent_before_the_reader_waits_for_a_client_that_is_over_its_budget(
    tmp_path: Path,
) -> None:
    limits = RouterLimits(client_budget=1000, total_budget=64 * 1024 * 1024, answers_budget=64 * 1024 * 1024)
    async with serving(
        tmp_path, window=None, options=ServerOptions(limits=limits, slow_client=SlowClient.PAUSE)
    ) as world:
        client = await world.connect()
        id_ = client.ids[0]
        await client.send(wire.ExecRequest("cat"), id_)
        await world.agent.expect(wire.ExecRequest)
        await settle()
        await world.agent.send_raw(wire.encode(wire.ExecStdout(bytes(600)), id_) * 5)
        for _ in range(5):
            assert await client.expect(wire.ExecStdout) == (id_, wire.ExecStdout(bytes(600)))
        await client.leave()


async def test_frames_are_sent_before_the_reader_rests_behind_a_long_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_long_steps_endless(monkeypatch)
    async with serving(tmp_path) as world:
        client = await world.connect()
        pong = wire.encode(wire.Pong(), client.ids[0])
        await world.agent.send_raw(large_ping(client.ids[1]) + pong + large_ping(client.ids[2]))
        await client.expect(wire.Ping)
        assert await client.expect(wire.Pong) == (client.ids[0], wire.Pong())
        assert world.server.statistics().frames_from_agent == 2
        await client.leave()


async def test_frames_in_front_of_bytes_that_are_no_frames_are_sent(tmp_path: Path) -> None:
    told = trio.Event()

    async def explain() -> str:  # until the reason is known, clients are not told that the guest is gone
        await told.wait()
        return "it was"

    async with serving(tmp_path, explain=explain) as world:
        client = await world.connect()
        await settle()
        await world.agent.send_raw(wire.encode(wire.Pong(), client.ids[0]) + b"\xff" * 4)
        assert await client.pending() == [(client.ids[0], wire.Pong())]
        told.set()
        await client.leave()
