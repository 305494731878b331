"""A nursery inside a context manager, of whose exception groups the user sees nothing.

A context manager that runs background tasks in a plain nursery would wrap the exception of its body into an
exception group, although the author of the body opened no nursery. `hidden_nursery` raises the body's own
exception unchanged. Only failures of the background tasks themselves come in trio's groups. `KeyboardInterrupt`
and `SystemExit` are raised alone, whatever else was raised, because code that handles those does not search
groups. `grouping_nursery` only does the latter.
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
    """Like `trio.open_nursery`, but the body's own exception is raised unchanged, and not in a group.

    So is the exception of a background task if it is the only one. The first `KeyboardInterrupt` or `SystemExit`
    takes precedence over all others: one of the body, of a background task, or raised while the tasks were
    awaited. Background tasks must end by themselves; they are cancelled when the body fails.
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
                    raise  # each cancel scope on the way must see its Cancelled
                # Kept out of the nursery, because a nursery raises a *copy* of a group: another object, perhaps of
                # another class.
                body_error = exc
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        lone = _foremost(body_error, group)
        if lone is group:
            del lone, body_error  # their tracebacks refer to this frame
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
        del lone, body_error  # their tracebacks refer to this frame


@interrupt_safe
@asynccontextmanager
async def grouping_nursery() -> AsyncIterator[trio.Nursery]:
    """Like `trio.open_nursery`, but the first `KeyboardInterrupt` or `SystemExit` is raised alone.

    All other exceptions come in trio's one group. For tasks of the user that trio would run in a nursery as well.
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
        del lone  # its traceback refers to this frame


def _foremost(body_error: BaseException | None, group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception to raise if background tasks, or the wait for them, have raised."""
    errors = list(group.exceptions)
    if body_error is not None:
        # A `Cancelled` of a background task that was cancelled from outside together with the body is left out:
        # the cancelled scope does not need it.
        failures = group.split(trio.Cancelled)[1]
        errors = [body_error] if failures is None else [body_error, *failures.exceptions]
    interruption = _interruption(errors)
    if interruption is not None:
        return interruption
    if len(errors) == 1:
        return errors[0]
    return group if body_error is None else BaseExceptionGroup(group.message, errors)


def _interruption(errors: Sequence[BaseException]) -> BaseException | None:
    """The first of these exceptions that must be raised alone, if there is one."""
    for exc in errors:
        if isinstance(exc, (KeyboardInterrupt, SystemExit)):
            if exc is not errors[0] and exc.__context__ is None:
                exc.__context__ = errors[0]  # for the traceback
            return exc
    return None


def _reraise(exc: BaseException) -> None:
    """Raise an exception that was raised before, with the context that it had then."""
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
        del exc  # its traceback refers to this frame
