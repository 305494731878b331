"""The threads in which commands are started, each command in a cgroup of its own (`_cgroups`).

A start thread is in an empty cgroup before a request comes. It starts one command there, tells the task that waits
for it, and moves on into the next cgroup. So neither the making of a cgroup nor a move is in the way of a start:
they take place while the command runs.

* Nobody freezes a cgroup in which a start thread still is (`Stay`). A hunt waits for it to leave, which the thread
  does as its next step.
* A start thread that cannot leave stays what it is, a thread of the agent that may be used for any other work: the
  cgroup in which it is stuck is never frozen, and no command is started in a cgroup from then on. What the thread
  forks is in the wrong cgroup, but that one is no more used to find anything.
* No other thread may be started by a start thread, because it would be born in the command's cgroup.

A cgroup is removed when its command is over and nothing lives in it. A start thread does that, behind its next
start. A cgroup in which something lives on is kept, so that it can be found later.

This module must not know sessions, nor how a child is made.
"""

from __future__ import annotations

import contextlib
import errno
import math
import queue
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final

import outcome
import trio

from trio_console._rank import going_along
from trio_console._trio.threads import NoThreadError, captured, in_thread
from trio_console.agent._cgroups import Stay

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console.agent._cgroups import Cgroup, Cgroups

__all__ = ["Births"]

_T = TypeVar("_T")

#: Start threads that are kept waiting for the next command. (Starts need the interpreter, so more would not help.)
_READY: Final = 2

#: Cgroups of commands that are over before a start thread is woken up to remove them.
_MANY_OVER: Final = 32

#: Cgroups that are kept before the first look for those that nothing lives in any more.
_FEW: Final = 64

#: The errors of a lack that may pass, and of a cgroup that was removed by others. After any other error no cgroup
#: is tried again.
_PASSING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOENT, errno.ENODEV)

#: Seconds that start threads have to leave in the end.
_LEAVING_TIME: Final = 1.0

_PAUSE: Final = 0.001


@final
class _Start(Generic[_T]):
    """A start, and the task that waits for it."""

    __slots__ = ("_function", "_task", "_token")

    def __init__(self, function: Callable[[], _T]) -> None:
        self._function = function
        self._task = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()

    def run(self, cgroup: Cgroup | None) -> None:
        """Run in this thread; the task goes on while the thread does."""
        self._token.run_sync_soon(
            trio.lowlevel.reschedule, self._task, outcome.Value((captured(self._function), cgroup))
        )


