"""The input of one command: a session's queue, and the task that writes it to the child.

This module must not know frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from trio_console.agent._inflow import Inflow, Put

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console.agent._held import Holding
    from trio_console.agent._process.spawn import Child

__all__ = ["StdinFeed"]


@final
class StdinFeed:
    """The queue and its writer.

    Args:
        granted: see `Inflow`.
        tty: whether the child has a terminal, which knows end of file only as a character.
        window: see `Inflow`, also for ``budget`` and ``patience``.
    """

    __slots__ = ("_queue", "_tty")

    def __init__(
        self,
        granted: Callable[[int], object],
        *,
        tty: bool,
        window: Holding | None,
        budget: int,
        patience: float,
    ) -> None:
        self._tty = tty
        # Patience counts from here: a start takes its time, but it does not wait for the client.
        now = trio.current_time()
        self._queue = Inflow(granted, window=window, budget=budget, patience=patience, since=now)

    async def put(self, data: bytes) -> Put:
        """Queue a chunk as `Inflow.put` does; an empty one means end of file."""
        if self._tty and not data:
            return Put.TAKEN
        return await self._queue.put(data)

    def close(self) -> None:
        """See `Inflow.close`."""
        self._queue.close()

    def end_at_once(self, child: Child) -> bool:
        """Close the child's stdin if its end has come already, with nothing before it: most commands get no input.

        Returns:
            Whether there is nothing to write, so that `run` is not needed.
        """
        if child.stdin is None:
            return True
        if not self._queue.is_over:
            return False
        child.close_stdin()
        return True

    async def run(self, child: Child, failed: Callable[[OSError], object]) -> None:
        """Write to the child until end of file. When the child is gone, cancel this, and call `close`.

        If a write fails, that is reported once, and the rest of its chunk is dropped. Each later chunk is tried
        again, and each failure is reported.

        Args:
            child: what is written to.
            failed: told that a queued chunk could not be written, or only in part. It must not block.
        """
        if child.stdin is None:
            return
        self._queue.start()
        while await self._queue.first():
            await trio.lowlevel.checkpoint()  # a child that reads fast must not keep other tasks from running
            try:
                await self._queue.write_first(child.stdin)
            except OSError as exc:
                failed(exc)
            self._queue.pop()
        await trio.lowlevel.checkpoint()
        child.close_stdin()
