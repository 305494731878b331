"""What a forked child lets go of.

End of file is how everybody here learns that the other end has died: an agent that its program is gone, a relay
that a client is. A child that was forked (as `multiprocessing` does by default before Python 3.14) has a copy of
each descriptor, and with it the connection outlives the program. So the child closes ours, at once, whatever it is
going to do. It never shuts them down: that would end the connections of its parent.

In the child each number is put on ``/dev/null`` instead of being closed. The objects that think the number theirs
are in the child as well, and close it when they are collected: by then it might be somebody else's.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["let_go_in_child"]

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


def _let_go() -> None:
    """In the child, which has one thread, and nobody to tell of errors."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for owner, numbers in list(_owners.items()):
            for number in numbers(owner):
                if number >= 0:
                    with suppress(OSError):
                        os.dup2(null, number, inheritable=False)
        os.close(null)
    _owners.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
