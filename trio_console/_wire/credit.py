"""Credit: how many bytes of a stream may be sent, and when the receiver grants more.

The receiver of a stream allows its sender to send a *window* of bytes. Each sent byte reduces the rest of the
window. When the receiver does not need bytes any more, because they were read, it owes them to the sender; once it
owes half a window, it *grants* these bytes: the sender may send as many again. So each byte of a window is always
in one place::

    window = left to the sender + on its way + kept by the receiver + owed + in grants on their way

Half a window is a compromise: with less, a stream of small reads causes more grants; with a whole window, the
sender would stop each time until the grant comes.

This module only computes sums: it does not wait or send, and must not know whose stream it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

__all__ = ["ReceiveWindow", "Refill", "SendWindow", "is_due"]


def is_due(owed: int, window: int) -> bool:
    """Whether the owed bytes must be granted now."""
    return 2 * owed >= window and owed > 0


@final
@dataclass(slots=True, eq=False)
class SendWindow:
    """The sender's side. One task sends at a time: between `may_send` and `sent` only grants may come.

    Attributes:
        window: bytes that may be outstanding, or ``None`` if the receiver counts no credit.
        outstanding: bytes that were sent and not granted again, for others to read; at first those of the window
            that may only be sent after a grant.
    """

    window: Final[int | None]
    outstanding: int = 0

    def may_send(self, wanted: int) -> int:
        """Return how many of ``wanted`` bytes may be sent now: all, a part, or 0 until a grant comes."""
        return wanted if self.window is None else min(wanted, self.window - self.outstanding)

    def sent(self, size: int) -> None:
        """Note that bytes were sent, not more than `may_send` allowed."""
        if self.window is not None:
            self.outstanding += size
            assert self.outstanding <= self.window, "no more is outstanding than the window"

    def granted(self, size: int) -> None:
        """Note that the receiver grants bytes. A receiver that grants more than it got harms only itself."""
        self.outstanding = max(self.outstanding - size, 0)


@final
class Refill:
    """The receiver's side for a sender that is trusted to keep to the window: it counts only the owed bytes.

    Args:
        window: bytes the sender may have outstanding.
    """

    __slots__ = ("owed", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.owed = 0

    def consumed(self, size: int) -> int:
        """Note that bytes are not needed any more; returns what to grant now: 0, or at least half a window."""
        self.owed += size
        if not is_due(self.owed, self.window):
            return 0
        granted, self.owed = self.owed, 0
        return granted


@final
class ReceiveWindow:
    """The receiver's side for any sender: it counts the bytes that may still come, and the owed bytes.

    Args:
        window: bytes the sender may have outstanding.
    """

    __slots__ = ("_outstanding", "_refill")

    def __init__(self, window: int) -> None:
        self._outstanding = 0
        self._refill: Final = Refill(window)

    def received(self, size: int) -> bool:
        """Note that bytes came; returns whether the sender was allowed to send them. If not, they do not count."""
        if self._outstanding + size > self._refill.window:
            return False
        self._outstanding += size
        return True

    def grow(self, size: int) -> None:
        """Allow the sender to have more bytes outstanding, which it was granted."""
        self._refill.window += size

    def consumed(self, size: int) -> int:
        """Like `Refill.consumed`, for bytes that have been received."""
        granted = self._refill.consumed(size)
        self._outstanding -= granted
        assert self._outstanding >= self._refill.owed, "no more is granted than has come"
        return granted
