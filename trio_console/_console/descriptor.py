"""Descriptors that are closed when their last user has gone.

The system gives a descriptor's number to the next file as soon as the descriptor is closed. So a descriptor must
not be closed while a thread is in a system call on it, and yet it must always be closed in the end. One rule
gives both: **each user of a number holds a reference to its `Descriptors` during the use, and the descriptor is
closed when the last reference goes.** A user that has finished drops its own reference and waits for no other
user.

The interpreter counts the references. That is right in three cases in which a lock, a flag or a counter of our own
would be wrong:

* Two threads, of which one uses the number and the other closes it. Either the user got its reference first, and
  the number stays open until that reference is gone; or the user comes too late, and finds the substitute that the
  closing thread has put in the reference's place. There is no third case.
* A signal handler runs between any two opcodes, in the middle of our calls. It takes references of its own, and it
  can find nothing locked or half done.
* A signal handler raises. The frames of the interrupted calls are released, and their references with them. (An
  exception that is kept has these frames in its traceback. The descriptor is then closed when the exception is
  released.)

One case is not covered by counting. Objects that refer to each other and are otherwise unreachable are found by
the garbage collector, which finalizes them in any order, so perhaps a `Descriptors` before an object that uses its
numbers. Therefore ``numbers`` is emptied when the descriptors are closed, and every method that a finalizer may
call checks it first. (No other thread has a reference by then, so nothing can happen between the check and the
use.)

This module must not know what the descriptors are for, nor import trio.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from itertools import chain, starmap
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Descriptors"]


@final
class Descriptors:
    """Owns the descriptors that ``numbers`` yields, and closes them when the last reference to it goes.

    ``numbers`` may be an iterator that opens each descriptor when it is asked for the next. If it is made of C
    code only, no exception from a signal handler can come between the opening and the ownership. An error of
    closing (``EIO`` of a failing device) is ignored, because no caller is left that could handle it.
    """

    # The interpreter looks `__del__` up on the class, finds this slot, and calls the slot's value. That is C code
    # all the way. In a `__del__` written in Python a signal handler could raise before the descriptor is closed.
    __slots__ = ("__del__", "numbers")

    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers: list[int] = []
        # `__del__` is set before the first descriptor is opened, so that no descriptor is ever without it. It goes
        # through the list when it is called. (`os.closerange(n, n + 1)` closes one descriptor, and never raises.)
        closing = map(os.closerange, self.numbers, map((1).__add__, self.numbers))
        emptying = starmap(self.numbers.clear, ((),))
        self.__del__: Callable[[], object] = partial(deque, chain(closing, emptying), 0)
        self.numbers.extend(numbers)
