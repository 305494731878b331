"""The backend's contract with a device, result by result, because a device hangs at any other result."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.tools.conserved import check_conserved
from tests.tools.descriptors import is_readable
from tests.tools.limits import HANG
from trio_console._console import backend as _console
from trio_console._console import ring as _ring
from trio_console._console import wake as _wake
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState

if TYPE_CHECKING:
    from collections.abc import Callable


def make(capacity: int = 8, max_bytes: int = 100) -> tuple[ConsoleSharedState, AgentConsoleBackend]:
    shared = ConsoleSharedState(capacity, max_bytes)
    return shared, AgentConsoleBackend(shared)


def raise_memory_error(_data: object) -> int:
    raise MemoryError


# As the backend this comes from


def test_what_the_guest_writes_is_popped_by_the_host() -> None:
    shared, backend = make()
    assert backend.write(b"hello from the guest") == 20
    assert shared.tx_ring.pop() == b"hello from the guest"


def test_what_the_host_pushes_is_read_by_the_guest() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"hello from the host")
    assert backend.read(64) == b"hello from the host"


def test_a_read_of_an_empty_ring_would_block() -> None:
    _, backend = make()
    with pytest.raises(BlockingIOError):
        backend.read(64)


def test_a_full_ring_refuses_the_second_write() -> None:
    shared, backend = make(capacity=1)
    assert backend.write(b"first") == 5
    with pytest.raises(BlockingIOError):
        backend.write(b"second")
    assert shared.tx_ring.pop() == b"first"
    assert backend.write(b"second") == 6


def test_a_read_that_would_block_drains_the_wake() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"x")
    shared.rx_wake.wake()
    assert is_readable(backend.read_wake_fd())
    assert backend.read(64) == b"x"
    with pytest.raises(BlockingIOError):
        backend.read(64)
    assert not is_readable(backend.read_wake_fd())


# Reading


def test_a_device_that_polls_before_its_first_read_is_told() -> None:
    shared, backend = make()
    assert not is_readable(backend.read_wake_fd())
    shared.rx_ring.push(b"x")
    assert is_readable(backend.read_wake_fd())


def test_a_read_that_would_block_is_followed_by_a_wake() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"x")
    backend.read(1)
    with pytest.raises(BlockingIOError):
        backend.read(1)
    assert not is_readable(backend.read_wake_fd())
    shared.rx_ring.push(b"y")
    assert is_readable(backend.read_wake_fd())


def test_a_push_while_the_device_is_busy_makes_no_system_call() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"x")
    backend.read(1)
    before = shared.rx_ring.wakes
    shared.rx_ring.push(b"y")
    assert shared.rx_ring.wakes == before


READS = [
    lambda backend, size: backend.read(size),
    lambda backend, size: (buffer := bytearray(size))[: backend.readinto(buffer)],
]


@pytest.mark.parametrize("read", READS)
def test_a_device_that_reads_once_for_each_poll_gets_everything(read: Any) -> None:
    shared, backend = make(max_bytes=50_000)
    received = bytearray()

    def poll_and_read() -> None:
        assert is_readable(backend.read_wake_fd())
        received.extend(read(backend, 4096))

    for _ in range(3):
        shared.rx_ring.push(bytes(40_000))
        while shared.rx_ring:
            poll_and_read()
    assert len(received) == 120_000
    with pytest.raises(BlockingIOError):
        poll_and_read()
    assert not is_readable(backend.read_wake_fd())
    shared.host_gone()
    for _ in range(2):
        poll_and_read()  # end of file, each time it reads
    assert len(received) == 120_000


@pytest.mark.parametrize("read", READS)
def test_the_descriptor_is_readable_for_what_comes_while_a_read_makes_it_silent(read: Any) -> None:
    shared, backend = make()
    arm = shared.rx_ring.arm_data

    def push_and_arm() -> bool:
        shared.rx_ring.push(b"abc")
        return arm()

    shared.rx_ring.disarm_data()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ring.LaneRing, "arm_data", lambda _ring: push_and_arm())
        assert read(backend, 1) == b"a"
    assert is_readable(backend.read_wake_fd())
    assert read(backend, 9) == b"bc"


def test_a_device_that_reads_until_it_would_block_makes_one_call_for_each_wake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    for name in ("ring", "silence"):
        real = getattr(_wake.Bell, name)
        monkeypatch.setattr(_wake.Bell, name, lambda bell, name=name, real=real: (calls.append(name), real(bell)))
    shared, backend = make()
    for _ in range(10):
        for _ in range(5):
            shared.rx_ring.push(b"abc")
        while True:
            try:
                backend.read(4)
            except BlockingIOError:
                break
    assert calls == ["ring", "silence"] * 10


def test_a_read_serves_leftovers_first() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"abcdef")
    assert backend.read(4) == b"abcd"
    shared.rx_ring.push(b"gh")
    assert backend.read(1) == b"e"
    assert backend.read(9) == b"fgh"


def test_a_read_fills_across_chunks_and_splits_the_last() -> None:
    shared, backend = make()
    for chunk in (b"ab", b"c", b"defg"):
        shared.rx_ring.push(chunk)
    assert backend.read(5) == b"abcde"
    assert backend.read(5) == b"fg"


@pytest.mark.parametrize("kind", [bytearray, lambda data: memoryview(bytearray(data))])
def test_readinto_fills_across_chunks_and_splits_the_last(kind: Any) -> None:
    shared, backend = make()
    for chunk in (b"ab", b"c", b"defg"):
        shared.rx_ring.push(chunk)
    buffer = kind(b"-----")
    assert backend.readinto(buffer) == 5
    assert bytes(buffer) == b"abcde"
    assert backend.readinto(buffer) == 2
    assert bytes(buffer) == b"fgcde"


def test_readinto_fills_a_buffer_of_wider_items() -> None:
    shared, backend = make()
    shared.rx_ring.push(bytes(range(1, 9)))
    buffer = memoryview(bytearray(8)).cast("I")
    assert backend.readinto(buffer) == 8
    assert buffer.tobytes() == bytes(range(1, 9))


def test_readinto_lets_go_of_the_buffer() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"abc")
    buffer = bytearray(2)
    backend.readinto(buffer)
    buffer.extend(b"not locked")


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("queued", [b"", b"data"])
def test_a_read_of_nothing_would_block_and_is_never_end_of_file(ended: bool, queued: bytes) -> None:
    shared, backend = make()
    shared.rx_ring.push(queued)
    if ended:
        shared.host_gone()
    with pytest.raises(BlockingIOError):
        backend.read(0)
    with pytest.raises(BlockingIOError):
        backend.readinto(bytearray())
    assert shared.rx_ring.nbytes == len(queued)


def test_end_of_file_comes_only_when_the_host_has_finished_and_everything_was_read() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"abc")
    shared.host_gone()
    assert backend.read(2) == b"ab"
    assert backend.read(2) == b"c"
    assert backend.read(2) == b""
    assert backend.readinto(bytearray(2)) == 0
    assert backend.read(2) == b""


def test_the_end_wakes_a_device_that_polls() -> None:
    shared, backend = make()
    with pytest.raises(BlockingIOError):
        backend.read(1)
    shared.host_gone()
    assert is_readable(backend.read_wake_fd())
    assert backend.read(1) == b""


def test_after_a_forceful_end_nothing_queued_is_read() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"abc")
    shared._rx.discard()
    assert backend.read(10) == b""
    assert shared._rx.statistics().bytes_dropped == 3
    check_conserved(shared)


def test_the_guests_own_end_does_not_end_what_the_host_sent() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"abc")
    shared._tx.finish()
    assert backend.read(10) == b"abc"
    with pytest.raises(BlockingIOError):
        backend.read(10)


# Writing


@pytest.mark.parametrize(("size", "taken"), [(39, True), (40, True), (41, False)])
def test_a_write_takes_everything_or_nothing(size: int, taken: bool) -> None:
    shared, backend = make()
    backend.write(bytes(60))
    if taken:
        assert backend.write(bytes(size)) == size
    else:
        with pytest.raises(BlockingIOError):
            backend.write(bytes(size))
    assert shared.tx_ring.nbytes == 60 + size * taken


def test_a_descriptor_larger_than_the_budget_is_admitted_into_an_empty_ring() -> None:
    shared, backend = make(max_bytes=10)
    assert backend.write(bytes(11)) == 11
    with pytest.raises(BlockingIOError):
        backend.write(b"x")
    shared.tx_ring.pop()
    assert backend.write(bytes(32_768)) == 32_768


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(data).cast("H")])
def test_a_write_takes_any_buffer_and_counts_bytes(kind: Any) -> None:
    shared, backend = make()
    assert backend.write(kind(b"abcd")) == 4
    assert shared.tx_ring.pop() == b"abcd"


def test_a_buffer_that_the_device_reuses_was_copied() -> None:
    shared, backend = make()
    page = bytearray(b"abcd")
    backend.write(page)
    page[:] = b"----"
    assert shared.tx_ring.pop() == b"abcd"


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(data).cast("H")])
def test_a_write_after_the_host_has_gone_is_swallowed_and_counted(kind: Any) -> None:
    shared, backend = make(capacity=1)
    backend.write(b"queued")
    shared.host_gone()
    assert backend.write(kind(b"lost")) == 4
    assert backend.write(kind(bytes(1000))) == 1000
    now = shared._tx.statistics()
    assert (now.bytes_in, now.bytes_out, now.bytes_dropped) == (1010, 0, 1010)
    check_conserved(shared)


def test_a_want_of_memory_fails_the_channel_and_not_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMemory(bytes):
        def __new__(cls, _source: object) -> Self:
            raise MemoryError

    shared, backend = make()
    backend.write(b"before")
    monkeypatch.setattr(_ring, "bytes", NoMemory, raising=False)
    assert backend.write(bytearray(b"too much")) == 8
    monkeypatch.undo()
    assert backend.write(b"later") == 5
    assert isinstance(shared._tx.cause, MemoryError)
    assert isinstance(shared._rx.cause, MemoryError)
    assert shared._tx.finished
    assert shared._rx.abandoned
    assert backend.wait_until_writable(0)
    now = shared._tx.statistics()
    assert (now.bytes_in, now.bytes_out, now.current_buffer_bytes, now.bytes_dropped) == (19, 0, 6, 13)
    assert shared.tx_ring.pop() == b"before"
    now = shared._tx.statistics()
    assert (now.bytes_in, now.bytes_out, now.bytes_dropped) == (19, 6, 13)


def test_a_device_does_not_wait_for_room_after_a_want_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, backend = make(capacity=1)
    backend.write(b"before")
    monkeypatch.setattr(backend, "_offer", raise_memory_error)
    assert backend.write(b"too much") == 8
    assert backend.wait_until_writable(0)
    check_conserved(shared)


# Waiting for room


class RealWait:
    """Stands for the wait of a lane, and tells when the backend begins to sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asleep = threading.Event()
        real = _wake._sleep_readable

        def sleep(fd: int, timeout: float | None) -> bool:
            self.asleep.set()
            return real(fd, timeout)

        monkeypatch.setattr(_wake, "_sleep_readable", sleep)


