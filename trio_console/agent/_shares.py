"""Slots that all clients share, such as the threads for calls: no client can keep the others from theirs.

A slot may be kept for any time: a call that hangs in the kernel keeps its slot until it returns. So these rules do
not depend on slots that are given back:

* A client that has no slot gets one, whoever has all others.
* Further slots come out of a common pool, and one client gets at most three quarters of that.
* The slots of a client that has gone (its calls may still hang) are not counted for the next client with its ids.
  They have a bound of their own. When they have reached it no slot is given, and to ask for one is an error:
  otherwise a client that leaves and comes again could add some each time.

Of those that wait for a slot of the pool, the client with the fewest slots is the next to get one.

`Pace` is for pieces of work that are short unless they hang: only a few of them are done at a time, because each
needs the interpreter, as all sessions do.

This module must not know what the slots are for.
"""

from __future__ import annotations

import errno
import math
import os
from collections import OrderedDict, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Pace", "Share", "Shares"]

#: The most slots of clients that have gone.
_MOST_LEFT: Final = 128


@final
class Share:
    """The slots of one client."""

    __slots__ = ("gone", "used", "waiting")

    def __init__(self) -> None:
        self.used = 0
        self.gone = False
        self.waiting: deque[trio.Event] = deque()


@final
class Shares:
    """See the module.

    Args:
        pool: slots beside the first of each client.
    """

    __slots__ = ("_clients", "_left", "_most", "_pool", "_used", "_waiting")

    def __init__(self, pool: int) -> None:
        self._pool: Final = pool
        self._most: Final = max(1, pool * 3 // 4)
        self._used = 0  # by clients that are there
        self._left = 0  # by clients that have gone
        self._waiting = 0  # tasks
        self._clients: dict[int, Share] = {}  # those that use slots, or wait for one

    def of(self, client: int) -> Share:
        """The share of a client, by its number, for all its slots until it is forgotten."""
        share = self._clients.get(client)
        if share is None:
            share = self._clients[client] = Share()
        return share

    def forget(self, client: int) -> None:
        """Note that a client has gone. The next one with its number has a share of its own."""
        share = self._clients.pop(client, None)
        if share is not None:
            share.gone = True  # (its tasks that wait are being cancelled)
            self._used -= share.used
            self._left += share.used
            assert self._used >= 0, "a slot is a client's that is there, or of one that has gone"
            self._admit()

    @asynccontextmanager
    async def slot(self, share: Share) -> AsyncIterator[None]:
        """A slot for the block. A checkpoint only if it has to wait; if cancelled meanwhile, none was taken.

        Raises:
            OSError: EAGAIN; calls of clients that have gone hang, and there are too many of them.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._left >= _MOST_LEFT:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if not share.waiting and self._may_take(share):
            self._take(share)
        else:
            await self._wait(share)
        try:
            yield
        finally:
            self._give_back(share)

    def _may_take(self, share: Share) -> bool:
        return not share.used or (share.used < self._most and self._used < self._pool)

    def _take(self, share: Share) -> None:
        share.used += 1
        if share.gone:
            self._left += 1
        else:
            self._used += 1

    def _give_back(self, share: Share) -> None:
        assert share.used, "a slot is given back once"
        share.used -= 1
        if share.gone:
            self._left -= 1
        else:
            self._used -= 1
        self._admit()

    async def _wait(self, share: Share) -> None:
        ticket = trio.Event()
        share.waiting.append(ticket)
        self._waiting += 1
        try:
            await ticket.wait()
        except BaseException:
            if ticket.is_set():
                self._give_back(share)  # it was given in the same moment
            else:
                share.waiting.remove(ticket)
                self._waiting -= 1
            raise

    def _admit(self) -> None:
        """Give slots to those that wait, as long as there are some."""
        while self._waiting:
            able = [share for share in self._clients.values() if share.waiting and self._may_take(share)]
            if not able:
                return
            share = min(able, key=lambda share: share.used)
            self._waiting -= 1
            self._take(share)
            share.waiting.popleft().set()


@final
class Pace:
    """Pieces of work, a few at a time; the clients take turns.

    A piece that takes longer than such pieces do may hang. It counts no more, so that the others go on.

    Args:
        most: pieces at a time.
        patience: seconds for which a piece counts; with infinity, the default, until it is over.
    """

    __slots__ = ("_most", "_patience", "_running", "_waiting")

    def __init__(self, most: int, patience: float = math.inf) -> None:
        self._most: Final = most
        self._patience: Final = patience
        self._running: dict[object, float] = {}  # the pieces that count, and when each began; the oldest first
        self._waiting: OrderedDict[int, deque[trio.Event]] = OrderedDict()  # by client, the next one first

    @asynccontextmanager
    async def piece(self, client: int) -> AsyncIterator[None]:
        """A piece of work of a client, for the block. A checkpoint only if it has to wait.

        If cancelled while it waits, it was not begun.
        """
        ticket = trio.Event()
        self._waiting.setdefault(client, deque()).append(ticket)
        self._admit()
        try:
            while not ticket.is_set():
                with trio.move_on_at(min(self._running.values(), default=math.inf) + self._patience):
                    await ticket.wait()
                self._admit()
            yield
        finally:
            if ticket.is_set():
                self._running.pop(ticket, None)
            else:
                self._forget(client, ticket)
            self._admit()

    def _forget(self, client: int, ticket: trio.Event) -> None:
        tickets = self._waiting[client]
        tickets.remove(ticket)
        if not tickets:
            del self._waiting[client]

    def _admit(self) -> None:
        """Let pieces begin, as many as may."""
        now = trio.current_time()
        for ticket, began in tuple(self._running.items()):
            if began + self._patience <= now:
                del self._running[ticket]
        while self._waiting and len(self._running) < self._most:
            client, tickets = self._waiting.popitem(last=False)
            ticket = tickets.popleft()
            if tickets:
                self._waiting[client] = tickets  # behind all others
            self._running[ticket] = now
            ticket.set()
        assert len(self._running) <= self._most, "no more pieces are done at a time than may be"
