"""The data frames of one session to the guest, within the credit that the agent grants.

All sessions that send bytes use this: it cuts the bytes into slices that control frames can overtake, sends at
most one window before a grant, and sends the end once. This module must not know what the bytes mean, nor the
errors that users get: each session words its own.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._session.statistics import StreamStatistics
from trio_console._states import Steps
from trio_console._wire.credit import SendWindow

if TYPE_CHECKING:
    from trio_console._wire.outbox import Outbox

__all__ = ["SENDING", "SLICE", "DataSender", "Sending"]

#: Bytes of data in a frame: few, because control frames overtake at frame boundaries; a pipe or a socket's buffer
#: takes about as many at a time.
SLICE: Final = 64 * 1024


class Sending(enum.Enum):
    """The data that may still be sent in a session."""

    OPEN = enum.auto()  # bytes, and their end
    REFUSED = enum.auto()  # only the end: the guest takes no more bytes, but may wait for the end
    OVER = enum.auto()  # nothing: the session has ended
    FINISHED = enum.auto()  # nothing: this side has closed, and has sent the end if the session was open


SENDING: Final = Steps(
    {
        Sending.OPEN: {Sending.REFUSED, Sending.OVER, Sending.FINISHED},
        Sending.REFUSED: {Sending.OVER, Sending.FINISHED},
        Sending.OVER: {Sending.FINISHED},
        Sending.FINISHED: set(),
    }
)

# Looking into an enum is slow before Python 3.12, and this is looked at for each frame.
_OPEN: Final = Sending.OPEN


@final
class DataSender:
    """Sends bytes as data frames. Only one task may send at a time; the caller makes sure of that.

    Args:
        outbox: writes the frames.
        kind: the class of their messages.
        window: bytes that may be outstanding, or `None` if the agent counts no credit.
        held_back: bytes of the window that may only be sent after they were granted.
    """

    def __init__(
        self,
        outbox: Outbox,
        kind: type[wire.DataMessage],
        session_id: int,
        window: int | None,
        held_back: int = 0,
    ) -> None:
        self._outbox = outbox
        self._kind = kind
        self._stream: Final = wire.type_of(kind).stream
        self._id = session_id
        self._credit: Final = SendWindow(window, held_back)
        self._changed = trio.Event()
        self.state = SENDING.first
        #: Why bytes are refused, or why the session is over; the first reason stays.
        self.reason: Exception | None = None
        self._sent = 0
        self._stalls = 0
        self._stalled = 0.0
        #: The last byte that was sent, `None` before the first.
        self.last_byte: int | None = None

    # The session's side

    def grant(self, credit: wire.Credit) -> None:
        """Add credit that the agent grants; credit for another stream is ignored."""
        if credit.stream == self._stream:
            self._credit.granted(credit.bytes)
            self._changed.set()

    def refuse(self, reason: Exception) -> None:
        """Send no more bytes, because the guest does not take them. The end is still sent."""
        if self.state is Sending.OPEN:
            self._become(Sending.REFUSED)
            self.reason = reason

    def stop(self, reason: Exception | None = None) -> None:
        """Send nothing more, because the session has ended. A second call does nothing."""
        if self.state in (Sending.OPEN, Sending.REFUSED):
            self._become(Sending.OVER)
            self.reason = self.reason or reason

    def finish(self, end: wire.Message) -> None:
        """Send ``end`` behind the data, if the session is open, without waiting. A second call does nothing."""
        if self.state is not Sending.FINISHED:
            heard = self.state is not Sending.OVER
            self._become(Sending.FINISHED)
            if heard:
                self.follow(end)

    def _become(self, state: Sending) -> None:
        self.state = SENDING.take(self.state, state)
        self._changed.set()

    # The sender's side

    async def wait_credit(self, wanted: int) -> int:
        """Wait until bytes may be sent; returns how many, from 1 to ``wanted``, or 0 if no more may be sent."""
        while self.state is _OPEN:
            size = self._credit.may_send(wanted)
            if size:
                return size
            self._changed = trio.Event()
            self._stalls += 1
            began = trio.current_time()
            try:
                await self._changed.wait()
            finally:
                self._stalled += trio.current_time() - began
        return 0

    def statistics(self, name: str) -> StreamStatistics:
        """What was sent, and what it waited for."""
        return StreamStatistics(
            name=name,
            moved=self._sent,
            waiting=self._credit.outstanding,
            stalls=self._stalls,
            stalled=self._stalled,
        )

    async def send(self, data: memoryview) -> bool:
        """Send all of ``data``, and wait for credit; returns whether all was sent before a refusal or the end.

        If cancelled, an unknown part was sent.
        """
        start = 0
        while start < len(data):
            size = await self.wait_credit(min(SLICE, len(data) - start))
            if not size or not await self._send_slice(data[start : start + size]):
                return False
            start += size
        return True

    async def _send_slice(self, piece: memoryview) -> bool:
        try:
            await self._reserve(len(piece))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._wait_told()
            return False
        # No checkpoint from here: the slice is sent and paid for, or neither. (The writer may have broken, or the
        # session ended, between the reservation and our turn.)
        if self._outbox.closed or self.state is not _OPEN:
            self._outbox.release(len(piece), self._id)
            await self._wait_told()
            return False
        self._queue(piece)
        return True

    async def _reserve(self, size: int) -> None:
        """Reserve room in the outbox. A wait for an agent that admits no more of any session is a stall."""
        if not self._outbox.holds_back(size, self._id):
            await self._outbox.reserve(size, self._id)
            return
        self._stalls += 1
        began = trio.current_time()
        try:
            await self._outbox.reserve(size, self._id)
        finally:
            self._stalled += trio.current_time() - began

    async def _wait_told(self) -> None:
        """Wait until the session gets the error of a lost console; the connection finds the reason in seconds."""
        while self.state is _OPEN:
            self._changed = trio.Event()
            await self._changed.wait()

    def put(self, piece: memoryview) -> None:
        """Queue one frame with ``piece``, for which as many bytes were reserved in the outbox.

        Does nothing if the console is gone, which may have happened after the reservation: the session gets the
        error from the connection.
        """
        if self._outbox.closed:
            self._outbox.release(len(piece))
        else:
            self._queue(piece)

    def _queue(self, piece: memoryview) -> None:
        assert self.state is _OPEN, "no data is sent behind its end, or under an id that may be another's"
        size = len(piece)
        self._credit.sent(size)
        self._sent += size
        self._outbox.commit(wire.encode_data(self._kind, self._id, piece), size)
        if size:
            self.last_byte = piece[-1]

    def follow(self, message: wire.Message) -> None:
        """Queue a small message behind the data, without waiting; does nothing if the console is gone."""
        if not self._outbox.closed:
            self._outbox.commit(wire.encode(message, self._id), 0)
