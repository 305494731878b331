"""Bytes of one session on their way in: queued by the router, taken by a task of the session.

Whoever does not take them must hold up nobody but its own writer. How that is done depends on what the
client understands:

* with credit the client keeps at most a window of bytes outstanding; more than that is an offence;
* without, up to a budget is queued. Beyond it the router waits as long as bytes keep being taken, which
  slows the whole channel down but loses nothing. If none were taken for ``patience`` seconds, the chunk is
  refused, and so is every further one until there is room.

This module knows nothing of frames, nor where the bytes go.
"""

from __future__ import annotations

import enum
import os
from collections import deque
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._states import Steps
from trio_console._wire.credit import ReceiveWindow

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FLOW", "Flow", "Inflow", "Put"]

#: A queued chunk costs more than its bytes; without this a flood of tiny chunks would escape the budget.
_CHUNK_OVERHEAD: Final = 64

_WRITE_SIZE: Final = 256 * 1024


class Put(enum.Enum):
    """What became of a chunk."""

    TAKEN = enum.auto()  # queued, or swallowed because nobody is left to take it
    FULL = enum.auto()
    OVER_WINDOW = enum.auto()


class Flow(enum.Enum):
    """What a queue still takes."""

    OPEN = enum.auto()
    ENDED = enum.auto()  # nothing: the end is queued
    SHUT = enum.auto()  # nothing: nobody is there any more to take it


FLOW: Final = Steps({Flow.OPEN: {Flow.ENDED, Flow.SHUT}, Flow.ENDED: {Flow.SHUT}, Flow.SHUT: set()})


@final
class Inflow:
    """The queue. The empty chunk stands for the end; nothing is queued behind it.

    Args:
        grant: called with the bytes the client may send anew, half a window at least. May not block.
        window: bytes the client may have outstanding, or ``None`` if it does not speak credit.
        budget: bytes queued for a client that does not.
        patience: seconds without progress after which such a client is refused.
        since: the moment from which patience counts, as of trio's clock. Before that the router never
            waits: what nobody has begun to take may, for all we know, depend on the router's next frame.
    """

    __slots__ = (
        "_budget",
        "_chunks",
        "_cost",
        "_first_taken",
        "_grant",
        "_last_progress",
        "_patience",
        "_progress",
        "_state",
        "_window",
        "_work",
    )

    def __init__(
        self,
        grant: Callable[[int], object],
        *,
        window: int | None,
        budget: int,
        patience: float,
        since: float,
    ) -> None:
        self._grant = grant
        self._window: Final = None if window is None else ReceiveWindow(window)
        self._budget = budget
        self._patience = patience
        self._chunks: deque[bytes] = deque()
        self._cost = 0
        self._first_taken = 0  # bytes of the first chunk that are off our hands
        self._state = FLOW.first
        self._work = trio.Event()
        self._progress = trio.Event()
        self._last_progress = since

    # The router's side

    async def put(self, data: bytes) -> Put:
        """Queue a chunk. The only caller is the router.

        Waits only while chunks are being taken, and never longer than ``patience`` after the last. Not a
        checkpoint otherwise. If cancelled, the chunk was not queued.
        """
        if self._state is not Flow.OPEN:
            return Put.TAKEN  # all further input is void
        if not data:
            self.put_end()
            return Put.TAKEN
        if self._window is not None:
            if not self._window.received(len(data)):
                return Put.OVER_WINDOW
        elif not await self._wait_for_room(len(data)):
            return Put.FULL
        if self._state is Flow.OPEN:  # the session may have ended while we waited
            self._append(data)
        return Put.TAKEN

    def put_end(self) -> None:
        """Queue the end, for which there is always room. Idempotent."""
        if self._state is Flow.OPEN:
            self._state = FLOW.take(self._state, Flow.ENDED)
            self._append(b"")

    def _append(self, data: bytes) -> None:
        self._chunks.append(data)
        self._cost += len(data) + _CHUNK_OVERHEAD
        self._work.set()

    async def _wait_for_room(self, size: int) -> bool:
        while self._chunks and self._cost + size > self._budget and self._state is Flow.OPEN:
            self._progress = trio.Event()
            with trio.move_on_at(self._last_progress + self._patience) as scope:
                await self._progress.wait()
            # Part of a large chunk may have gone meanwhile: that is progress, too.
            if scope.cancelled_caught and trio.current_time() >= self._last_progress + self._patience:
                return False
        return True

    def close(self) -> None:
        """Nobody takes any more: let go of whoever waits for room, queue nothing more. Idempotent.

        What is queued stays where it is, because its taker may be in the middle of it.
        """
        if self._state is not Flow.SHUT:
            self._state = FLOW.take(self._state, Flow.SHUT)
        self._progress.set()

    # The taker's side

    def start(self) -> None:
        """Patience counts from now."""
        self._last_progress = trio.current_time()

    async def first(self) -> bytes:
        """Wait for a chunk and return it; it stays in the queue. Empty at the end."""
        while not self._chunks:
            self._work = trio.Event()
            await self._work.wait()
        return self._chunks[0]

    async def batch(self, limit: int, chances: int) -> list[bytes]:
        """Wait for a chunk; return those at the front, together ``limit`` bytes or the first one alone.

        They stay in the queue. Empty at the end. The router is given ``chances``, each a checkpoint, to queue
        more before the batch is taken; none once there is enough, or the end.
        """
        await self.first()
        while chances and self._cost < limit and self._state is Flow.OPEN:
            await trio.lowlevel.checkpoint()
            chances -= 1
        batch: list[bytes] = []
        for chunk in self._chunks:
            limit -= len(chunk)
            if not chunk or (batch and limit < 0):
                break
            batch.append(chunk)
        return batch

    async def write_first(self, fd: int) -> None:
        """Write the first chunk to a non-blocking descriptor; `pop` it afterwards, also after an error.

        Raises:
            OSError: of the write; part of the chunk may have been written.
        """
        view = memoryview(self._chunks[0])
        while self._first_taken < len(view):
            start = self._first_taken
            try:
                written = os.write(fd, view[start : start + _WRITE_SIZE])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(fd)
            else:
                self._first_taken += written
                self._account(written)

    def pop(self) -> None:
        """The first chunk is off our hands, whatever became of it."""
        size = len(self._chunks.popleft())
        self._cost -= size + _CHUNK_OVERHEAD
        assert self._cost >= 0, "what is queued is what was put and not taken"
        self._account(size - self._first_taken)
        self._first_taken = 0
        self._progress.set()

    def _account(self, nbytes: int) -> None:
        """Bytes were taken."""
        self._last_progress = trio.current_time()
        if self._window is not None and (granted := self._window.consumed(nbytes)):
            self._grant(granted)