def start_waiting(backend: AgentConsoleBackend) -> tuple[threading.Thread, list[bool]]:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(backend.wait_until_writable()))
    thread.start()
    return thread, answers


def test_waiting_ends_at_once_where_there_is_room() -> None:
    _, backend = make()
    assert backend.wait_until_writable()
    assert backend.wait_until_writable(0)


def test_waiting_blocks_until_the_refused_write_would_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, backend = make(max_bytes=10)
    backend.write(bytes(4))
    backend.write(bytes(6))
    with pytest.raises(BlockingIOError):
        backend.write(bytes(5))
    shared.tx_ring.pop()
    assert not backend.wait_until_writable(0)  # 4 bytes are free: enough for a byte, not for these
    wait = RealWait(monkeypatch)
    thread, answers = start_waiting(backend)
    assert wait.asleep.wait(HANG)
    shared.tx_ring.pop()
    thread.join(HANG)
    assert answers == [True]
    assert backend.write(bytes(5)) == 5


def test_what_is_written_after_the_host_has_gone_is_not_queued() -> None:
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    backend.write(b"before")  # the ring would accept many more bytes at once
    shared.host_gone()
    for _ in range(3):
        assert backend.write(b"after") == 5
    assert len(shared.tx_ring) == 1
    assert shared._tx.swallowed == 15


