"""The client's end of a process's stdin.

With an agent that counts credit, at most one window of bytes is on its way that the process has not taken:
a process that never reads its stdin pauses its own writer, and nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._buffers import flat_view
from trio_console._errors import again
from trio_console._session.owner import Owner, checks_owner, owned
from trio_console._trio.conflict import Conflict

if TYPE_CHECKING:
    from trio_console._wire.outbox import Outbox

__all__ = ["StdinStream"]

#: Bytes of stdin in a frame. Control frames overtake at frame boundaries, so small; and a pipe takes 64 KiB.
_SLICE: Final = 64 * 1024

#: End of transmission, what a terminal in canonical mode takes for end of file.
_EOT: Final = b"\x04"


@final
@owned()
class StdinStream(trio.abc.SendStream):
    """Bytes to a process in the guest.

    Args:
        outbox: where frames go.
        window: bytes that may be outstanding, `None` if the agent counts no credit.
        tty: the process has a terminal, on which end of file is a character.
    """

    def __init__(self, outbox: Outbox, id_: int, *, window: int | None, tty: bool) -> None:
        self._owner: Final = Owner()
        self._outbox = outbox
        self._id = id_
        # The end-of-file characters of a terminal are bytes like others, and count. They are paid in advance, or
        # closing a full stdin would be an offence.
        self._credit = window if window is None or not tty else max(1, window - len(_EOT + _EOT))
        self._tty = tty
        self._line_begins = True  # a terminal takes EOT for end of file only there
        self._error: Exception | None = None
        self._closed = False
        self._ended = False
        self._changed = trio.Event()
        self._conflict = Conflict("another task is already sending to this stdin")

    # The session's side

    def grant(self, size: int) -> None:
        if self._credit is not None:
            self._credit += size
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Sending has become pointless: the process did not take what was sent. It may still await the end."""
        if self._error is None:
            self._error = error
        self._changed.set()

    def end(self, error: Exception) -> None:
        """Sending has become impossible: there is no process any more."""
        self._ended = True
        self.fail(error)

    # The user's side

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stdin was closed")
        if self._error is not None:
            if isinstance(self._error, trio.BrokenResourceError):
                raise again(self._error)
            raise trio.BrokenResourceError(f"the process takes no input: {self._error}") from self._error

    @checks_owner
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``, waiting while the process does not read.

        If cancelled, an unknown part may have been sent.

        Raises:
            trio.BrokenResourceError: the process has exited or closed its stdin.
            trio_console.GuestLostError: the guest is gone.
            trio.ClosedResourceError: this end was closed.
            trio.BusyResourceError: another task is sending.
        """
        self._owner.check()
        with self._conflict:
            self._check()
            await trio.lowlevel.checkpoint()
            with flat_view(data) as view:
                start = 0
                while start < len(view):
                    size = await self._wait_credit(min(_SLICE, len(view) - start))
                    await self._send_slice(view[start : start + size])
                    start += size
            self._check()

    async def _wait_credit(self, wanted: int) -> int:
        """Bytes that may be sent now, between 1 and ``wanted``."""
        while True:
            self._check()
            if self._credit is None:
                return wanted
            if self._credit > 0:
                return min(wanted, self._credit)
            await self._wait_change()

    async def _wait_change(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    async def _send_slice(self, piece: memoryview) -> None:
        gone = False
        try:
            await self._outbox.reserve(len(piece))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            gone = True
        else:
            # The writer may have broken, or the process exited, between the share and our turn.
            gone = self._outbox.closed
            if gone or self._closed or self._error is not None:
                self._outbox.release(len(piece))
        if gone:
            # The connection finds out why within seconds, and tells every session.
            while not (self._closed or self._error is not None):
                await self._wait_change()
        self._check()
        # No checkpoint from here: the slice is sent and paid for, or neither.
        self._outbox.commit(wire.encode_data(wire.ExecStdin, self._id, piece), len(piece))
        if self._credit is not None:
            self._credit -= len(piece)
        self._line_begins = piece[-1] in b"\n\x04"

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until some bytes may be sent, or sending would fail at once. Errors as in `send_all`."""
        with self._conflict:
            self._check()
            await trio.lowlevel.checkpoint()
            await self._wait_credit(1)

    def close(self) -> None:
        """As `aclose`, without a checkpoint."""
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        if not (self._ended or self._outbox.closed):
            data = b"" if not self._tty else _EOT if self._line_begins else _EOT + _EOT
            # Behind the data that was sent before, and without waiting: closing must not block.
            self._outbox.commit(wire.encode_data(wire.ExecStdin, self._id, data), 0)

    async def aclose(self) -> None:
        """Send end of file, behind what was sent before. Never blocks. Idempotent.

        A process with a terminal gets the end-of-transmission character, which its terminal takes for end
        of file in canonical mode; in raw mode it is a character like others.
        """
        self.close()
        await trio.lowlevel.checkpoint()
