"""Endings run to their last step: how long they may take, and the effect of a late cancellation."""

from __future__ import annotations

import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.tools.limits import HANG
from trio_console import CommandGuest, ProcessGuest, connect_guest, open_console, open_guest, serve_relay
from trio_console._console import channel as _channel
from trio_console._guests import host as _host
from trio_console._open import client as _client
from trio_console._trio.ending import see_through
from trio_console.testing import FaultyGuest, nothing_left_behind

if TYPE_CHECKING:
    from pathlib import Path


class Ending:
    """An ending that never returns by itself."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.whole = False

    async def __call__(self, patience: trio.CancelScope) -> None:
        with patience:
            self.begun.set()
            await trio.sleep_forever()
        await trio.sleep(1)  # by force: shielded
        self.whole = True


async def test_without_a_cancellation_an_ending_has_its_grace(autojump_clock: trio.testing.MockClock) -> None:
    ending = Ending()
    await see_through(ending, grace=8, hurried=2)
    assert trio.current_time() == 9
    assert ending.whole


async def test_an_ending_that_is_done_is_waited_for_no_longer(autojump_clock: trio.testing.MockClock) -> None:
    async def ending(_patience: trio.CancelScope) -> None:
        await trio.sleep(3)

    await see_through(ending, grace=8, hurried=2)
    assert trio.current_time() == 3


@pytest.mark.parametrize(("cancelled_at", "patient_until"), [(0, 2), (3, 5), (5, 7), (7, 8)])
async def test_a_cancellation_leaves_an_ending_the_short_grace_from_then_on(
    autojump_clock: trio.testing.MockClock, cancelled_at: float, patient_until: float
) -> None:
    ending = Ending()
    with trio.CancelScope(deadline=cancelled_at) as scope:
        await see_through(ending, grace=8, hurried=2)
        assert trio.current_time() == patient_until + 1
        assert ending.whole
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught


async def test_a_cancelled_ending_does_not_take_the_place_of_an_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.move_on_at(trio.current_time() + 1), pytest.raises(ValueError, match="mine"):
        try:
            raise ValueError("mine")
        finally:
            await see_through(Ending(), grace=8, hurried=2)  # noqa: ASYNC102  (shields itself)


async def test_an_endings_own_error_comes_out_as_it_is() -> None:
    async def ending(_patience: trio.CancelScope) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await see_through(ending, grace=8, hurried=2)


# A grace of which nobody would see the end, cut short in the middle


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """An event that is set when a block is being left that waits for its grace."""
    event = trio.Event()

    async def noted(*args: Any, **options: Any) -> None:
        event.set()
        await see_through(*args, **options)

    for module in (_client, _host, _channel):
        monkeypatch.setattr(module, "see_through", noted)
    return event


class Late:
    """Cancels the wrapped block when the block is being left and all tasks sleep."""

    def __init__(self, leaving: trio.Event) -> None:
        self._leaving = leaving

    async def cancel(self, scope: trio.CancelScope) -> None:
        await self._leaving.wait()
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()


async def test_a_console_whose_guest_does_not_read_is_left_soon_after_a_late_cancellation(
    leaving: trio.Event,
) -> None:
    ours, theirs = socket.socketpair()
    with theirs, trio.fail_after(HANG), nothing_left_behind():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Late(leaving).cancel, nursery.cancel_scope)
            async with open_console(ours, max_bytes=4096, grace=1000) as channel:
                with trio.move_on_after(0.02):
                    while True:
                        await channel.send_all(bytes(4096))


async def test_a_guest_that_hangs_is_left_soon_after_a_late_cancellation(leaving: trio.Event) -> None:
    faulty = FaultyGuest()
    with trio.fail_after(HANG), nothing_left_behind():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Late(leaving).cancel, nursery.cancel_scope)
            async with open_guest(faulty, grace=1000):
                faulty.stall()


#: Its console ends with the agent, and the command does not.
LINGERING = CommandGuest(
    ["sh", "-c", '"$0" -m trio_console.agent --stdio; exec <&- >&-; exec sleep 1000', sys.executable]
)


async def test_a_relay_whose_guest_lingers_is_left_soon_after_a_late_cancellation(
    leaving: trio.Event, tmp_path: Path
) -> None:
    with trio.fail_after(HANG), nothing_left_behind():
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_relay, LINGERING, tmp_path / "socket", grace=1000))
            async with connect_guest(tmp_path / "socket") as guest:
                await guest.shutdown()
            await Late(leaving).cancel(nursery.cancel_scope)


async def test_a_client_is_left_at_once_whatever_its_relay_does(tmp_path: Path) -> None:
    faulty = FaultyGuest(guest=ProcessGuest())
    async with open_guest(faulty, relay_path=tmp_path / "socket", grace=1):
        with trio.fail_after(HANG):
            async with connect_guest(tmp_path / "socket", grace=1000):
                faulty.stall()
