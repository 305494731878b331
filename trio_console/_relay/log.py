"""The session log: the output of every command in the guest, as JSON Lines.

Each line is one object:

* ``session``: the number of the command, counted from 1 in the life of the relay; 0 is the log itself;
* ``source``: ``stdout``, ``stderr``, ``output`` (of a terminal) or ``system`` (the command line, and the end);
* ``time``: when the relay got the frame, in UTC, by RFC 3339 with microseconds;
* ``text``; or ``base64`` for bytes that are not UTF-8. A character that is split over two frames is put together,
  and no byte is replaced: all texts and bytes of one source of a session, joined, are exactly the bytes that it
  wrote.

The router passes references to the log and never waits. The queue has a budget in bytes. Records that do not fit,
or cannot be written, are counted, and reported in the log itself once there is room. A thread formats and writes
the records, and counts those written and lost, because the task that waits for it may be cancelled. Files are
rotated by size: ``log``, ``log.1``, ``log.2`` and so on.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import json
import os
import stat
import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple, final

import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._trio.reports import LoggedReports
from trio_console._trio.threads import NoThreadError, in_thread

__all__ = ["SessionLog", "SessionLogStatistics"]

#: The most bytes queued for the log.
_QUEUE_BUDGET: Final = 4 * 1024 * 1024

#: Bytes that a queued record costs beside its data.
_RECORD_COST: Final = 128

#: Seconds for the last records to be written when the relay ends.
_FLUSH_TIME: Final = 1.0

#: Seconds between attempts to write while no thread can be started.
_THREAD_PAUSE: Final = 0.5

_SYSTEM: Final = "system"


_SOURCES: Final = wire.streams_of("exec", wire.Direction.AGENT_TO_HOST)


def _ending(message: wire.Message) -> str:
    match message:
        case wire.ExecExited(code, number):
            return f"exited with status {code}" if number is wire.UNSET else f"killed by signal {number}"
        case wire.ExecFailed():
            return f"could not be started: {message.message}"
        case wire.Error():
            return f"refused: {message.message}"
        case _:
            return f"ended with {wire.type_of(message).name}"


class _Record(NamedTuple):
    session: int
    source: str
    time: float
    data: bytes
    last: bool = False


def _cost(record: _Record) -> int:
    return len(record.data) + _RECORD_COST


class _Gap(NamedTuple):
    """Records that could not be written, and are not reported in the log yet."""

    records: int
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class SessionLogStatistics:
    """A session log at one moment.

    Attributes:
        records_written: lines written to its files.
        records_dropped: records that found the queue full, or could not be written.
        bytes_dropped: bytes of output in the dropped records.
        bytes_queued: bytes queued now.
    """

    records_written: int
    records_dropped: int
    bytes_dropped: int
    bytes_queued: int


@final
class SessionLog:
    """Writes the log. The router gives it the records; see the module.

    Args:
        path: path of the file. It is made with mode 0600 if it does not exist; an existing file is appended to.
        max_bytes: size at which a file is rotated; by default 16 MiB.
        backups: rotated files that are kept; by default 4.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, max_bytes: int = 16 * 1024 * 1024, backups: int = 4
    ) -> None:
        self._files = _Files(os.fspath(path), max_bytes, backups)
        self._log = LoggedReports("trio_console.relay")
        self._queue: deque[_Record] = deque()
        self._accepted = 0  # bytes ever queued
        self._work = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._next_session = 1
        self._sessions: dict[int, tuple[int, bool]] = {}  # frame id to session number and whether it is a terminal
        self._unsaid: dict[int, int] = {}  # session number to bytes dropped and not yet reported
        self._records_refused = 0
        self._bytes_refused = 0

    @property
    def _queued(self) -> int:
        # A record counts as queued until it is written, so that the budget also bounds the records of a slow disk.
        queued = self._accepted - self._files.settled
        assert queued >= 0, "a record is settled once: written, or lost"
        return queued

    # The router's side

    def opened(self, session_id: int, request: wire.ExecRequest) -> None:
        """Record that a client has requested a command."""
        number = self._next_session
        self._next_session += 1
        self._sessions[session_id] = number, request.tty
        words = [request.cmd, *request.args]
        if request.octets is True:
            with contextlib.suppress(ValueError):  # the agent will refuse it
                words = [wire.unpacked(word) for word in words]
        self._put(number, _SYSTEM, "run: " + json.dumps(words, ensure_ascii=False))

    def said(self, frame: wire.Frame, data: tuple[type[wire.DataMessage], int] | None) -> None:
        """Record a frame of the agent; ``data`` is the class and size of its data in the usual form, if any."""
        session = self._sessions.get(frame.id)
        if session is None:
            return
        if data is not None:
            cls, size = data
            self._output(session, cls, bytes(frame.body[len(frame.body) - size :]))
            return
        try:
            message = wire.decode(frame)
        except ProtocolError as exc:
            how = f"the agent sent a frame that cannot be decoded: {exc}"
        else:
            if isinstance(message, wire.DataMessage):
                self._output(session, type(message), message.data)
            how = _ending(message)
        if frame.flags & wire.FLAG_TERMINAL:
            self.ended(frame.id, how)

    def _output(self, session: tuple[int, bool], cls: type[wire.DataMessage], data: bytes) -> None:
        number, tty = session
        name = _SOURCES.get(cls)
        if name is not None and data:
            self._put(number, "output" if tty else name, data)

    def ended(self, session_id: int, how: str) -> None:
        """Record the end of a command, or why its end will not be known."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._put(session[0], _SYSTEM, how, last=True)

    def _put(self, session: int, source: str, data: bytes | str, *, last: bool = False) -> None:
        raw = data if isinstance(data, bytes) else data.encode(errors="backslashreplace")
        # The end of a session is always recorded: the record is small, and each session has only one.
        if self._queued + len(raw) > _QUEUE_BUDGET and not last:
            self._records_refused += 1
            self._bytes_refused += len(raw)
            self._unsaid[session] = self._unsaid.get(session, 0) + len(raw)
            return
        now = datetime.now(UTC).timestamp()
        missing = self._unsaid.pop(session, 0)
        if missing:
            text = f"{missing} bytes of output were not logged: the log could not keep up"
            self._append(_Record(session, _SYSTEM, now, text.encode()))
        self._append(_Record(session, source, now, raw, last))

    def _append(self, record: _Record) -> None:
        self._queue.append(record)
        self._accepted += _cost(record)
        self._work.set()

    # The writer

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Write until cancelled; then write the queued records, within a second."""
        try:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                await self._write_queued()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(_FLUSH_TIME):
                await self._write_queued()
            self.close()

    def close(self) -> None:
        """Close the file. Records that are still queued are not written. A second call does nothing."""
        self._files.close()

    async def _write_queued(self) -> None:
        while (
            self._queued
        ):  # a record may also be queued in a thread that an earlier, cancelled call has abandoned
            write = partial(self._files.write, self._queue)
            try:
                failed = await in_thread("to write a session log", write, limiter=self._limiter, abandon=True)
            except NoThreadError as exc:
                # The queued records wait. Records that then find the queue full are counted, as with a slow disk.
                self._log.warning("the session log could not be written: %s", exc)
                await trio.sleep(_THREAD_PAUSE)
                continue
            if failed is not None:
                self._log.warning("the session log could not be written: %s", failed)

    def statistics(self) -> SessionLogStatistics:
        return SessionLogStatistics(
            records_written=self._files.records,
            records_dropped=self._records_refused + self._files.records_lost,
            bytes_dropped=self._bytes_refused + self._files.bytes_lost,
            bytes_queued=self._queued,
        )


