"""Streams that take bytes in several pieces, so that nothing has to be joined for them.

This module must not know what the bytes mean.
"""

from __future__ import annotations

import abc
from typing import Final, TypeAlias

import trio

__all__ = ["MOST_PIECES", "GatheringStream", "Piece", "drop_first"]

Piece: TypeAlias = "bytes | memoryview"

#: The most pieces of one system call.
MOST_PIECES: Final = 1024


class GatheringStream(trio.abc.SendStream):
    """A stream that takes bytes in several pieces."""

    @abc.abstractmethod
    async def send_gathered(self, pieces: list[Piece]) -> None:
        """Send all pieces, as `send_all` does with the joined bytes. A checkpoint only if they do not fit at once.

        (The outbox makes a checkpoint for each batch.) The callee may change the list.
        """

    def send_gathered_nowait(self, pieces: list[Piece]) -> list[Piece]:
        """Send as much of the pieces as can be sent at once, and return the rest, which the caller sends next.

        Called while no task sends. It raises nothing: if the stream is closed or has failed, all is left, and
        `send_gathered` says why. The callee may change the list. This one sends nothing.
        """
        return pieces


def drop_first(pieces: list[Piece], size: int) -> None:
    """Remove the first ``size`` bytes of some pieces."""
    count = 0
    while count < len(pieces) and size >= len(pieces[count]):
        size -= len(pieces[count])
        count += 1
    del pieces[:count]
    if size:
        pieces[0] = memoryview(pieces[0])[size:]
