"""The input of one command: a session's queue, and the task that writes it to the child.

This module must not know frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

import trio

from trio_console.agent._inflow import Inflow, Put

if TYPE_CHECKING:
    from trio_console.agent._process.spawn import Child

__all__ = ["StdinEvents", "StdinFeed"]


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
        window: see `Inflow`, also for ``budget`` and ``patience``.
    """

    __slots__ = ("_events", "_queue", "_tty")

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
        # Patience counts from here: a start takes its time, but it does not wait for the client.
        now = trio.current_time()
        self._queue = Inflow(events.stdin_granted, window=window, budget=budget, patience=patience, since=now)

    async def put(self, data: bytes) -> Put:
        """Queue a chunk as `Inflow.put` does; an empty one means end of file."""
        if self._tty and not data:
            return Put.TAKEN
        return await self._queue.put(data)

    def close(self) -> None:
        """See `Inflow.close`."""
        self._queue.close()

    async def run(self, child: Child) -> None:
        """Write to the child until end of file. Cancel it when the child is gone, and `close`.

        A failed write is reported once per chunk and the rest of that chunk is dropped; later chunks
        are tried anew, so that each of them is answered.
        """
        self._queue.start()
        while await self._queue.first():
            await trio.lowlevel.checkpoint()  # a child that reads fast must not keep other tasks from running
            try:
                await self._queue.write_first(child.stdin)
            except OSError as exc:
                self._events.stdin_failed(exc)
            self._queue.pop()
        await trio.lowlevel.checkpoint()
        child.close_stdin()
