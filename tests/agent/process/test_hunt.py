"""The search for the processes of commands that are to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from trio_console._processes import COMMAND_MARK, Look, Wanted
from trio_console.agent._looks import Looks
from trio_console.agent._process.births import Births
from trio_console.agent._process.hunt import Hunt

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from trio_console._processes import Watch


class Searches:
    """Stands for the searches: each takes ten milliseconds, and finds one process that does not die."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, _looks: Looks, _look: Callable[[Watch], object]) -> list[tuple[Look, bool]]:
        self.count += 1
        await trio.sleep(0.01)
        return [(Look({1}, set(), {1: b"7"}), False)]  # (nothing is in a cgroup)


async def test_searches_without_end_leave_time_for_sessions(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    searches = Searches()
    monkeypatch.setattr(Looks, "look", lambda *args: searches(*args))
    hunt = Hunt("m.", Births(None), print)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hunt.run)
        assert await hunt.kill(Wanted(COMMAND_MARK, "m.1."), 30.0) == 1
        nursery.cancel_scope.cancel()
    assert searches.count * 0.01 == pytest.approx(30 / 3, rel=0.1)


async def test_the_first_searches_follow_each_other_at_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    searches = Searches()
    monkeypatch.setattr(Looks, "look", lambda *args: searches(*args))
    hunt = Hunt("m.", Births(None), print)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hunt.run)
        assert await hunt.kill(Wanted(COMMAND_MARK, "m.1."), 0.06) == 1
        nursery.cancel_scope.cancel()
    assert searches.count == 6
