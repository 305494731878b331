"""Turns of the event loop for tasks with much to do, above all those that work off what strangers send.

Such a task always has work while the stranger sends, and a frame can be a few bytes or a body that takes
milliseconds to decode. So work is measured in time, and not in frames (nor in chunks or bytes to send):

* `Turn`: a task that has worked for so long lets all others run. If these take longer, so may its next turn:
  it gets up to half of the time, or else what came for it would wait behind all that the others begin.
* `Meter` and `Line`: tasks that do the same for several strangers share the loop. Those that have used more than a
  share of it go on one at a time, so that the others wait for one of them, and not for all. When all of them
  together use much, the share of each is a small one. Those that use more for many small pieces also rest: the
  others would wait long for a loop that is always busy, and for a processor. Those that are far behind with them
  rest longest: a stranger who waits for no answer has sent them, and each is work for other programs, too.
* `Trickle`: a source that gives small pieces without end is left alone for a moment, and then gives larger ones.
* `Costly`: a single step that may be long, and cannot be divided, is followed by a rest that is longer.
* `Ration`: work that is done again and again gets no more than a part of the time.
* `keep_collections_short`: nor does the garbage collector keep the loop.
"""

from __future__ import annotations

import gc
import math
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Costly",
    "Line",
    "Meter",
    "Ration",
    "Trickle",
    "Turn",
    "keep_collections_short",
    "sources_left_alone",
]

_T = TypeVar("_T")

#: Seconds of work after which a task lets the others run. A turn of an idle loop takes 20 µs or more, so it costs
#: a few percent.
_TURN: Final = 0.0005

#: The same where the others have taken that long, at most.
_LONG_TURN: Final = 0.004

#: The part of the loop's time that a task may use without waiting in a line.
_SHARE: Final = 1 / 8

#: The part of the loop's time from which on all these tasks together use much of it; and the seconds that one of
#: them may then use without waiting: a few small frames.
_MUCH: Final = 1 / 4
_LITTLE: Final = 0.0001

#: Bytes in a second of work below which it is work on small pieces; and the rest after such work beside modest
#: tasks, as a multiple of it: so all that do such work together get as much of the loop as one may use without.
#: And the seconds for which a task is there after it has worked.
_BULK: Final = 32 * 1024 * 1024
_REST_FROM_CRUMBS: Final = 7
_RECENTLY: Final = 0.1

#: Bytes that a task has still to work on, beyond which its small pieces are a flood; and the rest after such work.
#: (A hundred `stat` that wait for their answers, of paths of 40 bytes, are 11 KB.)
_FAR_BEHIND: Final = 16 * 1024
_REST_FROM_A_FLOOD: Final = 31

#: Seconds without a turn that was over after which a task is a modest one again.
_MODEST_AFTER: Final = 1.0

#: Seconds that a single step may take without a rest. (Of the processor: this process may have to wait for it.)
_STEP: Final = 0.005

#: A rest, as a multiple of what a step has taken beyond that.
_REST: Final = 9

#: Bytes below which a piece is a small one (a terminal gives no more than 4095 at once); how many of them a source
#: may give in a row, and how many in a second, before it is left alone; the seconds for which it then is, how many
#: sources are so at a time, and the seconds for which one is at most.
_SMALL: Final = 1024
_SMALL_IN_A_ROW: Final = 32.0
_SMALL_IN_A_SECOND: Final = 100.0
_LEFT_ALONE: Final = 0.005
_SOURCES_LEFT_ALONE: Final = 4
_LONGEST_LEFT_ALONE: Final = 0.05

#: Collections of new objects for each of the middle generation, and of these for each full one. Python makes ten
#: of both. So a collection of the middle generation looks at a third as much, and a fifth as many are full.
_EACH_MIDDLE: Final = 3
_EACH_FULL: Final = 150


