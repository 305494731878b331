"""Protection from Ctrl-C while a context manager of this package is entered or left.

trio's handler of SIGINT searches the stack, from the interrupted frame outwards, for a frame that is marked as
protected or unprotected. If the first marked frame is protected, the signal is held until the main task waits.
Otherwise `KeyboardInterrupt` is raised at once, between any two opcodes: perhaps after a descriptor was opened,
and before its owner was told. Frames of `contextlib` and of generators are not marked, and neither are tasks. So
this package marks each of its context managers with `interrupt_safe`, and each of its background tasks with
``trio.lowlevel.enable_ki_protection``.

The body of a block runs in its user's frame, and is as interruptible as the user has made it.
"""

from __future__ import annotations

import functools
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, ParamSpec, TypeVar, final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["interrupt_safe"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def interrupt_safe(
    manage: Callable[_P, AbstractAsyncContextManager[_T]],
) -> Callable[_P, AbstractAsyncContextManager[_T]]:
    """Keep `KeyboardInterrupt` out of a context manager's entering and leaving, except where they wait.

    This decorator goes above ``@asynccontextmanager``.
    """

    @functools.wraps(manage)
    def managed(*args: _P.args, **kwargs: _P.kwargs) -> AbstractAsyncContextManager[_T]:
        return _Safe(manage(*args, **kwargs))

    return managed


@final
class _Safe(AbstractAsyncContextManager[_T]):
    """Puts a protected frame around the two calls of another context manager."""

    __slots__ = ("_inner",)

    def __init__(self, inner: AbstractAsyncContextManager[_T]) -> None:
        self._inner = inner

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> _T:
        return await self._inner.__aenter__()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            return await self._inner.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102  (the inner one shields itself)
        finally:
            # It was thrown into a generator, and would lead to the frame that has thrown it, which leads to it.
            if exc is not None:
                exc.__traceback__ = traceback
