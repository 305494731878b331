"""Two clocks: trio's, which has the deadlines, and the machine's, by which guests live.

Under `trio.testing.MockClock` trio's clock jumps to the next deadline as soon as every task sleeps. A real guest,
which is another process or machine, has had no time to do anything then: each deadline for it is over at once.
Little can be done about that here (see `within`), but those who meet it can be told.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Stopwatch", "within"]


@final
class Stopwatch:
    """Runs from its making."""

    def __init__(self) -> None:
        self._virtual: Final = trio.current_time()
        self._real: Final = time.monotonic()

    def note(self) -> str:
        """What to say behind "not in time" if trio's clock has run ahead of the machine's; empty otherwise."""
        virtual = trio.current_time() - self._virtual
        real = time.monotonic() - self._real
        if virtual <= 2 * real:  # a real clock does not run twice as fast
            return ""
        return (
            f". But of these {virtual:.3g} seconds of trio's clock only {real:.2g} have really passed, and a real "
            "guest lives by the latter: do not use autojump_clock (or another MockClock) in a test with a guest; "
            "virtual time is for memory streams"
        )


async def within(seconds: float, function: Callable[[], Awaitable[object]]) -> bool:
    """Await something for so many seconds of the machine's clock; whether it was done. Otherwise it was cancelled.

    For what must have its time under a virtual clock as well: a process that was killed still has to die.
    """
    done = False
    async with hidden_nursery() as nursery:
        nursery.start_soon(_cancel_after, seconds, nursery.cancel_scope)
        await function()
        done = True
        nursery.cancel_scope.cancel()
    return done


@trio.lowlevel.enable_ki_protection
async def _cancel_after(seconds: float, scope: trio.CancelScope) -> None:
    end = time.monotonic() + seconds
    # More than once if trio's clock jumps.
    while (left := end - time.monotonic()) > 0:  # noqa: ASYNC110  (nobody sets an event)
        await trio.sleep(left)
    scope.cancel()
