"""The server and time: the guest is told the time, and a guest that misses a deadline is explained."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.relay.router._world import serving
from tests.tools.peer import settle
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Seconds on a virtual clock.
MINUTE = 60.0


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the wall clock follow trio's, and jump."""
    offset = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: trio.current_time() + offset)
    monkeypatch.setattr(time, "time_ns", lambda: int((trio.current_time() + offset) * 1e9))

    def jump(seconds: float) -> None:
        nonlocal offset
        offset += seconds

    return jump


async def test_the_guest_is_told_the_time_at_the_start_and_every_minute(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, wall: Callable[[float], None]
) -> None:
    async with serving(tmp_path) as world:
        world.agent.patience = 3 * MINUTE
        start = trio.current_time()
        for number in (1, 2):
            await world.agent.expect(wire.ClockSync)
            assert 60 * number <= trio.current_time() - start <= 62 * number


async def test_the_guest_is_told_when_the_wall_clock_jumps(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, wall: Callable[[float], None]
) -> None:
    async with serving(tmp_path) as world:
        start = trio.current_time()
        wall(3600)
        _, sync = await world.agent.expect(wire.ClockSync)
        assert trio.current_time() - start <= 2
        assert sync.unix_time_nanos // 10**9 == int(time.time())


async def test_a_small_drift_is_no_jump(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, wall: Callable[[float], None]
) -> None:
    async with serving(tmp_path) as world:
        start = trio.current_time()
        wall(-5)
        world.agent.patience = 3 * MINUTE
        await world.agent.expect(wire.ClockSync)
        assert trio.current_time() - start >= 60


async def test_a_slot_the_guest_never_finishes_with_is_retired(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    wall: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(tmp_path) as world:
        await (await world.connect()).leave()
        await settle()
        await trio.sleep(63)
        assert world.server.statistics().slots_retired == 1
        assert "slot 0 is not used until the guest has ended its sessions" in caplog.text