@final
class Turn:
    """The time for which a task has kept the loop. It begins with the object.

    Args:
        longest: seconds that it may be at most, where the others have taken that long.
    """

    __slots__ = ("_end", "_longest", "_short_end")

    def __init__(self, longest: float = _LONG_TURN) -> None:
        self._longest: Final = longest
        self._end = self._short_end = perf_counter() + _TURN

    def begin(self) -> None:
        """Begin anew: the other tasks have just run."""
        self._end = self._short_end = perf_counter() + _TURN

    def is_long(self) -> bool:
        """Whether it has lasted for a short turn's time, since it began or since this was true last."""
        now = perf_counter()
        if now <= self._short_end:
            return False
        self._short_end = now + _TURN
        return True

    @property
    def is_over(self) -> bool:
        return perf_counter() > self._end

    async def pause(self) -> None:
        """Let the other tasks run, and begin anew, for as long as they took if that is longer, up to a bound."""
        began = perf_counter()
        await trio.lowlevel.checkpoint()
        now = perf_counter()
        self._short_end = now + _TURN
        self._end = now + min(max(now - began, _TURN), self._longest)


@final
class _Use:
    """Seconds that were used beyond a part of the time since then."""

    __slots__ = ("_at", "_part", "seconds")

    def __init__(self, part: float) -> None:
        self._part: Final = part
        self._at = perf_counter()
        self.seconds = 0.0

    def forgive(self, now: float) -> None:
        """Take away the part of the time that has passed."""
        self.seconds = max(0.0, self.seconds - self._part * (now - self._at))
        self._at = now

    def add(self, seconds: float, now: float) -> None:
        self.seconds += seconds
        self._at = now


@final
class Line:
    """The tasks that have used more than their share wait here."""

    def __init__(self) -> None:
        self._lock: Final = trio.Lock()  # it is handed on in the order of arrival, and once in a turn of the loop
        self.all: Final = _Use(_MUCH)
        self._resting: Final = trio.Lock()
        self._resting_from_floods: Final = trio.Lock()
        self.modest: Meter | None = None  # of those that have not used more than their shares, the last to work
        self.modest_at = -math.inf  # and when that was

    @property
    def is_busy(self) -> bool:
        """Whether all tasks together use much of the loop."""
        return self.all.seconds > _TURN

    async def rest(self, used: float, behind: int) -> None:
        """Rest from work on small pieces, if there are modest tasks, for which the loop must not be full.

        One task rests behind the other, but not behind a flood if it is none itself.

        Args:
            used: the seconds of that work.
            behind: bytes that the task has still to work on.
        """
        if self.modest is None or perf_counter() - self.modest_at >= _RECENTLY:
            return
        if behind > _FAR_BEHIND:
            lock, seconds = self._resting_from_floods, _REST_FROM_A_FLOOD * used
        else:
            lock, seconds = self._resting, _REST_FROM_CRUMBS * used
        async with lock:
            await trio.sleep(seconds)

    async def wait(self) -> None:
        """Wait behind the tasks that came before; at least a checkpoint."""
        async with self._lock:
            pass


