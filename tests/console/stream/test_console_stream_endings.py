"""Endings of a console as a trio stream: the last bytes, the errors, and the effect of a cancellation."""

from __future__ import annotations

import gc
import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.console.stream.stream_pair import check_at_rest, pair
from tests.tools.limits import HANG
from tests.tools.streams import receive_all
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState
from trio_console._console.stream import ConsoleStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

# Endings


async def test_everything_is_delivered_before_the_cause() -> None:
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    async with ConsoleStream(shared) as host:
        cause = OSError("the machine is on fire")
        backend.write(b"last words")
        shared.guest_gone(cause)
        assert await host.receive_some(4) == b"last"
        assert await host.receive_some() == b" words"
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await host.receive_some()
            assert caught.value.__cause__ is cause
        with pytest.raises(trio.BrokenResourceError) as caught:
            await host.send_all(b"x")
        assert caught.value.__cause__ is cause


async def test_a_guest_that_left_in_order_is_end_of_file_and_cannot_be_sent_to() -> None:
    shared = ConsoleSharedState()
    async with ConsoleStream(shared) as host:
        shared.guest_gone()
        assert await host.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await host.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await host.wait_send_all_might_not_block()


async def test_a_blocked_sender_learns_that_the_guest_has_gone() -> None:
    shared = ConsoleSharedState(capacity=1)
    async with ConsoleStream(shared) as host:
        await host.send_all(b"x")
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _sends() -> None:
                    with pytest.raises(trio.BrokenResourceError):
                        await host.send_all(b"y")

                await trio.testing.wait_all_tasks_blocked()
                await trio.to_thread.run_sync(shared.guest_gone)


async def test_own_end_closed_is_told_apart_from_the_other_end_gone() -> None:
    async with pair() as (host, guest):
        await guest.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await host.send_all(b"x")
        assert await host.receive_some() == b""
        await host.aclose()
        for use in (
            lambda: host.send_all(b"x"),
            host.receive_some,
            host.send_eof,
            host.wait_send_all_might_not_block,
        ):
            with pytest.raises(trio.ClosedResourceError):
                await use()


async def test_sending_after_the_end_is_a_mistake_of_ones_own() -> None:
    async with pair() as (host, guest):
        await host.send_eof()
        await guest.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await host.send_all(b"x")
        await host.send_eof()


@pytest.mark.parametrize("way", ["aclose", "guest_gone"])
async def test_a_long_send_for_which_there_is_room_ends_with_the_stream(way: str) -> None:
    shared = ConsoleSharedState()
    async with ConsoleStream(shared) as host, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _sends() -> None:
            with pytest.raises(trio.ClosedResourceError if way == "aclose" else trio.BrokenResourceError):
                await host.send_all(bytearray(1024 * 1024 - 1))

        while not (queued := shared._rx.ring.total_bytes):
            await trio.lowlevel.checkpoint()
        assert queued < 1024 * 1024 - 1
        if way == "aclose":
            await host.aclose()
        else:
            shared.guest_gone()
        await trio.testing.wait_all_tasks_blocked()
        assert shared._rx.ring.total_bytes == queued, "nothing is queued behind the end"


