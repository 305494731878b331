"""Output that nobody reads any more: it is taken and dropped, so that the processes that write it live on.

This module must not know sessions or frames.
"""

from __future__ import annotations

import os
from typing import Final, final

import trio

__all__ = ["Sinks"]

_CHUNK: Final = 64 * 1024


@final
class Sinks:
    """The descriptors whose output is dropped, each by a task of ``nursery``."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.count = 0
        self.bytes_dropped = 0

    def take(self, fd: int) -> None:
        """Drop all that comes from a non-blocking descriptor, and close it at its end."""
        self.count += 1
        self._nursery.start_soon(self._drop, fd)

    async def _drop(self, fd: int) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(fd)
                try:
                    data = os.read(fd, _CHUNK)
                except BlockingIOError:
                    continue
                except OSError:  # EIO: a terminal that no process has open any more
                    return
                if not data:
                    return
                self.bytes_dropped += len(data)
        finally:
            self.count -= 1
            os.close(fd)
