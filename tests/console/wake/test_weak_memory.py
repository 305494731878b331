"""Without the interpreter lock no wake-up is lost either; but without the mutex one would be.

The real code runs under every schedule of up to two switches between its lines, in a memory in which each thread
sees the other's stores as late as possible. See `weak_memory`.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.console.wake import weak_memory
from tests.console.wake.stepper import LostWakeUp, run_all
from tests.console.wake.weak_memory import FencesFirst, WeakRing
from tests.tools.limits import HANG
from trio_console._console import ring as _ring
from trio_console._console.build import FREE_THREADED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.console.wake.stepper import Stepper

    Scenario = Callable[[WeakRing], tuple[Callable[[], None], Callable[[], None], Callable[[], None]]]

FILES = [_ring.__file__]


class NotRevoked(AssertionError):
    """A ring has accepted a chunk after its consumer had revoked it."""


def push(ring: WeakRing, chunk: bytes) -> None:
    """Push as a producer does; `wait_for_room` of the backend does the same with a lane."""
    while not ring.offer(chunk):
        if ring.arm_room(len(chunk)):
            ring._room_wake.wait()  # type: ignore[union-attr]
        ring.disarm_room()
        ring._room_wake.drain()  # type: ignore[union-attr]


def take(ring: WeakRing, nbytes: int, way: Callable[[WeakRing], bytes | None]) -> bytes:
    """Take so many bytes as a consumer does, sleeping while the ring is empty."""
    data = b""
    while len(data) < nbytes:
        if got := way(ring):
            data += got
            continue
        if ring.arm_data():
            ring._data_wake.wait()  # type: ignore[union-attr]
        ring.disarm_data()
        ring._data_wake.drain()  # type: ignore[union-attr]
    return data


def readinto(ring: WeakRing) -> bytes:
    buffer = bytearray(3)
    return bytes(buffer[: ring.readinto(memoryview(buffer))])


WAYS: dict[str, Callable[[WeakRing], bytes | None]] = {
    "pop": WeakRing.pop,
    "take": lambda ring: ring.take(3),
    "take_whole": lambda ring: ring.take_whole(3),
    "readinto": readinto,
}


def moved(ring: WeakRing, chunks: list[bytes], way: Callable[[WeakRing], bytes | None]) -> Any:
    """Everything is moved, in order, and the two never sleep at the same time."""
    received: list[bytes] = []
    everything = b"".join(chunks)

    def check() -> None:
        assert received == [everything]
        assert (len(ring), ring.nbytes) == (0, 0)

    return (
        lambda: [push(ring, chunk) for chunk in chunks],
        lambda: received.append(take(ring, len(everything), way)),
        check,
    )


def data(ring: WeakRing) -> Any:
    ring.disarm_data()
    ring.memory.publish()
    return moved(ring, [b"ab"], WeakRing.pop)


def room(ring: WeakRing) -> Any:
    """The ring is full when the threads start; the consumer goes when it has taken one chunk."""
    ring.push(b"abcd")
    ring.memory.publish()

    def check() -> None:
        assert ring.pop() == b"ef"

    return lambda: push(ring, b"ef"), lambda: take(ring, 4, WeakRing.pop), check


def grant(ring: WeakRing) -> Any:
    """The consumer revokes while the producer is granted more than one chunk."""

    def check() -> None:
        if ring.offer(b"c"):
            raise NotRevoked

    return lambda: ring.offer(b"a"), ring.revoke, check


def under_every_schedule(
    scenario: Scenario,
    *,
    kind: type[WeakRing] = WeakRing,
    bare: int | None = None,
    capacity: int = 4,
    switches: int = 2,
    files: Sequence[str] = FILES,
) -> int:
    """Run a scenario; for the thread numbered ``bare`` the mutex does nothing."""

    def run(stepper: Stepper) -> Any:
        numbers: dict[int, int] = {}

        def nothing() -> bool:
            return numbers.get(threading.get_ident()) == bare is not None

        ring = kind(stepper, capacity, 4, nothing)
        *bodies, check = scenario(ring)

        def thread(number: int) -> Callable[[], None]:
            def body() -> None:
                numbers[threading.get_ident()] = number
                bodies[number]()

            return ring.memory.runs(body)

        return thread(0), thread(1), check

    return run_all(run, switches=switches, files=files)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("capacity", [1, 3])
def test_everything_is_moved_and_nobody_sleeps_for_ever(way: str, capacity: int) -> None:
    chunks = [b"ab", b"c", b"defgh", b"i"]
    runs = under_every_schedule(lambda ring: moved(ring, chunks, WAYS[way]), capacity=capacity, switches=1)
    assert runs > 100


@pytest.mark.parametrize("scenario", [data, room, grant])
def test_each_store_is_seen_or_its_storer_sees_the_others(scenario: Scenario) -> None:
    assert under_every_schedule(scenario) > 100


# (Of what is granted and revoked, the consumer stores both: they keep their order without its passage.)
@pytest.mark.parametrize(("scenario", "bare"), [(data, 0), (data, 1), (room, 0), (room, 1), (grant, 0)])
def test_if_one_side_passes_no_mutex_it_is_not(scenario: Scenario, bare: int) -> None:
    with pytest.raises((LostWakeUp, NotRevoked)):
        under_every_schedule(scenario, bare=bare)


@pytest.mark.parametrize("scenario", [data, room, grant])
def test_with_the_mutex_before_the_store_and_after_the_look_it_is_not(scenario: Scenario) -> None:
    with pytest.raises((LostWakeUp, NotRevoked)):
        under_every_schedule(scenario, kind=FencesFirst, files=[*FILES, weak_memory.__file__])


def test_the_ring_is_chosen_by_the_build() -> None:
    assert (_ring.LaneRing is _ring.FencedRing) == FREE_THREADED


@pytest.mark.parametrize("lock_is_off", [0, 1])
def test_a_lock_that_is_on_for_the_moment_does_not_choose(lock_is_off: int) -> None:
    program = f"""if True:
        import sys, sysconfig
        real = sysconfig.get_config_var
        sysconfig.get_config_var = lambda name: {lock_is_off} if name == "Py_GIL_DISABLED" else real(name)
        sys._is_gil_enabled = lambda: True
        import trio_console
        from trio_console._console.ring import FencedRing
        assert (type(trio_console.ConsoleSharedState().tx_ring) is FencedRing) == {lock_is_off}
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=HANG)
