"""Work in threads, with an error of its own for the case that no thread can be started.

The number of threads of a process, a user or a container is limited. At the limit trio raises `RuntimeError: can't
start new thread`. That says neither what the thread was for nor what to do; and an ending that catches it, to go
on without a thread, would also catch other errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import outcome
import trio

from trio_console._errors import without_frames

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NoThreadError", "captured", "in_thread"]

_T = TypeVar("_T")


class NoThreadError(RuntimeError):
    """No thread could be started, so the function was not called."""

    def __init__(self, purpose: str) -> None:
        super().__init__(
            f"no thread could be started {purpose}: this process, its user or its container has as many threads "
            "as it may have, or there is too little memory. Raise the limit (`ulimit -u`, or `pids.max` of the "
            "cgroup), or run fewer threads"
        )


def captured(function: Callable[[], _T]) -> outcome.Outcome[_T]:
    """The outcome of a function, to be handed to another thread.

    An error of the system, or one of this package, is expected: it loses its frames (see `without_frames`). All
    others are faults, and whoever logs one needs its traceback.
    """
    result = outcome.capture(function)
    if isinstance(result, outcome.Error) and _is_expected(result.error):
        without_frames(result.error)
    return result


def _is_expected(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.startswith(f"{__package__.partition('.')[0]}.")


async def in_thread(
    purpose: str, function: Callable[[], _T], *, limiter: trio.CapacityLimiter | None = None, abandon: bool = False
) -> _T:
    """Call a function in a thread, and return its result.

    If cancelled, it waits for the thread, unless ``abandon`` is true.

    Args:
        purpose: completes the message "no thread could be started ...".
        function: called without arguments. It is not called if no thread could be started.
        limiter: with `None`, the default, the call has a limiter of its own, so that it never waits for other
            threads.
        abandon: if cancelled, leave the thread running and return at once.

    Raises:
        NoThreadError: no thread could be started.
    """
    called = False

    def call() -> outcome.Outcome[_T]:
        nonlocal called
        called = True  # read by the task when this thread has ended, or never: an abandoned call is not answered
        # The function's exception is captured, so that a RuntimeError of it is not taken for the lack of a thread.
        return captured(function)

    try:
        result = await trio.to_thread.run_sync(
            call,
            thread_name=f"thread {purpose}",
            abandon_on_cancel=abandon,
            limiter=limiter or trio.CapacityLimiter(1),
        )
    except RuntimeError as exc:
        assert not called, "what lacked a thread was not called: the caller may call it again"
        raise NoThreadError(purpose) from exc
    try:
        return result.unwrap()
    finally:
        del result  # the traceback of its error refers to this frame
