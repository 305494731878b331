"""Log records and warnings on stderr, written by a thread of their own.

The relay logs in its event loop. If stderr is a pipe that nobody reads, a write there would block the loop, and
all clients with it.
"""

from __future__ import annotations

import logging
import queue
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, final

from trio_console._cli.standard import say

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["reporting"]

#: Records that are kept for the thread. What comes while it is full is dropped and counted.
_ROOM: Final = 1000

#: Seconds to wait for the last records at the end.
_LAST_TIME: Final = 1.0


@contextmanager
def reporting() -> Iterator[None]:
    """Write the log records of this package, from warnings on, and all warnings, for the time of a block."""
    reports = _Reports()
    logger = logging.getLogger("trio_console")
    logger.addHandler(reports)
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        warnings_logger = logging.getLogger("py.warnings")
        warnings_logger.addHandler(reports)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            warnings_logger.removeHandler(reports)
            logger.removeHandler(reports)
            reports.finish()


@final
class _Reports(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._queue: Final[queue.Queue[str | None]] = queue.Queue(_ROOM)
        self._dropped = 0  # changed under the handler's lock
        # A daemon, because it may be blocked for ever.
        self._thread: Final = threading.Thread(target=self._write, name="reports on stderr", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        dropped, text = self._dropped, record.getMessage()
        if dropped:
            text = f"{dropped} messages were dropped, because nobody reads stderr\n{text}"
        try:
            self._queue.put_nowait(self.format(record) if record.exc_info else text)
        except queue.Full:
            self._dropped += 1
        else:
            self._dropped -= dropped

    def _write(self) -> None:
        while (text := self._queue.get()) is not None:
            say(text)

    def finish(self) -> None:
        """Wait a moment for the last records to be written."""
        try:
            self._queue.put(None, timeout=_LAST_TIME)
        except queue.Full:
            return
        self._thread.join(_LAST_TIME)