@pytest.mark.parametrize("end", [0, 1])
async def test_closing_ends_blocked_tasks_of_its_own_end(end: int) -> None:
    async with pair(capacity=1) as ends:
        mine = ends[end]
        await mine.send_all(b"x")

        async def expect_closed(use: Any, *args: object) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await use(*args)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, mine.send_all, b"y")
            nursery.start_soon(expect_closed, mine.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            await mine.aclose()


async def test_an_orderly_close_still_delivers() -> None:
    async with pair() as (host, guest):
        await host.send_all(b"abc")
        await host.aclose()
        assert await guest.receive_some() == b"abc"
        assert await guest.receive_some() == b""
        assert host.statistics().rx.bytes_dropped == 0


async def test_a_forceful_close_drops_what_is_queued_and_counts_it() -> None:
    async with pair() as (host, guest):
        await host.send_all(b"abc")
        await trio.aclose_forcefully(host)
        assert await guest.receive_some() == b""
        now = host.statistics().rx
        assert (now.bytes_in, now.bytes_out, now.bytes_dropped) == (3, 0, 3)


async def test_what_arrives_after_a_close_is_dropped_and_counted() -> None:
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    async with ConsoleStream(shared) as host:
        backend.write(b"abc")
        await host.aclose()
        backend.write(b"de")
        now = host.statistics().tx
        assert (now.bytes_in, now.bytes_out, now.bytes_dropped) == (5, 0, 5)
        check_at_rest(host)


async def test_statistics_tell_the_ends() -> None:
    async with pair(capacity=4, max_bytes=50) as (host, _):
        now = host.statistics()
        assert (now.tx.max_buffer_size, now.rx.max_buffer_bytes) == (4, 50)
        assert not now.closed
        await host.send_eof()
        assert host.statistics().rx.finished
        await host.aclose()
        now = host.statistics()
        assert now.closed
        assert now.tx.abandoned


async def test_waiting_for_the_close_ends_with_it() -> None:
    async with pair() as (host, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host._wait_closed)
            await trio.testing.wait_all_tasks_blocked()
            await host.aclose()
        await host._wait_closed()


async def test_a_forceful_close_takes_nothing_back_after_an_orderly_one() -> None:
    async with pair() as (host, guest):
        await host.send_all(b"abc")
        await host.aclose()
        await trio.aclose_forcefully(host)
        assert await guest.receive_some() == b"abc"
        assert host.statistics().rx.bytes_dropped == 0


async def test_an_orderly_close_gives_nothing_back_after_a_forceful_one() -> None:
    async with pair() as (host, guest):
        await host.send_all(b"abc")
        await trio.aclose_forcefully(host)
        await host.aclose()
        assert await guest.receive_some() == b""
        assert host.statistics().rx.bytes_dropped == 3


# Without wakes


async def wait_in(use: Callable[..., Awaitable[object]], *args: object) -> None:
    with pytest.raises(trio.BrokenResourceError) as caught:
        await use(*args)
    assert isinstance(caught.value.__cause__, ConnectionAbortedError)


@pytest.mark.parametrize("in_thread", [False, True])
async def test_closing_the_wakes_wakes_who_sleeps_on_them(in_thread: bool) -> None:
    shared = ConsoleSharedState(capacity=1)
    async with ConsoleStream(shared) as host:
        await host.send_all(b"x")
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_in, host.receive_some)
                nursery.start_soon(wait_in, host.send_all, b"y")
                await trio.testing.wait_all_tasks_blocked()
                if in_thread:
                    await trio.to_thread.run_sync(shared.close_wakes)
                else:
                    shared.close_wakes()


async def test_after_its_wakes_were_closed_a_console_delivers_what_is_queued_and_is_broken() -> None:
    shared = ConsoleSharedState(capacity=2)
    async with ConsoleStream(shared) as host:
        AgentConsoleBackend(shared).write(b"last words")
        shared.close_wakes()
        with trio.fail_after(HANG):
            assert await host.receive_some() == b"last words"
            await wait_in(host.receive_some)
            await wait_in(host.send_all, b"y")
            await wait_in(host.wait_send_all_might_not_block)


async def test_a_guest_that_left_in_order_has_done_so_whoever_closes_the_wakes() -> None:
    shared = ConsoleSharedState()
    async with ConsoleStream(shared) as host:
        shared.guest_gone()
        shared.close_wakes()
        assert await host.receive_some() == b""


async def test_the_wakes_may_be_closed_between_the_last_look_and_the_sleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = ConsoleSharedState()
    real = trio.lowlevel.wait_readable

    async def closed_meanwhile(fd: int) -> None:
        await trio.to_thread.run_sync(shared.close_wakes)
        await real(fd)  # the number is still that of the wake

    async with ConsoleStream(shared) as host:
        with trio.fail_after(HANG):
            with monkeypatch.context() as patch:
                patch.setattr(trio.lowlevel, "wait_readable", closed_meanwhile)
                await wait_in(host.receive_some)


def frame_of_the_sleep(task: trio.lowlevel.Task) -> FrameType:
    return next(frame for frame, _ in task.iter_await_frames() if frame.f_code.co_name == "_sleep_on")


@pytest.mark.parametrize("looked_at", [False, True])
async def test_the_traceback_of_a_sleep_keeps_no_descriptor(*, looked_at: bool) -> None:
    shared = ConsoleSharedState()
    tasks: list[trio.lowlevel.Task] = []
    kept: list[BaseException] = []
    fd = shared.tx_wake.fileno()
    async with ConsoleStream(shared) as host:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _receives() -> None:
                    tasks.append(trio.lowlevel.current_task())
                    try:
                        await host.receive_some()
                    except trio.Cancelled as exc:
                        kept.append(exc)
                        raise

                await trio.testing.wait_all_tasks_blocked()
                if looked_at:
                    # Before Python 3.13 the frame keeps the copy of its variables that is made for this. Debuggers
                    # look, and so does the handler for Ctrl-C of trio 0.27.
                    assert frame_of_the_sleep(tasks[0]).f_locals
                scope.cancel()
        shared.close_wakes()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    kept.clear()


# Forgotten


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_stream_that_is_collected_unclosed_warns_and_lets_its_device_go(in_thread: bool) -> None:
    shared = ConsoleSharedState(capacity=1)
    backend = AgentConsoleBackend(shared)
    backend.write(b"x")
    with pytest.raises(BlockingIOError):
        backend.write(b"y")
    streams = [ConsoleStream(shared)]
    await streams[0].send_all(b"said")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, backend.wait_until_writable)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.warns(ResourceWarning, match="unclosed <trio_console"):
            if in_thread:
                await trio.to_thread.run_sync(streams.clear)
            else:
                streams.clear()
            gc.collect()
    assert backend.write(b"z") == 1
    assert (backend.read(10), backend.read(10)) == (b"said", b"")


