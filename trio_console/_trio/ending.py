"""The ending of a block: first in order, then by force, and always to its last step.

A cancellation makes the wait of a task raise, and so does a Ctrl-C while the main task waits. A shield does not
help against Ctrl-C: trio delivers it to the main task inside a shield too. An ending that is interrupted in the
middle leaves threads, processes and files behind. So an ending runs in a task of its own, started by
`see_through`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["see_through"]


@trio.lowlevel.enable_ki_protection
async def see_through(
    ending: Callable[[trio.CancelScope], Awaitable[object]], *, grace: float = 0.0, hurried: float = 0.0
) -> None:
    """Run an ending to its last step, also if this task is cancelled or interrupted by Ctrl-C.

    The ending runs shielded. It makes its voluntary waits inside the cancel scope that it is given (its patience).
    That scope is cancelled ``grace`` seconds after the call; or ``hurried`` seconds after this task is cancelled,
    or after the call if the task was cancelled before.

    The cancellation is not raised here, so that the exception with which the block is left is not lost: the next
    checkpoint outside raises it. A first Ctrl-C has the effect of a cancellation, and a second one cancels the
    scope at once. `KeyboardInterrupt` is raised once, when the ending is over; an exception of the ending is its
    context.

    Args:
        ending: the async function that ends things; it is given the scope.
        grace: seconds for the voluntary waits; by default 0.
        hurried: seconds for them after a cancellation or a Ctrl-C; by default 0.
    """
    patience = trio.CancelScope(deadline=trio.current_time() + grace)
    done = trio.Event()
    interrupted: KeyboardInterrupt | None = None
    try:
        async with hidden_nursery() as nursery:
            nursery.start_soon(_end, ending, patience, done)
            nursery.start_soon(_hurry_when_cancelled, patience, hurried)
            with trio.CancelScope(shield=True):
                while not done.is_set():
                    try:
                        await done.wait()
                    except KeyboardInterrupt as exc:  # if this is the main task
                        _hurry(patience, hurried if interrupted is None else 0.0)
                        interrupted = interrupted or exc
            nursery.cancel_scope.cancel()
    finally:
        try:
            if interrupted is not None:
                raise interrupted
        finally:
            del interrupted  # its traceback refers to this frame


@trio.lowlevel.enable_ki_protection
async def _end(
    ending: Callable[[trio.CancelScope], Awaitable[object]], patience: trio.CancelScope, done: trio.Event
) -> None:
    try:
        with trio.CancelScope(shield=True):
            await ending(patience)
    finally:
        done.set()


@trio.lowlevel.enable_ki_protection
async def _hurry_when_cancelled(patience: trio.CancelScope, hurried: float) -> None:
    """Wait to be cancelled: from outside, which shortens the patience, or by `see_through` when it is done."""
    try:
        await trio.sleep_forever()
    except trio.Cancelled:  # noqa: ASYNC103  (see `see_through`: the next checkpoint outside raises it)
        _hurry(patience, hurried)


def _hurry(patience: trio.CancelScope, seconds: float) -> None:
    patience.deadline = min(patience.deadline, trio.current_time() + seconds)
