"""The writing of a log: a thread writes the records that are queued, and nobody waits for it.

The queue has a budget in bytes. Records that do not fit, or cannot be written, are counted, and reported in the
log itself once there is room. The thread formats and writes the records, and counts those written and lost,
because the task that waits for it may be cancelled.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, Protocol, TypeVar, final

import trio

from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.nursery import hidden_nursery
from trio_console._trio.reports import LoggedReports
from trio_console._trio.threads import NoThreadError, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from trio_console._relay.log_files import LogFile

__all__ = ["LogStatistics", "LogWriter", "writing"]

#: The most bytes queued for the log.
_QUEUE_BUDGET: Final = 4 * 1024 * 1024

#: Bytes that a queued record costs beside its data.
_RECORD_COST: Final = 128

#: Seconds for the last records to be written when the relay ends.
_FLUSH_TIME: Final = 1.0

#: Seconds between attempts to write while no thread can be started.
_THREAD_PAUSE: Final = 0.5


class Record(Protocol):
    """A record of a log: ``size`` is the bytes of its data."""

    @property
    def size(self) -> int: ...


_R = TypeVar("_R", bound=Record)


class _Gap(NamedTuple):
    """Records that could not be written, and are not reported in the log yet."""

    records: int
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """A log at one moment.

    Attributes:
        records_written: lines written to its files.
        records_dropped: records that found the queue full, or could not be written.
        bytes_dropped: bytes of data in the dropped records.
        bytes_queued: bytes queued now.
    """

    records_written: int
    records_dropped: int
    bytes_dropped: int
    bytes_queued: int


def _cost(record: Record) -> int:
    return record.size + _RECORD_COST


@final
class LogWriter(Generic[_R]):
    """See the module.

    Args:
        name: the name of the log, for the program's own.
        file: the file, which this closes.
        lines: returns the lines of a record; called in the thread, for one record after the other.
        gap: returns the line that reports records which could not be written, from a text.
        at_end: called when the log ends, before the last records are written.
    """

    def __init__(
        self,
        name: str,
        file: LogFile,
        lines: Callable[[_R], list[bytes]],
        gap: Callable[[str], bytes],
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._name: Final = name
        self._log: Final = LoggedReports("trio_console.relay")
        self._at_end: Final = at_end
        self._files: Final = _Lines(file, lines, gap)
        self._queue: Final[deque[_R]] = deque()
        self._accepted = 0  # bytes ever queued
        self._work = trio.Event()
        self._limiter: Final = trio.CapacityLimiter(1)
        self._records_refused = 0
        self._bytes_refused = 0

    @property
    def _queued(self) -> int:
        # A record counts as queued until it is written, so that the budget also bounds the records of a slow disk.
        queued = self._accepted - self._files.settled
        assert queued >= 0, "a record is settled once: written, or lost"
        return queued

    def has_room(self, size: int) -> bool:
        """Whether a record of so many bytes fits the queue."""
        return self._queued + size <= _QUEUE_BUDGET

    def put(self, record: _R) -> None:
        """Queue a record, whether it fits or not."""
        self._queue.append(record)
        self._accepted += _cost(record)
        self._work.set()

    def refuse(self, size: int) -> None:
        """Count a record that is dropped because it does not fit."""
        self._records_refused += 1
        self._bytes_refused += size

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Write until cancelled; then write the queued records, within a second."""
        try:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                await self._write_queued()
        finally:
            self._at_end()
            with trio.CancelScope(shield=True), trio.move_on_after(_FLUSH_TIME):
                await self._write_queued()
            self.close()

    def close(self) -> None:
        """Close the file. Records that are still queued are not written. A second call does nothing."""
        self._files.close()

    async def _write_queued(self) -> None:
        # A record may also be queued in a thread that an earlier, cancelled call has abandoned.
        while self._queued:
            write = partial(self._files.write, self._queue)
            try:
                failed = await in_thread(
                    f"to write a {self._name} log", write, limiter=self._limiter, abandon=True
                )
            except NoThreadError as exc:
                # The queued records wait. Records that then find the queue full are counted, as with a slow disk.
                self._log.warning("the %s log could not be written: %s", self._name, exc)
                await trio.sleep(_THREAD_PAUSE)
                continue
            if failed is not None:
                self._log.warning("the %s log could not be written: %s", self._name, failed)

    def statistics(self) -> LogStatistics:
        files = self._files
        return LogStatistics(
            records_written=files.file.records,
            records_dropped=self._records_refused + files.records_lost,
            bytes_dropped=self._bytes_refused + files.bytes_lost,
            bytes_queued=self._queued,
        )


class _Log(Protocol):
    async def run(self) -> None: ...


@interrupt_safe
@asynccontextmanager
async def writing(logs: Iterable[_Log]) -> AsyncIterator[None]:
    """Write logs for the time of a block. They end behind it, also if all is cancelled."""
    scope = trio.CancelScope(shield=True)

    @trio.lowlevel.enable_ki_protection
    async def write() -> None:
        with scope:
            async with trio.open_nursery() as each:
                for log in logs:
                    each.start_soon(log.run)

    async with hidden_nursery() as nursery:
        nursery.start_soon(write)
        try:
            yield
        finally:
            scope.cancel()


@final
class _Lines(Generic[_R]):
    """The file and the lines for it; used by one thread at a time, which holds the lock.

    A thread that hangs in a write (on a dead network disk) is abandoned while it holds the lock. When its write
    returns, it closes the file if `close` was called in the meantime.
    """

    def __init__(self, file: LogFile, lines: Callable[[_R], list[bytes]], gap: Callable[[str], bytes]) -> None:
        self._lock = threading.Lock()
        self._closing = False
        self._lines = lines
        self._report = gap
        self._gap: _Gap | None = None
        self.file: Final = file
        self.records_lost = 0
        self.bytes_lost = 0
        self.settled = 0  # bytes, by `_cost`, of records that were written or lost

    def write(self, queue: deque[_R]) -> OSError | None:
        """Write the queued records, and settle all of them; returns the error if some could not be written."""
        error = None
        with self._lock:
            # The records are taken here, in the thread, so that none is lost if the thread does not run. The
            # router may append records at the other end of the deque at the same time.
            batch = [queue.popleft() for _ in range(len(queue))]
            written = 0
            try:
                self._say_gap()
                for record in batch:
                    for line in self._lines(record):
                        self.file.write_line(line)
                    written += 1
            except OSError as exc:
                error = exc
            self._lose(batch[written:], error)
            self.settled += sum(_cost(record) for record in batch)
            if self._closing:
                self.file.close()
        return error

    def _say_gap(self) -> None:
        gap = self._gap
        if gap is not None:
            what = "1 record" if gap.records == 1 else f"{gap.records} records"
            self.file.write_line(self._report(f"{what} of {gap.bytes} bytes could not be written: {gap.reason}"))
            self._gap = None

    def _lose(self, records: list[_R], error: OSError | None) -> None:
        if records:
            count, size = len(records), sum(record.size for record in records)
            self.records_lost += count
            self.bytes_lost += size
            before = self._gap or _Gap(0, 0, "")
            reason = "" if error is None else error.strerror or str(error)
            self._gap = _Gap(before.records + count, before.bytes + size, reason)

    def close(self) -> None:
        self._closing = True
        if self._lock.acquire(blocking=False):
            self.file.close()
            self._lock.release()
