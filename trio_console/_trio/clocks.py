"""Two clocks: trio's clock, which deadlines use, and the machine's clock, in whose time a guest runs.

Under `trio.testing.MockClock` trio's clock jumps to the next deadline as soon as every task sleeps. A real guest
is another process or machine, and has had no time to run by then: each deadline for it is over at once. `within`
is for the few waits that must not be cut short like that; for all others a `Stopwatch` adds the cause to the error
message.
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
    """Measures the time since it was made, by both clocks."""

    def __init__(self) -> None:
        self._virtual: Final = trio.current_time()
        self._real: Final = time.monotonic()

    def note(self) -> str:
        """Text for the end of a message about a missed deadline; empty unless trio's clock has run ahead."""
        virtual = trio.current_time() - self._virtual
        real = time.monotonic() - self._real
        if virtual <= 2 * real:  # a real clock does not run twice as fast
            return ""
        return (
            f". But of these {virtual:.3g} seconds of trio's clock only {real:.2g} have really passed, and a real "
            "guest needs real time: do not use autojump_clock (or another MockClock) in a test with a guest; "
            "virtual time is for memory streams"
        )


async def within(seconds: float, function: Callable[[], Awaitable[object]]) -> bool:
    """Await ``function()`` for so many seconds of the machine's clock; returns whether it was done in time.

    After that time, or when the caller is cancelled, ``function`` is cancelled. For waits that need real time
    under a virtual clock as well, such as the wait for a killed process.
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
    # A second round is needed only if trio's clock jumps.
    while (left := end - time.monotonic()) > 0:  # noqa: ASYNC110  (there is no event)
        await trio.sleep(left)
    scope.cancel()
