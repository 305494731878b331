"""Slots that clients share: whatever one client keeps, the others go on."""

from __future__ import annotations

import errno
import math
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_console.agent._shares import Pace, Share, Shares

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

POOL = 8
MOST = 6  # of one client


class Holder:
    """Takes slots, and keeps them."""

    def __init__(self, shares: Shares, nursery: trio.Nursery, client: int) -> None:
        self._shares = shares
        self._nursery = nursery
        self.share: Share = shares.of(client)
        self.scopes: list[trio.CancelScope] = []
        self.held = 0

    async def take(self, count: int) -> int:
        """Ask for more slots; returns how many it has now."""
        for _ in range(count):
            self.scopes.append(trio.CancelScope())
            self._nursery.start_soon(self._keep, self.scopes[-1])
        return await self.count()

    async def count(self) -> int:
        await wait_all_tasks_blocked()
        return self.held

    async def _keep(self, scope: trio.CancelScope) -> None:
        with scope:
            async with self._shares.slot(self.share):
                self.held += 1
                try:
                    await trio.sleep_forever()
                finally:
                    self.held -= 1

    async def give(self, count: int) -> None:
        """Give slots back, or cease to wait for them: those that were asked for first."""
        for _ in range(count):
            self.scopes.pop(0).cancel()
        await wait_all_tasks_blocked()


@pytest.fixture
async def hall(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Shares, trio.Nursery]]:
    monkeypatch.setattr("trio_console.agent._shares._MOST_LEFT", 4)
    async with trio.open_nursery() as nursery:
        yield Shares(POOL), nursery
        nursery.cancel_scope.cancel()


async def test_one_client_gets_a_part_of_the_pool(hall: tuple[Shares, trio.Nursery]) -> None:
    one = Holder(*hall, 0)
    assert await one.take(MOST - 1) == MOST - 1
    assert await one.take(1) == MOST
    assert await one.take(1) == MOST


async def test_a_client_without_a_slot_gets_one_whoever_has_all_others(hall: tuple[Shares, trio.Nursery]) -> None:
    hogs = [Holder(*hall, number) for number in range(20)]
    got = [await hog.take(MOST) for hog in hogs]
    assert got == [MOST, POOL - MOST, *[1] * 18]
    assert await Holder(*hall, 99).take(2) == 1


async def test_who_waits_gets_a_slot_when_one_is_given_back(hall: tuple[Shares, trio.Nursery]) -> None:
    one = Holder(*hall, 0)
    await one.take(MOST + 2)
    await one.give(1)
    assert await one.count() == MOST
    await one.give(1)
    assert await one.count() == MOST
    await one.give(1)
    assert await one.count() == MOST - 1


async def test_the_client_with_the_fewest_slots_is_the_next(hall: tuple[Shares, trio.Nursery]) -> None:
    rich, poor = Holder(*hall, 0), Holder(*hall, 1)
    await rich.take(MOST - 1)
    await poor.take(POOL - MOST + 1)
    assert await rich.take(3) == MOST - 1
    assert await poor.take(3) == POOL - MOST + 1
    await rich.give(1)
    assert (await rich.count(), await poor.count()) == (MOST - 2, POOL - MOST + 2)


async def test_who_ceases_to_wait_gets_none(hall: tuple[Shares, trio.Nursery]) -> None:
    one = Holder(*hall, 0)
    await one.take(MOST + 1)
    one.scopes.pop().cancel()
    await one.give(1)
    assert await one.count() == MOST - 1
    assert await one.take(1) == MOST


async def test_a_slot_that_is_given_to_a_task_that_is_cancelled_is_not_lost(
    hall: tuple[Shares, trio.Nursery],
) -> None:
    one = Holder(*hall, 0)
    await one.take(MOST + 1)
    last = one.scopes.pop()
    for scope in one.scopes:  # the first of these gives its slot to the last, in the same turn
        scope.cancel()
    last.cancel()
    assert await one.count() == 0
    one.scopes.clear()
    assert await one.take(MOST + 1) == MOST


async def test_a_cancelled_task_takes_no_slot(hall: tuple[Shares, trio.Nursery]) -> None:
    shares, _ = hall
    share = shares.of(0)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with shares.slot(share):
            pytest.fail("was let in")
    assert share.used == 0


async def test_what_a_client_that_has_gone_keeps_is_not_counted_for_the_next_one(
    hall: tuple[Shares, trio.Nursery],
) -> None:
    gone, other = Holder(*hall, 0), Holder(*hall, 1)
    await gone.take(3)
    await other.take(MOST)
    hall[0].forget(0)
    assert await other.count() == MOST
    following = Holder(*hall, 0)
    assert await following.take(MOST) == POOL - MOST
    await gone.give(3)
    assert await following.count() == POOL - MOST
    await other.give(1)
    assert await following.count() == POOL - MOST + 1


