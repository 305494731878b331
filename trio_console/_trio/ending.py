"""The end of a block: in order for a while, then by force, and whole in any case.

A cancellation, and a Ctrl-C that strikes while the main task waits, throw a task out of what it waits for.
Shielding is no help against the second: trio delivers it to the main task inside a shield too. An ending that is
thrown out in the middle leaves threads, processes and files behind. So endings run in a task of their own, by
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
    """Run an ending to its end, whatever comes meanwhile.

    The ending runs shielded, and does what is worth waiting for inside the scope that it is given; that is
    cancelled after ``grace`` seconds, or ``hurried`` seconds after this was cancelled, whether that was before the
    call or comes during it. (The cancellation is not raised: the next checkpoint outside does that, and the
    exception that the block is left with is not lost.) A Ctrl-C hurries the ending as well, a second one ends its
    patience; `KeyboardInterrupt` is raised once, when it is over, with what the ending has raised as its context.
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
            del interrupted  # whose traceback refers to this frame


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
    """Wait to be cancelled, by whoever wants the ending to be over, or because it is."""
    try:
        await trio.sleep_forever()
    except trio.Cancelled:  # noqa: ASYNC103  (see `see_through`: it comes again)
        _hurry(patience, hurried)


def _hurry(patience: trio.CancelScope, seconds: float) -> None:
    patience.deadline = min(patience.deadline, trio.current_time() + seconds)
