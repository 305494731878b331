"""Streams filled until they take no more, and emptied until they end."""

from __future__ import annotations

import trio
import trio.testing

__all__ = ["fill", "receive_all"]


async def fill(stream: trio.abc.SendStream, piece: bytes = b"x") -> int:
    """Send until it would block; returns how many whole pieces were sent."""
    sent = 0
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _cancel_when_blocked() -> None:
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

            while True:
                await stream.send_all(piece)
                sent += 1
    return sent


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])
