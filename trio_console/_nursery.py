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
    """Like `trio.open_nursery`, but a lone exception comes out unwrapped.

    A group raised by the body stays that group. Background tasks are expected to end by themselves or
    to be cancelled by the caller before the block is left.
    """
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                body_error = exc
                raise
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1 or group is body_error:
            raise
        lone = group.exceptions[0]
    else:
        return
    # Outside the except block, so that the group does not become the exception's context.
    _reraise(lone)


def _reraise(exc: BaseException) -> None:
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
        del exc, context
