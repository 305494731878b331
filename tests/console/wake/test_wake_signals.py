"""A wake whose calls are interrupted by signal handlers, at every opcode.

A handler may do anything there, such as wake the same pipe, and it may raise. In each case no call is stuck, a
later `wake` makes the pipe readable, and `close` closes its descriptor, once.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from tests.console.wake.interrupter import Interrupt, at_every_opcode, interrupted
from tests.tools.descriptors import is_open, is_readable
from tests.tools.limits import HANG
from trio_console._console import descriptor as _descriptor
from trio_console._console import wake as _wake
from trio_console._console.wake import WakePipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES: Final = [_wake.__file__, _descriptor.__file__]


def wait_if_open(pipe: WakePipe) -> None:
    refused: list[str] = []
    try:
        pipe.wait(0)
    except ValueError as exc:
        refused.append(str(exc))
    assert all("closed WakePipe" in reason for reason in refused)


def leave(pipe: WakePipe) -> None:
    with pipe:
        pass


def raise_interrupt(_pipe: WakePipe) -> None:
    raise Interrupt


def wake_and_raise(pipe: WakePipe) -> None:
    pipe.wake()
    raise Interrupt


CALLS: Final = [WakePipe.wake, WakePipe.drain, wait_if_open, WakePipe.close, WakePipe.fileno, leave]
HANDLERS: Final = [
    WakePipe.wake,
    WakePipe.drain,
    wait_if_open,
    WakePipe.close,
    leave,
    raise_interrupt,
    wake_and_raise,
]


def check_still_works(pipe: WakePipe) -> None:
    """As far as it is open."""
    if pipe.fileno() >= 0:
        pipe.wake()
        assert is_readable(pipe.fileno())
        pipe.drain()
        assert not is_readable(pipe.fileno())


def check_given_back(pipe: WakePipe, fd: int) -> None:
    """The number is free when the pipe is closed, and is not closed again when it belongs to another file."""
    pipe.close()
    assert not is_open(fd)
    other = os.open(os.devnull, os.O_RDONLY)
    assert other == fd
    pipe.wake()
    pipe.drain()
    pipe.close()
    del pipe
    assert is_open(other)
    os.close(other)


@pytest.mark.parametrize("state", ["silent", "rung", "closed"])
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("call", CALLS)
def test_a_handler_at_any_opcode_breaks_nothing(
    call: Callable[[WakePipe], object], handler: Callable[[WakePipe], object], state: str
) -> None:
    def run(at: int) -> bool:
        pipe = WakePipe()
        fd = pipe.fileno()
        if state == "rung":
            pipe.wake()
        elif state == "closed":
            pipe.close()
        happened = interrupted(lambda: call(pipe), lambda: handler(pipe), at, FILES)
        check_still_works(pipe)
        check_given_back(pipe, fd)
        return happened

    assert at_every_opcode(run) >= 3  # 4 on 3.12, for a drain


@pytest.mark.parametrize("call", CALLS)
def test_a_wake_in_a_handler_is_not_lost(call: Callable[[WakePipe], object]) -> None:
    # A drain may take the ring away, because its caller looks for work after the drain.
    def run(at: int) -> bool:
        with WakePipe() as pipe:
            happened = interrupted(lambda: call(pipe), pipe.wake, at, FILES)
            if happened and call is not WakePipe.drain and pipe.fileno() >= 0:
                assert is_readable(pipe.fileno())
        return happened

    at_every_opcode(run)


def test_a_close_that_was_interrupted_can_be_done_again_and_frees_a_sleeping_thread() -> None:
    def run(at: int) -> bool:
        pipe = WakePipe()
        fd = pipe.fileno()
        sleeper = threading.Thread(target=pipe.wait)
        sleeper.start()
        happened = interrupted(pipe.close, lambda: raise_interrupt(pipe), at, FILES)
        pipe.close()
        sleeper.join(HANG)
        assert not sleeper.is_alive()
        check_given_back(pipe, fd)
        return happened

    at_every_opcode(run)


def test_a_pipe_whose_making_was_interrupted_keeps_no_descriptor() -> None:
    def run(at: int) -> bool:
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        happened = interrupted(WakePipe, lambda: raise_interrupt(pipe), at, FILES)
        assert not is_open(free)
        return happened

    with WakePipe() as pipe:
        at_every_opcode(run)


@contextmanager
def alarms(handler: Callable[[], object]) -> Iterator[None]:
    """Run the handler for the first of many signals that Python sees.

    A signal that arrives after the interpreter's last look, and before the thread sleeps, interrupts nothing:
    Python runs its handler when the sleep ends. The next signal ends the sleep.
    """

    def handle(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        handler()

    kept = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


def test_a_handler_ends_the_wait_that_it_interrupted() -> None:
    with WakePipe() as pipe:
        with alarms(pipe.wake):
            assert pipe.wait(HANG)


def test_an_exception_from_a_handler_ends_the_wait_and_the_pipe_is_given_back() -> None:
    pipe = WakePipe()
    fd = pipe.fileno()
    with pytest.raises(Interrupt), alarms(lambda: raise_interrupt(pipe)):
        pipe.wait(HANG)
    check_still_works(pipe)
    check_given_back(pipe, fd)
