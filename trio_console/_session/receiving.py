"""The host's end of a session's incoming bytes.

The data of incoming frames is queued. The user's reads take bytes from the queue, and the agent is granted credit
for them. So an agent that counts credit sends at most one window, and a reader that pauses pauses only its own
process.
"""

from __future__ import annotations

import enum
import operator
from collections import deque
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._errors import ProtocolError, again
from trio_console._session.owner import Owner, checks_owner, owned
from trio_console._session.statistics import StreamStatistics
from trio_console._states import Steps
from trio_console._trio.conflict import Conflict
from trio_console._wire.credit import Refill

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "RECEIVING",
    "WINDOW",
    "CreditAccount",
    "Incoming",
    "IncomingStream",
    "MergedAccounts",
    "Receiving",
    "broken",
]

#: Bytes that an agent may send before a grant, for each stream of a session. They must last until the next grant
#: arrives, which under full load takes a millisecond or more. With a quarter of this window, every thread and task
#: on the way slept and was woken for each frame, at half the speed.
WINDOW: Final = 1024 * 1024

#: Unread bytes above which the connection's reader waits for the user. This is more than two merged streams can
#: hold, so it happens only if an agent sends more than it was granted.
_CREDITED_LIMIT: Final = 2 * WINDOW

#: The same for an agent without credit, which only this can slow down.
_UNREAD_LIMIT: Final = 1024 * 1024

#: Unread bytes of small frames are joined up to this size: otherwise a window of frames of two bytes would hold 26
#: times its size in memory.
_JOINED: Final = 8 * 1024

#: Pieces of two streams that are read as one whose order is remembered.
_MOST_SEGMENTS: Final = 4096

#: As many bytes as our agent puts into a frame, so that the data of each frame is returned as it is.
_RECEIVE_SIZE: Final = 128 * 1024


def broken(error: Exception) -> Exception:
    """The error that a stream raises if its session has ended with ``error``."""
    if isinstance(error, (trio.BrokenResourceError, ProtocolError)):
        return error
    wrapped = trio.BrokenResourceError(str(error) or repr(error))
    wrapped.__cause__ = error
    return wrapped


@final
class CreditAccount:
    """Grants what was consumed of one stream, half a window at a time."""

    def __init__(self, grant: Callable[[int], None]) -> None:
        self._grant = grant
        self._refill: Final = Refill(WINDOW)

    def consume(self, size: int) -> None:
        granted = self._refill.consumed(size)
        if granted:
            self._grant(granted)


@final
class MergedAccounts:
    """The accounts of two streams that are read as one; it remembers to which account the queued bytes belong.

    If the streams alternate in many small pieces, it remembers only how many bytes of each are queued, and not
    their order: the sums are the same.
    """

    def __init__(self) -> None:
        self._segments: deque[tuple[CreditAccount, int]] = deque()

    def note(self, account: CreditAccount, size: int) -> None:
        """Note that bytes of an account are about to be queued."""
        segments = self._segments
        if segments and segments[-1][0] is account:
            segments[-1] = account, segments[-1][1] + size
            return
        segments.append((account, size))
        if len(segments) > _MOST_SEGMENTS:
            sums: dict[CreditAccount, int] = {}
            for each, queued in segments:
                sums[each] = sums.get(each, 0) + queued
            segments.clear()
            segments.extend(sums.items())

    def consume(self, size: int) -> None:
        while size:
            assert self._segments, "each byte that is read was noted for its account"
            account, queued = self._segments.popleft()
            part = min(size, queued)
            if part < queued:
                self._segments.appendleft((account, queued - part))
            account.consume(part)
            size -= part


class Receiving(enum.Enum):
    """The state of the two ends: the sender in the guest, and the reader here."""

    OPEN = enum.auto()  # both are there
    LET_GO = enum.auto()  # the reader may have gone: new bytes are dropped, and the queued bytes can be read
    ENDED = enum.auto()  # no more bytes come; the queued bytes can be read, and then the end or the error
    CLOSED = enum.auto()  # the user has closed it: new bytes are dropped
    OVER = enum.auto()  # closed, and no more bytes come


RECEIVING: Final = Steps(
    {
        Receiving.OPEN: {Receiving.LET_GO, Receiving.ENDED, Receiving.CLOSED},
        Receiving.LET_GO: {Receiving.ENDED, Receiving.CLOSED},
        Receiving.ENDED: {Receiving.OVER},
        Receiving.CLOSED: {Receiving.OVER},
        Receiving.OVER: set(),
    }
)

# Compared for each frame; an enum's class takes a look-up more.
_OPEN: Final = Receiving.OPEN
_DROPPING: Final = (Receiving.LET_GO, Receiving.CLOSED)
_SETTLED: Final = (Receiving.ENDED, Receiving.CLOSED, Receiving.OVER)
_SHUT: Final = (Receiving.CLOSED, Receiving.OVER)


