"""The signals that ask a program to end: INT, TERM and HUP.

* A signal that was ignored when this program was started stays ignored: `nohup` and a shell's ``&`` ask for that.
* While nothing has to be ended in order, the signals have their default action, and end this program at once.
* The third of three signals within two seconds ends this program whatever it waits for.

The handlers are Python's. Python calls them in the main thread between two opcodes, also while a system call of
the main thread blocks, so they need neither trio's loop nor a task.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["act_by_default", "caught", "die_of"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: So many signals within so many seconds are more than were sent by mistake: a closing terminal sends two.
_MANY: Final = 3
_SPAN: Final = 2.0


def _heeded() -> list[signal.Signals]:
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def act_by_default() -> None:
    """Let each signal that is not ignored end this program at once. (Python has a handler for SIGINT.)"""
    for number in _heeded():
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def caught(act: Callable[[int], object], force: Callable[[int], object]) -> Iterator[None]:
    """Call a function for each signal that is not ignored, for the time of a block.

    Args:
        act: called with the number of each signal but those that are for ``force``. It runs in a signal handler.
        force: called with the number of a signal that is the third within two seconds.
    """
    times: deque[float] = deque(maxlen=_MANY)

    def handle(number: int, _frame: object) -> None:
        times.append(time.monotonic())
        if len(times) == _MANY and times[-1] - times[0] <= _SPAN:
            force(number)
        else:
            act(number)

    heeded = _heeded()
    for number in heeded:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, signal.SIG_DFL)


def die_of(number: int) -> NoReturn:
    """End this program by a signal, so that its parent sees the status of a program that was killed."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a core dump of this program would be of no use
    os.kill(os.getpid(), number)
    sys.exit(128 + number)  # reached if the signal's default action is to do nothing
