"""Threads for calls that may block on a file system, and a bound on what they hold.

A file system may hang: a network share whose server is gone, or a disk that does not answer. Such a call cannot be
stopped. It keeps its thread until it returns, and the descriptors of the call must stay open until then; otherwise
it could write to another file that got the number. So a call that has begun is always waited for, also if its
session ends; only the end of the agent waits no longer than a grace.

A *permit* is the right to make one call, and to keep its result until that is queued for the host. So the permits
bound both threads and memory. Clients share them (see `Shares`), so calls that hang stop no other client. No
bytes of the outbox are reserved during a call: a few hung reads would reserve its whole budget, and stop all
output. A task that has a permit waits only for its call or for the outbox, and never for a second permit.

This module must not know sessions.
"""

from __future__ import annotations

import errno
import math
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

from trio_console._trio.threads import NoThreadError, in_thread
from trio_console.agent._shares import Share, Shares

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

__all__ = ["CHUNK", "Disk"]

T = TypeVar("T")

#: Calls at once, beside the first of each client; eight of them for one client. A few keep a disk busy; each
#: further call would only cost more memory when it hangs.
_PERMITS: Final = 11

#: Bytes read by one call. A change of threads costs about as much as reading so many cached bytes.
CHUNK: Final = 256 * 1024

#: Seconds that calls under way may take when the agent ends.
_LAST_GRACE: Final = 1.0


@final
class Disk:
    """See the module's docstring."""

    __slots__ = ("_buffers", "_calls", "_deadline", "_threads", "shares")

    def __init__(self, permits: int = _PERMITS) -> None:
        #: The permits of each client.
        self.shares = Shares(permits)
        self._threads = trio.CapacityLimiter(math.inf)  # the permits are the limit
        self._buffers: list[bytearray] = []
        self._calls: set[trio.CancelScope] = set()
        self._deadline = math.inf

    def permit(self, share: Share) -> AbstractAsyncContextManager[None]:
        """A permit of a client for the block. It is taken before `run`, and kept until the result is queued.

        Raises:
            OSError: there is none, because too many calls of clients that have gone hang.
        """
        return self.shares.slot(share)

    async def run(self, call: Callable[[], T], given_up: Callable[[], object] | None = None) -> T:
        """Make a call in a thread and wait for it, also if cancelled. The caller holds a permit.

        Args:
            call: runs in the thread, so it must not use trio.
            given_up: called if the agent ends before the call does; the thread goes on until the call returns.

        Raises:
            OSError: EAGAIN; no thread could be started, and the call was not made. (So do calls themselves.)
        """
        with trio.CancelScope(shield=True, deadline=self._deadline) as scope:
            self._calls.add(scope)
            try:
                return await in_thread("for a file", call, limiter=self._threads, abandon=True)
            except NoThreadError as exc:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from exc
            finally:
                self._calls.discard(scope)
        if given_up is not None:
            given_up()
        await trio.lowlevel.checkpoint_if_cancelled()
        raise AssertionError("a call is given up only if everything is cancelled")

    @asynccontextmanager
    async def buffer(self, share: Share) -> AsyncIterator[memoryview]:
        """A `permit` with a buffer of `CHUNK` bytes; both are given back at the end of the block.

        The buffers are kept for later calls: memory that is allocated in one thread and freed in another goes back
        to the system, and costs page faults each time.
        """
        async with self.permit(share):
            buffer = self._buffers.pop() if self._buffers else bytearray(CHUNK)
            try:
                yield memoryview(buffer)
            finally:
                self._buffers.append(buffer)

    async def watch_for_end(self) -> None:
        """Sleep until cancelled; from then on, all calls together have `_LAST_GRACE` seconds to return."""
        try:
            await trio.sleep_forever()
        finally:
            self._deadline = trio.current_time() + _LAST_GRACE
            for scope in self._calls:
                scope.deadline = self._deadline
