"""The wake: it is readable after a ring, from any thread, and its descriptor's number is never misused."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import importlib.util
import os
import select
import subprocess
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.descriptors import is_open, is_readable
from tests.tools.limits import HANG
from trio_console._console import wake as _wake
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState
from trio_console._console.build import FREE_THREADED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVENTFD: Any = getattr(os, "eventfd", None)  # the system's


def refuse_eventfd(*_args: object) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture(params=["linux", "refused", "darwin", "win32"])
def wake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module as each platform gets it, and Linux where eventfds are refused: all bells work here."""
    spec = importlib.util.find_spec("trio_console._console.wake")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "linux" if request.param == "refused" else request.param)
        spec.loader.exec_module(module)
    if request.param == "refused":
        monkeypatch.setattr(os, "eventfd", refuse_eventfd, raising=False)
    return module


@pytest.fixture
def pipe() -> Iterator[_wake.WakePipe]:
    with _wake.WakePipe() as made:
        yield made


class Interposed:
    """The bell of a pipe, which calls ``inside`` at the points of its calls where another thread could come in."""

    def __init__(self, pipe: _wake.WakePipe, inside: Callable[[], object]) -> None:
        self._bell = pipe._bell
        self._inside = inside
        pipe._bell = self  # type: ignore[assignment]

    @property
    def read_fd(self) -> int:
        return self._bell.read_fd

    def ring(self) -> None:
        self._bell.ring()
        self._inside()

    def silence(self) -> None:
        self._inside()
        self._bell.silence()


class FakeSelect:
    """`select` with a poll that tells when it is entered, and for which descriptors."""

    POLLIN = select.POLLIN

    def __init__(self, entered: Callable[[float | None], list[Any] | None]) -> None:
        self._entered = entered

    def poll(self) -> FakeSelect._Poller:
        return self._Poller(self._entered)

    class _Poller:
        def __init__(self, entered: Callable[[float | None], list[Any] | None]) -> None:
            self._entered = entered
            self._real = select.poll()
            self.register = self._real.register

        def poll(self, timeout: float | None = None) -> list[Any]:
            answer = self._entered(timeout)
            return self._real.poll(timeout) if answer is None else answer


# Ringing


def test_it_is_not_readable_before_the_first_wake(wake: Any) -> None:
    with wake.WakePipe() as pipe:
        assert not is_readable(pipe.fileno())


def test_it_is_readable_from_the_first_wake_until_the_next_drain(wake: Any) -> None:
    with wake.WakePipe() as pipe:
        pipe.wake()
        assert is_readable(pipe.fileno())
        assert is_readable(pipe.fileno())
        pipe.drain()
        assert not is_readable(pipe.fileno())


def test_many_wakes_before_a_drain_are_one(wake: Any) -> None:
    with wake.WakePipe() as pipe:
        for _ in range(100):
            pipe.wake()
        pipe.drain()
        assert not is_readable(pipe.fileno())


def test_a_drain_without_a_wake_does_nothing(wake: Any) -> None:
    with wake.WakePipe() as pipe:
        pipe.drain()
        pipe.drain()
        pipe.wake()
        assert is_readable(pipe.fileno())


def test_any_number_of_wakes_neither_blocks_nor_fails(wake: Any) -> None:
    with wake.WakePipe() as pipe:
        for _ in range(70_000):  # a pipe holds 65 536
            pipe.wake()
        assert is_readable(pipe.fileno())
        pipe.drain()
        assert not is_readable(pipe.fileno())


def test_a_full_counter_is_readable_like_any_other(pipe: _wake.WakePipe) -> None:
    os.eventfd_write(pipe.fileno(), 2**64 - 2)
    pipe.wake()
    assert is_readable(pipe.fileno())


@pytest.mark.skipif(sys.platform != "linux", reason="the system call is Linux's")
@pytest.mark.skipif(FREE_THREADED, reason="there is no interpreter lock to keep")
def test_a_waker_keeps_the_interpreter_lock(pipe: _wake.WakePipe) -> None:
    # Its consumer then finds all chunks that a producer pushes, and not only the first.
    seen: list[int] = []
    published: list[int] = []
    ready = threading.Event()

    def consume() -> None:
        ready.set()
        assert pipe.wait(HANG)
        seen.append(len(published))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(HANG)  # so that only a system call gives it away
    try:
        thread = threading.Thread(target=consume)
        thread.start()
        ready.wait(HANG)
        for number in range(1000):
            published.append(number)
            pipe.wake()
        thread.join(HANG)
    finally:
        sys.setswitchinterval(interval)
    assert seen == [1000]


