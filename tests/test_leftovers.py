"""Killing what a dead agent has left: until it is gone, within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_console import _leftovers
from trio_console._leftovers import kill_marked_processes

if TYPE_CHECKING:
    import pytest


def test_a_killed_process_that_takes_its_time_to_die_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [*[{11}] * 30, set(), {12}, set(), set()]
    monkeypatch.setattr(_leftovers, "_kill_marked", lambda _needle: (looks.pop(0), 0))
    assert kill_marked_processes("mark") == 2
    assert looks == []


def test_a_process_that_cannot_be_killed_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def kill_marked(_needle: bytes) -> tuple[set[int], int]:
        nonlocal looks
        looks += 1
        return {11}, 0

    monkeypatch.setattr(_leftovers, "_kill_marked", kill_marked)
    monkeypatch.setattr(_leftovers, "_MAX_TIME", 0.01)
    assert kill_marked_processes("mark") == 1
    assert looks > 0
