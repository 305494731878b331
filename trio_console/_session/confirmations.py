"""How long a guest may take to confirm an end: one deadline for all ends that are waited for.

A wait for a grace shows that a guest confirms nothing (because it is stopped, or has vanished). That grace is
waited for only once: if five processes are left one after the other while the guest is stopped, all wait for the
same deadline. And the deadline expires: if one process was not confirmed an hour ago, the next one has a full
grace.

A single stuck process (in a call that cannot be interrupted) says nothing about the guest, which may answer for
other processes in milliseconds. So if any byte has come from the guest since the deadline was set, each wait gets
a moment, also after the deadline. A confirmation that comes then clears the deadline for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._trio.clocks import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Confirmations"]

#: Seconds for a request to reach the guest, and for its answer to come, also in a busy program.
_MOMENT: Final = 0.2


@final
class Confirmations:
    """The deadline for a guest's confirmations.

    * A wait sets it to ``grace`` seconds from now, if none is set.
    * Any confirmation clears it.
    * A wait that begins more than two graces after the deadline was set, sets a new one.

    So a wait that begins shortly after the deadline gets no time at all; or 0.2 seconds, if a byte has come from
    the guest since the deadline was set.

    Args:
        grace: seconds.
        heard: returns how many bytes have come from the guest.
    """

    def __init__(self, grace: float, heard: Callable[[], int] = lambda: 0) -> None:
        self.grace: Final = grace
        self._heard = heard
        self._since: float | None = None  # when the deadline was set
        self._heard_before = 0  # bytes that had come by then
        self._watch: Stopwatch | None = None  # started when the deadline was set

    def begin(self, reserve: float = 0.0) -> float:
        """Begin a wait; returns its deadline on trio's clock, which may be in the past.

        Args:
            reserve: seconds before the common deadline that are kept for other steps; by default 0.
        """
        now = trio.current_time()
        if self._since is None or now > self._since + 2 * self.grace:
            self._since = now
            self._heard_before = self._heard()
            self._watch = Stopwatch()
        deadline = self._since + self.grace - reserve
        assert deadline <= now + self.grace, "a guest that confirms nothing costs one deadline"
        return deadline if self._heard() == self._heard_before else max(deadline, now + _MOMENT)

    def peek(self) -> float:
        """The deadline that a wait would have, without beginning one: for waits that need no confirmation."""
        before = self._since, self._heard_before, self._watch
        deadline = self.begin()
        self._since, self._heard_before, self._watch = before
        return deadline

    def note(self) -> str:
        """Text for the end of a message about a missing confirmation, see `Stopwatch`."""
        return "" if self._watch is None else self._watch.note()

    def begin_last(self) -> float:
        """Begin the wait for the guest's own end; its deadline is at least 0.2 seconds ahead."""
        return max(self.begin(), trio.current_time() + _MOMENT)

    def confirmed(self) -> None:
        """Note a confirmation of the guest, in time or late."""
        self._since = None

    async def wait(self, confirmation: Callable[[], Awaitable[object]]) -> bool:
        """Wait for a confirmation; returns whether it came before the deadline."""
        with trio.CancelScope(deadline=self.begin()) as scope:
            await confirmation()
            self.confirmed()
        return not scope.cancelled_caught
