"""Descriptors that are closed when nobody uses them any more.

A descriptor number is recycled the moment it is closed. So it must not be closed while a thread is in a system
call on it; and what was opened must be closed, whatever happens. Both follow from one rule: **whoever uses the
number holds a reference to its `Descriptors` meanwhile, and the last reference to go closes it.** Whoever is done
with it drops the own reference, and waits for nobody.

Counting references is the interpreter's work, and is right where a lock, a flag or a counter of ours would not be:

* Two threads: one has got its reference, and the number stays open until that is gone; or it comes too late,
  and gets whatever has been put in the place of the reference. There is no third case.
* A signal handler runs between any two opcodes, in the middle of our calls. It takes references of its own; there
  is nothing that it could find locked, or half done.
* A handler raises. The frames of the interrupted calls go, and their references with them. (An exception that
  somebody keeps has these frames in its traceback: a descriptor that was in use is closed when it is let go.)

One case is not counted. Objects that refer to each other, and that nobody else refers to, are found by the
garbage collector, which finalizes them in any order: a `Descriptors` perhaps before those who use its numbers. So
``numbers`` is empty once they are closed, and whatever a finalizer may call looks at that first. (No other thread
has a reference by then: nothing can come between the look and the use.)

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
    """Owns the descriptors that ``numbers`` yields, until the last reference to it has gone.

    If ``numbers`` opens them as it goes, in C code only, no exception from a signal handler can come between a
    descriptor and its owner. Errors of closing (``EIO`` of a dying device) are not told: nobody is left to hear.
    """

    # The name of this slot is looked up as a method's is, and its value is called. That is C code all the way: in
    # a `__del__` written in Python a signal handler could raise before it closes the descriptor.
    __slots__ = ("__del__", "numbers")

    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers: list[int] = []
        # Set first, so that no descriptor is ever without it: it goes through the list when it is called.
        # (`os.closerange(n, n + 1)` closes one, and does not raise.)
        closing = map(os.closerange, self.numbers, map((1).__add__, self.numbers))
        emptying = starmap(self.numbers.clear, ((),))
        self.__del__: Callable[[], object] = partial(deque, chain(closing, emptying), 0)
        self.numbers.extend(numbers)
