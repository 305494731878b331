"""Worker threads for calls that may block on a file system, and a bound on what they hold.

A file system may hang: a network share whose server is gone, or a disk that does not answer. Such a call cannot be
stopped. It keeps its thread until it returns, and the descriptors of the call must stay open until then; otherwise
it could write to another file that got the number. So a call that has begun is always waited for, also if its
session ends; only the end of the agent waits no longer than a grace.

A *slot* is the right to make one call, and to keep its result until that is queued for the host. So the slots
bound both threads and memory. No bytes of the outbox are reserved during a call: a few hung reads would reserve
its whole budget, and stop all output. A task that has a slot waits only for its call or for the outbox, and never
for another

This module must not know sessions.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["CHUNK", "Disk"]

T = TypeVar("T")

#: Calls at once. A disk is kept busy by a few; each more is only more memory when one hangs.
_SLOTS: Final = 8

#: Bytes read by one call: what a client's usual window is. A change of threads costs about as much as the
#: reading of so many cached bytes.
CHUNK: Final = 256 * 1024

#: Seconds that calls under way may take when the agent ends.
_LAST_GRACE: Final = 1.0


@final
class Disk:
    """See the module's docstring."""

    __slots__ = ("_buffers", "_calls", "_deadline", "_threads", "slots")

    def __init__(self, slots: int = _SLOTS) -> None:
        #: To be held around `run`, and until the result is on its way.
        self.slots = trio.CapacityLimiter(slots)
        self._threads = trio.CapacityLimiter(math.inf)  # the slots are the limit
        self._buffers: list[bytearray] = []
        self._calls: set[trio.CancelScope] = set()
        self._deadline = math.inf

    async def run(self, call: Callable[[], T], given_up: Callable[[], object] | None = None) -> T:
        """Make a call in a thread and wait for it, also if cancelled. To be made with a slot in hand.

        Args:
            call: must not touch anything of trio's.
            given_up: called if the agent ended first, and the thread will go on for who knows how long.
        """
        with trio.CancelScope(shield=True, deadline=self._deadline) as scope:
            self._calls.add(scope)
            try:
                return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
            finally:
                self._calls.discard(scope)
        if given_up is not None:
            given_up()
        await trio.lowlevel.checkpoint_if_cancelled()
        raise AssertionError("a call is given up only if everything is cancelled")

    @asynccontextmanager
    async def buffer(self) -> AsyncIterator[memoryview]:
        """A slot with a buffer of `CHUNK` bytes, which is given back with it.

        (Memory that one thread takes and another frees goes back to the system and costs page faults each
        time, so these few are kept.)
        """
        async with self.slots:
            buffer = self._buffers.pop() if self._buffers else bytearray(CHUNK)
            try:
                yield memoryview(buffer)
            finally:
                self._buffers.append(buffer)

    async def watch_for_end(self) -> None:
        """To be run beside everything else: once cancelled, calls have so much longer and not more."""
        try:
            await trio.sleep_forever()
        finally:
            self._deadline = trio.current_time() + _LAST_GRACE
            for scope in self._calls:
                scope.deadline = self._deadline