@pytest.mark.skipif(sys.platform != "linux", reason="the system call is Linux's")
def test_a_waker_makes_no_call_that_gives_the_interpreter_lock_away(
    pipe: _wake.WakePipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_away(*_args: int) -> None:
        pytest.fail("this lets another thread run")

    monkeypatch.setattr(_wake.os, "eventfd_write", give_away)
    pipe.wake()
    assert is_readable(pipe.fileno())


@pytest.mark.skipif(sys.platform != "linux", reason="the system call is Linux's")
def test_a_wake_on_a_descriptor_that_somebody_else_has_closed_is_an_error(pipe: _wake.WakePipe) -> None:
    kept = os.dup(pipe.fileno())
    os.close(pipe.fileno())
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            pipe.wake()
    finally:
        os.dup2(kept, pipe.fileno(), inheritable=False)
        os.close(kept)


@pytest.mark.skipif(sys.platform != "linux", reason="the system call is Linux's")
def test_it_works_without_ctypes(wake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    with wake.WakePipe() as pipe:
        pipe.wake()
        assert is_readable(pipe.fileno())


def test_importing_the_package_opens_no_descriptor_and_no_ctypes() -> None:
    # Some builds of libffi keep a descriptor that they open when ctypes is imported. Where 1 and 2 are closed it
    # would be one of them.
    program = """if True:
        import os, sys
        def descriptors():
            return [fd for fd in range(64) if not os.path.lexists(f"/proc/self/fd/{fd}")]
        before = descriptors()
        import trio_console
        trio_console.WakePipe, trio_console.AgentConsoleBackend, trio_console.GuestDevice
        sys.exit("ctypes" in sys.modules or descriptors() != before)
    """
    for closed in ("", "<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- 2>&-", "<&- >&- 2>&-"):
        subprocess.run(
            ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program], check=True, timeout=HANG
        )


def test_wakes_from_many_threads_are_seen(wake: Any) -> None:
    with wake.WakePipe() as pipe:
        threads = [threading.Thread(target=lambda: [pipe.wake() for _ in range(500)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG)
        assert is_readable(pipe.fileno())
        pipe.drain()
        assert not is_readable(pipe.fileno())


async def test_a_trio_task_can_wait_for_it(wake: Any) -> None:
    with wake.WakePipe() as pipe, trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, pipe.fileno())
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(pipe.wake)


def test_its_descriptor_never_blocks_and_is_not_inherited(wake: Any) -> None:
    with wake.WakePipe() as pipe:
        assert not os.get_blocking(pipe.fileno())
        assert fcntl.fcntl(pipe.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_a_device_that_overtakes_its_waker_does_not_spin() -> None:
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    with pytest.raises(BlockingIOError):
        backend.read(1)

    runs = []

    def the_device_runs() -> None:
        if runs:
            return
        runs.append(None)
        assert backend.read(10) == b"x"
        with pytest.raises(BlockingIOError):
            backend.read(10)
        assert not is_readable(backend.read_wake_fd())

    Interposed(shared.rx_wake, the_device_runs)
    shared.rx_ring.push(b"x")
    assert shared.rx_ring.wakes == len(runs) == 1


# Waiting


def test_a_wait_returns_at_once_after_a_wake_and_does_not_drain(wake: Any) -> None:
    with wake.WakePipe() as pipe:
        pipe.wake()
        assert pipe.wait()
        assert pipe.wait(0)
        assert is_readable(pipe.fileno())


def test_a_wait_of_nothing_only_looks(wake: Any) -> None:
    with wake.WakePipe() as pipe:
        assert not pipe.wait(0)
        assert not pipe.wait(-1)


def test_a_wait_sleeps_until_a_wake(pipe: _wake.WakePipe, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = threading.Event()
    monkeypatch.setattr(_wake, "select", FakeSelect(lambda _timeout: asleep.set()))
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(pipe.wait()))
    thread.start()
    assert asleep.wait(HANG)
    pipe.wake()
    thread.join(HANG)
    assert answers == [True]


class Clock:
    """Time that passes only in poll."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, per_poll: float | None = None) -> None:
        self.now = 1000.0
        self.polls: list[float] = []
        self._per_poll = per_poll
        monkeypatch.setattr(_wake, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(_wake, "select", FakeSelect(self._poll))

    def _poll(self, timeout: float | None) -> list[Any]:
        assert timeout is not None
        self.polls.append(timeout)
        self.now += timeout / 1000 if self._per_poll is None else self._per_poll
        return []


def test_a_wait_that_runs_out_of_time_says_so(pipe: _wake.WakePipe, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert not pipe.wait(2.5)
    assert clock.now == pytest.approx(1002.5)
    assert clock.polls == [2500]


def test_a_poll_that_returns_early_is_continued_until_the_deadline(
    pipe: _wake.WakePipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, per_poll=1.0)
    assert not pipe.wait(3)
    assert clock.polls == [3000, 2000, 1000]


def test_a_wait_of_less_than_a_millisecond_sleeps(pipe: _wake.WakePipe, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert not pipe.wait(0.0004)
    assert clock.polls == [1]


def test_a_wait_longer_than_poll_can_count_is_made_of_several(
    pipe: _wake.WakePipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    assert not pipe.wait(2_500_000)
    assert clock.polls == [1e9, 1e9, 5e8]
    assert max(clock.polls) < 2**31


# Closing


def test_a_closed_pipe_has_no_descriptor(wake: Any) -> None:
    pipe = wake.WakePipe()
    fd = pipe.fileno()
    pipe.close()
    assert pipe.fileno() == -1
    assert not is_open(fd)


def test_closing_twice_does_not_close_somebody_elses_file(wake: Any) -> None:
    pipe = wake.WakePipe()
    fds = {pipe.fileno()}
    pipe.close()
    others = os.pipe()
    assert fds & set(others)
    pipe.close()
    assert all(is_open(fd) for fd in others)
    for fd in others:
        os.close(fd)


def test_wake_and_drain_after_close_do_not_touch_somebody_elses_file(wake: Any) -> None:
    pipe = wake.WakePipe()
    old = pipe.fileno()
    pipe.close()
    with wake.WakePipe() as other:
        assert other.fileno() == old
        pipe.wake()
        assert not is_readable(other.fileno())
        other.wake()
        pipe.drain()
        assert is_readable(other.fileno())


def test_leaving_the_context_closes(wake: Any) -> None:
    with wake.WakePipe() as pipe:
        assert pipe.fileno() >= 0
    assert pipe.fileno() == -1


def test_a_wait_on_a_closed_pipe_is_refused(wake: Any) -> None:
    pipe = wake.WakePipe()
    pipe.close()
    with pytest.raises(ValueError, match="closed"):
        pipe.wait()


def test_a_close_wakes_a_sleeping_thread_and_leaves_it_the_number(
    pipe: _wake.WakePipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = threading.Event()
    closed = threading.Event()
    fd = pipe.fileno()
    open_then: list[bool] = []

    def in_poll(_timeout: float | None) -> None:
        asleep.set()
        assert closed.wait(HANG)
        open_then.append(is_open(fd))

    monkeypatch.setattr(_wake, "select", FakeSelect(in_poll))
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(pipe.wait()))
    thread.start()
    assert asleep.wait(HANG)
    pipe.close()
    closed.set()
    thread.join(HANG)
    assert answers == [True]
    assert open_then == [True]
    assert not is_open(fd)


def test_the_last_of_several_sleepers_closes(pipe: _wake.WakePipe, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = threading.Semaphore(0)
    go = [threading.Event(), threading.Event()]
    turn = iter(go)

    def in_poll(_timeout: float | None) -> None:
        mine = next(turn)
        asleep.release()
        assert mine.wait(HANG)

    monkeypatch.setattr(_wake, "select", FakeSelect(in_poll))
    fd = pipe.fileno()
    threads = []
    for _ in go:
        threads.append(threading.Thread(target=pipe.wait))
        threads[-1].start()
        assert asleep.acquire(timeout=HANG)
    pipe.close()
    go[0].set()
    threads[0].join(HANG)
    assert is_open(fd)
    go[1].set()
    threads[1].join(HANG)
    assert not is_open(fd)


@pytest.mark.parametrize("call", ["wake", "drain"])
def test_the_number_is_not_closed_inside_a_call(wake: Any, call: str) -> None:
    pipe = wake.WakePipe()
    fd = pipe.fileno()
    open_then: list[bool] = []

    def another_thread_closes() -> None:
        if not open_then:
            open_then.append(False)
            thread = threading.Thread(target=pipe.close)
            thread.start()
            thread.join(HANG)
            open_then[0] = is_open(fd)

    Interposed(pipe, another_thread_closes)
    getattr(pipe, call)()
    assert open_then == [True]
    assert not is_open(fd)


def test_what_a_close_has_rung_is_left_to_those_who_sleep(wake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = wake.WakePipe()
    asleep = threading.Event()
    drained = threading.Event()

    def in_poll(_timeout: float | None) -> None:
        asleep.set()
        assert drained.wait(HANG)

    monkeypatch.setattr(wake, "select", FakeSelect(in_poll))
    monkeypatch.setattr(wake, "_NO_BELL", pipe._bell)  # so that a drain could find it
    if sys.platform == "linux" and wake.Bell.__doc__.startswith("A socket pair"):
        pipe.close()
        return
    thread = threading.Thread(target=pipe.wait)
    thread.start()
    assert asleep.wait(HANG)
    pipe.close()
    pipe.drain()
    drained.set()
    thread.join(HANG)
    assert not thread.is_alive()


def test_one_collected_unclosed_closes_itself(wake: Any) -> None:
    pipe = wake.WakePipe()
    fd = pipe.fileno()
    del pipe
    gc.collect()
    assert not is_open(fd)


def test_whoever_is_collected_together_with_one_uses_nobody_elses_descriptor(wake: Any) -> None:
    seen: list[bool] = []

    class LastCalls:
        """In a cycle. A collection finalizes in any order: here the pipe first, which was made first."""

        def __init__(self, pipe: Any) -> None:
            self.pipe = pipe
            self.me = self

        def __del__(self) -> None:
            seen.append(is_open(fd))
            os.dup2(other, fd)  # another thread opens a file at this moment
            self.pipe.wake()
            seen.append(is_readable(other))
            os.eventfd_write(other, 1)
            self.pipe.drain()
            seen.append(is_readable(other))

    pipe = wake.WakePipe()
    fd = pipe.fileno()
    other = EVENTFD(0, os.EFD_NONBLOCK)
    LastCalls(pipe)
    del pipe
    gc.collect()
    os.close(fd)
    os.close(other)
    assert seen == [False, False, True]


@pytest.mark.parametrize("left", [0, 1])
def test_where_no_descriptor_can_be_had_nothing_is_left_behind(
    wake: Any, left: int, no_more_descriptors: Callable[[int], None]
) -> None:
    no_more_descriptors(left)
    needs_one = wake.Bell.__slots__ == ("_owner", "read_fd")  # an eventfd, and no pair of descriptors
    if needs_one and getattr(os, "eventfd", None) is EVENTFD and left:
        wake.WakePipe().close()
        return
    with pytest.raises(OSError, match="Too many open files"):
        wake.WakePipe()
    gc.collect()


def test_it_prints_its_descriptor_and_its_end(pipe: _wake.WakePipe) -> None:
    assert repr(pipe) == f"<WakePipe fd={pipe.fileno()}>"
    pipe.close()
    assert repr(pipe) == "<WakePipe closed>"


def test_whoever_a_close_wakes_does_not_sleep_again() -> None:
    pipe: Any = _wake.WakePipe()
    bell = pipe._bell
    woken: list[bool] = []

    class WakesAtOnce:
        """A bell whose sleeper runs before the ring returns."""

        read_fd = bell.read_fd
        silence = bell.silence

        def ring(self) -> None:
            bell.ring()
            pipe.drain()
            with contextlib.suppress(ValueError):  # says that the pipe is closed
                woken.append(pipe.wait(0))

    pipe._bell = WakesAtOnce()
    pipe.close()
    assert False not in woken
