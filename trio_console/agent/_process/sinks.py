"""Output that nobody reads any more: it is taken and dropped, so that the processes that write it live on.

This module must not know sessions or frames.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, final

import trio

if TYPE_CHECKING:
    from trio_console.agent._process.limits import FdHeadroom

__all__ = ["Sinks"]

_CHUNK: Final = 64 * 1024

#: Seconds until it is looked again for bytes, where it could not be waited for them.
_PAUSE: Final = 0.1


@final
class Sinks:
    """The descriptors whose output is dropped, each by a task of ``nursery``; they count among ``headroom``'s.

    Args:
        nursery: cancelled at the end.
        headroom: see `FdHeadroom`.
        kept: gets the descriptors that are left at the end, with the client of each, for the sinks that come next;
            with `None` they are closed.
    """

    def __init__(
        self, nursery: trio.Nursery, headroom: FdHeadroom, kept: list[tuple[int, int]] | None = None
    ) -> None:
        self._nursery = nursery
        self._headroom = headroom
        self._kept = kept
        self.count = 0
        self.bytes_dropped = 0
        if kept is not None:
            left, kept[:] = list(kept), []
            for fd, client in left:
                self.take(fd, client)

    def take(self, fd: int, client: int) -> None:
        """Drop all that comes from a non-blocking descriptor of a client's command, and close it at its end."""
        self.count += 1
        self._headroom.claim_anyway(client, 1)
        self._nursery.start_soon(self._drop, fd, client)

    async def _drop(self, fd: int, client: int) -> None:
        ended = False
        try:
            while True:
                try:
                    await trio.lowlevel.wait_readable(fd)
                except OSError:  # the system has no memory for that
                    await trio.sleep(_PAUSE)
                try:
                    data = os.read(fd, _CHUNK)
                except BlockingIOError:
                    continue
                except OSError:  # EIO: a terminal that no process has open any more
                    data = b""
                if not data:
                    ended = True
                    return
                self.bytes_dropped += len(data)
        finally:
            self.count -= 1
            self._headroom.release(client, 1)
            if ended or self._kept is None:
                os.close(fd)
            else:
                self._kept.append((fd, client))
