"""The rank of our programs on a busy machine: what they get a processor before.

For programs of ours that many others wait for, and that work a little for each. A library does not do this to the
program that uses it.

The rank is one among programs that all get their part in the end. A real-time one must not be given: there a
program that reaps another may wait in the kernel, busily and for ever, for one that it keeps the processor from.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["go_first", "going_along"]

_T = TypeVar("_T")

#: Seventy times the weight of niceness 0. With less (-5 has three times, -11 twelve) the kernel finds sooner that
#: a thread has had its part of a busy processor, and lets it wait for a tick, 4 ms or more.
_NICENESS: Final = -19

#: The same of a program that works for the one that has started it. With more it took the processor from that one
#: before there was much to read: the output of a command came at 0.8 of the rate, on two processors.
_NICENESS_FOR_ONE: Final = -5

_SESSION: Final = "/proc/self/autogroup"

#: The shortest slice of time that a thread can ask for, in nanoseconds.
_SLICE: Final = 100_000

#: The numbers of sched_setattr(2), which Python does not have, and what SCHED_RESET_ON_FORK is there.
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
_RESET_ON_FORK: Final = 1

#: The niceness that `go_first` has given this program, if threads may have it, too.
_given: int | None = None


def go_first(*, for_parent: bool = False) -> None:
    """Let this thread get a processor before what other programs do with theirs, if this process may do that.

    A rank needs CAP_SYS_NICE. Nothing changes if somebody has given this program one. Threads and processes that
    are started afterwards have the usual one; see `going_along`.

    It also asks for short slices of time, which Linux 6.12 and later give to everybody: a thread with shorter ones
    than the running thread's does not wait for the end of that one's slice when it wakes up (some milliseconds,
    whatever its niceness), unless it has had more than its part.

    The kernel shares processors among POSIX sessions where it groups by them (sched_autogroup(7)), and then among
    the threads of each. So this raises both. The session is only raised by its leader: a program that was started
    from a shell shares the shell's.

    Args:
        for_parent: the program works for the one that has started it, and goes no further than a little or that
            one does.
    """
    global _given
    with contextlib.suppress(OSError, AttributeError):
        # (Refused, or a kernel or a C library without it.)
        if os.sched_getscheduler(0) != os.SCHED_OTHER or os.getpriority(os.PRIO_PROCESS, 0):
            return
        niceness = _NICENESS
        if for_parent:
            niceness = min(_NICENESS_FOR_ONE, os.getpriority(os.PRIO_PROCESS, os.getppid()))
        _raise_thread(niceness)
        # (Those of an agent of one program would keep that from a processor: a command took a tenth longer.)
        if niceness < _NICENESS_FOR_ONE:
            _given = niceness
        if os.getsid(0) == os.getpid():
            with open(_SESSION, "w", encoding="ascii") as file:
                file.write(str(niceness))


def going_along(function: Callable[[], _T]) -> _T:
    """Call a function in this thread, with the rank of the main thread if that has a high one from `go_first`.

    For threads with little to do of which each piece needs the interpreter. While one of the usual rank has the
    interpreter and no processor, which a busy machine may not give it for ten milliseconds, the main thread waits
    for it. What the function starts has the usual rank.
    """
    if _given is None:
        return function()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        _raise_thread(_given)
    try:
        return function()
    finally:
        # (The thread may be used for other work, such as to copy a large file.)
        os.setpriority(os.PRIO_PROCESS, 0, before)


def _raise_thread(niceness: int) -> None:
    # What this thread starts must not inherit the rank.
    os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    _ask_for_short_slices()
    os.setpriority(os.PRIO_PROCESS, 0, niceness)


def _ask_for_short_slices() -> None:
    """Ask the kernel for them at the niceness 0; nothing changes if it does not know them."""
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None or struct.calcsize("P") != 8:
        return
    # Its size, the policy, the flags, the niceness, a priority of other policies, the slice, and two times of
    # other policies.
    attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, _RESET_ON_FORK, 0, 0, _SLICE, 0, 0)
    ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, attributes, 0)