def test_a_stream_that_is_collected_in_a_cycle_warns_like_any_other() -> None:
    cycle: list[Any] = [ConsoleStream(ConsoleSharedState())]
    cycle.append(cycle)
    with pytest.warns(ResourceWarning, match="unclosed <trio_console"):
        del cycle
        gc.collect()


async def test_a_closed_stream_is_collected_without_a_word() -> None:
    shared = ConsoleSharedState()
    stream = ConsoleStream(shared)
    await stream.aclose()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        del stream
        gc.collect()
    assert not warned


# Cancellation


async def test_a_cancelled_end_of_file_was_not_told() -> None:
    async with pair() as (host, guest):
        with trio.CancelScope() as scope:
            scope.cancel()
            await host.send_eof()
        assert scope.cancelled_caught
        assert not host.statistics().rx.finished
        await host.send_all(b"abc")
        await host.send_eof()
        assert await receive_all(guest) == b"abc"


async def test_a_cancelled_receive_has_taken_nothing() -> None:
    async with pair() as (host, guest):
        await host.send_all(b"abc")
        with trio.CancelScope() as scope:
            scope.cancel()
            await guest.receive_some()
        assert scope.cancelled_caught
        assert await guest.receive_some() == b"abc"


async def test_a_receive_cancelled_in_its_sleep_has_taken_nothing() -> None:
    async with pair() as (host, guest):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.receive_some)
                await trio.testing.wait_all_tasks_blocked()
                await host.send_all(b"abc")  # the sleeper is about to be woken
                scope.cancel()
        if guest is not None and host.statistics().rx.bytes_out == 0:
            assert await guest.receive_some() == b"abc"
        assert host.statistics().rx.bytes_out == 3


async def test_a_small_send_cancelled_at_the_full_ring_has_sent_nothing() -> None:
    async with pair(capacity=1) as (host, guest):
        await host.send_all(b"x")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.send_all, b"abc")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        await host.send_eof()
        assert await receive_all(guest) == b"x"


class CountedCancel(trio.abc.Instrument):
    """Cancels a scope when the task it belongs to has had so many turns."""

    def __init__(self, scope: trio.CancelScope, after: int) -> None:
        self._scope = scope
        self._left = after
        self.task: trio.lowlevel.Task | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def cancelled_after(turns: int, use: Any) -> bool:
    """Run ``use`` in a task that is cancelled after so many turns; whether it was."""
    with trio.CancelScope() as scope:
        instrument = CountedCancel(scope, turns)
        trio.lowlevel.add_instrument(instrument)
        try:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _run() -> None:
                    instrument.task = trio.lowlevel.current_task()
                    await use()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


@pytest.mark.parametrize("limits", [{}, {"max_bytes": 16}, {"capacity": 1}, {"capacity": 1, "max_bytes": 1}])
async def test_a_receiver_cancelled_at_any_turn_loses_no_byte(limits: dict[str, int]) -> None:
    data = bytes(range(200))
    async with pair(**limits) as (host, guest):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _sends() -> None:
                for start in range(0, len(data), 5):
                    await host.send_all(data[start : start + 5])
                await host.send_eof()

            received = bytearray()
            ended = False

            async def receive_one() -> None:
                nonlocal ended
                chunk = await guest.receive_some(3)
                received.extend(chunk)
                ended = not chunk

            turns = 0
            while not ended:
                turns += 1
                await cancelled_after(turns % 4 + 1, receive_one)
        assert received == data


@given(
    sizes=st.lists(st.integers(1, 40), max_size=12),
    turns=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    max_bytes=st.integers(1, 30),
    capacity=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_a_sender_cancelled_at_any_turn_sends_a_prefix_of_each_piece(
    sizes: list[int], turns: list[int], max_bytes: int, capacity: int
) -> None:
    async def main() -> None:
        async with pair(capacity=capacity, max_bytes=max_bytes) as (host, guest):
            received = bytearray()
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _receives() -> None:
                    async for chunk in guest:
                        received.extend(chunk)

                for index, size in enumerate(sizes):
                    piece = bytes([index]) * size
                    await cancelled_after(turns[index % len(turns)], lambda piece=piece: host.send_all(piece))
                await host.send_eof()
            assert bytes(received) == b"".join(
                bytes([index]) * received.count(index) for index in range(len(sizes))
            )
            for index, size in enumerate(sizes):
                assert received.count(index) <= size
                if size <= max_bytes:
                    assert received.count(index) in (0, size)
            assert host.statistics().rx.bytes_out == len(received)

    trio.run(main)
