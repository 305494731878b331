"""Whose a guest is: everything of it belongs to the trio run in which it was made.

Another thread, or another `trio.run`, may look (attributes, ``poll()``, ``statistics()``), and may ask for a
signal to be sent. Whatever else it calls would change state that the owner's tasks are in the middle of, and wake
tasks in a run that does not hear of it: the state is changed, the task sleeps on, and an exception may reach the
owner's reader. So the check comes first, before a method has done anything, and it is made in one place: `owned`
puts it around the methods of a class. Those that are called for each chunk make it themselves, as `checks_owner`
says: a coroutine around another costs a seventh of a small receive.
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
        """Refuse a call from elsewhere.

        Raises:
            RuntimeError: this is another thread, or another run.
        """
        try:
            if trio.lowlevel.current_trio_token() is self._token:
                return
        except RuntimeError:  # no trio in this thread, or no more
            pass
        raise RuntimeError(
            "this guest belongs to the trio run that opened it, and was called from another thread or another "
            "run; call it there, such as with trio.from_thread.run(..., trio_token=...)"
        )

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a synchronous function in the run, soon, or never if it is over.

        From any thread, and from a signal handler. The function must not raise: it would end the run.
        """
        # Not at once, even if this is the run's thread: this may be a signal handler, and what it has interrupted
        # is then half done, be it ours (an outbox's sums) or trio's (its queue of tasks). The two cannot be told
        # apart: the handler of a signal that comes in a task's turn sees that task as the current one.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *args)


def checks_owner(method: _F) -> _F:
    """Say that a method's first line checks the owner, ``self._owner``, so that `owned` leaves it as it is."""
    setattr(method, _MARK, True)
    return method


def owned(*changing: str) -> Callable[[type[_T]], type[_T]]:
    """Check the owner, ``self._owner``, before each public coroutine method of a class, and before ``changing``.

    Args:
        changing: names of further methods that change something.
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
