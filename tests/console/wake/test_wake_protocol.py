"""No wake-up is lost, in any order of the two threads' steps; and code with a wrong order fails.

Each scenario runs the real code under every schedule of up to two switches between its lines. The mutants at the
end do the same steps in a wrong order, and must fail: that proves that the stepper finds such mistakes.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.console.wake.stepper import LostWakeUp, Stepper, StepWake, run_all
from trio_console._console import backend as _console
from trio_console._console import ring as _ring
from trio_console._console import workers as _workers
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState, Lane, wait_for_room

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = (_ring.__file__, _console.__file__, _workers.__file__)
MUTANTS = (*FILES, __file__)


def stepped(stepper: Stepper, capacity: int = 2, max_bytes: int = 4) -> ConsoleSharedState:
    """A console's state whose wakes belong to the stepper."""
    shared = ConsoleSharedState(capacity, max_bytes)
    for lane in (shared._tx, shared._rx):
        lane.data_wake.close()
        lane.room_wake.close()
        data: Any = StepWake(stepper)
        room: Any = StepWake(stepper)
        lane.data_wake, lane.room_wake = data, room  # type: ignore[misc]
        lane.ring._data_wake, lane.ring._room_wake = data, room  # type: ignore[misc]
    return shared


def consume(lane: Lane, received: list[bytes], take: Callable[[], bytes]) -> None:
    """A consumer that keeps to the rules of `_console.ring`."""
    while True:
        finished = lane.finished
        data = take()
        if data:
            received.append(data)
        elif finished:
            return
        else:
            _workers._wait_for_data(lane)


def produce(lane: Lane, chunks: list[bytes]) -> None:
    for chunk in chunks:
        while not lane.ring.offer(chunk):
            wait_for_room(lane, len(chunk))
    lane.finish()


@pytest.mark.parametrize("way", ["pop", "take"])
def test_a_consumer_that_goes_to_sleep_is_woken_by_every_push(way: str) -> None:
    def scenario(stepper: Stepper) -> Any:
        lane = stepped(stepper)._tx
        received: list[bytes] = []
        take = (lambda: lane.ring.pop() or b"") if way == "pop" else (lambda: lane.ring.take(10))

        def pushes() -> None:
            lane.ring.push(b"ab")

        def consumes() -> None:
            while not received:
                if data := take():
                    received.append(data)
                else:
                    _workers._wait_for_data(lane)

        def check() -> None:
            assert received == [b"ab"]
            assert (len(lane.ring), lane.ring.nbytes) == (0, 0)

        return pushes, consumes, check

    assert run_all(scenario, switches=2, files=FILES) > 300


def test_a_producer_that_found_the_ring_full_is_woken_when_it_has_room() -> None:
    def scenario(stepper: Stepper) -> Any:
        lane = stepped(stepper)._tx
        lane.ring.push(b"abcd")
        lane.ring.disarm_data()

        def pushes() -> None:
            while not lane.ring.offer(b"ef"):
                wait_for_room(lane, 2)

        def takes() -> None:
            assert lane.ring.take(4) == b"abcd"

        def check() -> None:
            assert lane.ring.pop() == b"ef"

        return pushes, takes, check

    assert run_all(scenario, switches=2, files=FILES) > 300


@pytest.mark.parametrize("capacity", [1, 2])
def test_producer_and_consumer_never_sleep_at_the_same_time(capacity: int) -> None:
    def scenario(stepper: Stepper) -> Any:
        lane = stepped(stepper, capacity)._tx
        lane.ring.push(b"ab")
        received: list[bytes] = []
        return (
            lambda: produce(lane, [b"cde"]),
            lambda: consume(lane, received, lambda: lane.ring.take(3)),
            lambda: check_all(lane, received),
        )

    def check_all(lane: Lane, received: list[bytes]) -> None:
        assert b"".join(received) == b"abcde"
        assert lane.ring.nbytes == 0

    assert run_all(scenario, switches=2, files=[_ring.__file__]) > 300


def test_the_end_of_a_lane_wakes_its_consumer() -> None:
    def scenario(stepper: Stepper) -> Any:
        lane = stepped(stepper)._tx
        received: list[bytes] = []

        def check() -> None:
            assert received == [b"ab"]

        return (
            lambda: produce(lane, [b"ab"]),
            lambda: consume(lane, received, lambda: lane.ring.take(3)),
            check,
        )

    assert run_all(scenario, switches=2, files=FILES) > 300


def test_a_consumer_that_leaves_wakes_a_producer_that_waits_for_room() -> None:
    def scenario(stepper: Stepper) -> Any:
        shared = stepped(stepper)
        backend = AgentConsoleBackend(shared)
        shared._tx.ring.push(b"abcd")
        outcome: list[int] = []

        def writes() -> None:
            while not outcome:
                try:
                    outcome.append(backend.write(b"xy"))
                except BlockingIOError:
                    backend.wait_until_writable()

        def check() -> None:
            assert outcome == [2]

        return writes, shared.host_gone, check

    assert run_all(scenario, switches=2, files=FILES) > 300


def test_a_device_that_polls_after_would_block_misses_nothing() -> None:
    def scenario(stepper: Stepper) -> Any:
        shared = stepped(stepper)
        backend = AgentConsoleBackend(shared)
        received: list[bytes] = []

        def reads() -> None:
            while True:
                try:
                    data = backend.read(10)
                except BlockingIOError:
                    shared._rx.data_wake.wait()  # poll(2) on read_wake_fd()
                    continue
                if not data:
                    return
                received.append(data)

        def sends() -> None:
            shared._rx.ring.push(b"ab")
            shared.host_gone()

        def check() -> None:
            assert received == [b"ab"]

        return reads, sends, check

    assert run_all(scenario, switches=2, files=[_console.__file__]) > 300


