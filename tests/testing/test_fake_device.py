"""The fake device: it behaves like a real one, and reports a backend that would hang a real one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import trio_console.testing
from tests.tools.limits import HANG
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState
from trio_console._console.wake import WakePipe
from trio_console.testing import (
    DESCRIPTORS,
    PAGE_SIZE,
    WRITE_SIZE,
    FakeConsoleDevice,
    FakeDeviceStatistics,
    console_stream_pair,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_for(condition: Callable[[], bool]) -> None:
    """Until another thread has made it true."""
    bell = threading.Event()
    for _ in range(int(HANG / 0.001)):
        if condition():
            return
        bell.wait(0.001)
    raise AssertionError("it did not happen")


# What it is


def test_the_door_exports_what_it_names() -> None:
    for name in trio_console.testing.__all__:
        assert getattr(trio_console.testing, name) is not None
        assert name in dir(trio_console.testing)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trio_console.testing.nonsense  # type: ignore[attr-defined]


async def test_a_pair_takes_its_bounds() -> None:
    host, _guest = console_stream_pair(capacity=3, max_bytes=40)
    async with host:
        now = host.statistics()
    assert (now.tx.max_buffer_size, now.rx.max_buffer_size) == (3, 3)
    assert (now.tx.max_buffer_bytes, now.rx.max_buffer_bytes) == (40, 40)


def test_a_guests_write_reaches_the_host_in_descriptors_of_32_kib() -> None:
    shared = ConsoleSharedState()
    with FakeConsoleDevice(shared) as device:
        device.guest_write(bytes(WRITE_SIZE * 2 + 5))
        device.guest_flush()
        sizes = [len(chunk) for chunk in iter(shared.tx_ring.pop, None)]
        assert sizes == [WRITE_SIZE, WRITE_SIZE, 5]


def test_the_guest_reads_pages_of_4_kib() -> None:
    shared = ConsoleSharedState()
    shared.rx_ring.push(bytes(PAGE_SIZE + 7))
    with FakeConsoleDevice(shared) as device:
        assert len(device.guest_read(100_000)) == PAGE_SIZE
        assert len(device.guest_read(5)) == 5
        assert len(device.guest_read(5)) == 2
        assert device.statistics().pages_filled == 2


def test_small_chunks_share_a_page() -> None:
    shared = ConsoleSharedState()
    for _ in range(100):
        shared.rx_ring.push(b"0123456789")
    with FakeConsoleDevice(shared) as device:
        assert device.guest_read() == b"0123456789" * 100
        assert device.statistics().pages_filled == 1


def test_it_works_over_a_backend_as_over_its_state() -> None:
    shared = ConsoleSharedState()
    with FakeConsoleDevice(AgentConsoleBackend(shared)) as device:
        device.guest_write(b"x")
        device.guest_flush()
        device.die()
    assert shared.tx_ring.pop() == b"x"
    assert shared._tx.finished
    assert shared._rx.abandoned


def test_there_are_32_descriptors_to_write_with() -> None:
    shared = ConsoleSharedState()
    with FakeConsoleDevice(shared, stalled=True) as device:
        device.guest_write(bytes(WRITE_SIZE * DESCRIPTORS))
        with pytest.raises(TimeoutError):
            device.guest_write(b"x", timeout=0)
        assert device.statistics().descriptors_pending == DESCRIPTORS
        shared.host_gone()
        device.resume()
        device.guest_write(b"x")


def test_there_are_32_pages_to_read_into() -> None:
    shared = ConsoleSharedState(max_bytes=1 << 20)
    shared.rx_ring.push(bytes(PAGE_SIZE * (DESCRIPTORS + 1)))
    with FakeConsoleDevice(shared) as device:
        wait_for(lambda: device.statistics().pages_pending == DESCRIPTORS)
        assert shared.rx_ring.nbytes == PAGE_SIZE
        device.guest_read()
        wait_for(lambda: not shared.rx_ring.nbytes)


def test_end_of_file_comes_after_the_last_page_and_stays() -> None:
    shared = ConsoleSharedState()
    shared.rx_ring.push(b"last")
    shared.host_gone()
    with FakeConsoleDevice(shared) as device:
        assert device.guest_read() == b"last"
        assert device.guest_read() == b""
        assert device.guest_read() == b""
        assert device.guest_eof


def test_before_the_end_there_is_no_end() -> None:
    shared = ConsoleSharedState()
    with FakeConsoleDevice(shared) as device:
        assert not device.guest_eof
        with pytest.raises(TimeoutError):
            device.guest_read(timeout=0)


def test_a_read_of_nothing_is_a_mistake() -> None:
    with FakeConsoleDevice(ConsoleSharedState()) as device:
        with pytest.raises(ValueError, match="at least 1"):
            device.guest_read(0)


def test_statistics_count() -> None:
    shared = ConsoleSharedState()
    with FakeConsoleDevice(shared) as device:
        device.guest_write(b"abc")
        device.guest_flush()
        wait_for(lambda: device.statistics().reads_blocked >= 1)  # its thread has looked, and found no byte
        shared.rx_ring.push(b"de")
        device.guest_read()
        now = device.statistics()
    assert isinstance(now, FakeDeviceStatistics)
    assert (now.bytes_written, now.bytes_read, now.pages_filled) == (3, 2, 1)
    assert (now.descriptors_pending, now.pages_pending, now.writes_blocked) == (0, 0, 0)
    assert now.reads_blocked >= 1


# Faults


def test_a_stalled_device_touches_nothing_until_it_is_resumed() -> None:
    shared = ConsoleSharedState()
    with FakeConsoleDevice(shared) as device:
        device.stall()
        device.guest_write(b"x")
        shared.rx_ring.push(b"y")
        with pytest.raises(TimeoutError):
            device.guest_flush(timeout=0.01)
        assert (len(shared.tx_ring), len(shared.rx_ring)) == (0, 1)
        device.resume()
        device.guest_flush()
        assert device.guest_read() == b"y"


def test_a_stalled_device_can_be_shut_down() -> None:
    device = FakeConsoleDevice(ConsoleSharedState(), stalled=True)
    device.guest_write(b"x")
    device.shutdown()


def test_a_death_tells_the_state_its_cause_and_happens_once() -> None:
    shared = ConsoleSharedState()
    cause = OSError("crash")
    with FakeConsoleDevice(shared) as device:
        device.die(cause)
        device.die(OSError("again"))
        assert shared._tx.cause is cause
        assert shared._rx.cause is cause


def test_a_death_in_the_middle_of_a_chunk_hands_over_its_first_half() -> None:
    shared = ConsoleSharedState()
    with FakeConsoleDevice(shared, stalled=True) as device:
        device.guest_write(b"01234567")
        device.guest_write(b"never")
        device.die(mid_chunk=True)
        assert shared.tx_ring.pop() == b"0123"
        assert shared.tx_ring.pop() is None


def test_a_death_in_the_middle_of_nothing_is_a_death() -> None:
    shared = ConsoleSharedState()
    with FakeConsoleDevice(shared) as device:
        device.die(mid_chunk=True)
    assert shared._tx.finished
    assert not shared.tx_ring


@pytest.mark.parametrize("end", ["die", "shutdown"])
def test_the_guest_of_a_device_that_is_gone_gets_an_error(end: str) -> None:
    device = FakeConsoleDevice(ConsoleSharedState())
    getattr(device, end)()
    for use in (lambda: device.guest_write(b"x"), device.guest_flush, device.guest_read):
        with pytest.raises(OSError, match="the console device is gone"):
            use()
    device.shutdown()


# The end


def test_a_shutdown_can_be_repeated() -> None:
    device = FakeConsoleDevice(ConsoleSharedState())
    device.shutdown()
    device.shutdown()


def test_a_thread_in_its_would_block_loop_does_not_look_at_the_stop_flag() -> None:
    shared = ConsoleSharedState(capacity=1)
    device = FakeConsoleDevice(shared)
    device.guest_write(b"x")
    device.guest_flush()
    device.guest_write(b"y")
    wait_for(lambda: device.statistics().writes_blocked == 1)
    with pytest.raises(AssertionError, match="fake console tx"):
        device.shutdown(0.01)
    shared.tx_ring.pop()
    device.shutdown()
    assert shared.tx_ring.pop() == b"y"


def test_the_bodys_error_is_not_hidden_by_the_shutdown() -> None:
    shared = ConsoleSharedState(capacity=1)
    with pytest.raises(KeyError), FakeConsoleDevice(shared):
        raise KeyError


def test_the_bodys_error_is_told_even_when_the_shutdown_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeConsoleDevice(ConsoleSharedState())

    def fails() -> None:
        raise AssertionError("did not end")

    with monkeypatch.context() as patch:
        patch.setattr(device, "shutdown", fails)
        with pytest.raises(KeyError), device:
            raise KeyError
        with pytest.raises(AssertionError, match="did not end"), device:
            pass
    device.shutdown()


# Backends that would hang a real device


class Backend:
    """One that is right, to be made wrong in one place."""

    def __init__(self) -> None:
        self.wake = WakePipe()

    def readinto(self, buffer: bytearray | memoryview) -> int:
        raise BlockingIOError

    def write(self, data: bytes) -> int:
        return len(data)

    def read_wake_fd(self) -> int:
        return self.wake.fileno()

    def wait_until_writable(self) -> bool:
        return True


class WritesNothing(Backend):
    def write(self, data: bytes) -> int:
        return 0


class WritesSome(Backend):
    def write(self, data: bytes) -> int:
        return len(data) - 1


class RaisesInWrite(Backend):
    def write(self, data: bytes) -> int:
        raise BrokenPipeError("closed")


class RaisesInWait(Backend):
    def write(self, data: bytes) -> int:
        raise BlockingIOError

    def wait_until_writable(self) -> bool:
        raise ValueError("closed")


class RaisesInRead(Backend):
    def readinto(self, buffer: bytearray | memoryview) -> int:
        raise ConnectionError("closed")


class ReadsTooMuch(Backend):
    def readinto(self, buffer: bytearray | memoryview) -> int:
        return len(buffer) + 1


class HasNothingToPoll(Backend):
    def read_wake_fd(self) -> int:
        return -1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (WritesNothing, "returned 0"),
        (WritesSome, "returned 3"),
        (RaisesInWrite, "BrokenPipeError"),
        (RaisesInWait, "ValueError"),
        (RaisesInRead, "ConnectionError"),
        (ReadsTooMuch, "returned 4097"),
        (HasNothingToPoll, "returned no descriptor"),
    ],
)
def test_a_violation_is_recorded_and_raised(kind: type[Backend], message: str) -> None:
    backend = kind()
    with pytest.raises(AssertionError, match=message), FakeConsoleDevice(backend) as device:
        device.guest_write(b"data")
        device.guest_read()
    assert len(device.violations) == 1
    backend.wake.close()


def test_a_violation_nobody_met_is_raised_on_leaving() -> None:
    backend = WritesNothing()
    with pytest.raises(AssertionError, match="it must take all"):
        with FakeConsoleDevice(backend) as device:
            device.guest_write(b"data")
            wait_for(lambda: bool(device.violations))
    backend.wake.close()


def test_a_backend_that_is_right_violates_nothing() -> None:
    backend = Backend()
    with FakeConsoleDevice(backend) as device:
        device.guest_write(b"data")
        device.guest_flush()
    assert device.violations == ()
    backend.wake.close()
