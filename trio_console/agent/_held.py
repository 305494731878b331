"""The bytes of input that the agent holds for its clients: none may have it hold too many.

A sender of input has a window for each session, and it may have thousands of sessions whose tasks take nothing. So
only a first part of each window is the sender's from the beginning. The rest is granted when a session has used
much of the first part, if its client does not hold much already; otherwise when that has changed. Until then the
session goes on with the first part, which is granted again as it is taken.

A client may hold as many bytes as stay free. One alone may hold a half of all, and there is always room for one
that comes later, however greedy the others are. Only for bytes of first parts may there be no room, if a client
has very many sessions that take nothing: these bytes are refused.

This module must not know what the bytes are for.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import Final, final

from trio_console._wire.credit import ReceiveWindow

__all__ = ["Held", "Holding", "Received"]

#: A window grows by at most this part of what its client may still hold.
_PART: Final = 4


@final
class Held:
    """The bytes that are held for all clients.

    Args:
        most: bytes. More are never held, but for what it costs to keep them.
    """

    __slots__ = ("_clients", "_most", "used")

    def __init__(self, most: int) -> None:
        self._most: Final = most
        self._clients: Counter[int] = Counter()
        self.used = 0

    def left(self, client: int) -> int:
        """How many bytes more a client, by its number, may hold."""
        return max(0, (self._most - self.used - self._clients[client]) // 2)

    def take(self, client: int, size: int) -> None:
        """Note that bytes are held for a client, or will be."""
        self.used += size
        self._clients[client] += size
        assert 0 <= self.used <= self._most, "no more bytes of input are held than the agent has room for"
        assert self._clients[client] >= 0, "bytes are given back once"

    def give_back(self, client: int, size: int) -> None:
        """Note that they are not held any more."""
        self.take(client, -size)


class Received(enum.Enum):
    """What is to be done with bytes that have come."""

    KEEP = enum.auto()
    OVER_WINDOW = enum.auto()  # the sender was not allowed to send them
    NO_ROOM = enum.auto()  # they are not held: the client holds too many


@final
class Holding:
    """The window of one session, and the bytes that are held for it.

    Args:
        held: those of all sessions.
        client: the number of the session's client.
        window: bytes that the sender may have outstanding in the end.
        first: bytes of these that it may send before a grant.
    """

    __slots__ = ("_client", "_closed", "_counted", "_grown", "_held", "_later", "_received", "_size", "_window")

    def __init__(self, held: Held, client: int, window: int, first: int) -> None:
        self._held: Final = held
        self._client: Final = client
        self._size = min(first, window)  # of the window now
        self._later = window - self._size  # the rest of it, which was not granted yet
        self._window: Final = ReceiveWindow(self._size)
        self._received = 0
        #: What is counted for it: the bytes that are kept, or, once the window has grown, the whole window.
        self._counted = 0
        self._grown = False
        self._closed = False

    def receive(self, size: int) -> Received:
        """Note that bytes have come, of which only those to be kept count as held."""
        if not self._window.received(size):
            return Received.OVER_WINDOW
        if not self._grown:
            if size > self._held.left(self._client):
                return Received.NO_ROOM
            self._count(size)
        self._received += size
        return Received.KEEP

    def grow(self) -> int:
        """Let the window grow, if the sender uses it and there is room; returns what to grant for that, or 0."""
        if not self._later or 2 * self._received < self._size or self._closed:
            return 0
        room = self._held.left(self._client) // _PART - (self._size - self._counted)
        more = min(self._later, room)
        if more < self._later and 2 * more < self._size:
            return 0  # many small grants would cost more than they are worth
        self._later -= more
        self._size += more
        self._grown = True
        self._count(self._size - self._counted)
        self._window.grow(more)
        return more

    def consume(self, size: int) -> int:
        """Note that bytes are not kept any more; returns what to grant for that, or 0."""
        if not self._grown and not self._closed:
            self._count(-size)
        return self._window.consumed(size)

    def refuse(self, size: int) -> int:
        """Note that bytes were not kept, for which there was no room; returns what to grant for that, or 0."""
        return self._window.consumed(size)

    def close(self) -> None:
        """Note that nothing is kept any more. A second call does nothing."""
        self._closed = True
        self._count(-self._counted)

    def _count(self, size: int) -> None:
        self._counted += size
        self._held.take(self._client, size)
