"""Work in threads where there may be none to be had.

A process, a user, a container may have so many threads and no more. What trio raises then, `RuntimeError: can't
start new thread`, tells neither what for nor what to do; and an ending has to go on without.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NoThreadError", "in_thread"]

_T = TypeVar("_T")


class NoThreadError(RuntimeError):
    """No thread could be started. Nothing was run."""

    def __init__(self, purpose: str) -> None:
        super().__init__(
            f"no thread could be started {purpose}: there are as many as this process, its user or its container "
            "may have, or there is too little memory. Raise the limit (`ulimit -u`, `pids.max` of its cgroup), or "
            "run fewer"
        )


async def in_thread(
    purpose: str, function: Callable[[], _T], *, limiter: trio.CapacityLimiter | None = None, abandon: bool = False
) -> _T:
    """Do something in a thread.

    Args:
        purpose: completes "no thread could be started".
        function: without arguments. It is not called if no thread could be started.
        limiter: `None` is one of its own, so that the threads of other people are not waited for.
        abandon: when cancelled, leave the thread to itself; otherwise it is waited for.

    Raises:
        NoThreadError: there was none to be had.
    """
    # What the function raises is kept apart from what is raised for want of a thread.
    captured = partial(outcome.capture, function)
    try:
        result = await trio.to_thread.run_sync(
            captured,
            thread_name=f"thread {purpose}",
            abandon_on_cancel=abandon,
            limiter=limiter or trio.CapacityLimiter(1),
        )
    except RuntimeError as exc:
        raise NoThreadError(purpose) from exc
    return result.unwrap()
