"""The client's end of a session's incoming bytes.

Arriving frames are queued; the user's reads take from the queue and give credit back for what was taken. So
an agent that counts credit has at most one window on its way, and a paused reader pauses its own process and
nobody else.
"""

from __future__ import annotations

import enum
import operator
from collections import deque
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._errors import ProtocolError, again
from trio_console._session.owner import Owner, checks_owner, owned
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

#: Bytes an agent may send ahead of the reader, for each stream of a session. They have to last until the next
#: grant has come round, which under full load is a millisecond and more: with a quarter of this, everybody on the
#: way slept and was woken for each frame, at half the speed.
WINDOW: Final = 1024 * 1024

#: Unread bytes above which the connection's reader waits for the user. They are more than a stream holds that is
#: two in one: only an agent that sends more than it was granted comes here.
_CREDITED_LIMIT: Final = 2 * WINDOW

#: The same for an agent without credit, which has only this to keep it back.
_UNREAD_LIMIT: Final = 1024 * 1024

#: As much as our agent puts into a frame, so that each is handed on as it is.
_RECEIVE_SIZE: Final = 128 * 1024


def broken(error: Exception) -> Exception:
    """What a stream raises when its session has ended with ``error``."""
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


class Receiving(enum.Enum):
    """Who is there: somebody who sends, and somebody who reads."""

    OPEN = enum.auto()  # both
    LET_GO = enum.auto()  # nobody may be reading: what comes is dropped, what is here already can be read
    ENDED = enum.auto()  # nothing more comes; what is here can be read, then the end or the error
    CLOSED = enum.auto()  # the user has closed it: what comes is dropped
    OVER = enum.auto()  # closed, and nothing more comes


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

    Each byte that comes is paid back to the agent once: when it is read, dropped or let go of. After the end none
    is: credit means nothing then.

    Args:
        account: takes note of what was paid; `None` if the agent counts no credit.
        note_discarded: told of bytes that nobody will read.
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
        """Bytes have come."""
        self.bytes_received += len(data)
        if self.state is _OPEN:
            if data:
                self.chunks.append(data)
                self._size += len(data)
                self._changed.set()
        else:
            self._note_discarded(len(data))
            if self.state in _DROPPING:
                self._pay(len(data))

    def let_go(self) -> None:
        """Nobody may be reading any more: what still comes is discarded, so that it holds up nobody.

        What is here already can be read.
        """
        if self.state is _OPEN:
            self._become(Receiving.LET_GO)
            self._pay(self._size)  # now instead of when it is read

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes. Idempotent; the first error stays."""
        if self.state in (Receiving.OPEN, Receiving.LET_GO):
            self._become(Receiving.ENDED)
            self._error = error
        elif self.state is Receiving.CLOSED:
            self._become(Receiving.OVER)

    def _become(self, state: Receiving) -> None:
        self.state = RECEIVING.take(self.state, state)
        self._changed.set()

    @property
    def congested(self) -> bool:
        """Whether more is unread than a connection should hold."""
        return self._size > self._limit and self.state is _OPEN

    async def wait_relieved(self) -> None:
        """Wait until not `congested`."""
        while self.congested:
            await self.wait_change()

    # The reader's side

    async def wait_change(self) -> None:
        """Wait until more has come, or the state has changed, or congestion is over."""
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()

    def take(self, limit: int) -> bytes:
        """At most ``limit`` bytes of what is here; there is some."""
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
        """What a reader gets when all that is here was read: ``b""``, or the error raised."""
        if self._error is not None:
            raise again(self._error)
        return b""

    def close(self) -> None:
        """The reader wants nothing more: what is here and what still comes is discarded. Idempotent."""
        if self.state not in _SHUT:
            unpaid = self.state is _OPEN
            self._become(Receiving.OVER if self.state is Receiving.ENDED else Receiving.CLOSED)
            self.chunks.clear()
            size, self._size = self._size, 0
            self._note_discarded(size)
            if unpaid:
                self._pay(size)

    def _pay(self, size: int) -> None:
        """These bytes count against the agent no longer."""
        if self.account is not None:
            self.account.consume(size)


@final
@owned()
class IncomingStream(trio.abc.ReceiveStream):
    """Bytes from the guest. One task receives at a time.

    Ends with ``b""`` when the process or connection has ended in order, and with the error otherwise; in both
    cases after everything that had arrived.
    """

    def __init__(self, incoming: Incoming) -> None:
        self._owner: Final = Owner()
        self._incoming = incoming
        self._conflict = Conflict("another task is already receiving from this stream")

    @checks_owner
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, waiting for it; ``b""`` at the end. If cancelled, nothing was taken.

        Raises:
            trio.ClosedResourceError: this end was closed.
            trio.BusyResourceError: another task is receiving.
            trio_console.GuestLostError: the guest is gone, and everything that came before was returned.
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
                await incoming.wait_change()  # which is a checkpoint as well
        if incoming.chunks:  # of a closed stream there are none
            return incoming.take(max_bytes)
        if incoming.state in _SHUT:
            raise trio.ClosedResourceError("this stream was closed")
        return incoming.outcome()

    async def aclose(self) -> None:
        """Stop receiving: what still comes is discarded and counted. The process is not told. Idempotent.

        A process that writes to a local pipe without a reader dies of it; in a guest it writes on, into
        nowhere. Kill it if that is not wanted. If cancelled, it is closed nevertheless.
        """
        self._incoming.close()
        await trio.lowlevel.checkpoint()
