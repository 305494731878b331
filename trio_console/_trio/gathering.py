"""Streams that take bytes in several pieces, so that nothing has to be joined for them.

This module must not know what the bytes mean.
"""

from __future__ import annotations

import abc
import os
from typing import Final, TypeAlias

import trio

from trio_console._trio.conflict import Conflict

__all__ = ["MOST_PIECES", "DescriptorStream", "GatheringStream", "Piece", "drop_first"]

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


class DescriptorStream(trio.abc.Stream, GatheringStream):
    """A stream whose bytes are written to a non-blocking descriptor, as they are.

    trio's own streams take a single buffer, and make a checkpoint for each. For an outbox that would be a needless
    copy of all data, and for each request a needless turn of the event loop.

    Args:
        name: what it is, for errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._sending = Conflict(f"another task is already writing to the {name}")

    @abc.abstractmethod
    def _send_fd(self) -> int:
        """The descriptor that bytes are written to; negative if the stream was closed."""

    def _open_fd(self) -> int:
        fd = self._send_fd()
        if fd < 0:
            raise trio.ClosedResourceError(f"this {self._name} was closed")
        return fd

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        await self.send_gathered([bytes(data)])

    @trio.lowlevel.enable_ki_protection
    async def send_gathered(self, pieces: list[Piece]) -> None:
        """See `GatheringStream.send_gathered`. If cancelled, some of the bytes may have been sent."""
        rest = [piece for piece in pieces if piece]
        with self._sending:
            self._open_fd()
            while rest:
                try:
                    written = os.writev(self._open_fd(), rest[:MOST_PIECES])
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._open_fd())
                except OSError as exc:
                    raise trio.BrokenResourceError(f"the {self._name} cannot be written: {exc}") from exc
                else:
                    drop_first(rest, written)

    @trio.lowlevel.enable_ki_protection
    def send_gathered_nowait(self, pieces: list[Piece]) -> list[Piece]:
        """See `GatheringStream.send_gathered_nowait`."""
        with self._sending:
            try:
                written = os.writev(self._open_fd(), pieces[:MOST_PIECES])
            except (OSError, trio.ClosedResourceError):
                return pieces
        drop_first(pieces, written)
        return pieces

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        with self._sending:
            await trio.lowlevel.wait_writable(self._open_fd())


def drop_first(pieces: list[Piece], size: int) -> None:
    """Remove the first ``size`` bytes of some pieces."""
    count = 0
    while count < len(pieces) and size >= len(pieces[count]):
        size -= len(pieces[count])
        count += 1
    del pieces[:count]
    if size:
        pieces[0] = memoryview(pieces[0])[size:]
