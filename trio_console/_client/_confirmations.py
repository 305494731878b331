"""How long a guest may take to confirm what it was told to end: one deadline, whatever is waited for.

A guest that confirms nothing any more (it is stopped, or gone without a word) is found out by waiting for a grace.
That is paid once: five processes that are left one after another while it is stopped wait for the same deadline.
And it is forgotten: one process that could not be confirmed an hour ago costs the next one nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._clocks import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Confirmations"]

#: Seconds for the word that the guest shall end to be written to its console: a moment, but for a busy program.
_LAST_TIME: Final = 0.2


@final
class Confirmations:
    """The deadline for a guest's confirmations.

    * A wait sets it to ``grace`` seconds from now, if none is set.
    * Any confirmation clears it.
    * A wait that begins later than two graces after it was set sets a new one.

    So a wait that begins when the deadline is over, and not yet for long, gets no time at all.

    Args:
        grace: seconds.
    """

    def __init__(self, grace: float) -> None:
        self.grace: Final = grace
        self._since: float | None = None  # when the deadline was set
        self._watch: Stopwatch | None = None  # since then

    def begin(self) -> float:
        """A wait begins; returns its deadline, on trio's clock. It may be in the past."""
        if self._since is None or trio.current_time() > self._since + 2 * self.grace:
            self._since = trio.current_time()
            self._watch = Stopwatch()
        return self._since + self.grace

    def peek(self) -> float:
        """The deadline that a wait would have, for one that asks for no confirmation."""
        before = self._since, self._watch
        deadline = self.begin()
        self._since, self._watch = before
        return deadline

    def note(self) -> str:
        """What to say behind "not confirmed in time", see `Stopwatch`."""
        return "" if self._watch is None else self._watch.note()

    def begin_last(self) -> float:
        """The same for the end of the guest, which has to be told: 0.2 seconds ahead, at the least."""
        return max(self.begin(), trio.current_time() + _LAST_TIME)

    def confirmed(self) -> None:
        """The guest has confirmed something, in time or not."""
        self._since = None

    async def wait(self, confirmation: Callable[[], Awaitable[object]]) -> bool:
        """Wait for a confirmation; whether it came before the deadline."""
        with trio.CancelScope(deadline=self.begin()) as scope:
            await confirmation()
            self.confirmed()
        return not scope.cancelled_caught