def test_a_device_that_reads_once_for_each_poll_misses_nothing() -> None:
    def scenario(stepper: Stepper) -> Any:
        shared = stepped(stepper)
        backend = AgentConsoleBackend(shared)
        received: list[bytes] = []

        def reads() -> None:
            while not received or received[-1]:
                shared._rx.data_wake.wait()  # poll(2) on read_wake_fd()
                with contextlib.suppress(BlockingIOError):
                    received.append(backend.read(1))

        def sends() -> None:
            shared._rx.ring.push(b"ab")
            shared._rx.ring.push(b"c")
            shared.host_gone()

        def check() -> None:
            assert b"".join(received) == b"abc"

        return reads, sends, check

    assert run_all(scenario, switches=2, files=[_console.__file__]) > 300


def test_the_bytes_of_a_ring_are_never_counted_negative() -> None:
    def scenario(stepper: Stepper) -> Any:
        lane = stepped(stepper)._tx
        seen: list[int] = []

        def pushes() -> None:
            lane.ring.push(b"ab")

        def pops() -> None:
            lane.ring.pop()
            seen.append(lane.ring.nbytes)

        def check() -> None:
            assert min(seen) >= 0

        return pushes, pops, check

    assert run_all(scenario, switches=2, files=FILES) > 100


# Wrong orders of the steps, which must be found


def looks_before_it_publishes(lane: Lane, chunk: bytes) -> None:
    ring = lane.ring
    armed = ring._data_armed
    ring._pushed += len(chunk)
    ring._chunks.append(chunk)
    if armed:
        ring._data_armed = False
        lane.data_wake.wake()


def disarms_after_it_woke(lane: Lane, chunk: bytes) -> None:
    ring = lane.ring
    ring._pushed += len(chunk)
    ring._chunks.append(chunk)
    if ring._data_armed:
        lane.data_wake.wake()
        ring._data_armed = False


def right_push(lane: Lane, chunk: bytes) -> None:
    lane.ring.push(chunk)


def looks_before_it_arms(lane: Lane) -> None:
    if not lane.ring._chunks:
        lane.ring._data_armed = True
        lane.data_wake.wait()
    lane.ring._data_armed = False
    lane.data_wake.drain()


def right_wait(lane: Lane) -> None:
    _workers._wait_for_data(lane)


def drains_before_it_sleeps(lane: Lane) -> None:
    if lane.ring.arm_data():
        lane.data_wake.drain()
        lane.data_wake.wait()
    lane.ring.disarm_data()


@pytest.mark.parametrize(
    ("push", "wait"),
    [
        (looks_before_it_publishes, right_wait),
        (disarms_after_it_woke, right_wait),
        (right_push, looks_before_it_arms),
        (right_push, drains_before_it_sleeps),
    ],
)
def test_a_wrong_order_is_found_out(push: Callable[[Lane, bytes], None], wait: Callable[[Lane], None]) -> None:
    def scenario(stepper: Stepper) -> Any:
        lane = stepped(stepper)._tx
        lane.ring.disarm_data()
        received: list[bytes] = []

        def pushes() -> None:
            push(lane, b"ab")
            push(lane, b"c")

        def consumes() -> None:
            while sum(map(len, received)) < 3:
                if (chunk := lane.ring.pop()) is not None:
                    received.append(chunk)
                else:
                    wait(lane)

        return pushes, consumes, lambda: None

    with pytest.raises(LostWakeUp):
        run_all(scenario, switches=2, files=MUTANTS)


def test_the_same_steps_in_the_right_order_are_not() -> None:
    def scenario(stepper: Stepper) -> Any:
        lane = stepped(stepper)._tx
        lane.ring.disarm_data()
        received: list[bytes] = []

        def pushes() -> None:
            right_push(lane, b"ab")
            right_push(lane, b"c")

        def consumes() -> None:
            while sum(map(len, received)) < 3:
                if (chunk := lane.ring.pop()) is not None:
                    received.append(chunk)
                else:
                    right_wait(lane)

        return pushes, consumes, lambda: None

    run_all(scenario, switches=2, files=[_ring.__file__])


def test_a_chunk_published_before_it_is_counted_is_found_out() -> None:
    def publishes_before_it_counts(lane: Lane, chunk: bytes) -> None:
        lane.ring._chunks.append(chunk)
        lane.ring._pushed += len(chunk)

    def scenario(stepper: Stepper) -> Any:
        lane = stepped(stepper)._tx
        seen: list[int] = []

        def pops() -> None:
            lane.ring.pop()
            seen.append(lane.ring.nbytes)

        def check() -> None:
            assert min(seen) >= 0

        return lambda: publishes_before_it_counts(lane, b"ab"), pops, check

    with pytest.raises(AssertionError):
        run_all(scenario, switches=2, files=MUTANTS)


def test_a_producer_whose_room_is_looked_for_before_it_is_made_is_found_out() -> None:
    def scenario(stepper: Stepper) -> Any:
        lane = stepped(stepper)._tx
        ring = lane.ring
        ring.push(b"abcd")

        def pushes() -> None:
            while not ring.offer(b"ef"):
                wait_for_room(lane, 2)

        def takes() -> None:
            armed = ring._room_armed
            ring._chunks.popleft()
            ring._popped += 4
            if armed:
                ring._wake_producer(0)

        return pushes, takes, lambda: None

    with pytest.raises(LostWakeUp):
        run_all(scenario, switches=2, files=MUTANTS)
