"""The endings of a lane: which flags are set when the sleeping threads are woken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from trio_console._console.backend import Lane

if TYPE_CHECKING:
    from collections.abc import Callable


class Onlooker:
    """Stands for a wake or a ring, and notes what the flags are when it is called."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.seen: list[tuple[bool, bool, bool]] = []

    def wake(self) -> None:
        self.seen.append((self.lane.finished, self.lane.discarded, self.lane.abandoned))

    revoke = wake


def watched(*names: str) -> tuple[Lane, Onlooker]:
    lane: Any = Lane(4, 100)
    onlooker = Onlooker(lane)
    for name in names:
        setattr(lane, name, onlooker)
    return lane, onlooker


ENDINGS: list[tuple[Callable[[Lane], None], tuple[bool, bool, bool]]] = [
    (Lane.finish, (True, False, False)),
    (Lane.discard, (True, True, False)),
    (Lane.abandon, (False, False, True)),
]


@pytest.mark.parametrize(("end", "flags"), ENDINGS)
def test_an_ending_is_published_before_both_ends_are_woken(
    end: Callable[[Lane], None], flags: tuple[bool, bool, bool]
) -> None:
    lane, onlooker = watched("data_wake", "room_wake")
    end(lane)
    assert onlooker.seen == [flags, flags]


@pytest.mark.parametrize(("end", "flags"), ENDINGS)
def test_a_repeated_ending_wakes_them_again(end: Callable[[Lane], None], flags: tuple[bool, bool, bool]) -> None:
    lane, onlooker = watched("data_wake", "room_wake")
    end(lane)
    end(lane)
    assert onlooker.seen == [flags] * 4


def test_a_producer_that_the_ring_refuses_finds_the_reason_published() -> None:
    lane, onlooker = watched("ring")
    lane.abandon()
    assert onlooker.seen == [(False, False, True)]


def test_what_came_in_is_what_went_out_and_what_is_queued_and_what_was_dropped() -> None:
    delivered, undelivered, queued, swallowed = 1, 2, 4, 8
    lane = Lane(4, 100)
    for size in (delivered, undelivered, queued):
        lane.ring.push(bytes(size))
    lane.ring.pop()
    lane.undelivered += len(lane.ring.pop() or b"")
    lane.swallow(swallowed)
    figures = lane.statistics()
    assert figures.bytes_in == delivered + undelivered + queued + swallowed
    assert figures.bytes_out == delivered
    assert (figures.current_buffer_bytes, figures.bytes_dropped) == (queued, undelivered + swallowed)
    lane.discard()
    figures = lane.statistics()
    assert figures.bytes_out == delivered
    assert (figures.current_buffer_bytes, figures.bytes_dropped) == (0, undelivered + swallowed + queued)
