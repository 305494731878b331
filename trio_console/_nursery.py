"""A nursery that its user does not see.

A context manager that runs background tasks would wrap what its body raises into an exception group, although
the body's author opened no nursery. `hidden_nursery` hands on the body's own exception, whatever it is,
and only a failure of the background tasks themselves comes as trio gives it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["hidden_nursery"]


@asynccontextmanager
async def hidden_nursery() -> AsyncIterator[trio.Nursery]:
    """Like `trio.open_nursery`, but the body's own exception comes out as it is.

    So does a lone exception of a background task. Background tasks are expected to end by themselves, or when
    the body fails and they are cancelled.
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
        if body_error is not None:
            # Background tasks that were cancelled from outside with the body have nothing to tell beside it: the
            # scope that was cancelled does not need to see them.
            _, failures = group.split(trio.Cancelled)
            if failures is not None:
                raise BaseExceptionGroup(group.message, [body_error, *failures.exceptions]) from None
            lone = body_error
        elif len(group.exceptions) != 1:
            raise
        else:
            lone = group.exceptions[0]
    else:
        if body_error is None:
            return
        lone = body_error
    # Outside the except block, so that the group does not become the exception's context.
    _reraise(lone)


def _reraise(exc: BaseException) -> None:
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
        del exc, context
