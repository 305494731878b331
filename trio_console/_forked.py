"""What a forked child lets go of.

End of file is how everybody here learns that the other end has died: an agent that its program is gone, a relay
that a client is. A child that was forked (as `multiprocessing` does by default before Python 3.14) has a copy of
each descriptor, and with it the connection outlives the program. So the child closes ours, at once, whatever it is
going to do. It never shuts them down: that would end the connections of its parent.

A child that was forked past Python, by a library in C, lets go of nothing. So a program that leaves a connection
shuts it down before it closes it (`shut_down_at_the_end`): that ends it for every copy, and takes back nothing
that was sent.

In the child each number is put on ``/dev/null`` instead of being closed. The objects that think the number theirs
are in the child as well, and close it when they are collected: by then it might be somebody else's.
"""

from __future__ import annotations

import os
import socket
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import trio

__all__ = ["let_go_in_child", "shut_down_at_the_end"]

_T = TypeVar("_T")

#: Owners of descriptors, and how to ask them for the numbers they have now, below 0 for those closed already.
_owners: Final[weakref.WeakKeyDictionary[Any, Callable[[Any], Iterable[int]]]] = weakref.WeakKeyDictionary()


def _own_number(owner: Any) -> tuple[int]:
    return (owner.fileno(),)


def let_go_in_child(owner: _T, numbers: Callable[[_T], Iterable[int]] = _own_number) -> _T:
    """Close an object's descriptors in every child that is forked while it lives; returns the object.

    Args:
        owner: of the descriptors. It need not be told when it closes them, if ``numbers`` then says so.
        numbers: the descriptors that the owner has now, by default of a socket. Called in the child, where no lock
            may be taken.
    """
    _owners[owner] = numbers
    return owner


@contextmanager
def shut_down_at_the_end(sock: trio.socket.SocketType) -> Iterator[None]:
    """Shut a connection down when the block is left; closing it is left to the caller.

    What was sent still reaches the other end. In a forked child the number is the null device's, and nothing
    happens.
    """
    try:
        yield
    finally:
        with suppress(OSError):  # the other end has gone already, or ours was closed
            sock.shutdown(socket.SHUT_RDWR)


def _let_go() -> None:
    """In the child, which has one thread, and nobody to tell of errors."""
    numbers = [number for owner, ask in list(_owners.items()) for number in ask(owner) if number >= 0]
    _owners.clear()
    if not numbers:
        return
    null = _open_null(numbers)
    for number in numbers:
        if number != null:
            try:
                os.dup2(null, number, inheritable=False)
            except OSError:  # beyond a limit that was lowered, or there is no null device
                with suppress(OSError):
                    os.close(number)
    if null >= 0 and null not in numbers:
        os.close(null)


def _open_null(numbers: list[int]) -> int:
    """Open the null device. Where no descriptor is free, one of ``numbers`` after the other is closed for it.

    Below 0 if there is no such device (in a chroot without /dev).
    """
    for spare in (-1, *numbers):
        with suppress(OSError):
            if spare >= 0:
                os.close(spare)
        with suppress(OSError):
            return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return -1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
