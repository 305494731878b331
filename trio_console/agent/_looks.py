"""Looks at processes, in a thread. What a look may hang on costs that thread, and nothing else waits for it.

To read the environment of a process is to read its memory. That hangs in the kernel for as long as the process
likes, if the memory is a file of a file system of its own, or if it is stuck in an access of such memory. So:

* The thread says which process it reads from. If that is the same one for too long, the thread is given up. The
  next look is made in another, without that process's memory. When the thread comes back, the process is looked
  at again.
* Threads that are given up are few. When there are no more, no memory is read at all until one comes back. Then
  processes are found by what the kernel itself knows of them, and whether there are others is not known.
* A thread is there before it is needed: what is to be ended may have taken all threads that there are. Without
  one the loop looks itself, which takes some milliseconds. It reads no memory while any process's hangs.

One look is made at a time. This module must not know what is looked for.
"""

from __future__ import annotations

import queue
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, final

import outcome
import trio

from trio_console._processes import Watch
from trio_console._rank import going_along

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._processes import Elders

__all__ = ["HangError", "Looks"]

_T = TypeVar("_T")

#: Seconds after which a process is read from for too long; it may be twice as many. One that is not stuck takes
#: microseconds. On a busy machine it may take until the thread gets the processor: then a later look reads it.
_PATIENCE: Final = 0.1

#: Threads that are given up, at most.
_MOST_HANGING: Final = 16


class HangError(Exception):
    """A look was given up. The next one does not hang on the same process."""


@final
class Looks:
    """See the module.

    Args:
        report: told in words when a process's memory cannot be read.
        elders: what no look is about.
    """

    def __init__(self, report: Callable[[str], object], elders: Elders | None = None) -> None:
        self._report: Final = report
        self._elders: Final = elders
        self._turn: Final = trio.CapacityLimiter(1)
        self._orders: queue.SimpleQueue[Callable[[], object] | None] | None = None  # of the thread
        self._hanging: set[tuple[int, bytes]] = set()  # what threads that were given up read from: id, start time

    def prepare(self) -> queue.SimpleQueue[Callable[[], object] | None] | None:
        """Let a thread wait for the next look, if none does; returns its orders, or `None` without a thread."""
        if self._orders is None:
            orders: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
            try:
                obey = partial(going_along, partial(_obey, orders))
                trio.lowlevel.start_thread_soon(obey, _ignore, "thread to look for processes")
            except RuntimeError:
                return None
            self._orders = orders
        return self._orders

    def end(self) -> None:
        """Let the thread end after its look."""
        if self._orders is not None:
            self._orders.put(None)
            self._orders = None

    async def look(self, look: Callable[[Watch], _T]) -> _T:
        """Call a function that looks, and return its result. If cancelled, it returns or is given up first.

        Args:
            look: reads the memory of processes only as the watch says, and tells it which.

        Raises:
            HangError: it hangs, and was given up.
        """
        async with self._turn:
            blind = len(self._hanging) >= _MOST_HANGING
            watch = Watch(frozenset(self._hanging), blind=blind, elders=self._elders)
            orders = self.prepare()
            if orders is None:
                await trio.lowlevel.checkpoint()
                watch.blind = bool(self._hanging)
                return look(watch)
            return await self._look_in_thread(look, watch, orders)

    async def _look_in_thread(
        self,
        look: Callable[[Watch], _T],
        watch: Watch,
        orders: queue.SimpleQueue[Callable[[], object] | None],
    ) -> _T:
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        result: outcome.Outcome[_T] | None = None
        given_up: tuple[int, bytes] | None = None

        def work() -> None:
            got = outcome.capture(look, watch)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(finish, got)

        def finish(got: outcome.Outcome[_T]) -> None:
            nonlocal result
            result = got
            done.set()
            if given_up is not None:
                self._hanging.discard(given_up)

        orders.put(work)
        seen = None
        while result is None:
            with trio.move_on_after(_PATIENCE, shield=True):
                await done.wait()
            # The thread sets a new object for each process. So if it is the same one as before, the thread has
            # read from that process all the time between. Whatever it sets from now on, nobody looks at; and it
            # takes the process out of the set, in the loop, so after this turn has put it there.
            now = watch.at
            if result is None and now is not None and now is seen:
                given_up = now
                self._hanging.add(given_up)
                self.end()
                self._report(
                    f"to read the memory of process {now[0]} hangs in the kernel. So whose it is is not known, "
                    "and the ends of commands that may have started it are not confirmed: end it"
                )
                raise HangError
            seen = now
        try:
            return result.unwrap()
        finally:
            result = None  # the traceback of its error refers to this frame


def _obey(orders: queue.SimpleQueue[Callable[[], object] | None]) -> None:
    while (order := orders.get()) is not None:
        order()


def _ignore(_result: outcome.Outcome[None]) -> None:
    pass
