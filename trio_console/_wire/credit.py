"""Credit: how many bytes of a stream may be sent, and when the receiver grants more.

The receiver of a stream allows its sender to send a *window* of bytes. Each sent byte reduces the rest of the
window. When the receiver does not need bytes any more, because they were read, it owes them to the sender; once it
owes half a window, it *grants* these bytes: the sender may send as many again. So each byte of a window is always
in one place::

    window = left to the sender + on its way + kept by the receiver + owed + in grants on their way

Half a window is a compromise: with less, a stream of small reads causes more grants; with a whole window, the
sender would stop each time until the grant comes.

An agent may also count all that comes over its console, in one `Admission` for all sessions. Then one session
whose bytes are not taken could use up what all share. So when half of that is used, sessions take `Turns`.

This module only computes sums: it does not wait or send, and must not know whose stream it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Admission", "Admitted", "ReceiveWindow", "Refill", "SendWindow", "Turns", "is_due"]

#: Seconds that a session's turn takes at most, and for which the session waits after its first turn in vain. An
#: emulated machine on a loaded host answers within some tens of milliseconds.
_PATIENCE: Final = 0.2

#: The part of the frames that is kept for the ends of streams, which are small and cannot wait for a turn.
_KEPT_FOR_ENDS: Final = 1 / 16


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


class Admitted(NamedTuple):
    """What an agent admits, or was sent, since it was ready: bytes of whole frames, and frames, of two kinds."""

    control_bytes: int
    control_frames: int
    bulk_bytes: int
    bulk_frames: int


@final
class Admission:
    """The sender's side of an agent that counts all that comes over its console.

    It announces limits, which only grow, for two kinds of frames: data (*bulk*), and all others (*control*). If
    more than that is sent, upstream's agent ends itself, and the guest with it.

    Args:
        limits: the limits from the start, or `None` if the agent has announced none yet: then all is admitted, and
            counted.
    """

    def __init__(self, limits: Admitted | None = None) -> None:
        self._limits = limits
        self._window = limits
        self._used = Admitted(0, 0, 0, 0)

    @property
    def used(self) -> Admitted:
        """What was sent, or is about to be."""
        return self._used

    def announce(self, limits: Admitted) -> bool:
        """Note new limits; returns false, and changes nothing, if one of them is smaller than before.

        What was admitted may have been sent, so it cannot be taken back.
        """
        if self._limits is None:
            self._window = Admitted(*(max(new - used, 0) for new, used in zip(limits, self._used, strict=True)))
        elif any(new < old for new, old in zip(limits, self._limits, strict=True)):
            return False
        self._limits = limits
        return True

    def admits(self, size: int, *, bulk: bool) -> bool:
        """Whether one more frame of this many bytes may be sent."""
        if self._limits is None:
            return True
        if bulk:
            return (
                self._used.bulk_bytes + size <= self._limits.bulk_bytes
                and self._used.bulk_frames < self._limits.bulk_frames
            )
        return (
            self._used.control_bytes + size <= self._limits.control_bytes
            and self._used.control_frames < self._limits.control_frames
        )

    def take(self, size: int, *, bulk: bool) -> None:
        """Note that a frame is sent, which `admits` has allowed."""
        assert self.admits(size, bulk=bulk), "no more is sent than the agent admits"
        self._add(size, 1, bulk=bulk)

    def give_back(self, size: int) -> None:
        """Note that a bulk frame that was taken will not be sent."""
        self._add(-size, -1, bulk=True)

    def shrink(self, size: int) -> None:
        """Note that a bulk frame that was taken is so many bytes smaller."""
        self._add(-size, 0, bulk=True)

    def _add(self, size: int, frames: int, *, bulk: bool) -> None:
        control_bytes, control_frames, bulk_bytes, bulk_frames = self._used
        if bulk:
            self._used = Admitted(control_bytes, control_frames, bulk_bytes + size, bulk_frames + frames)
        else:
            self._used = Admitted(control_bytes + size, control_frames + frames, bulk_bytes, bulk_frames)

    def has_room(self, size: int) -> bool:
        """Whether a bulk frame may be sent that is no end of a stream: some frames are kept for these."""
        if self._limits is None or self._window is None:
            return True
        kept = int(self._window.bulk_frames * _KEPT_FOR_ENDS)
        return self.admits(size, bulk=True) and self._used.bulk_frames + kept < self._limits.bulk_frames

    @property
    def bulk_frames(self) -> int:
        """The frames of bulk that the agent has admitted in all; 0 if it has not said."""
        return 0 if self._limits is None else self._limits.bulk_frames

    @property
    def is_scarce(self) -> bool:
        """Whether the agent has not taken half of what it admits at a time."""
        if self._limits is None or self._window is None:
            return False
        return (
            2 * (self._limits.bulk_bytes - self._used.bulk_bytes) < self._window.bulk_bytes
            or 2 * (self._limits.bulk_frames - self._used.bulk_frames) < self._window.bulk_frames
        )


@final
class Turns:
    """Whose data may go while little of an `Admission` is left, because some session's bytes are not taken.

    The agent says how much it has taken, and not whose. So one session at a time sends one frame, and its turn
    ends when the agent takes something. If the agent takes nothing for a moment, the turn was in vain, and the
    session waits for its next one: each time twice as long. So a command that never reads uses up one frame more
    in twice the time, while sessions whose bytes are taken go on.

    Times are seconds of any clock that does not go backwards; a session is named by any key.
    """

    def __init__(self, patience: float = _PATIENCE) -> None:
        self._patience = patience
        self._turn: Hashable | None = None
        self._over = math.inf  # when the turn is in vain
        self._last: Hashable | None = None  # the session with the last turn in vain
        self._ends = 0  # frames that went without a turn, and were not taken yet
        self._delays: dict[Hashable, float] = {}
        self._next: dict[Hashable, float] = {}  # when a session may have a turn again

    def holds_back(self, key: Hashable, now: float) -> bool:
        """Whether a session has to wait."""
        self._look(now)
        return self._turn is not None or now < self._next.get(key, 0.0)

    def took(self, key: Hashable, now: float) -> None:
        """Note that a session that was not held back sends one frame: it is its turn."""
        assert self._turn is None, "one session has its turn at a time"
        self._turn, self._over = key, now + self._patience

    def gave_up(self, key: Hashable) -> None:
        """Note that the frame of a turn is not sent after all."""
        if self._turn == key:
            self._turn, self._over = None, math.inf

    def passed(self) -> None:
        """Note that a frame is sent without a turn: the end of a stream."""
        self._ends += 1

    def heard(self, frames: int, now: float) -> None:
        """Note that the agent has taken data, and how many frames.

        The first is that of the session with the turn; others are ends of streams, if some are on their way; one
        more is that of the session whose turn was the last in vain; and all others are of any that wait.
        """
        self._look(now)
        if self._turn is not None:
            self._forgive(self._turn)
            self._turn, self._over = None, math.inf
            frames -= 1
        ends = min(max(frames, 0), self._ends)
        self._ends -= ends
        frames -= ends
        if frames > 0 and self._last is not None:
            self._forgive(self._last)
            frames -= 1
        if frames > 0:
            self._delays.clear()
            self._next.clear()

    def _forgive(self, key: Hashable) -> None:
        self._delays.pop(key, None)
        self._next.pop(key, None)
        if self._last == key:
            self._last = None

    def _look(self, now: float) -> None:
        """Note that the turn was in vain, if it was."""
        if self._turn is not None and now >= self._over:
            key, self._turn, self._over = self._turn, None, math.inf
            self._last = key
            delay = self._delays[key] = 2 * self._delays.get(key, self._patience / 2)
            self._next[key] = now + delay

    def forget(self) -> None:
        """Note that there is enough for all."""
        self._turn, self._over, self._last, self._ends = None, math.inf, None, 0
        self._delays.clear()
        self._next.clear()

    def next_change(self, now: float) -> float:
        """When a session that is held back now may go on, unless the agent takes something before."""
        self._look(now)
        if self._turn is not None:
            return self._over
        return min((time for time in self._next.values() if time > now), default=math.inf)
