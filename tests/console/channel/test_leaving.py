"""Leaving `open_console`: the ending is orderly and bounded, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.console.channel.consoles import KINDS, OPENERS, Kind, ScriptedDevice, by_socket, clog, clog_out
from tests.tools.conserved import check_conserved
from tests.tools.limits import HANG
from trio_console._console import channel as _channel
from trio_console._console import polled as _polled
from trio_console._console.channel import open_console

if TYPE_CHECKING:
    from trio_console._console.stream import ConsoleStream


# Leaving


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_leaving_delivers_what_was_sent_and_closes_the_device(kind: Kind) -> None:
    device, guest = kind.make()
    async with guest:
        async with kind.open(device) as channel:
            await channel.send_all(b"goodbye")
        assert b"".join([chunk async for chunk in guest]) == b"goodbye"
    assert channel.statistics().closed


async def test_the_device_is_not_closed_while_it_still_takes_what_was_sent() -> None:
    device = ScriptedDevice()
    taking = threading.Event()
    take = device.write

    def write(data: memoryview, /) -> int:
        assert taking.wait(HANG)
        return take(data)

    device.write = write  # type: ignore[method-assign]

    async def send_and_leave(task_status: trio.TaskStatus[None]) -> None:
        async with open_console(device, grace=HANG) as channel:
            await channel.send_all(b"goodbye")
            task_status.started()

    async with trio.open_nursery() as nursery:
        await nursery.start(send_and_leave)
        await trio.testing.wait_all_tasks_blocked()  # it is being left
        closed = device.closed.is_set()
        taking.set()
    assert not closed
    assert device.written == b"goodbye"


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_a_guest_that_never_reads_holds_leaving_up_for_the_grace_only(kind: Kind) -> None:
    device, guest = kind.make()
    async with guest:
        async with kind.open(device, max_bytes=4096, grace=0.02) as channel:
            await clog_out(channel)
    now = channel.statistics()
    assert now.rx.bytes_dropped > 0
    assert now.rx.current_buffer_bytes == 0
    check_conserved(channel)


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_bytes_that_the_guest_got_are_those_counted_as_out(kind: Kind) -> None:
    device, guest = kind.make()
    async with guest:
        async with kind.open(device, max_bytes=4096, grace=0.02) as channel:
            await clog_out(channel)
        received = 0
        with contextlib.suppress(trio.BrokenResourceError):
            async for chunk in guest:
                received += len(chunk)
    now = channel.statistics().rx
    assert received == now.bytes_out
    assert now.bytes_in == received + now.bytes_dropped


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_guest_that_writes_for_ever_does_not_hold_leaving_up(opener: Any) -> None:
    device, guest = by_socket()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _floods() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await guest.send_all(bytes(4096))
            await guest.aclose()

        async with opener(device, max_bytes=4096) as channel:
            await channel.receive_some()
    check_conserved(channel)


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_closing_inside_the_block_delivers_and_closes_the_device(kind: Kind) -> None:
    device, guest = kind.make()
    async with kind.open(device) as channel, guest:
        await channel.send_all(b"goodbye")
        await channel.aclose()
        assert b"".join([chunk async for chunk in guest]) == b"goodbye"
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await guest.send_all(bytes(4096))


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_forceful_close_inside_the_block_closes_the_device_though_the_guest_does_not_read(
    opener: Any,
) -> None:
    device, guest = by_socket()
    async with opener(device, max_bytes=4096, grace=HANG * 10) as channel, guest:
        await clog(channel, guest)
        await trio.aclose_forcefully(channel)
        with contextlib.suppress(trio.BrokenResourceError):
            async for _ in guest:
                pass
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await guest.send_all(bytes(4096))
    check_conserved(channel)


@pytest.mark.parametrize("opener", OPENERS)
async def test_after_a_forceful_close_leaving_does_not_wait_for_the_grace(opener: Any) -> None:
    device, guest = by_socket()
    async with guest:
        async with opener(device, max_bytes=4096, grace=HANG * 10) as channel:
            await clog(channel, guest)
            await trio.aclose_forcefully(channel)
    check_conserved(channel)


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_task_outside_the_block_learns_that_the_channel_is_closed(opener: Any) -> None:
    device, guest = by_socket()

    async def expect_closed(use: Any, *args: object) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await use(*args)

    async with guest, trio.open_nursery() as nursery:
        async with opener(device, capacity=1, max_bytes=1, grace=0.02) as channel:
            nursery.start_soon(expect_closed, channel.receive_some)
            await clog_out(channel)
            nursery.start_soon(expect_closed, channel.send_all, b"x")
            await trio.testing.wait_all_tasks_blocked()


class StuckDevice(ScriptedDevice):
    """Does not come back from a read, although it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def read(self, max_bytes: int) -> bytes:
        if self.release.is_set():
            return b""
        self.release.wait(HANG)
        return b"too late"


