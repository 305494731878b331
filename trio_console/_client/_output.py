"""The client's end of a session's incoming bytes.

Arriving frames are queued; the user's reads take from the queue and give credit back for what was taken. So
an agent that counts credit has at most one window on its way, and a paused reader pauses its own process and
nobody else.
"""

from __future__ import annotations

import operator
from collections import deque
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._conflict import Conflict
from trio_console._errors import again

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WINDOW", "CreditAccount", "IncomingStream", "MergedAccounts"]

#: Bytes an agent may send ahead of the reader, for each stream of a session. Large enough to keep a console
#: busy over its round trip (at 500 MB/s and 0.5 ms), small enough for thousands of sessions.
WINDOW: Final = 256 * 1024

#: Unread bytes above which the connection's reader waits for the user. Only an agent without credit comes here,
#: or one that sends more than it was granted.
_UNREAD_LIMIT: Final = 1024 * 1024

_RECEIVE_SIZE: Final = 64 * 1024


@final
class CreditAccount:
    """What was consumed of one stream and not granted again yet; grants half a window at a time."""

    def __init__(self, grant: Callable[[int], None]) -> None:
        self._grant = grant
        self._owed = 0

    def consume(self, size: int) -> None:
        self._owed += size
        if self._owed >= WINDOW // 2:
            owed, self._owed = self._owed, 0
            self._grant(owed)


@final
class MergedAccounts:
    """Two streams read as one: keeps which account each queued byte belongs to."""

    def __init__(self) -> None:
        self._segments: deque[tuple[CreditAccount, int]] = deque()

    def note(self, account: CreditAccount, size: int) -> None:
        """Bytes of an account are about to be queued."""
        self._segments.append((account, size))

    def consume(self, size: int) -> None:
        while size:
            account, queued = self._segments.popleft()
            part = min(size, queued)
            if part < queued:
                self._segments.appendleft((account, queued - part))
            account.consume(part)
            size -= part


@final
class IncomingStream(trio.abc.ReceiveStream):
    """Bytes from the guest. One task receives at a time.

    Ends with ``b""`` when the process or connection has ended in order, and with the error otherwise; in both
    cases after everything that had arrived.
    """

    def __init__(self, account: CreditAccount | None, note_discarded: Callable[[int], None]) -> None:
        self.account: CreditAccount | MergedAccounts | None = account
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: Exception | None = None
        self._closed = False
        self._let_go = False
        self._offset = 0  # bytes of the first chunk already taken
        self._conflict = Conflict("another task is already receiving from this stream")
        self._changed = trio.Event()
        self.bytes_received = 0
        self._note_discarded = note_discarded

    # The connection's side

    def put(self, data: bytes) -> None:
        self.bytes_received += len(data)
        if self._closed or self._let_go:
            self._note_discarded(len(data))
            self._pay(len(data))
        elif data:
            self._chunks.append(data)
            self._size += len(data)
            self._changed.set()

    def let_go(self) -> None:
        """Nobody may be reading any more: what still comes is discarded, so that it holds up nobody.

        What is here already can be read.
        """
        if not self._let_go:
            self._let_go = True
            self._pay(self._size)  # now instead of when it is read
            self._changed.set()

    def take_back(self) -> list[bytes]:
        """Everything queued, as if it had never come. Nobody may have read yet."""
        chunks = list(self._chunks)
        self._chunks.clear()
        self.bytes_received -= self._size
        self._size = 0
        return chunks

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._changed.set()

    @property
    def congested(self) -> bool:
        return self._size > _UNREAD_LIMIT and not self._let_go

    async def wait_relieved(self) -> None:
        while self.congested:
            await self._wait_change()

    # The user's side

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, waiting for it; ``b""`` at the end. If cancelled, nothing was taken.

        Raises:
            trio.ClosedResourceError: this end was closed.
            trio.BusyResourceError: another task is receiving.
            trio_console.GuestLostError: the guest is gone, and everything that came before was returned.
            ValueError: ``max_bytes`` is below 1.
        """
        if max_bytes is None:
            max_bytes = _RECEIVE_SIZE
        elif operator.index(max_bytes) < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes!r}")
        with self._conflict:
            await trio.lowlevel.checkpoint()
            while not (self._chunks or self._ended or self._closed):
                await self._wait_change()
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._chunks:
            return self._take(max_bytes)
        if self._error is not None:
            raise again(self._error)
        return b""

    def _take(self, limit: int) -> bytes:
        chunks = self._chunks
        head = chunks[0]
        size = len(head) - self._offset
        if size > limit:
            data = head[self._offset : self._offset + limit]
            self._offset += limit
        else:
            parts = [head[self._offset :] if self._offset else chunks[0]]
            self._offset = 0
            chunks.popleft()
            while chunks and size + len(chunks[0]) <= limit:
                size += len(chunks[0])
                parts.append(chunks.popleft())
            data = parts[0] if len(parts) == 1 else b"".join(parts)
        before = self._size
        self._size -= len(data)
        if self._size <= _UNREAD_LIMIT < before:
            self._changed.set()
        if not self._let_go:
            self._pay(len(data))
        return data

    def _pay(self, size: int) -> None:
        """These bytes count against the agent no longer."""
        if self.account is not None and not self._ended:
            self.account.consume(size)

    async def _wait_change(self) -> None:
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()

    def close(self) -> None:
        """As `aclose`, without a checkpoint."""
        if not self._closed:
            self._closed = True
            self._chunks.clear()
            size, self._size = self._size, 0
            self._note_discarded(size)
            if not self._let_go:
                self._pay(size)
            self._changed.set()

    async def aclose(self) -> None:
        """Stop receiving: what still comes is discarded and counted. The process is not told.

        A process that writes to a local pipe without a reader dies of it; in a guest it writes on, into
        nowhere. Kill it if that is not wanted.
        """
        self.close()
        await trio.lowlevel.checkpoint()
