"""Credit: how much of a stream may be sent, and when bytes that were sent are paid back.

The receiver of a stream lets its sender have a *window* of bytes outstanding. What was sent is taken off it. When
the receiver has no more use for bytes, because somebody has read them, it owes them to the sender; once half a
window is owed, it *grants* that: the sender may send as much anew. So each byte of a window is always somewhere::

    window = left to the sender + on its way + kept by the receiver + owed + in grants on their way

Half a window is a mean: with less, a stream of small reads makes more grants; with all of it, the sender stands
still each time until the grant has come.

Pure sums: nothing here waits, sends, or knows whose stream it is.
"""

from __future__ import annotations

from typing import Final, final

__all__ = ["ReceiveWindow", "Refill", "SendWindow", "is_due"]


def is_due(owed: int, window: int) -> bool:
    """Whether bytes that are owed are to be granted now."""
    return 2 * owed >= window and owed > 0


@final
class SendWindow:
    """The sender's side. One task sends at a time: between `may_send` and `sent` only grants may come.

    Args:
        window: bytes that may be outstanding, or ``None`` if the receiver counts no credit.
    """

    __slots__ = ("_left", "_window")

    def __init__(self, window: int | None) -> None:
        self._window: Final = window
        self._left = window or 0

    def may_send(self, wanted: int) -> int:
        """Return how many of ``wanted`` bytes may be sent now: all, a part, or 0 until a grant comes."""
        return wanted if self._window is None else min(wanted, self._left)

    def sent(self, size: int) -> None:
        """Bytes were sent, no more than might be."""
        if self._window is not None:
            self._left -= size
            assert self._left >= 0, "no more is outstanding than the window"

    def granted(self, size: int) -> None:
        """The receiver lets us send so many bytes anew. Whoever grants more than it got cheats only itself."""
        if self._window is not None:
            self._left = min(self._left + size, self._window)


@final
class Refill:
    """The receiver's side, of a sender that is trusted to keep to the window: what is owed.

    Args:
        window: bytes the sender may have outstanding.
    """

    __slots__ = ("owed", "window")

    def __init__(self, window: int) -> None:
        self.window: Final = window
        self.owed = 0

    def consumed(self, size: int) -> int:
        """Bytes are of no more use; returns what is to be granted now: 0, or half a window at least."""
        self.owed += size
        if not is_due(self.owed, self.window):
            return 0
        granted, self.owed = self.owed, 0
        return granted


@final
class ReceiveWindow:
    """The receiver's side, of any sender: what it has outstanding, and what is owed of that.

    Args:
        window: bytes the sender may have outstanding.
    """

    __slots__ = ("_outstanding", "_refill")

    def __init__(self, window: int) -> None:
        self._outstanding = 0
        self._refill: Final = Refill(window)

    def received(self, size: int) -> bool:
        """Bytes came; whether the sender was free to send them. They count only if it was."""
        if self._outstanding + size > self._refill.window:
            return False
        self._outstanding += size
        return True

    def consumed(self, size: int) -> int:
        """As `Refill.consumed`, of bytes that have been received."""
        granted = self._refill.consumed(size)
        self._outstanding -= granted
        assert self._outstanding >= self._refill.owed, "no more is granted than has come"
        return granted