@final
class Meter:
    """The time that a task has used beyond its share of the loop.

    It is the processor's time: while other programs have the processors, no task of this one uses the loop.

    Args:
        line: where it waits when it has used a turn.
    """

    __slots__ = ("_began", "_bytes", "_has_turn", "_line", "_modest_from", "_own")

    def __init__(self, line: Line) -> None:
        self._line = line
        self._own = _Use(_SHARE)
        self._began = 0.0
        self._has_turn = False  # whether it has waited for what it uses now
        self._bytes = 0  # since it waited last
        self._modest_from = -math.inf  # when it is a modest task again

    def begin(self) -> None:
        """Note that the task works from now on: others may have worked since the last note."""
        now = perf_counter()
        had_used = self._own.seconds
        self._own.forgive(now)
        self._line.all.forgive(now)
        if had_used and not self._own.seconds:
            self._has_turn = False
        self._began = thread_time()

    def end(self, nbytes: int) -> None:
        """Note that it has worked until now, since it began or since the last such note, on so many bytes."""
        began, self._began = self._began, thread_time()
        now = perf_counter()
        self._own.add(self._began - began, now)
        self._line.all.add(self._began - began, now)
        self._bytes += nbytes
        if self._own.seconds <= _TURN and not self._has_turn and now >= self._modest_from:
            self._line.modest, self._line.modest_at = self, now

    @property
    def is_over(self) -> bool:
        """Whether the task has to `wait`."""
        used = self._own.seconds
        return used > _TURN or (used > _LITTLE and not self._has_turn and self._line.is_busy)

    async def wait(self, behind: int = 0) -> None:
        """Wait for the next turn, and begin it. ``behind``: bytes that the task has still to work on."""
        used = self._own.seconds
        if self._line.modest is self:
            self._line.modest = None  # it was, until now
        if used > _TURN:
            self._modest_from = perf_counter() + _MODEST_AFTER
            if self._bytes < _BULK * used:
                await self._line.rest(used, behind)
        await self._line.wait()
        self._bytes = 0
        self._own.seconds = 0.0
        self._has_turn = True
        self.begin()


@final
class Trickle:
    """How a source of bytes is read that may give them in small pieces.

    Each piece costs every program on its way nearly as much as a large one. A source that gives them without end
    is left alone for a moment after each, in which the next one grows.

    Args:
        alone: see `sources_left_alone`; all sources of a program share it, so many make no more work than few.
    """

    __slots__ = ("_alone", "_at", "_free", "_rest")

    def __init__(self, alone: trio.Semaphore) -> None:
        self._alone: Final = alone
        self._rest: trio.CancelScope | None = None
        self._at = -math.inf
        self._free = _SMALL_IN_A_ROW  # small pieces before it is left alone

    def note_asked(self) -> None:
        """Note that the source is sent something: its answer must not wait."""
        self._free = _SMALL_IN_A_ROW
        if self._rest is not None:
            self._rest.cancel()

    async def rest(self, nbytes: int) -> None:
        """Leave the source alone, if it must be, after a piece of so many bytes; a checkpoint only if it is."""
        if nbytes >= _SMALL:
            return
        now = trio.current_time()
        self._free = min(_SMALL_IN_A_ROW, self._free + _SMALL_IN_A_SECOND * (now - self._at))
        self._at = now
        if self._free >= 1:
            self._free -= 1
            return
        with trio.move_on_after(_LONGEST_LEFT_ALONE) as self._rest:
            async with self._alone:
                await trio.sleep(_LEFT_ALONE)
        self._rest = None


def sources_left_alone() -> trio.Semaphore:
    """What all `Trickle` of a program share."""
    return trio.Semaphore(_SOURCES_LEFT_ALONE)


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


@final
class Ration:
    """Work that is done again and again gets a part of the time, but for a burst of it.

    Args:
        part: of the time.
        burst: seconds of work that may be done at once.
    """

    def __init__(self, part: float, burst: float) -> None:
        self._part: Final = part
        self._burst: Final = burst
        self._used = 0.0
        self._at = -math.inf

    def rest_after(self, seconds: float) -> float:
        """Note so many seconds of work until now; returns the seconds for which to do no more of it."""
        now = trio.current_time()
        self._used = max(0.0, self._used - self._part * (now - self._at)) + seconds
        self._at = now
        return max(0.0, self._used - self._burst) / self._part


def keep_collections_short() -> None:
    """Leave out of all collections of garbage what is there now, because it stays; and make them shorter or rarer.

    For programs of ours that serve many sessions. (A library does not do this to the program that uses it.) A full
    collection looks at every object, and no session goes on meanwhile. What ends in this package leaves no objects
    that refer to each other in a circle, so a collection finds nothing, and few are needed. They are not switched
    off: what another library or a fault leaves must be freed at last.
    """
    young, *_ = gc.get_threshold()
    gc.set_threshold(young, _EACH_MIDDLE, _EACH_FULL)
    gc.freeze()
