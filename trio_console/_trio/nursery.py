"""A nursery that its user does not see.

A context manager that runs background tasks would wrap what its body raises into an exception group, although
the body's author opened no nursery. `hidden_nursery` hands on the body's own exception, whatever it is,
and only a failure of the background tasks themselves comes as trio gives it. `KeyboardInterrupt` and `SystemExit`
come alone, whatever else there is: who handles those looks into no group. `grouping_nursery` does only the latter.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trio_console._trio.interrupts import interrupt_safe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["grouping_nursery", "hidden_nursery"]


@interrupt_safe
@asynccontextmanager
async def hidden_nursery() -> AsyncIterator[trio.Nursery]:
    """Like `trio.open_nursery`, but the body's own exception comes out as it is.

    So does a lone exception of a background task, and, before all others, the first `KeyboardInterrupt` or
    `SystemExit`, be it the body's, a background task's, or one that came while those were waited for. Background
    tasks are expected to end by themselves, or when the body fails and they are cancelled.
    """
    body_error: BaseException | None = None
    lone: BaseException
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except trio.Cancelled:
                raise
            except BaseException as exc:
                if isinstance(exc, BaseExceptionGroup) and exc.subgroup(trio.Cancelled) is not None:
                    raise  # the scopes it passes must see it
                # Kept out of the nursery, which hands on a *copy* of a group: neither the object nor the
                # class of the one that was raised.
                body_error = exc
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        lone = _foremost(body_error, group)
        if lone is group:
            raise
    else:
        if body_error is None:
            return
        lone = body_error
    # Outside the except block, so that the group does not become the exception's context.
    try:
        if lone is body_error:
            _reraise(lone)
        _raise(lone)
    finally:
        del lone, body_error  # whose tracebacks refer to this frame


@interrupt_safe
@asynccontextmanager
async def grouping_nursery() -> AsyncIterator[trio.Nursery]:
    """Like `trio.open_nursery`, one group included, for a user's tasks that trio would run in a nursery as well.

    But the first `KeyboardInterrupt` or `SystemExit` comes out alone, be it the body's or a task's.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        lone = _interruption(group.exceptions)
        if lone is None:
            raise
    else:
        return
    try:
        _reraise(lone)
    finally:
        del lone  # whose traceback refers to this frame


def _foremost(body_error: BaseException | None, group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What comes out of a nursery whose background tasks, or the waiting for them, have raised."""
    errors = list(group.exceptions)
    if body_error is not None:
        # Background tasks that were cancelled from outside with the body have nothing to tell beside it: the
        # scope that was cancelled does not need to see them.
        failures = group.split(trio.Cancelled)[1]
        errors = [body_error] if failures is None else [body_error, *failures.exceptions]
    interruption = _interruption(errors)
    if interruption is not None:
        return interruption
    if len(errors) == 1:
        return errors[0]
    return group if body_error is None else BaseExceptionGroup(group.message, errors)


def _interruption(errors: Sequence[BaseException]) -> BaseException | None:
    """The first of these that comes alone."""
    for exc in errors:
        if isinstance(exc, (KeyboardInterrupt, SystemExit)):
            if exc is not errors[0] and exc.__context__ is None:
                exc.__context__ = errors[0]  # for the traceback
            return exc
    return None


def _reraise(exc: BaseException) -> None:
    """Raise what was raised before, with the context it had then."""
    context = exc.__context__
    try:
        _raise(exc)
    finally:
        exc.__context__ = context
        del exc, context


def _raise(exc: BaseException) -> None:
    try:
        raise exc
    finally:
        del exc  # which refers to this frame
