"""The ways in which the commands fail."""

from __future__ import annotations

from typing import Final, TypeVar

from trio_console._errors import in_words

__all__ = ["Failure", "OutputError", "first_of"]

_E = TypeVar("_E", bound=BaseException)


class Failure(Exception):
    """A command has failed.

    Attributes:
        status: the exit status of this program.
    """

    def __init__(self, why: str | BaseException, status: int) -> None:
        super().__init__(in_words(why) if isinstance(why, BaseException) else why)
        self.status: Final = status


class OutputError(Exception):
    """A standard descriptor could not be written.

    Attributes:
        errno: of the error.
    """

    def __init__(self, name: str, cause: OSError) -> None:
        super().__init__(f"writing to {name}: {cause.strerror}")
        self.errno: Final = cause.errno


def first_of(group: BaseExceptionGroup[_E]) -> _E:
    """The first exception in a group, which may hold groups."""
    exc: _E | BaseExceptionGroup[_E] = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
