"""Input of one command: queued by the router, written by a task of its own.

A child that does not read must hold up nobody but its own writer. How that is done depends on what the
client understands:

* with credit the client keeps at most a window of bytes outstanding; more than that is an offence;
* without, up to a budget is queued. Beyond it the router waits as long as the child keeps taking bytes,
  which slows the whole channel down but loses nothing. If the child has taken nothing for `patience`
  seconds, the frame is refused, and so is every further one until there is room.

This module knows nothing of frames.
"""

from __future__ import annotations

import enum
import os
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

if TYPE_CHECKING:
    from trio_console.agent._spawn import Child

__all__ = ["Put", "StdinEvents", "StdinFeed"]

#: A queued chunk costs more than its bytes; without this a flood of tiny chunks would escape the budget.
_CHUNK_OVERHEAD: Final = 64

_WRITE_SIZE: Final = 256 * 1024


class Put(enum.Enum):
    """What became of a chunk."""

    TAKEN = enum.auto()  # queued, or swallowed because nobody is left to read it
    FULL = enum.auto()
    OVER_WINDOW = enum.auto()


class StdinEvents(Protocol):
    """Whoever owns the feed is told of these; neither may block."""

    def stdin_failed(self, exc: OSError) -> None:
        """One queued chunk could not be written, or not all of it."""

    def stdin_granted(self, nbytes: int) -> None:
        """The client may send so many bytes more."""


@final
class StdinFeed:
    """The queue and its writer.

    Args:
        events: see `StdinEvents`.
        tty: the child has a terminal, which has no end of file, only a character for it.
        window: bytes outstanding the client may have, or ``None`` if it does not speak credit.
        budget: bytes queued for a client that does not.
        patience: seconds without progress after which such a client is refused.
    """

    __slots__ = (
        "_budget",
        "_chunks",
        "_cost",
        "_ended",
        "_events",
        "_last_progress",
        "_outstanding",
        "_owed",
        "_patience",
        "_progress",
        "_tty",
        "_window",
        "_work",
    )

    def __init__(
        self,
        events: StdinEvents,
        *,
        tty: bool,
        window: int | None,
        budget: int,
        patience: float,
    ) -> None:
        self._events = events
        self._tty = tty
        self._window = window
        self._budget = budget
        self._patience = patience
        self._chunks: deque[bytes] = deque()  # an empty one stands for end of file
        self._cost = 0
        self._outstanding = 0
        self._owed = 0
        self._ended = False  # end of file was queued, or the session is over: all further input is void
        self._work = trio.Event()
        self._progress = trio.Event()
        self._last_progress = trio.current_time()

    # The router's side

    async def put(self, data: bytes) -> Put:
        """Queue a chunk; an empty one means end of file. The only caller is the router.

        Waits only for a child that is taking bytes, and never longer than ``patience`` after the last.
        Not a checkpoint otherwise. If cancelled, the chunk was not taken.
        """
        if self._is_void(data):
            return Put.TAKEN
        if self._window is not None:
            if self._outstanding + len(data) > self._window:
                return Put.OVER_WINDOW
            self._outstanding += len(data)
        elif not await self._wait_for_room(len(data)):
            return Put.FULL
        if self._is_void(data):  # the session may have ended while we waited
            return Put.TAKEN
        self._ended = not data
        self._chunks.append(data)
        self._cost += len(data) + _CHUNK_OVERHEAD
        self._work.set()
        return Put.TAKEN

    def _is_void(self, data: bytes) -> bool:
        return self._ended or (self._tty and not data)

    async def _wait_for_room(self, size: int) -> bool:
        while self._chunks and self._cost + size > self._budget and not self._ended:
            self._progress = trio.Event()
            with trio.move_on_at(self._last_progress + self._patience) as scope:
                await self._progress.wait()
            # Part of a large chunk may have gone out meanwhile: that is progress, too.
            if scope.cancelled_caught and trio.current_time() >= self._last_progress + self._patience:
                return False
        return True

    def close(self) -> None:
        """Nobody reads any more: let go of whoever waits for room, take nothing more. Idempotent.

        What is queued stays where it is, because the writer may be in the middle of it.
        """
        self._ended = True
        self._progress.set()

    # The writer's side

    async def run(self, child: Child) -> None:
        """Write to the child until end of file. Cancel it when the child is gone, and `close`.

        A failed write is reported once per chunk and the rest of that chunk is dropped; later chunks
        are tried anew, so that each of them is answered.
        """
        self._note_progress(0)  # patience starts with the child
        while True:
            while not self._chunks:
                self._work = trio.Event()
                await self._work.wait()
            await trio.lowlevel.checkpoint()  # a child that reads fast must not keep everybody waiting
            data = self._chunks[0]
            if not data:
                child.close_stdin()
                return
            await self._write(child.stdin, data)
            # Only now: the chunk counts as queued while it is being written.
            self._chunks.popleft()
            self._note_progress(len(data) + _CHUNK_OVERHEAD)

    async def _write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        done = 0
        try:
            while done < len(data):
                try:
                    done += (written := os.write(fd, view[done : done + _WRITE_SIZE]))
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(fd)
                else:
                    self._account(written)
        except OSError as exc:
            self._events.stdin_failed(exc)
            self._account(len(data) - done)

    def _account(self, nbytes: int) -> None:
        """So many bytes are off our hands: grant them anew once half a window has come together."""
        self._last_progress = trio.current_time()
        if self._window is None:
            return
        self._owed += nbytes
        if 2 * self._owed >= self._window:
            granted, self._owed = self._owed, 0
            self._outstanding -= granted
            self._events.stdin_granted(granted)

    def _note_progress(self, cost: int) -> None:
        self._last_progress = trio.current_time()
        self._cost -= cost
        self._progress.set()
