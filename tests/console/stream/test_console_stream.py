"""Both ends of a console as trio streams: they keep trio's contract, and no byte is lost or made up."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio
import trio.testing

from tests.console.stream.stream_pair import check_at_rest, pair
from tests.tools.limits import HANG
from tests.tools.streams import fill, receive_all
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState
from trio_console._console.ring import LaneRing
from trio_console._console.stream import ConsoleStream, LaneStream
from trio_console.testing import console_stream_pair

# trio's own contract


@pytest.mark.parametrize("flipped", [False, True])
async def test_both_ends_keep_trios_contract(flipped: bool) -> None:
    async def maker() -> tuple[Any, Any]:
        ends = console_stream_pair()
        return ends[::-1] if flipped else ends

    async def clogged_maker() -> tuple[Any, Any]:
        host, guest = console_stream_pair(capacity=2, max_bytes=64)
        for end in (host, guest):
            await end.send_all(bytes(64))
        return (guest, host) if flipped else (host, guest)

    with trio.fail_after(HANG):
        await trio.testing.check_half_closeable_stream(maker, clogged_maker)


@pytest.mark.parametrize("limits", [{"capacity": 1, "max_bytes": 1}, {"capacity": 1}, {"max_bytes": 7}])
async def test_both_ends_keep_trios_contract_at_small_bounds(limits: dict[str, int]) -> None:
    async def maker() -> tuple[Any, Any]:
        return console_stream_pair(**{"max_bytes": 4096, **limits})

    with trio.fail_after(HANG):
        await trio.testing.check_one_way_stream(maker, None)


# Sending


async def test_bytes_that_fit_pass_by_reference() -> None:
    async with pair() as (host, guest):
        chunk = bytes(range(100))
        await host.send_all(chunk)
        assert await guest.receive_some() is chunk


async def test_a_buffer_may_be_changed_once_it_was_sent() -> None:
    async with pair() as (host, guest):
        buffer = bytearray(b"before")
        await host.send_all(buffer)
        buffer[:] = b"after!"
        assert await guest.receive_some() == b"before"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(data).cast("I")])
@pytest.mark.parametrize("size", [4, 96, 100, 104, 1000])
async def test_data_of_any_kind_and_size_arrives_whole(kind: Any, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    async with pair(max_bytes=100) as (host, guest), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _sends() -> None:
            await host.send_all(kind(data))
            await host.send_eof()

        assert await receive_all(guest) == data


async def test_sending_nothing_needs_no_room() -> None:
    async with pair(capacity=1) as (host, _):
        await host.send_all(b"x")
        await host.send_all(b"")
        await host.send_all(bytearray())


@pytest.mark.parametrize("limits", [{"capacity": 3}, {"max_bytes": 3}])
async def test_sending_blocks_at_either_bound(limits: dict[str, int]) -> None:
    async with pair(**limits) as (host, guest):
        assert await fill(host) == 3
        assert await guest.receive_some(3) == b"xxx"
        await host.send_all(b"x")


async def test_two_tasks_cannot_send_at_once() -> None:
    async with pair(capacity=1) as (host, _):
        await host.send_all(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.send_all, b"y")
            await trio.testing.wait_all_tasks_blocked()
            assert host.statistics().tasks_waiting_send == 1
            for use in (lambda: host.send_all(b"z"), host.wait_send_all_might_not_block, host.send_eof):
                with pytest.raises(trio.BusyResourceError):
                    await use()
            nursery.cancel_scope.cancel()


async def test_two_tasks_cannot_receive_at_once() -> None:
    async with pair() as (host, _), trio.open_nursery() as nursery:
        nursery.start_soon(host.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        assert host.statistics().tasks_waiting_receive == 1
        with pytest.raises(trio.BusyResourceError):
            await host.receive_some()
        nursery.cancel_scope.cancel()


async def test_one_task_may_send_while_another_receives() -> None:
    data = bytes(range(256)) * 4000
    async with pair(max_bytes=5000) as (host, guest):
        results: list[bytes] = []

        async def receives(stream: LaneStream) -> None:
            results.append(await receive_all(stream))

        async def sends(stream: LaneStream) -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            for end in (host, guest):
                nursery.start_soon(receives, end)
                nursery.start_soon(sends, end)
        assert results == [data, data]


class EndlessRing:
    """A ring whose consumer is always faster."""

    max_bytes = 256 * 1024
    piece = 64 * 1024

    def offer(self, _chunk: object) -> bool:
        return True


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_a_large_send_lets_other_tasks_run_however_fast_the_device_is(kind: Any) -> None:
    shared = ConsoleSharedState()
    async with ConsoleStream(shared) as host:
        shared._rx.ring = EndlessRing()  # type: ignore[misc, assignment]
        turns = 0

        async def other_task() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other_task)
            await host.send_all(kind(4 * 1024 * 1024))
            nursery.cancel_scope.cancel()
        assert turns >= 10


@pytest.mark.parametrize("size", [100, 64 * 1024, 128 * 1024, 1024 * 1024])
async def test_a_ring_of_any_size_is_filled_again_before_it_is_empty(size: int) -> None:
    async with pair(max_bytes=size) as (host, guest), trio.open_nursery() as nursery:
        nursery.start_soon(host.send_all, bytearray(2 * size))
        await trio.testing.wait_all_tasks_blocked()
        taken = len(await guest.receive_some(size * 5 // 8))
        assert size // 2 <= taken < size
        await trio.testing.wait_all_tasks_blocked()
        assert host.statistics().rx.current_buffer_bytes >= size * 3 // 4
        nursery.cancel_scope.cancel()


# Receiving


async def test_small_chunks_are_joined() -> None:
    async with pair() as (host, guest):
        for chunk in (b"a", b"bc", b"d"):
            await host.send_all(chunk)
        assert await guest.receive_some() == b"abcd"


async def test_a_turn_takes_a_bounded_number_of_bytes() -> None:
    async with pair(max_bytes=1 << 20) as (host, guest):
        for _ in range(16):
            await host.send_all(bytes(64 * 1024))
        assert len(await guest.receive_some()) == 512 * 1024


async def test_a_large_chunk_is_handed_on_by_reference_unless_the_caller_names_a_limit() -> None:
    chunk = bytes(1 << 20)
    async with pair(max_bytes=1 << 20) as (host, guest):
        await host.send_all(chunk)
        assert await guest.receive_some() is chunk
        await host.send_all(chunk)
        assert len(await guest.receive_some(1000)) == 1000


async def test_a_fast_sender_does_not_starve_other_tasks() -> None:
    async with pair() as (host, guest):
        await host.send_all(bytes(100))
        turns = 0

        async def other_task() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other_task)
            for _ in range(50):
                await guest.receive_some(1)
            nursery.cancel_scope.cancel()
        assert turns >= 40


@pytest.mark.parametrize(
    ("wrong", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), ("1", TypeError)]
)
async def test_a_wrong_limit_is_refused(wrong: Any, error: type[Exception]) -> None:
    async with pair() as (host, _):
        with pytest.raises(error):
            await host.receive_some(wrong)


async def test_the_end_comes_after_everything_that_was_sent() -> None:
    async with pair() as (host, guest):
        await host.send_all(b"abc")
        await host.send_eof()
        assert await guest.receive_some(2) == b"ab"
        assert await guest.receive_some(2) == b"c"
        assert await guest.receive_some(2) == b""
        assert await guest.receive_some(2) == b""


async def test_after_the_end_the_other_direction_goes_on() -> None:
    async with pair() as (host, guest):
        await host.send_eof()
        await guest.send_all(b"still here")
        assert await host.receive_some() == b"still here"


async def test_the_end_wakes_a_blocked_receiver() -> None:
    async with pair() as (host, guest), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _receives() -> None:
            assert await guest.receive_some() == b""

        await trio.testing.wait_all_tasks_blocked()
        await host.send_eof()


# What comes in the moment before sleep


class Obliging(LaneRing):
    """The other side always moves just before this one goes to sleep."""

    def arm_room(self, size: int) -> bool:  # type: ignore[misc]
        self.pop()
        return super().arm_room(size)

    def arm_data(self) -> bool:  # type: ignore[misc]
        self.push(b"in time")
        return super().arm_data()


async def test_room_that_comes_just_before_the_sleep_is_used() -> None:
    async with pair() as (host, _):
        host._send.ring = Obliging(1, 10)  # type: ignore[misc]
        for _ in range(5):
            await host.send_all(b"x")


async def test_bytes_that_come_just_before_the_sleep_are_received() -> None:
    async with pair() as (host, _):
        host._receive.ring = Obliging(1, 10)  # type: ignore[misc]
        assert await host.receive_some() == b"in time"


def test_a_device_uses_what_comes_just_before_it_would_sleep() -> None:
    shared = ConsoleSharedState()
    shared._rx.ring = Obliging(1, 10)  # type: ignore[misc]
    shared._tx.ring = Obliging(1, 10)  # type: ignore[misc]
    backend = AgentConsoleBackend(shared)
    assert backend.read(10) == b"in time"
    backend.write(b"x")
    with pytest.raises(BlockingIOError):
        backend.write(b"y")
    assert backend.wait_until_writable()


async def test_a_sleeper_that_is_told_its_descriptor_goes_looks_at_the_flags() -> None:
    shared = ConsoleSharedState()
    async with ConsoleStream(shared) as host:
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _receives() -> None:
                    assert await host.receive_some() == b""

                await trio.testing.wait_all_tasks_blocked()
                shared._tx.finished = True
                trio.lowlevel.notify_closing(shared.tx_wake.fileno())


# A thread at the other end


async def test_a_task_and_a_thread_pass_everything_both_ways() -> None:
    shared = ConsoleSharedState(capacity=4, max_bytes=1000)
    backend = AgentConsoleBackend(shared)
    async with ConsoleStream(shared) as host:
        data = bytes(range(256)) * 500
        echoed = bytearray()

        def echo() -> None:
            while True:
                try:
                    chunk = backend.read(333)
                except BlockingIOError:
                    shared.rx_wake.wait()
                    continue
                if not chunk:
                    shared._tx.finish()
                    return
                while True:
                    try:
                        backend.write(chunk)
                    except BlockingIOError:
                        backend.wait_until_writable()
                    else:
                        break

        thread = threading.Thread(target=echo)
        thread.start()
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _sends() -> None:
                    await host.send_all(data)
                    await host.send_eof()

                async for chunk in host:
                    echoed.extend(chunk)
        thread.join(HANG)
        assert bytes(echoed) == data
        now = host.statistics()
        assert now.rx.bytes_in == now.rx.bytes_out == now.tx.bytes_in == now.tx.bytes_out == len(data)
        check_at_rest(host)


# Nobody is woken who does not sleep


async def test_a_receiver_that_was_cancelled_costs_its_sender_no_wake_up() -> None:
    async with pair() as (host, guest):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        before = host.statistics().tx.wakes
        await guest.send_all(b"x")
        assert host.statistics().tx.wakes == before


async def test_a_sender_that_was_cancelled_costs_its_receiver_no_wake_up() -> None:
    async with pair(max_bytes=10) as (host, guest):
        await host.send_all(bytes(10))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.send_all, bytes(10))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        before = host.statistics().rx.wakes
        assert await guest.receive_some() == bytes(10)
        assert host.statistics().rx.wakes == before


# Two tasks, and Ctrl-C, where nobody sleeps


async def test_a_second_task_cannot_receive_while_the_first_has_its_bytes_already() -> None:
    async with pair() as (host, guest):
        await guest.send_all(b"first")
        await guest.send_all(b"second")
        got: list[bytes] = []
        refused: list[trio.BusyResourceError] = []

        async def receive() -> None:
            try:
                got.append(await host.receive_some(6))
            except trio.BusyResourceError as exc:
                refused.append(exc)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(receive)
        assert (got, len(refused)) == ([b"first"], 1)


class Guarded:
    """A ring that notes whether Ctrl-C may strike while bytes go into it or come out."""

    def __init__(self, ring: LaneRing) -> None:
        self._ring = ring
        self.seen: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("offer", "take", "take_whole"):
            self.seen.append(trio.lowlevel.currently_ki_protected())
        return getattr(self._ring, name)


async def test_ctrl_c_does_not_strike_between_a_byte_and_its_ring() -> None:
    shared: Any = ConsoleSharedState()
    rings = []
    for lane in (shared._rx, shared._tx):
        lane.ring = Guarded(lane.ring)
        rings.append(lane.ring)
    shared._tx.ring.push(b"from the guest")
    async with ConsoleStream(shared) as stream:
        assert not trio.lowlevel.currently_ki_protected()
        assert await stream.receive_some() == b"from the guest"
        await stream.send_all(b"to the guest")
    assert [ring.seen for ring in rings] == [[True], [True]]
    shared.close_wakes()


async def test_bytes_that_come_as_the_receiver_falls_asleep_are_received_with_a_checkpoint() -> None:
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    lane: Any = shared._tx

    class Late:
        """A ring into which bytes are pushed between the look at it and the arming."""

        def __init__(self, ring: LaneRing) -> None:
            self._ring = ring

        def __getattr__(self, name: str) -> Any:
            return getattr(self._ring, name)

        def arm_data(self) -> bool:
            backend.write(b"late")
            return self._ring.arm_data()

    lane.ring = Late(shared._tx.ring)
    async with ConsoleStream(shared) as host:
        with trio.testing.assert_checkpoints():
            assert await host.receive_some() == b"late"