async def test_a_client_that_goes_gives_the_others_its_part_of_the_pool(hall: tuple[Shares, trio.Nursery]) -> None:
    gone, other = Holder(*hall, 0), Holder(*hall, 1)
    await gone.take(3)
    assert await other.take(MOST) == POOL - 3
    hall[0].forget(0)
    assert await other.count() == MOST


@pytest.mark.parametrize(("left", "refused"), [(3, False), (4, True), (5, True)])
async def test_the_slots_of_those_who_have_gone_are_bounded(
    hall: tuple[Shares, trio.Nursery], left: int, refused: bool
) -> None:
    shares, _ = hall
    gone, other = Holder(*hall, 0), Holder(*hall, 1)
    await gone.take(left)
    await other.take(1)
    shares.forget(0)
    async with AsyncExitStack() as stack:
        if refused:
            with pytest.raises(OSError, match="temporarily unavailable") as caught:
                await stack.enter_async_context(shares.slot(shares.of(2)))
            assert caught.value.errno == errno.EAGAIN
        else:
            await stack.enter_async_context(shares.slot(shares.of(2)))
    await gone.give(left - 3)  # these calls have returned
    async with shares.slot(shares.of(2)):
        pass


# Short pieces of work


class Pieces:
    """Pieces of work that go on until they are told to end, at most two at a time."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.pace = Pace(2, 0.05)
        self._nursery = nursery
        self.begun: list[int] = []
        self.scopes: list[trio.CancelScope] = []

    async def ask(self, *clients: int) -> list[int]:
        """Ask for a piece of each client; returns those that have begun, from the first on."""
        for client in clients:
            self.scopes.append(trio.CancelScope())
            self._nursery.start_soon(self._work, client, self.scopes[-1])
            await wait_all_tasks_blocked()
        return self.begun

    async def _work(self, client: int, scope: trio.CancelScope) -> None:
        with scope:
            async with self.pace.piece(client):
                self.begun.append(client)
                await trio.sleep_forever()

    async def end(self, number: int) -> list[int]:
        """End the piece that was asked for as the so-manieth; returns the same as `ask`."""
        self.scopes[number].cancel()
        await wait_all_tasks_blocked()
        return self.begun


@pytest.fixture
async def pieces(autojump_clock: MockClock) -> AsyncIterator[Pieces]:
    autojump_clock.autojump_threshold = math.inf
    async with trio.open_nursery() as nursery:
        yield Pieces(nursery)
        nursery.cancel_scope.cancel()


async def test_only_so_many_pieces_are_done_at_a_time(pieces: Pieces) -> None:
    assert await pieces.ask(1, 2, 3, 4) == [1, 2]
    assert await pieces.end(1) == [1, 2, 3]
    assert await pieces.end(0) == [1, 2, 3, 4]


async def test_clients_take_turns_however_many_pieces_they_ask_for(pieces: Pieces) -> None:
    await pieces.ask(1, 1, 1, 1, 1, 2, 3, 2)
    for number in (0, 1, 2, 5, 6, 3):
        await pieces.end(number)
    assert pieces.begun == [1, 1, 1, 2, 3, 1, 2, 1]


async def test_a_piece_that_hangs_makes_room_for_another(pieces: Pieces, autojump_clock: MockClock) -> None:
    await pieces.ask(1)
    autojump_clock.jump(0.03)
    assert await pieces.ask(1, 2, 3) == [1, 1]
    autojump_clock.jump(0.019)
    await wait_all_tasks_blocked()
    assert pieces.begun == [1, 1]
    autojump_clock.jump(0.002)
    await wait_all_tasks_blocked()
    assert pieces.begun == [1, 1, 2]
    autojump_clock.jump(0.03)
    await wait_all_tasks_blocked()
    assert pieces.begun == [1, 1, 2, 3]


async def test_the_end_of_a_piece_that_hung_makes_no_more_room(pieces: Pieces, autojump_clock: MockClock) -> None:
    await pieces.ask(1, 1)
    autojump_clock.jump(0.06)
    assert await pieces.ask(2, 2, 2) == [1, 1, 2, 2]
    assert await pieces.end(0) == [1, 1, 2, 2]
    assert await pieces.end(2) == [1, 1, 2, 2, 2]


async def test_a_piece_that_is_cancelled_while_it_waits_is_not_begun(pieces: Pieces) -> None:
    await pieces.ask(1, 2, 3, 3, 4)
    await pieces.end(2)
    await pieces.end(3)
    assert await pieces.end(0) == [1, 2, 4]