async def test_a_device_that_does_not_come_back_is_abandoned_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_channel, "JOIN_TIME", 0.01)
    device = StuckDevice()

    async def deliver_and_leave() -> ConsoleStream:
        async with open_console(device, grace=0.01) as channel:
            await channel.send_all(b"abc")
            while device.written != b"abc":  # a busy machine may take longer for it than the grace
                await trio.lowlevel.checkpoint()
        return channel

    with pytest.warns(RuntimeWarning, match="abandoned"):
        channel = await deliver_and_leave()
    assert device.closed.is_set()
    device.release.set()
    while channel.statistics().tx.bytes_dropped < len(b"too late"):
        await trio.lowlevel.checkpoint()  # the thread found the wakes still open, and ends
    check_conserved(channel)


async def test_a_worker_that_a_busy_machine_keeps_from_coming_back_is_waited_for(
    mock_clock: trio.testing.MockClock,
) -> None:
    device = StuckDevice()

    async def leave() -> None:
        async with open_console(device):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        assert await trio.to_thread.run_sync(device.closed.wait, HANG)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(0.9)
        await trio.testing.wait_all_tasks_blocked()
        device.release.set()


# What comes out of the block


@pytest.mark.parametrize("opener", OPENERS)
async def test_the_bodys_exception_comes_out_as_it_is(opener: Any) -> None:
    device, guest = by_socket()
    error = ValueError("mine")
    async with guest:
        with pytest.raises(ValueError, match="mine") as caught:
            async with opener(device):
                raise error
    assert caught.value is error
    assert error.__context__ is None


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_group_that_the_body_raised_comes_out_as_it_is(opener: Any) -> None:
    device, guest = by_socket()
    group = ExceptionGroup("mine", [ValueError(1)])
    async with guest:
        with pytest.raises(ExceptionGroup) as caught:
            async with opener(device):
                raise group
    assert caught.value is group


@pytest.mark.parametrize("opener", OPENERS)
async def test_the_bodys_exception_comes_out_as_it_is_while_everything_is_cancelled(opener: Any) -> None:
    device, guest = by_socket()
    async with guest:
        with pytest.raises(ValueError, match="cleanup"):
            with trio.CancelScope() as scope:
                async with opener(device):
                    scope.cancel()
                    try:
                        await trio.sleep_forever()
                    finally:
                        raise ValueError("cleanup")


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_cancellation_comes_out_as_one(opener: Any) -> None:
    device, guest = by_socket()
    async with guest:
        with trio.CancelScope() as scope:
            async with opener(device):
                scope.cancel()
                await trio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_a_cancelled_leaving_with_everything_full_is_bounded(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_channel, _polled):
        monkeypatch.setattr(module, "SHORT_GRACE", 0.1)
    device, guest = kind.make()
    async with guest:
        with trio.CancelScope() as scope:
            async with kind.open(device, max_bytes=2048, grace=HANG * 10) as channel:
                await clog(channel, guest)
                scope.cancel()
        check_conserved(channel)
        assert channel.statistics().rx.bytes_dropped > 0


class CountedCancel(trio.abc.Instrument):
    """Cancels a scope when the task it watches has had so many turns."""

    def __init__(self, scope: trio.CancelScope, after: int) -> None:
        self._scope = scope
        self._left = after
        self._task = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_cancelled_at_any_turn_it_leaves_nothing(kind: Kind) -> None:
    turn = 0
    finished = False
    while not finished:
        turn += 1
        device, guest = kind.make()
        opened: list[ConsoleStream] = []  # none, if entering was cancelled
        with trio.CancelScope() as scope:
            instrument = CountedCancel(scope, turn)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with guest:
                    async with kind.open(device, max_bytes=100) as channel:
                        opened.append(channel)
                        await channel.send_all(bytes(300))
                        assert await guest.receive_some(50)
                        await guest.send_all(bytes(300))
                        assert await channel.receive_some(50)
                        await channel.send_eof()
                    finished = True
            finally:
                trio.lowlevel.remove_instrument(instrument)
        for channel in opened:
            check_conserved(channel)
    assert turn > 4
