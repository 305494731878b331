"""A client that has many commands started: the guest has few of them to start at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.relay.router._world import serving
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._relay import server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.relay.router._world import RawClient, World

AT_A_TIME: Final = 4

ANSWERS: Final = {
    "started": wire.ExecStarted(7),
    "failed": wire.ExecFailed(kind="other", message="no"),
    "exited": wire.ExecExited(1),
}


@pytest.fixture(autouse=True)
def no_moment_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_START_PATIENCE", HANG)


async def ask(world: World, client: RawClient, count: int) -> None:
    """Request so many commands at once, and see those that the guest has to start."""
    await client.send_raw(b"".join(wire.encode(wire.ExecRequest("true"), id_) for id_ in client.ids[:count]))
    for id_ in client.ids[: min(count, AT_A_TIME)]:
        got, request = await world.agent.expect(wire.ExecRequest)
        assert (got, request.cmd) == (id_, "true")


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_command_is_requested_when_the_guest_has_answered_one_of_those_before(
    tmp_path: Path, answer: str
) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        await ask(world, client, AT_A_TIME + 2)
        for number in range(2):
            assert await world.agent.pending() == []
            await world.agent.send(ANSWERS[answer], client.ids[number])
            assert (await world.agent.expect(wire.ExecRequest))[0] == client.ids[AT_A_TIME + number]
        await client.leave()


async def test_commands_that_run_hold_up_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        await ask(world, client, AT_A_TIME)
        for id_ in client.ids[:AT_A_TIME]:
            await world.agent.send(ANSWERS["started"], id_)
        await client.send_raw(wire.encode(wire.ExecRequest("true"), client.ids[AT_A_TIME]))
        assert (await world.agent.expect(wire.ExecRequest))[0] == client.ids[AT_A_TIME]
        await client.leave()


async def test_what_a_client_has_asked_for_before_it_left_is_not_started_any_more(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client = await world.connect()
        await ask(world, client, AT_A_TIME + 3)
        await client.send(wire.Ping(), client.ids[-1])
        await client.leave()
        await world.agent.send(ANSWERS["started"], client.ids[0])
        # All else that it has sent is handled as ever.
        assert await world.agent.expect(wire.Ping) == (client.ids[-1], wire.Ping())
        await world.finish_slot(tuple(client.ids[:AT_A_TIME]))


async def test_another_client_does_not_wait_for_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        client, other = await world.connect(), await world.connect()
        await ask(world, client, AT_A_TIME + 1)
        await other.send(wire.Ping(), other.ids[0])
        assert await world.agent.expect(wire.Ping) == (other.ids[0], wire.Ping())
        await client.leave()
        await other.leave()


async def test_a_guest_that_answers_none_holds_up_each_frame_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_START_PATIENCE", 0.001)
    async with serving(tmp_path) as world:
        client = await world.connect()
        await ask(world, client, AT_A_TIME + 20)
        with trio.fail_after(HANG):
            for id_ in client.ids[AT_A_TIME : AT_A_TIME + 20]:
                assert (await world.agent.expect(wire.ExecRequest))[0] == id_
        await client.leave()
