"""How long a guest may take to confirm what it was told to end: one deadline, whatever is waited for.

A guest that confirms nothing any more (it is stopped, or gone without a word) is found out by waiting for a grace.
That is paid once: five processes that are left one after another while it is stopped wait for the same deadline.
And it is forgotten: one process that could not be confirmed an hour ago costs the next one nothing.

One process that is stuck (in a call that cannot be interrupted) says nothing about the guest, which may answer
others in milliseconds. So a guest that has been heard since the deadline was set gets a moment for each wait, even
behind the deadline: what it confirms then clears the deadline for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._trio.clocks import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Confirmations"]

#: Seconds for a request to reach the guest, and for its answer: a moment, but for a busy program.
_MOMENT: Final = 0.2


@final
class Confirmations:
    """The deadline for a guest's confirmations.

    * A wait sets it to ``grace`` seconds from now, if none is set.
    * Any confirmation clears it.
    * A wait that begins later than two graces after it was set sets a new one.

    So a wait that begins when the deadline is over, and not yet for long, gets no time at all; or 0.2 seconds if
    the guest has been heard since the deadline was set.

    Args:
        grace: seconds.
        heard: bytes that have come from the guest.
    """

    def __init__(self, grace: float, heard: Callable[[], int] = lambda: 0) -> None:
        self.grace: Final = grace
        self._heard = heard
        self._since: float | None = None  # when the deadline was set
        self._heard_before = 0  # bytes that had come by then
        self._watch: Stopwatch | None = None  # since then

    def begin(self, reserve: float = 0.0) -> float:
        """A wait begins; returns its deadline, on trio's clock. It may be in the past.

        Args:
            reserve: seconds before the common deadline to be kept for something else.
        """
        now = trio.current_time()
        if self._since is None or now > self._since + 2 * self.grace:
            self._since = now
            self._heard_before = self._heard()
            self._watch = Stopwatch()
        deadline = self._since + self.grace - reserve
        return deadline if self._heard() == self._heard_before else max(deadline, now + _MOMENT)

    def peek(self) -> float:
        """The deadline that a wait would have, for one that asks for no confirmation."""
        before = self._since, self._heard_before, self._watch
        deadline = self.begin()
        self._since, self._heard_before, self._watch = before
        return deadline

    def note(self) -> str:
        """What to say behind "not confirmed in time", see `Stopwatch`."""
        return "" if self._watch is None else self._watch.note()

    def begin_last(self) -> float:
        """The same for the end of the guest, which has to be told: 0.2 seconds ahead, at the least."""
        return max(self.begin(), trio.current_time() + _MOMENT)

    def confirmed(self) -> None:
        """The guest has confirmed something, in time or not."""
        self._since = None

    async def wait(self, confirmation: Callable[[], Awaitable[object]]) -> bool:
        """Wait for a confirmation; whether it came before the deadline."""
        with trio.CancelScope(deadline=self.begin()) as scope:
            await confirmation()
            self.confirmed()
        return not scope.cancelled_caught
