"""A process's stdin, as its user sees it.

With an agent that counts credit, at most one window of bytes is sent that the process has not taken: a process
that never reads its stdin pauses only its own writer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._buffers import flat_view
from trio_console._errors import UnsupportedByPeer, again, in_words
from trio_console._session.owner import Owner, checks_owner, owned
from trio_console._session.sending import Sending
from trio_console._trio.conflict import Conflict

if TYPE_CHECKING:
    from trio_console._session.sending import DataSender

__all__ = ["StdinStream", "close_stdin", "stdin_window"]

#: The end-of-transmission character, which a terminal in canonical mode takes for end of file.
_EOT: Final = b"\x04"


def stdin_window(window: int | None, *, tty: bool) -> int | None:
    """The part of an agent's window for stdin that may be used for data.

    Raises:
        UnsupportedByPeer: the window is too small for a terminal's input and its end.
    """
    if window is None or not tty:
        return window
    # The end-of-file characters of a terminal count like other bytes. Room for them is kept from the start;
    # otherwise closing a full stdin would violate the protocol.
    end = len(_EOT + _EOT)
    if window <= end:
        raise UnsupportedByPeer(
            f"the guest's agent takes {window} bytes of stdin at a time, and a terminal needs at least {end + 1}: "
            "run the command without a terminal"
        )
    return window - end


def close_stdin(sender: DataSender, *, tty: bool) -> None:
    """Send end of file behind the bytes that were sent, if the session is open. A second call does nothing."""
    line_begins = sender.last_byte in (None, *b"\n", *_EOT)  # a terminal takes EOT for end of file only there
    sender.finish(wire.ExecStdin(b"" if not tty else _EOT if line_begins else _EOT + _EOT))


@final
@owned()
class StdinStream(trio.abc.SendStream):
    """A stream to the stdin of a process in the guest. One task sends at a time.

    Closing it is end of file for the process. A process with a terminal gets the end-of-transmission character,
    which its terminal takes for end of file in canonical mode; in raw mode it is a character like others.
    """

    def __init__(self, sender: DataSender, *, tty: bool) -> None:
        self._owner: Final = Owner()
        self._sender = sender
        self._tty = tty
        self._conflict = Conflict("another task is already sending to this stdin")

    def _check(self) -> None:
        """Raise why nothing can be sent, if so."""
        if self._sender.state is Sending.FINISHED:
            raise trio.ClosedResourceError("this stdin was closed")
        error = self._sender.reason
        if error is not None:
            if isinstance(error, trio.BrokenResourceError):
                raise again(error)
            raise trio.BrokenResourceError(f"the process takes no input: {in_words(error)}") from error

    @checks_owner
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``, and wait while the process does not read.

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
                await self._sender.send(view)
            self._check()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until some bytes may be sent, or until sending would fail at once. If cancelled, nothing changes.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError: as in `send_all`.
        """
        with self._conflict:
            self._check()
            await trio.lowlevel.checkpoint()
            await self._sender.wait_credit(1)
            self._check()

    async def aclose(self) -> None:
        """Send end of file behind the bytes sent before. Never blocks. A second call does nothing.

        If cancelled, it is closed all the same.
        """
        close_stdin(self._sender, tty=self._tty)
        await trio.lowlevel.checkpoint()