@final
class _Files:
    """The files and the decoders; used by one thread at a time, which holds the lock.

    A thread that hangs in a write (on a dead network disk) is abandoned while it holds the lock. When its write
    returns, it closes the file if `close` was called in the meantime.
    """

    def __init__(self, path: str, max_bytes: int, backups: int) -> None:
        self._lock = threading.Lock()
        self._closing = False
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._decoders: dict[tuple[int, str], codecs.IncrementalDecoder] = {}
        self._gap: _Gap | None = None
        self.records = 0
        self.records_lost = 0
        self.bytes_lost = 0
        self.settled = 0  # bytes, by `_cost`, of records that were written or lost
        self._fd = self._open(path)
        about = os.fstat(self._fd)
        self._size = about.st_size
        # Only regular files are rotated: a rotation would replace a terminal or /dev/null by a file.
        self._rotates = stat.S_ISREG(about.st_mode)

    @staticmethod
    def _open(path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, queue: deque[_Record]) -> OSError | None:
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
                        self._write_line(line)
                    written += 1
            except OSError as exc:
                error = exc
            self._lose(batch[written:], error)
            self.settled += sum(_cost(record) for record in batch)
            if self._closing:
                os.close(self._fd)
        return error

    def _say_gap(self) -> None:
        gap = self._gap
        if gap is not None:
            what = "1 record" if gap.records == 1 else f"{gap.records} records"
            text = f"{what} of {gap.bytes} bytes could not be written: {gap.reason}"
            when = datetime.now(UTC).timestamp()
            self._write_line(self._line(_Record(0, _SYSTEM, when, b""), "text", text))
            self._gap = None

    def _lose(self, records: list[_Record], error: OSError | None) -> None:
        if records:
            count, size = len(records), sum(len(record.data) for record in records)
            self.records_lost += count
            self.bytes_lost += size
            before = self._gap or _Gap(0, 0, "")
            reason = "" if error is None else error.strerror or str(error)
            self._gap = _Gap(before.records + count, before.bytes + size, reason)

    def _write_line(self, line: bytes) -> None:
        if self._rotates and self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        start, view = self._size, memoryview(line)
        try:
            while view:
                count = os.write(self._fd, view)
                self._size += count
                view = view[count:]
        except OSError:
            # A half line is removed, because a reader of JSON Lines could not read the lines after it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
                self._size = start
            raise
        self.records += 1

    def _rotate(self) -> None:
        # The new file is made first, under a temporary name. If that fails, no file was renamed, so a new attempt
        # with each line does not push the older files out.
        coming = f"{self._path}.0"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(coming)
        fd = self._open(coming)
        try:
            for number in range(self._backups, 0, -1):
                older = f"{self._path}.{number}"
                newer = f"{self._path}.{number - 1}" if number > 1 else self._path
                with contextlib.suppress(FileNotFoundError):
                    os.replace(newer, older)
            os.replace(coming, self._path)
        except OSError:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd
        self._size = os.fstat(fd).st_size

    def _lines(self, record: _Record) -> list[bytes]:
        if record.source == _SYSTEM:
            lines = [self._line(record, "text", record.data.decode())]
            if record.last:
                lines = self._flush(record) + lines
            return lines
        key = record.session, record.source
        decoder = self._decoders.get(key)
        if decoder is None:
            decoder = self._decoders[key] = codecs.getincrementaldecoder("utf-8")()
        held = decoder.getstate()[0]
        try:
            text = decoder.decode(record.data)
        except UnicodeDecodeError:
            decoder.reset()
            return [self._line(record, "base64", base64.b64encode(held + record.data).decode())]
        return [self._line(record, "text", text)] if text else []

    def _flush(self, record: _Record) -> list[bytes]:
        """Lines for the bytes that a session's decoders still hold at its end: they are incomplete characters."""
        lines = []
        for key in [key for key in self._decoders if key[0] == record.session]:
            held = self._decoders.pop(key).getstate()[0]
            if held:
                source = record._replace(source=key[1])
                lines.append(self._line(source, "base64", base64.b64encode(held).decode()))
        return lines

    @staticmethod
    def _line(record: _Record, key: str, value: str) -> bytes:
        when = datetime.fromtimestamp(record.time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        fields = {"session": record.session, "source": record.source, "time": when, key: value}
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._lock.acquire(blocking=False):
            os.close(self._fd)
            self._lock.release()
