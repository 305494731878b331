"""The descriptors that a forked child closes.

In this package each side learns from end of file that the other side has died: an agent that its host is gone, a
relay that a client is gone. But a forked child (`multiprocessing` forks by default before Python 3.14) has a copy
of each descriptor, which keeps the connection open after the program has ended. So the child closes our
descriptors at once, whatever it does next. It never shuts a connection down, because that would end it for its
parent.

A child that is forked by a C library, without Python, closes none. So a program that leaves a connection shuts it
down before it closes it (`shut_down_at_the_end`): that ends the connection for every copy, and the bytes already
sent still arrive.

A fork in another thread can come between the making of a descriptor and `let_go_in_child`. So both are done in one
block of `no_fork`, for which such a fork waits. (No task can fork in between, because there is no checkpoint.)

The wakes are not let go of: no program learns anything from their end, and a child that rings one wakes its parent
for nothing.

The child does not close a number but puts ``/dev/null`` on it. The objects that own the number exist in the child
as well, and close it when they are garbage-collected: by then a closed number might be another file's.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    import trio

__all__ = ["let_go_in_child", "no_fork", "shut_down_at_the_end"]

_T = TypeVar("_T")

#: For each owner of descriptors a function that returns the numbers it owns now; a number below 0 is closed
#: already.
_owners: Final[weakref.WeakKeyDictionary[Any, Callable[[Any], Iterable[int]]]] = weakref.WeakKeyDictionary()

#: Held by a thread that makes descriptors, and by one that forks. The former waits for no other thread then, so
#: a fork waits only for a few system calls.
_lock = threading.RLock()

#: Seconds after which a fork is made all the same: nothing here may hang a program that only forks.
_LONGEST_WAIT: Final = 5.0


def no_fork() -> AbstractContextManager[bool]:
    """A context manager for the time between making a descriptor and `let_go_in_child`: no other thread forks.

    The block must not wait for anything.
    """
    return _lock


def _own_number(owner: Any) -> tuple[int]:
    return (owner.fileno(),)


def let_go_in_child(owner: _T, numbers: Callable[[_T], Iterable[int]] = _own_number) -> _T:
    """Close an object's descriptors in every child that is forked while the object exists; returns the object.

    Args:
        owner: the object that owns the descriptors.
        numbers: returns the numbers that the owner has now; by default ``(owner.fileno(),)``. It is called in the
            child, where no lock may be taken.
    """
    _owners[owner] = numbers
    return owner


@contextmanager
def shut_down_at_the_end(sock: trio.socket.SocketType) -> Iterator[None]:
    """Shut a connection down when the block is left; the caller closes it.

    The bytes already sent still reach the other end. In a forked child the number is that of the null device, and
    nothing happens.
    """
    try:
        yield
    finally:
        with suppress(OSError):  # the other end has gone, or our end was closed before
            sock.shutdown(socket.SHUT_RDWR)


def _let_go() -> None:
    """Replace the descriptors of all owners by the null device. Runs in the child, which has one thread.

    Errors are ignored, because no caller is there to handle them.
    """
    numbers = [number for owner, ask in list(_owners.items()) for number in ask(owner) if number >= 0]
    _owners.clear()
    if not numbers:
        return
    null = _open_null(numbers)
    for number in numbers:
        if number != null:
            try:
                os.dup2(null, number, inheritable=False)
            except OSError:  # the number is above a limit that was lowered, or there is no null device
                with suppress(OSError):
                    os.close(number)
    if null >= 0 and null not in numbers:
        os.close(null)


def _open_null(numbers: list[int]) -> int:
    """Open the null device. If no descriptor is free, close one of ``numbers`` after the other until one is.

    Returns a number below 0 if there is no null device (in a chroot without /dev).
    """
    for spare in (-1, *numbers):
        with suppress(OSError):
            if spare >= 0:
                os.close(spare)
        with suppress(OSError):
            return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return -1


# The lock is the forking thread's between the first function and one of the other two, in each process. (`release`
# raises if this thread has not got it.)


def _before() -> None:
    _lock.acquire(timeout=_LONGEST_WAIT)


def _after_in_parent() -> None:
    with suppress(RuntimeError):
        _lock.release()


def _after_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # the old one may be held by a thread that does not exist here
    _let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
