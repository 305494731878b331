"""Clocks for tests of turns: every step is as long as a turn, and a long one as long as the test."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import trio

from trio_console import _wire as wire
from trio_console._trio import turns

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

__all__ = ["TINY", "large_ping", "make_long_steps_endless", "make_steps_turns", "watch"]

#: The smallest frame, for nobody.
TINY: Final = wire.encode_frame(1, 0, b"")


def make_steps_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each step of work seem to take thirty milliseconds, which is more than the longest turn."""
    monkeypatch.setattr(turns, "perf_counter", itertools.count(1000.0, 0.03).__next__)
    monkeypatch.setattr(turns, "thread_time", itertools.count(1000.0, 0.03).__next__)


def make_long_steps_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each large frame seem to take so long that the rest behind it is longer than any test."""
    monkeypatch.setattr(turns, "thread_time", itertools.count(1000.0, 1000.0).__next__)


async def watch(count: Callable[[], int], end: int) -> set[int]:
    """The values that a count has between two passes of the loop, until it has reached the end.

    If there is a step in each pass, that is at least every second value: the order in a pass is random.
    """
    seen = set()
    while (now := count()) < end:
        seen.add(now)
        await trio.lowlevel.checkpoint()
    return seen


def large_ping(frame_id: int) -> bytes:
    """A ping that has so large a payload that it may take long to decode; it does not."""
    payload = b"\xa1\x61x\x79\x20\x00" + b"x" * 0x2000
    return wire.encode_frame(
        frame_id,
        0,
        b"\xa3\x61v\x07\x61t\x69core.ping\x61p\x59" + len(payload).to_bytes(2, "big") + payload,
    )
