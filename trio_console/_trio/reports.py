"""Reports of what went wrong: they never block who makes them, and strangers cannot make many.

A program's stderr may be a pipe that nobody reads, or a terminal that somebody has stopped. An event loop that
logs there would stop, and all its clients with it. And a client that is cut, and comes again, makes a report each
time. So a report is left out if it cannot be written at once, or if too many came before it, and the number of
those that were left out is told as soon as there is room.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Limit", "LoggedReports", "StderrReports"]

#: Reports that may come at once, and how many more in each second after that.
_MOST: Final = 50
_A_SECOND: Final = 2.0

#: Bytes that a pipe takes at once if it is writable at all; and characters that are surely not more bytes.
_PIECE: Final = 4096
_LONGEST: Final = 900

#: Bytes of a report with a traceback.
_LONGEST_WITH_TRACEBACK: Final = 16 * 1024


def _is_writable(fd: int) -> bool:
    """Whether a descriptor takes 4096 bytes now, without blocking: with fewer, no pipe is writable."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


@final
class Limit:
    """How many reports may be made, and how many were left out.

    Args:
        most: reports that may come at once.
        a_second: how many more in each second after that.
        clock: a clock in seconds.
    """

    def __init__(
        self, most: int = _MOST, a_second: float = _A_SECOND, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most: Final = most
        self._a_second: Final = a_second
        self._clock: Final = clock
        self._left = float(most)
        self._at = clock()
        self.left_out = 0

    def take(self) -> bool:
        """Whether one more may be made; it then counts."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._a_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def take_left_out(self) -> str:
        """What to tell of those that were left out; they are then forgotten."""
        count, self.left_out = self.left_out, 0
        return f"{count} reports were left out: there were too many, or nobody reads them" if count else ""


@final
class LoggedReports:
    """Reports by means of `logging`. They are left out while a handler writes to a stream that is not read.

    Handlers of other kinds are the choice of the program that has installed them: they are called.

    Args:
        name: the name of the logger.
        limit: `None` for the usual one.
    """

    def __init__(self, name: str, limit: Limit | None = None) -> None:
        self._logger: Final = logging.getLogger(name)
        self._limit: Final = limit or Limit()

    def warning(self, message: str, *args: object) -> None:
        """Report what went wrong; the arguments are those of `logging.Logger.warning`."""
        self._report(logging.WARNING, message, args)

    def exception(self, message: str, *args: object) -> None:
        """Report the exception that is being handled."""
        self._report(logging.ERROR, message, args, exc_info=True)

    def tell(self) -> None:
        """Tell how many were left out, if any were, and that can be told now."""
        if self._limit.left_out and self._is_prompt() and self._limit.take():
            self._logger.warning(self._limit.take_left_out())

    def _report(self, level: int, message: str, args: tuple[object, ...], **more: Any) -> None:
        if not self._logger.isEnabledFor(level):
            return
        if not self._limit.take() or not self._is_prompt():
            self._limit.left_out += 1
            return
        if told := self._limit.take_left_out():
            self._logger.warning(told)
        self._logger.log(level, "%s", (message % args if args else message)[:_LONGEST], stacklevel=3, **more)

    def _is_prompt(self) -> bool:
        handlers = _handlers(self._logger)
        return all(_is_prompt(one.stream) for one in handlers if isinstance(one, logging.StreamHandler))


def _handlers(logger: logging.Logger) -> Iterator[logging.Handler]:
    """The handlers that get the records of a logger."""
    if not logger.hasHandlers() and logging.lastResort is not None:
        yield logging.lastResort
    at: logging.Logger | None = logger
    while at is not None:
        yield from at.handlers
        at = at.parent if at.propagate else None


def _is_prompt(stream: Any) -> bool:
    """Whether a stream takes a report now without blocking."""
    try:
        fd = stream.fileno()
    except (AttributeError, OSError, ValueError):  # it is in memory, or closed, or there is none
        return True
    return _is_writable(fd)


@final
class StderrReports:
    """Reports of a program that has no other place for them."""

    def __init__(self, name: str, limit: Limit | None = None) -> None:
        self._name: Final = name
        self._limit: Final = limit or Limit()

    def __call__(self, text: str) -> None:
        """Write a report, of which the end counts most if it is long."""
        if not self._limit.take() or not _is_prompt(sys.stderr):
            self._limit.left_out += 1
            return
        told = self._limit.take_left_out()
        _write("".join(f"{self._name}: {line}\n" for line in (told, text) if line))


def _write(text: str) -> None:
    """Write to stderr, as far as it takes that at once."""
    stream = sys.stderr
    try:
        fd = stream.fileno()
    except (AttributeError, OSError, ValueError):
        if stream is not None:
            stream.write(text)  # it is in memory
        return
    data = text.encode(errors="backslashreplace")[-_LONGEST_WITH_TRACEBACK:]
    with suppress(OSError):
        while data and _is_writable(fd):
            data = data[os.write(fd, data[:_PIECE]) :]
