"""Floods of frames at a relay: nobody keeps its loop, neither a guest nor a client."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import trio

from tests.relay.router._world import serving
from tests.tools.limits import HANG
from tests.tools.peer import settle
from tests.tools.turns import TINY, large_ping, make_long_steps_endless, make_steps_turns, watch
from trio_console import _wire as wire
from trio_console._relay.server import RelayServer
from trio_console._trio import turns
from trio_console._trio.turns import Costly, Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest


async def test_tiny_frames_of_a_guest_let_other_tasks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_steps_turns(monkeypatch)
    async with serving(tmp_path) as world:
        await world.agent.send_raw(TINY * 500)
        with trio.fail_after(HANG):
            seen = await watch(lambda: world.server.statistics().frames_from_agent, 500)
    assert len(seen) > 200


async def test_small_frames_of_a_client_let_other_tasks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_steps_turns(monkeypatch)
    async with serving(tmp_path) as world:
        client = await world.connect()
        await client.send_raw(b"".join(wire.encode(wire.Ping(), id_) for id_ in client.ids[:500]))
        with trio.fail_after(HANG):
            seen = await watch(lambda: world.server.statistics().sessions, 500)
        await client.leave()
    assert len(seen) > 200


async def test_reading_the_frames_of_a_client_is_its_use_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = 0.0
    waits = 0

    class SlowDecoder(wire.FrameDecoder):
        def __iter__(self) -> Iterator[wire.Frame]:
            nonlocal used
            for frame in super().__iter__():
                used += 0.001
                yield frame

    async def wait(_line: Line) -> None:
        nonlocal waits
        waits += 1
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(turns, "thread_time", lambda: used)
    monkeypatch.setattr(Line, "wait", wait)
    async with serving(tmp_path) as world:
        monkeypatch.setattr(wire, "FrameDecoder", SlowDecoder)
        client = await world.connect()
        await client.send_raw(b"".join(wire.encode(wire.Ping(), id_) for id_ in client.ids[:10]))
        for _ in range(10):
            await world.agent.expect(wire.Ping)
        await client.leave()
    assert waits == 5  # a frame's reading is seen with what is done for it


async def test_what_a_client_has_sent_ahead_is_what_it_is_behind_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind: list[int] = []

    async def rest(_line: Line, _used: float, its_behind: int) -> None:
        behind.append(its_behind)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(turns, "thread_time", itertools.count(step=0.001).__next__)
    monkeypatch.setattr(Line, "rest", rest)
    async with serving(tmp_path) as world:
        client = await world.connect()
        frames = [wire.encode(wire.Ping(), id_) for id_ in client.ids[:10]]
        await client.send_raw(b"".join(frames))
        for _ in frames:
            await world.agent.expect(wire.Ping)
        await client.leave()
    left = [len(b"".join(frames[number:])) for number in range(1, 11)]
    assert len(behind) >= 3, "it has rested a few times"
    assert set(behind) <= set(left), "behind is what was received and not heard"
    assert behind == sorted(set(behind), reverse=True)


async def test_what_others_use_while_a_client_waits_is_not_its_use_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = 0.0
    waits = 0

    async def wait(_line: Line) -> None:
        nonlocal waits
        waits += 1
        await trio.lowlevel.checkpoint()

    async def others_work(*_arguments: object) -> None:
        nonlocal used
        used += 0.1
        await trio.lowlevel.checkpoint()

    async def run_costly(_costly: Costly, step: Callable[[], None]) -> None:
        await others_work()
        step()

    monkeypatch.setattr(turns, "thread_time", lambda: used)
    monkeypatch.setattr(Line, "wait", wait)
    monkeypatch.setattr(Costly, "run", run_costly)
    monkeypatch.setattr(RelayServer, "_wait_started", others_work)
    async with serving(tmp_path) as world:
        client = await world.connect()
        starts = [wire.encode(wire.ExecRequest("true"), id_) for id_ in client.ids[:10]]
        await client.send_raw(b"".join([large_ping(client.ids[10]), large_ping(client.ids[11]), *starts]))
        for _ in range(2):
            await world.agent.expect(wire.Ping)
        for _ in range(10):
            await world.agent.expect(wire.ExecRequest)
        await client.leave()
    assert waits == 0


async def test_large_frames_of_clients_are_decoded_one_at_a_time_and_hold_up_no_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_long_steps_endless(monkeypatch)
    async with serving(tmp_path) as world:
        first, second, third = [await world.connect() for _ in range(3)]
        await first.send_raw(large_ping(first.ids[0]))
        assert await world.agent.expect(wire.Ping) == (first.ids[0], wire.Ping())
        await second.send_raw(large_ping(second.ids[0]))
        await settle()
        for client in (third, first):
            await client.send(wire.Ping(), client.ids[1])
            assert await world.agent.expect(wire.Ping) == (client.ids[1], wire.Ping())
        assert await world.agent.pending() == []
        for client in (first, second, third):
            await client.leave()


async def test_data_is_no_large_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_long_steps_endless(monkeypatch)
    async with serving(tmp_path) as world:
        client = await world.connect()
        await client.send(wire.ExecRequest("cat"), client.ids[0])
        await world.agent.expect(wire.ExecRequest)
        for _ in range(3):
            await client.send(wire.ExecStdin(b"x" * 50_000), client.ids[0])
            assert await world.agent.expect(wire.ExecStdin) == (client.ids[0], wire.ExecStdin(b"x" * 50_000))
        await client.leave()


async def test_behind_a_long_frame_a_guest_is_not_read_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_long_steps_endless(monkeypatch)
    async with serving(tmp_path) as world:
        client = await world.connect()
        for _ in range(3):
            await world.agent.send_raw(large_ping(client.ids[0]))
        await settle()
        assert world.server.statistics().frames_from_agent == 1
        await client.send(wire.Ping(), client.ids[1])
        await world.agent.expect(wire.Ping)
        await client.leave()
