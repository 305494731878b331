"""Streams that take bytes in several pieces, so that nothing has to be joined for them.

This module must not know what the bytes mean.
"""

from __future__ import annotations

import abc
from typing import Final

import trio

__all__ = ["MOST_PIECES", "GatheringStream", "drop_first"]

#: The most pieces of one system call.
MOST_PIECES: Final = 1024


class GatheringStream(trio.abc.SendStream):
    """A stream that takes bytes in several pieces."""

    @abc.abstractmethod
    async def send_gathered(self, pieces: list[bytes]) -> None:
        """Send all pieces, as `send_all` does with the joined bytes. A checkpoint only if they do not fit at once.

        (The outbox makes a checkpoint for each batch.) The callee may change the list.
        """


def drop_first(pieces: list[bytes | memoryview], size: int) -> None:
    """Remove the first ``size`` bytes of some pieces."""
    count = 0
    while count < len(pieces) and size >= len(pieces[count]):
        size -= len(pieces[count])
        count += 1
    del pieces[:count]
    if size:
        pieces[0] = memoryview(pieces[0])[size:]
