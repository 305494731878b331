"""Data frames of one session on their way to the guest, paid for with the credit the agent gives.

What every session that sends bytes has in common: slices that control frames can overtake, one window at
most outstanding, and an end that is said once. It must not know what the bytes mean, nor turn a refusal into an
error: that is the session's to word.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._states import Steps
from trio_console._wire.credit import SendWindow

if TYPE_CHECKING:
    from trio_console._wire.outbox import Outbox

__all__ = ["SENDING", "SLICE", "DataSender", "Sending"]

#: Bytes of data in a frame. Control frames overtake at frame boundaries, so small; a pipe or socket buffer
#: takes about as much at a time.
SLICE: Final = 64 * 1024


class Sending(enum.Enum):
    """What may still be sent of a session's data."""

    OPEN = enum.auto()  # bytes, and their end
    REFUSED = enum.auto()  # no more bytes: they would not be taken; the end, for which somebody may wait
    OVER = enum.auto()  # nothing: nobody is there to take it
    FINISHED = enum.auto()  # nothing: this side has closed, and has said the end if somebody was there to hear it


SENDING: Final = Steps(
    {
        Sending.OPEN: {Sending.REFUSED, Sending.OVER, Sending.FINISHED},
        Sending.REFUSED: {Sending.OVER, Sending.FINISHED},
        Sending.OVER: {Sending.FINISHED},
        Sending.FINISHED: set(),
    }
)


@final
class DataSender:
    """Sends bytes as data frames. One task sends at a time; its user sees to that.

    Args:
        outbox: where the frames go.
        kind: the message type they are.
        window: bytes that may be outstanding, `None` if the agent counts no credit.
    """

    def __init__(self, outbox: Outbox, kind: type[wire.DataMessage], id_: int, window: int | None) -> None:
        self._outbox = outbox
        self._kind = kind
        self._stream: Final = wire.type_of(kind).stream
        self._id = id_
        self._credit: Final = SendWindow(window)
        self._changed = trio.Event()
        self.state = SENDING.first
        #: Why bytes are refused, or why it is over; the first reason stays.
        self.reason: Exception | None = None
        #: The last byte that was sent, `None` before the first.
        self.last_byte: int | None = None

    # The session's side

    def grant(self, credit: wire.Credit) -> None:
        """The agent grants bytes; credit for another stream than this is none."""
        if credit.stream == self._stream:
            self._credit.granted(credit.bytes)
            self._changed.set()

    def refuse(self, reason: Exception) -> None:
        """Bytes are not taken any more. Their end may still be awaited."""
        if self.state is Sending.OPEN:
            self._become(Sending.REFUSED)
            self.reason = reason

    def stop(self, reason: Exception | None = None) -> None:
        """Nobody is there any more who would take anything. Idempotent."""
        if self.state in (Sending.OPEN, Sending.REFUSED):
            self._become(Sending.OVER)
            self.reason = self.reason or reason

    def finish(self, end: wire.Message) -> None:
        """Send no more: say ``end`` behind the data, if anybody is there, without waiting. Idempotent."""
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
        """Bytes that may be sent now: between 1 and ``wanted``, or 0 when none may be any more."""
        while self.state is Sending.OPEN:
            size = self._credit.may_send(wanted)
            if size:
                return size
            self._changed = trio.Event()
            await self._changed.wait()
        return 0

    async def send(self, data: memoryview) -> bool:
        """Send all of ``data``, waiting for credit; whether that was done before it was refused, or over.

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
            await self._outbox.reserve(len(piece))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._wait_told()
            return False
        # No checkpoint from here: the slice is sent and paid for, or neither. (The writer may have broken, or the
        # session ended, between the share and our turn.)
        if self._outbox.closed or self.state is not Sending.OPEN:
            self._outbox.release(len(piece))
            await self._wait_told()
            return False
        self.put(piece)
        return True

    async def _wait_told(self) -> None:
        """Wait until the session knows that the console is gone: the connection finds out why within seconds."""
        while self.state is Sending.OPEN:
            self._changed = trio.Event()
            await self._changed.wait()

    def put(self, piece: memoryview) -> None:
        """Queue one frame against a share of the outbox as large as ``piece``.

        Nothing is sent if the console is gone, which may have happened while the share was taken; the session
        is told by the connection.
        """
        if self._outbox.closed:
            self._outbox.release(len(piece))
            return
        assert self.state is Sending.OPEN, "no data is sent behind its end, or under an id that may be another's"
        self._credit.sent(len(piece))
        self._outbox.commit(wire.encode_data(self._kind, self._id, piece), len(piece))
        if piece:
            self.last_byte = piece[-1]

    def follow(self, message: wire.Message) -> None:
        """Queue a small message behind the data, without waiting; nothing if the console is gone."""
        if not self._outbox.closed:
            self._outbox.commit(wire.encode(message, self._id), 0)