@final
class Births:
    """Starts commands in cgroups, if there are any, and otherwise in plain threads.

    Args:
        cgroups: the agent's directory, which `end` closes; `None` if it has none.
    """

    def __init__(self, cgroups: Cgroups | None) -> None:
        self._cgroups = cgroups
        self._plain: Final = trio.CapacityLimiter(math.inf)  # the callers have limits
        self._broken = False  # whether no cgroup is tried any more
        self._born: dict[str, Cgroup] = {}  # by the mark of the command; until the cgroup is removed
        self._over: deque[Cgroup] = deque()  # those whose commands are over
        self._kept: list[Cgroup] = []  # of those, the ones in which something has lived on
        self._many = _FEW
        self._tidying = threading.Lock()  # held by the one thread that uses `_kept` and takes from `_over`
        # The start threads, and those of them that wait, each for its next order. All three only with the lock.
        self._changed: Final = threading.Condition()
        self._ready: list[queue.SimpleQueue[_Start[Any] | None]] = []
        self._threads = 0
        self._ending = False

    # The loop's side

    def prepare(self) -> None:
        """Let a thread get ready for the first command, if none is."""
        with self._changed:
            is_ready = bool(self._ready)
        if self._cgroups is not None and not is_ready:
            with contextlib.suppress(NoThreadError):
                self._give(self._cgroups, None)

    async def wait_prepared(self) -> None:
        """Wait until that thread is ready, or has found that there are no cgroups; no command was run yet."""
        while self._threads > len(self._ready):  # noqa: ASYNC110  (a thread makes it so)
            await trio.sleep(_PAUSE)

    async def run(self, mark: str, function: Callable[[], _T]) -> _T:
        """Call a function in a thread, and return its result. Everything that it forks is born in one new cgroup.

        It cannot be cancelled.

        Args:
            mark: names the cgroup, see `of`.
            function: called without arguments.

        Raises:
            NoThreadError: no thread could be started, so the function was not called.
        """
        if self._cgroups is None or self._broken:
            return await in_thread("for a command", partial(going_along, function), limiter=self._plain)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._give(self._cgroups, _Start(function))
        result: outcome.Outcome[_T]
        result, cgroup = await trio.lowlevel.wait_task_rescheduled(_cannot_be_stopped)
        if cgroup is not None:
            if isinstance(result, outcome.Value):
                cgroup.mark = mark
                self._born[mark] = cgroup
            else:
                self._over.append(cgroup)
        try:
            return result.unwrap()
        finally:
            del result  # the traceback of its error refers to this frame

    def of(self, mark: str) -> list[Cgroup]:
        """The cgroups that were named with a mark, or with one that begins with it, and are not removed yet."""
        if mark in self._born:
            return [self._born[mark]]
        return [cgroup for name, cgroup in list(self._born.items()) if name.startswith(mark)]

    def note_over(self, mark: str) -> None:
        """Note that a command is over; its cgroup is removed as soon as nothing lives in it."""
        cgroup = self._born.get(mark)
        if cgroup is not None:
            self._over.append(cgroup)
            if len(self._over) >= _MANY_OVER:
                with self._changed:
                    if self._ready:
                        self._ready.pop().put(None)

    async def end(self) -> None:
        """Kill all that lives in the cgroups, and remove them; the caller sets a deadline.

        No start may be under way.
        """
        if self._cgroups is None:
            return
        try:
            self._send_home()
            left = list(self._born.values())
            while left := [each for each in left if each.stay is Stay.THREAD_OUT and not each.end()]:
                with contextlib.suppress(OSError):  # no descriptor is left: what is killed frees some
                    for each in left:
                        each.kill()
                await trio.sleep(_PAUSE)
        finally:
            self._cgroups.close()

    def _send_home(self) -> None:
        # The loop stands still meanwhile, in its last moments: a thread leaves in some ten microseconds.
        with self._changed:
            self._ending = True
            while self._ready:
                self._ready.pop().put(None)
            self._changed.wait_for(lambda: not self._threads, _LEAVING_TIME)

    def _give(self, cgroups: Cgroups, start: _Start[Any] | None) -> None:
        """Give a start to a thread that waits for one, or to a new one."""
        with self._changed:
            if self._ready:
                self._ready.pop().put(start)
                return
            self._threads += 1
        try:
            work = partial(going_along, partial(self._work, cgroups, start))
            trio.lowlevel.start_thread_soon(work, _raise, "thread for commands")
        except RuntimeError as exc:
            with self._changed:
                self._threads -= 1
            raise NoThreadError("for a command") from exc

    # The side of a start thread

    def _work(self, cgroups: Cgroups, start: _Start[Any] | None) -> None:
        orders: queue.SimpleQueue[_Start[Any] | None] = queue.SimpleQueue()
        cgroup = self._move_on(cgroups, None)
        try:
            while True:
                if start is not None:
                    start.run(cgroup)
                    cgroup = self._move_on(cgroups, cgroup)
                self._tidy(cgroups)
                with self._changed:
                    if self._ending or cgroup is None or len(self._ready) >= _READY:
                        break
                    self._ready.append(orders)
                start = orders.get()
        finally:
            if cgroup is not None:
                self._leave(cgroups, cgroup)
                self._over.append(cgroup)
            with self._changed:
                self._threads -= 1
                self._changed.notify_all()

    def _move_on(self, cgroups: Cgroups, old: Cgroup | None) -> Cgroup | None:
        """Leave a cgroup for a new one; if there can be none, for the agent's own."""
        new = self._enter_new(cgroups)
        if old is not None:
            if new is None:
                self._leave(cgroups, old)
            else:
                old.stay = Stay.THREAD_OUT
        return new

    def _enter_new(self, cgroups: Cgroups) -> Cgroup | None:
        if self._broken:
            return None
        try:
            cgroup = cgroups.new()
            try:
                cgroup.enter()
            except OSError:
                cgroup.end()
                raise
        except (OSError, MemoryError) as exc:
            if isinstance(exc, OSError) and exc.errno not in _PASSING:
                self._broken = True
            return None
        return cgroup

    def _leave(self, cgroups: Cgroups, cgroup: Cgroup) -> None:
        try:
            cgroups.leave()
        except OSError:
            self._broken = True
            cgroup.stay = Stay.THREAD_STUCK
        else:
            cgroup.stay = Stay.THREAD_OUT

    def _tidy(self, cgroups: Cgroups) -> None:
        """Remove the cgroups of commands that are over, unless another thread does it."""
        if not self._tidying.acquire(blocking=False):
            return
        try:
            while self._over:
                cgroup = self._over.popleft()
                if not self._forget(cgroups, cgroup):
                    self._kept.append(cgroup)
            if len(self._kept) >= self._many:
                self._kept = [each for each in self._kept if not self._forget(cgroups, each)]
                self._many = max(_FEW, 2 * len(self._kept))
        finally:
            self._tidying.release()

    def _forget(self, cgroups: Cgroups, cgroup: Cgroup) -> bool:
        with contextlib.suppress(OSError):
            if cgroups.take_back(cgroup):  # (a start thread in it is something that lives there)
                self._born.pop(cgroup.mark, None)
                return True
        return False


def _cannot_be_stopped(_raise: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def _raise(result: outcome.Outcome[None]) -> None:
    result.unwrap()
