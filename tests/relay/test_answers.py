"""Answers for clients that do not read: the server cuts whoever the gate names."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tests.relay.router._world import RawClient, World, serving
from tests.tools.limits import HANG
from tests.tools.peer import settle
from trio_console import _wire as wire
from trio_console._addresses import Peer as Address
from trio_console._relay import server as _server
from trio_console._relay.router.limits import RouterLimits
from trio_console._relay.router.rights import Rights
from trio_console._relay.server import ServerOptions

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

KIB = 1024
ANSWER = wire.ExecStdout(bytes(4096))  # for an id without a request, so that no window bounds it
OPTIONS = ServerOptions(
    limits=RouterLimits(answers_budget=64 * 1024 * KIB, least_answers=64 * KIB, total_answers=1024 * KIB)
)


async def pile_up(world: World, client: RawClient, size: int) -> None:
    """Let the agent send answers until the relay keeps so many bytes more; a socket's buffer is full before."""
    before = world.server.statistics().bytes_queued
    with trio.fail_after(HANG):
        while world.server.statistics().bytes_queued < before + size:
            await world.agent.send(ANSWER, client.ids[7])
    await settle()


async def ping(world: World, client: RawClient) -> None:
    await client.send(wire.Ping(), client.ids[0])
    while (await world.agent.expect(wire.Message))[1] != wire.Ping():
        pass
    await world.agent.send(wire.Pong(), client.ids[0])
    await client.expect(wire.Pong)


async def test_a_frame_for_a_client_that_keeps_less_cuts_the_one_that_keeps_most(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, options=OPTIONS) as world:
        most, less, honest = [await world.connect() for _ in range(3)]
        await pile_up(world, most, 800 * KIB)
        assert world.server.statistics().clients_cut == 0
        await pile_up(world, less, 300 * KIB)
        with trio.fail_after(HANG):
            while world.server.statistics().clients_cut == 0:
                await world.agent.send(ANSWER, less.ids[7])
                await settle()
        assert "cut the client in slot 0: it does not read" in caplog.text
        assert world.server.statistics().clients == 2
        assert world.server.statistics().bytes_queued < 700 * KIB
        await ping(world, honest)
        for client in (most, less, honest):
            await client.leave()


async def test_clients_are_cut_until_the_rest_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    users = iter([1, 1, 1, 1, 2])
    monkeypatch.setattr(_server, "peer_of", lambda _sock: Address(os.getpid(), next(users)))
    limits = RouterLimits(least_answers=8 * KIB, total_answers=700 * KIB)
    options = ServerOptions(limits=limits, rights={1: Rights(), 2: Rights()})
    async with serving(tmp_path, options=options) as world:
        clients = [await world.connect() for _ in range(5)]
        for client in clients[:4]:
            await pile_up(world, client, 160 * KIB)
        assert world.server.statistics().clients_cut == 0
        # The user of the others has most, and one of its clients goes. Then this one has most, and goes too.
        await world.agent.send(wire.ExecStdinError(message="x" * (550 * KIB)), clients[4].ids[7])
        await settle()
        assert world.server.statistics().clients_cut == 2
        assert "cut the client in slot 4: it does not read" in caplog.text
        for client in clients:
            await client.leave()


async def test_no_second_client_is_cut_for_what_is_kept_for_one_that_is_just_being_cut(tmp_path: Path) -> None:
    async with serving(tmp_path, options=OPTIONS) as world:
        most, less = await world.connect(), await world.connect()
        await pile_up(world, most, 700 * KIB)
        await pile_up(world, less, 300 * KIB)
        # (In one piece, so that the relay handles them before the tasks of the client that it cuts have ended.)
        raw = [wire.encode(ANSWER, less.ids[7])] * 60
        await world.agent.stream.send_all(b"".join(raw))
        await settle()
        assert world.server.statistics().clients_cut == 1
        assert world.server.statistics().clients == 1
        for client in (most, less):
            await client.leave()


async def test_a_client_is_not_cut_for_frames_that_it_was_not_sent_yet(tmp_path: Path) -> None:
    options = ServerOptions(limits=RouterLimits(least_answers=8 * KIB, total_answers=32 * KIB))
    async with serving(tmp_path, options=options) as world:
        client = await world.connect()
        # (In one piece, so that the relay handles them in one turn. The socket holds them all.)
        await world.agent.stream.send_all(b"".join([wire.encode(ANSWER, client.ids[7])] * 20))
        await settle()
        assert world.server.statistics().clients_cut == 0
        for _ in range(20):
            await client.expect(wire.ExecStdout)
        await client.leave()


async def test_answers_of_the_relay_itself_count_as_those_of_the_guest(tmp_path: Path) -> None:
    options = ServerOptions(limits=RouterLimits(least_answers=8 * KIB, total_answers=64 * KIB))
    async with serving(tmp_path, options=options) as world:
        client, honest = await world.connect(), await world.connect()
        refused = wire.encode(wire.Pong(), client.ids[3])
        with trio.fail_after(HANG):
            while world.server.statistics().clients_cut == 0:
                with suppress(trio.BrokenResourceError):  # it is cut while it sends
                    await client.stream.send_all(100 * refused)
                await settle()
        await ping(world, honest)
        await client.leave()
        await honest.leave()


async def test_a_guest_that_speaks_to_a_client_that_has_not_attached_cuts_nobody(tmp_path: Path) -> None:
    options = ServerOptions(limits=OPTIONS.limits, attached=True)
    async with serving(tmp_path, options=options) as world:
        honest = await world.connect()
        own = wire.encode(ANSWER, 5)  # of the first slot
        for _ in range(300):
            await world.agent.stream.send_all(own)
        await settle()
        assert world.server.statistics().clients_cut == 0
        await ping(world, honest)
        await honest.leave()
