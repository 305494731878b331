"""The owner of a guest: the trio run in which it was opened, to which all its objects belong.

Another thread, or another `trio.run`, may read attributes, ``poll()`` and ``statistics()``, and may send signals.
Any other call from there would change state that a task of the owner is just using, and would wake a task of a run
that does not notice it: the state would be changed, the task would sleep on, and an exception might reach the
owner's reader. So each method checks the owner before it does anything. `owned` puts the check around the methods
of a class. Methods that are called for each chunk make the check themselves (see `checks_owner`), because a
coroutine around another one costs a seventh of a small receive.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Owner", "checks_owner", "owned"]

_T = TypeVar("_T")
_F = TypeVar("_F", bound="Callable[..., Any]")

_MARK: Final = "_trio_console_checks_owner"


@final
class Owner:
    """The trio run in which this was made."""

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token: Final = trio.lowlevel.current_trio_token()

    def check(self) -> None:
        """Refuse a call from another thread or another run.

        Raises:
            RuntimeError: this is another thread, or another run.
        """
        try:
            if trio.lowlevel.current_trio_token() is self._token:
                return
        except RuntimeError:  # there is no trio run in this thread
            pass
        raise RuntimeError(
            "this guest belongs to the trio run that opened it, and was called from another thread or another "
            "run; call it there, such as with trio.from_thread.run(..., trio_token=...)"
        )

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a synchronous function in the run, soon; or never, if the run is over.

        It may be called from any thread and from a signal handler. An exception of the function would end the run.
        """
        # Never called at once, even in the run's own thread. This may be a signal handler, which has interrupted
        # code of ours (an outbox's sums) or of trio's (its queue of tasks) in the middle. A handler cannot be
        # detected: a handler that runs during a task's turn sees that task as the current one.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *args)


def checks_owner(method: _F) -> _F:
    """Mark a method whose first line checks ``self._owner``, so that `owned` adds no check to it."""
    setattr(method, _MARK, True)
    return method


def owned(*changing: str) -> Callable[[type[_T]], type[_T]]:
    """Check ``self._owner`` before each public coroutine method of a class, and before the methods ``changing``.

    Args:
        changing: the names of synchronous methods that change something.
    """

    def decorate(cls: type[_T]) -> type[_T]:
        for name in dir(cls):  # inherited ones too
            method = inspect.getattr_static(cls, name)
            if getattr(method, _MARK, False):
                continue
            if inspect.iscoroutinefunction(method) and not name.startswith("_"):
                setattr(cls, name, _checked_coroutine(method))
            elif name in changing:
                setattr(cls, name, _checked(method))
        return cls

    return decorate


def _checked_coroutine(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    async def checked(self: Any, *args: Any, **options: Any) -> Any:
        self._owner.check()
        return await method(self, *args, **options)

    return checked


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def checked(self: Any, *args: Any, **options: Any) -> Any:
        self._owner.check()
        return method(self, *args, **options)

    return checked
