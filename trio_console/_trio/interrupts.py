"""Where Ctrl-C may not strike: while a block of ours is entered or left.

trio's handler of SIGINT looks at the frames from the one that was struck outwards. The first whose code is marked
decides: a protected one lets the signal wait until the main task waits; any other gets `KeyboardInterrupt` at
once, between two opcodes, where a descriptor has been opened and its owner does not know yet. The frames of
`contextlib` and of generators are not marked, nor are tasks. So each context manager and each background task of
this package is: a context manager with `interrupt_safe`, a task with ``trio.lowlevel.enable_ki_protection``.

A block's body runs in its user's frame, and is as interruptible as its user wants it.
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
    """Keep `KeyboardInterrupt` out of a context manager's entering and leaving, but for where they wait.

    Goes above ``@asynccontextmanager``.
    """

    @functools.wraps(manage)
    def managed(*args: _P.args, **kwargs: _P.kwargs) -> AbstractAsyncContextManager[_T]:
        return _Safe(manage(*args, **kwargs))

    return managed


@final
class _Safe(AbstractAsyncContextManager[_T]):
    """Puts a protected frame around another context manager's two calls."""

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
        return await self._inner.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102  (the inner one's business)
