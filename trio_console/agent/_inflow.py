"""The incoming data of one session: the router queues it, and a task of the session takes it.

A session that does not take its data must pause only its own sender. That depends on the client:

* A client that counts credit may send a window of bytes before a grant; more than that violates the protocol. Its
  small chunks are joined while they wait: otherwise a window of chunks of two bytes would hold 26 times its size.
  A chunk is refused if the agent holds too many bytes of that client (see `Holding`).
* For a client without credit, data up to a budget is queued. Beyond the budget the router waits as long as bytes
  are being taken, which slows the whole console down but loses nothing. If no byte was taken for ``patience``
  seconds, or three times as many seconds did not make room, the chunk is refused. Further chunks without room are
  then refused at once, until half of the budget is free: a command that reads a little now and then would
  otherwise stop all sessions for good.

This module must not know frames, nor where the bytes go.
"""

from __future__ import annotations

import enum
import os
from collections import deque
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._states import Steps
from trio_console.agent._held import Received

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console.agent._held import Holding

__all__ = ["INFLOW", "Inflow", "InflowState", "Put"]

#: Bytes that a queued chunk costs beside its data; without this the budget would not bound a flood of tiny chunks.
_CHUNK_OVERHEAD: Final = 64

#: Chunks are joined up to this size, so on average they hold half of it and more.
_JOINED: Final = 8 * 1024

_WRITE_SIZE: Final = 256 * 1024

#: How long the router waits for room for a chunk, as a multiple of the patience, also if bytes are being taken.
_LONGEST_WAIT: Final = 3


def _grant_nobody(_nbytes: int) -> None:
    """Stands for the grants of a queue that is closed, to which nothing is granted."""


class Put(enum.Enum):
    """The outcome of a chunk."""

    TAKEN = enum.auto()  # queued; or dropped, because no task takes data any more
    FULL = enum.auto()
    OVER_WINDOW = enum.auto()


class InflowState(enum.Enum):
    """The state of the queue."""

    OPEN = enum.auto()
    ENDED = enum.auto()  # takes no more chunks: the end is queued
    SHUT = enum.auto()  # takes no more chunks: no task takes data any more


INFLOW: Final = Steps(
    {
        InflowState.OPEN: {InflowState.ENDED, InflowState.SHUT},
        InflowState.ENDED: {InflowState.SHUT},
        InflowState.SHUT: set(),
    }
)

# Looking into an enum is slow before Python 3.12, and these are looked at for each frame.
_OPEN: Final = InflowState.OPEN
_TAKEN: Final = Put.TAKEN
_KEEP: Final = Received.KEEP