@pytest.mark.parametrize("how", ["host_gone", "abandon"])
def test_waiting_ends_when_the_channel_closes(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, backend = make(capacity=1)
    backend.write(b"x")
    with pytest.raises(BlockingIOError):
        backend.write(b"y")
    wait = RealWait(monkeypatch)
    thread, answers = start_waiting(backend)
    assert wait.asleep.wait(HANG)
    if how == "host_gone":
        shared.host_gone()
    else:
        shared._tx.abandon()
    thread.join(HANG)
    assert answers == [True]
    assert backend.write(b"y") == 1


def test_waiting_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, backend = make(capacity=1)
    backend.write(b"x")
    with pytest.raises(BlockingIOError):
        backend.write(b"y")
    now = [100.0]
    waited: list[float | None] = []

    def sleep(_fd: int, timeout: float | None) -> bool:
        waited.append(timeout)
        assert timeout is not None
        now[0] += timeout / 2 if len(waited) == 1 else timeout
        return len(waited) == 1  # the first wake-up is a false one

    monkeypatch.setattr(_wake, "_sleep_readable", sleep)
    monkeypatch.setattr(_console, "time", type("Time", (), {"monotonic": staticmethod(lambda: now[0])}))
    assert not backend.wait_until_writable(8)
    assert waited == [8, 4]
    assert not shared.tx_ring._room_armed


def test_a_device_in_its_would_block_loop_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, backend = make(capacity=1)
    backend.write(b"x")
    wait = RealWait(monkeypatch)
    attempts = []

    def device() -> None:
        while True:
            attempts.append(time.monotonic())
            try:
                backend.write(b"y")
            except BlockingIOError:
                backend.wait_until_writable()
            else:
                return

    thread = threading.Thread(target=device)
    thread.start()
    assert wait.asleep.wait(HANG)
    shared.tx_ring.pop()
    thread.join(HANG)
    assert not thread.is_alive()
    assert len(attempts) == 2


# A would-block is followed by a poll, whatever the reason for it

EMPTY_READS = [lambda backend: backend.read(0), lambda backend: backend.readinto(bytearray())]


@pytest.mark.parametrize(
    "empty_read", [lambda backend: backend.read(0), lambda backend: backend.readinto(bytearray())]
)
def test_a_push_wakes_a_device_whose_last_read_was_of_no_bytes(
    empty_read: Callable[[AgentConsoleBackend], object],
) -> None:
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    shared.rx_ring.push(b"x")
    assert backend.read(10) == b"x"
    with pytest.raises(BlockingIOError):
        empty_read(backend)
    assert not is_readable(backend.read_wake_fd())
    shared.rx_ring.push(b"y")
    assert is_readable(backend.read_wake_fd())
    assert backend.read(10) == b"y"


@pytest.mark.parametrize(
    "empty_read", [lambda backend: backend.read(0), lambda backend: backend.readinto(bytearray())]
)
def test_a_read_of_no_bytes_leaves_the_descriptor_readable_while_there_are_some(
    empty_read: Callable[[AgentConsoleBackend], object],
) -> None:
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    shared.rx_ring.push(b"xy")
    assert backend.read(1) == b"x"
    with pytest.raises(BlockingIOError):
        empty_read(backend)
    assert is_readable(backend.read_wake_fd())
    shared.host_gone()
    assert backend.read(1) == b"y"
    with pytest.raises(BlockingIOError):
        empty_read(backend)
    assert is_readable(backend.read_wake_fd())
