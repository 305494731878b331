"""A list of decisions read from bytes; and the outcome of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, final

from trio_console._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Script", "outcome"]

T = TypeVar("T")


@final
class Script:
    """Read from the front, so that a mutation at one place leaves what came before as it was. Ends in zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def byte(self) -> int:
        self._position += 1
        return self._data[self._position - 1] if self._position <= len(self._data) else 0

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.byte() % len(choices)]

    def take(self, size: int) -> bytes:
        """The next bytes, at most so many."""
        piece = self._data[self._position : self._position + size]
        self._position += size
        return piece

    def rest(self) -> bytes:
        return self.take(len(self._data))


def outcome(call: Callable[[], T]) -> T | ProtocolError:
    """The result of a call, or the one error that it may raise."""
    try:
        return call()
    except ProtocolError as exc:
        return exc