@final
class Inflow:
    """The queue. An empty chunk is the end; no chunk is queued behind it.

    Args:
        grant: called with the number of bytes to grant the client. It must not block.
        window: the window of a client that counts credit, or ``None`` for others.
        budget: the most bytes queued for a client without credit.
        patience: seconds without progress after which such a client's data is refused.
        since: the moment, on trio's clock, from which patience counts. Before it the router never waits, because
            the task that will take the data may first need one of the router's next frames.
    """

    __slots__ = (
        "_budget",
        "_chunks",
        "_cost",
        "_first_taken",
        "_grant",
        "_is_slow",
        "_last_progress",
        "_patience",
        "_progress",
        "_shown",
        "_state",
        "_window",
        "_work",
    )

    def __init__(
        self,
        grant: Callable[[int], object],
        *,
        window: Holding | None,
        budget: int,
        patience: float,
        since: float,
    ) -> None:
        self._grant = grant
        self._window: Final = window
        self._budget = budget
        self._patience = patience
        self._chunks: deque[bytes] = deque()
        self._cost = 0
        self._first_taken = 0  # bytes of the first chunk that were written
        self._shown = 0  # first chunks that the task may be using
        self._state = INFLOW.first
        self._work = trio.Event()
        self._progress = trio.Event()
        self._last_progress = since
        self._is_slow = False  # the router does not wait for it

    # The router's side

    async def put(self, data: bytes) -> Put:
        """Queue a chunk. Only the router calls this.

        It waits only while chunks are being taken, and for at most ``patience`` after the last one, and three
        times as long together. Otherwise it is not a checkpoint. If cancelled, the chunk was not queued.
        """
        if self._state is not _OPEN:
            return _TAKEN  # further input is dropped
        if not data:
            self.put_end()
            return _TAKEN
        if self._window is not None:
            if (received := self._window.receive(len(data))) is not _KEEP:
                return self._turn_away(self._window, received, len(data))
        elif not await self._wait_for_room(len(data)):
            return Put.FULL
        if self._state is _OPEN:  # the session may have ended while we waited
            self._append(data)
            if self._window is not None and (granted := self._window.grow()):
                self._grant(granted)
        return _TAKEN

    def _turn_away(self, window: Holding, received: Received, size: int) -> Put:
        if received is Received.OVER_WINDOW:
            return Put.OVER_WINDOW
        if granted := window.refuse(size):
            self._grant(granted)
        return Put.FULL

    def put_end(self) -> None:
        """Queue the end, for which there is always room. A second call does nothing."""
        if self._state is _OPEN:
            self._state = INFLOW.take(self._state, InflowState.ENDED)
            self._append(b"")

    def _append(self, data: bytes) -> None:
        assert not self._chunks or self._chunks[-1], "no chunk is queued behind the end"
        if 0 < len(data) < _JOINED and self._may_join(len(data)):
            self._chunks[-1] += data
            self._cost += len(data)
        else:
            self._chunks.append(data)
            self._cost += len(data) + _CHUNK_OVERHEAD
        self._work.set()

    def _may_join(self, size: int) -> bool:
        """Whether a chunk may be joined to the last one, which is no chunk that the task may be using."""
        if self._window is None or len(self._chunks) <= self._shown:
            return False
        return len(self._chunks[-1]) + size <= _JOINED

    async def _wait_for_room(self, size: int) -> bool:
        longest = max(trio.current_time(), self._last_progress) + _LONGEST_WAIT * self._patience
        while self._chunks and self._cost + size > self._budget and self._state is _OPEN:
            deadline = min(self._last_progress + self._patience, longest)
            if self._is_slow or trio.current_time() >= deadline:
                self._is_slow = trio.current_time() >= longest or self._is_slow
                return False
            self._progress = trio.Event()
            # (A part of a large chunk may be written in the meantime, which moves the deadline.)
            with trio.move_on_at(deadline):
                await self._progress.wait()
        return True

    def close(self) -> None:
        """Queue no more chunks, and end a wait for room, because no task takes data any more.

        The queued chunks stay, because a task may be writing one. A second call does nothing.
        """
        if self._state is not InflowState.SHUT:
            self._state = INFLOW.take(self._state, InflowState.SHUT)
            if self._window is not None:
                self._window.close()
            self._grant = _grant_nobody  # the session refers to this object, and must not be referred to by it
        self._progress.set()

    # The taker's side

    def start(self) -> None:
        """Let the patience count from now."""
        self._last_progress = trio.current_time()

    @property
    def is_over(self) -> bool:
        """Whether the end is what comes next."""
        return bool(self._chunks) and not self._chunks[0]

    async def first(self) -> bytes:
        """Wait for a chunk and return it; it stays in the queue. An empty chunk is the end."""
        while not self._chunks:
            self._work = trio.Event()
            await self._work.wait()
        self._shown = max(self._shown, 1)
        return self._chunks[0]

    async def batch(self, limit: int, chances: int) -> list[bytes]:
        """Wait for a chunk; returns the first chunks, of at most ``limit`` bytes together, but at least one.

        They stay in the queue. The list is empty at the end. Before the batch is taken, up to ``chances``
        checkpoints let the router queue more chunks; none is made once there are enough, or the end is queued.
        """
        await self.first()
        while chances and self._cost < limit and self._state is _OPEN:
            await trio.lowlevel.checkpoint()
            chances -= 1
        batch: list[bytes] = []
        for chunk in self._chunks:
            limit -= len(chunk)
            if not chunk or (batch and limit < 0):
                break
            batch.append(chunk)
        self._shown = len(batch)
        return batch

    async def write_first(self, fd: int) -> None:
        """Write the first chunk to a non-blocking descriptor; after that call `pop`, also after an error.

        Raises:
            OSError: the error of the write; a part of the chunk may have been written.
        """
        chunk = self._chunks[0]
        view = memoryview(chunk)
        while self._first_taken < len(view):
            start = self._first_taken
            try:
                written = os.write(fd, view[start : start + _WRITE_SIZE])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(fd)
            else:
                self._first_taken += written
                assert chunk in self._chunks, "a chunk stays queued while a task writes it"
                self._account(written)

    def pop(self) -> None:
        """Remove the first chunk, whether it was written or not."""
        size = len(self._chunks.popleft())
        self._shown = max(self._shown - 1, 0)
        self._cost -= size + _CHUNK_OVERHEAD
        assert self._cost >= 0, "what is queued is what was put and not taken"
        self._is_slow = self._is_slow and 2 * self._cost > self._budget
        self._account(size - self._first_taken)
        self._first_taken = 0
        self._progress.set()

    def _account(self, nbytes: int) -> None:
        """Note that bytes were taken: that is progress, and they may be granted again."""
        self._last_progress = trio.current_time()
        if self._window is not None and (granted := self._window.consume(nbytes) + self._window.grow()):
            self._grant(granted)
