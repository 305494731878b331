"""What a relay reports: to whom nobody listens, and of clients that make it report without end."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from tests.relay.router._world import World, serving
from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest


async def be_cut(world: World, times: int) -> None:
    """Connect so often, and say each time what is no frame."""
    for _ in range(times):
        client = await world.connect()
        await client.send_raw(b"\xff" * 9)
        await client.expect_eof()
        await client.leave()
        await world.finish_slot()


async def check_that_it_serves(world: World) -> None:
    client = await world.connect()
    with trio.fail_after(HANG):
        await client.send(wire.Ping(), client.ids[0])
        await world.agent.expect(wire.Ping)
        await world.agent.send(wire.Pong(), client.ids[0])
        await client.expect(wire.Pong)
    await client.leave()


@contextmanager
def unread_log() -> Iterator[int]:
    """Let the relay log to a pipe that is full; yields the descriptor to read it from."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb", 0), os.fdopen(writing, "w") as stream:
        try:
            while os.write(writing, bytes(4096)):
                pass
        except BlockingIOError:
            os.set_blocking(writing, True)
        handler = logging.StreamHandler(stream)
        logger = logging.getLogger("trio_console.relay")
        logger.addHandler(handler)
        try:
            yield reading
        finally:
            logger.removeHandler(handler)


async def test_a_relay_whose_log_nobody_reads_goes_on(tmp_path: Path) -> None:
    with unread_log():
        async with serving(tmp_path) as world:
            await be_cut(world, 3)
            await check_that_it_serves(world)
            assert world.server.statistics().clients_cut == 3


async def test_the_number_of_reports_that_were_left_out_is_told_soon(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with unread_log() as reading:
        async with serving(tmp_path) as world:
            await be_cut(world, 3)
            assert not os.read(reading, 1 << 20).strip(b"\0")
            await trio.sleep(3)
            assert os.read(reading, 65536).startswith(b"3 reports were left out")


async def test_clients_cannot_make_a_relay_report_without_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as world:
        began = trio.current_time()
        await be_cut(world, 150)
        spent = trio.current_time() - began
    cuts = sum("cut the client" in record.message for record in caplog.records)
    assert 50 <= cuts <= 50 + 2 * spent + 1
