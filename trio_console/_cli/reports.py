"""Log records and warnings on stderr, written by a thread of their own.

The relay logs in its event loop. If stderr is a pipe that nobody reads, a write there would block the loop, and
all clients with it.
"""

from __future__ import annotations

import logging
import queue
import threading
import warnings
from contextlib import contextmanager, suppress
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
        self._finished = False
        # A daemon, because it may be blocked for ever.
        self._thread: Final = threading.Thread(target=self._write, name="reports on stderr", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        dropped, text = self._dropped, self.format(record)
        if dropped:
            text = f"{dropped} messages were dropped, because nobody reads stderr\n{text}"
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            self._dropped += 1
        else:
            self._dropped = 0

    def _write(self) -> None:
        while (text := self._queue.get()) is not None:
            say(text)
            if self._finished and self._queue.empty():
                return

    def finish(self) -> None:
        """Wait a moment for the last records to be written."""
        # Either the thread finds the flag behind a record, or the queue has room for the `None` once it is empty.
        self._finished = True
        with suppress(queue.Full):
            self._queue.put(None, timeout=_LAST_TIME)
        self._thread.join(_LAST_TIME)
