"""Turns of the event loop for tasks that work off what strangers send.

Such a task always has work while the stranger sends, and a frame can be a few bytes or a body that takes
milliseconds to decode. So work is measured in time, and not in frames:

* `Turn`: a task that has worked for so long lets all others run.
* `Meter` and `Line`: tasks that do the same for several strangers share the loop. Those that have used more than a
  share of it go on one at a time, so that the others wait for one of them, and not for all.
* `Costly`: a single step that may be long, and cannot be divided, is followed by a rest that is longer.
"""

from __future__ import annotations

import math
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Costly", "Line", "Meter", "Turn"]

_T = TypeVar("_T")

#: Seconds of work after which a task lets the others run. A turn of an idle loop takes 20 µs or more, so it costs
#: a few percent.
_TURN: Final = 0.0005

#: The part of the loop's time that a task may use without waiting in a line.
_SHARE: Final = 1 / 8

#: Seconds that a single step may take without a rest. (Of the processor: this process may have to wait for it.)
_STEP: Final = 0.005

#: A rest, as a multiple of what a step has taken beyond that.
_REST: Final = 9


@final
class Turn:
    """The time for which a task has kept the loop. It begins with the object."""

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self._end = perf_counter() + _TURN

    def begin(self) -> None:
        """Begin anew: the other tasks have just run."""
        self._end = perf_counter() + _TURN

    @property
    def is_over(self) -> bool:
        return perf_counter() > self._end

    async def pause(self) -> None:
        """Let the other tasks run, and begin anew."""
        await trio.lowlevel.checkpoint()
        self.begin()


@final
class Line:
    """The tasks that have used more than their share wait here."""

    def __init__(self) -> None:
        self._lock: Final = trio.Lock()  # it is handed on in the order of arrival, and once in a turn of the loop

    async def wait(self) -> None:
        """Wait behind the tasks that came before; at least a checkpoint."""
        async with self._lock:
            pass


@final
class Meter:
    """The time that a task has used beyond its share of the loop.

    Args:
        line: where it waits when it has used a turn.
    """

    __slots__ = ("_at", "_line", "_used")

    def __init__(self, line: Line) -> None:
        self._line = line
        self._used = 0.0
        self._at = perf_counter()

    def begin(self) -> None:
        """Note that the task works from now on."""
        now = perf_counter()
        self._used = max(0.0, self._used - _SHARE * (now - self._at))
        self._at = now

    def end(self) -> None:
        """Note that it has worked until now."""
        now = perf_counter()
        self._used += now - self._at
        self._at = now

    @property
    def is_over(self) -> bool:
        """Whether the task has to `wait`."""
        return self._used > _TURN

    async def wait(self) -> None:
        """Wait for the next turn."""
        await self._line.wait()
        self._used = 0.0
        self._at = perf_counter()


@final
class Costly:
    """Steps that may be long, of any number of tasks: one at a time, each behind the rest after the one before."""

    def __init__(self) -> None:
        self._lock: Final = trio.Lock()
        self._rest_until = -math.inf

    async def run(self, step: Callable[[], _T]) -> _T:
        """Do a step, which does not block. If cancelled, it was not done."""
        async with self._lock:
            await trio.sleep_until(self._rest_until)
            began = thread_time()
            try:
                return step()
            finally:
                over = thread_time() - began - _STEP
                if over > 0:
                    self._rest_until = trio.current_time() + _REST * over
