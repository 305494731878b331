"""Data frames of one session on their way to the guest, paid for with the credit the agent gives.

What every session that sends bytes has in common: slices that control frames can overtake, one window at
most outstanding, and a stop that wakes whoever waits. It must not know what the bytes mean, nor turn a stop
into an error: that is the session's to word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire

if TYPE_CHECKING:
    from trio_console._wire.outbox import Outbox

__all__ = ["SLICE", "DataSender"]

#: Bytes of data in a frame. Control frames overtake at frame boundaries, so small; a pipe or socket buffer
#: takes about as much at a time.
SLICE: Final = 64 * 1024


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
        self._id = id_
        self._credit = window
        self._changed = trio.Event()
        self.stopped = False

    def grant(self, size: int) -> None:
        """The agent takes ``size`` more bytes."""
        if self._credit is not None:
            self._credit += size
        self._changed.set()

    def stop(self) -> None:
        """Nothing may be sent any more."""
        self.stopped = True
        self._changed.set()

    async def wait_credit(self, wanted: int) -> int:
        """Bytes that may be sent now: between 1 and ``wanted``, or 0 once stopped."""
        while not self.stopped:
            if self._credit is None:
                return wanted
            if self._credit > 0:
                return min(wanted, self._credit)
            self._changed = trio.Event()
            await self._changed.wait()
        return 0

    async def send(self, data: memoryview) -> bool:
        """Send all of ``data``, waiting for credit; whether that was done before a stop.

        If cancelled, an unknown part was sent.
        """
        start = 0
        while start < len(data):
            size = await self.wait_credit(min(SLICE, len(data) - start))
            if not size:
                return False
            try:
                await self._outbox.reserve(size)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The console is gone. The connection finds out why within seconds, and tells every session.
                await self._wait_stop()
                return False
            # No checkpoint from here: the slice is sent and paid for, or neither.
            if self.stopped:
                self._outbox.release(size)
                return False
            self.put(data[start : start + size])
            start += size
        return True

    async def _wait_stop(self) -> None:
        while not self.stopped:
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
        if self._credit is not None:
            self._credit -= len(piece)
        self._outbox.commit(wire.encode_data(self._kind, self._id, piece), len(piece))

    def follow(self, message: wire.Message) -> None:
        """Queue a small message behind the data, without waiting; nothing if the console is gone."""
        if not self._outbox.closed:
            self._outbox.commit(wire.encode(message, self._id), 0)