@final
class Incoming:
    """The bytes that have come and were not read yet.

    Each byte that comes is granted to the agent again once: when it is read, or dropped, or its reader was let go.
    After the end no byte is granted, because the agent does not use the credit.

    Args:
        account: takes note of what was paid; `None` if the agent counts no credit.
        note_discarded: called with the number of bytes that will not be read.
    """

    __slots__ = (
        "_changed",
        "_error",
        "_limit",
        "_note_discarded",
        "_offset",
        "_size",
        "account",
        "bytes_received",
        "chunks",
        "state",
    )

    def __init__(self, account: CreditAccount | None, note_discarded: Callable[[int], None]) -> None:
        self.account: CreditAccount | MergedAccounts | None = account
        self._limit: Final = _UNREAD_LIMIT if account is None else _CREDITED_LIMIT
        self.chunks: Final[deque[bytes]] = deque()
        self._size = 0
        self._offset = 0  # bytes of the first chunk already taken
        self.state = RECEIVING.first
        self._error: Exception | None = None
        self._changed = trio.Event()
        self.bytes_received = 0
        self._note_discarded = note_discarded

    # The connection's side

    def put(self, data: bytes) -> None:
        """Queue bytes that have come, or drop and count them."""
        self.bytes_received += len(data)
        if self.state is _OPEN:
            if data:
                chunks = self.chunks
                if len(data) < _JOINED and chunks and len(chunks[-1]) + len(data) <= _JOINED:
                    chunks[-1] += data
                else:
                    chunks.append(data)
                self._size += len(data)
                self._changed.set()
        else:
            self._note_discarded(len(data))
            if self.state in _DROPPING:
                self._pay(len(data))

    def let_go(self) -> None:
        """Drop and count all bytes that still come, because the reader may have gone.

        The queued bytes can still be read.
        """
        if self.state is _OPEN:
            self._become(Receiving.LET_GO)
            self._pay(self._size)  # granted now, and not when they are read

    def end(self, error: Exception | None = None) -> None:
        """Note that no more bytes come. In further calls the first error stays."""
        if self.state in (Receiving.OPEN, Receiving.LET_GO):
            self._become(Receiving.ENDED)
            self._error = error
        elif self.state is Receiving.CLOSED:
            self._become(Receiving.OVER)
        self.account = None  # it refers to the session, which refers to this object

    def _become(self, state: Receiving) -> None:
        self.state = RECEIVING.take(self.state, state)
        self._changed.set()

    def statistics(self, name: str) -> StreamStatistics:
        """What has come, and what of it was not read."""
        return StreamStatistics(name=name, moved=self.bytes_received, waiting=self._size, stalls=0, stalled=0.0)

    @property
    def congested(self) -> bool:
        """Whether more bytes are unread than a connection should hold."""
        return self._size > self._limit and self.state is _OPEN

    async def wait_relieved(self) -> None:
        """Wait until not `congested`."""
        while self.congested:
            await self.wait_change()

    # The reader's side

    async def wait_change(self) -> None:
        """Wait until more bytes have come, or the state has changed, or the stream is not congested any more."""
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()

    def take(self, limit: int) -> bytes:
        """Take at most ``limit`` of the queued bytes; there must be some."""
        chunks = self.chunks
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
        assert self._size >= 0, "bytes in = bytes read + queued + dropped"
        if self._size <= self._limit < before:
            self._changed.set()
        if self.state is _OPEN and self.account is not None:
            self.account.consume(len(data))
        return data

    def outcome(self) -> bytes:
        """The result of a read after all queued bytes were read: ``b""``, or the error is raised."""
        assert not self.chunks, "the end of a stream is behind its bytes"
        assert not self._size, "bytes in = bytes read + queued + dropped"
        if self._error is not None:
            raise again(self._error)
        return b""

    def close(self) -> None:
        """Drop and count the queued bytes, and all that still come. A second call does nothing."""
        if self.state not in _SHUT:
            unread = sum(map(len, self.chunks)) - self._offset
            assert self._size == unread, "bytes in = bytes read + queued + dropped"
            unpaid = self.state is _OPEN
            self._become(Receiving.OVER if self.state is Receiving.ENDED else Receiving.CLOSED)
            self.chunks.clear()
            size, self._size = self._size, 0
            self._note_discarded(size)
            if unpaid:
                self._pay(size)

    def _pay(self, size: int) -> None:
        """Let the agent have credit for these bytes again."""
        if self.account is not None:
            self.account.consume(size)


@final
@owned()
class IncomingStream(trio.abc.ReceiveStream):
    """A stream of bytes from the guest. One task receives at a time.

    It ends with ``b""`` if the process or connection has ended in order, and with an error otherwise; in both
    cases after all bytes that had arrived.
    """

    def __init__(self, incoming: Incoming) -> None:
        self._owner: Final = Owner()
        self._incoming = incoming
        self._conflict = Conflict("another task is already receiving from this stream")

    @checks_owner
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, and wait for it; ``b""`` at the end. If cancelled, nothing was taken.

        Args:
            max_bytes: the most bytes to return; `None`, the default, for 128 KiB.

        Raises:
            trio.ClosedResourceError: this end was closed.
            trio.BusyResourceError: another task is receiving.
            trio_console.GuestLostError: the guest is gone, and all bytes that came before were returned.
            ValueError: ``max_bytes`` is below 1.
        """
        self._owner.check()
        if max_bytes is None:
            max_bytes = _RECEIVE_SIZE
        elif operator.index(max_bytes) < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes!r}")
        incoming = self._incoming
        with self._conflict:
            if incoming.chunks or incoming.state in _SETTLED:
                await trio.lowlevel.checkpoint()
            while not (incoming.chunks or incoming.state in _SETTLED):
                await incoming.wait_change()  # this is a checkpoint, too
        if incoming.chunks:  # a closed stream has none
            return incoming.take(max_bytes)
        if incoming.state in _SHUT:
            raise trio.ClosedResourceError("this stream was closed")
        return incoming.outcome()

    async def aclose(self) -> None:
        """Stop receiving: the bytes that still come are dropped and counted. A second call does nothing.

        The process is not told. On this machine a process that writes to a pipe without a reader gets SIGPIPE; in
        a guest it writes on. Kill it if it should not. If cancelled, the stream is closed all the same.
        """
        self._incoming.close()
        await trio.lowlevel.checkpoint()
