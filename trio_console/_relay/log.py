"""The session log: what every command in the guest has said, as JSON Lines.

One object a line:

* ``session``: a number, counted from 1 in the life of the relay; 0 is the log itself;
* ``source``: ``stdout``, ``stderr``, ``output`` (of a terminal) or ``system`` (what was run, how it ended);
* ``time``: UTC, RFC 3339 with microseconds: when the relay got it;
* ``text``, or for bytes that are not UTF-8 ``base64``. A character split over two frames is put together; nothing
  is replaced, so the texts and bytes of a session's source, joined, are exactly what it wrote.

The router hands over references and never waits: the queue has a budget in bytes, and what does not fit, or could
not be written, is counted and, once there is room, said in the log itself. Formatting and writing happen in a
thread of their own, and so does the counting of what became of each record: the task that waits may be cancelled.
Files are rotated by size: ``log``, ``log.1``, ``log.2`` and so on.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import json
import logging
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
from trio_console._trio.threads import NoThreadError, in_thread

__all__ = ["SessionLog", "SessionLogStatistics"]

log: Final = logging.getLogger("trio_console.relay")

#: Bytes queued for the log at most.
_QUEUE_BUDGET: Final = 4 * 1024 * 1024

#: What a queued record costs beside its data.
_RECORD_COST: Final = 128

#: Seconds the last records have to be written when the relay ends.
_FLUSH_TIME: Final = 1.0

#: Seconds between attempts to write while there is no thread to be had.
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
    """What could not be written, and was not said in the log yet."""

    records: int
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class SessionLogStatistics:
    """A session log at one moment.

    Attributes:
        records_written: lines in its files.
        records_dropped: that found the queue full, or could not be written.
        bytes_dropped: of output, in those.
        bytes_queued: now.
    """

    records_written: int
    records_dropped: int
    bytes_dropped: int
    bytes_queued: int


@final
class SessionLog:
    """Writes the log; fed by the router, see the module.

    Args:
        path: of the file; made with mode 0600 if it is not there, and appended to.
        max_bytes: size at which a file is rotated.
        backups: rotated files that are kept.

    Raises:
        OSError: the file cannot be opened.
        ValueError: a bound is below 1.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, max_bytes: int = 16 * 1024 * 1024, backups: int = 4
    ) -> None:
        if max_bytes < 1 or backups < 1:
            raise ValueError("a session log needs a size of at least 1 byte, and at least 1 backup")
        self._files = _Files(os.fspath(path), max_bytes, backups)
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
        # Queued until written, so that a slow disk is felt by the budget.
        return self._accepted - self._files.settled

    # The router's side

    def opened(self, id_: int, request: wire.ExecRequest) -> None:
        """A client asked for a command."""
        number = self._next_session
        self._next_session += 1
        self._sessions[id_] = number, request.tty
        self._put(number, _SYSTEM, "run: " + json.dumps([request.cmd, *request.args], ensure_ascii=False))

    def said(self, frame: wire.Frame, data: tuple[type[wire.DataMessage], int] | None) -> None:
        """The agent sent a frame; with canonical data in it, its class and size."""
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
            how = f"the agent said what nobody understands: {exc}"
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

    def ended(self, id_: int, how: str) -> None:
        """A command ended, or nobody will hear how."""
        session = self._sessions.pop(id_, None)
        if session is not None:
            self._put(session[0], _SYSTEM, how, last=True)

    def _put(self, session: int, source: str, data: bytes | str, *, last: bool = False) -> None:
        raw = data if isinstance(data, bytes) else data.encode(errors="backslashreplace")
        # The end of a session is always recorded: it is small, and there is one for each.
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
        """Write until cancelled; then what is queued, within a second."""
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
        """Close the file. What is still queued is not written. Idempotent."""
        self._files.close()

    async def _write_queued(self) -> None:
        while self._queued:  # also by a thread that an earlier, cancelled call has left behind
            write = partial(self._files.write, self._queue)
            try:
                failed = await in_thread("to write a session log", write, limiter=self._limiter, abandon=True)
            except NoThreadError as exc:
                # What is queued waits; what then finds the queue full is counted, as behind a slow disk.
                log.warning("the session log could not be written: %s", exc)
                await trio.sleep(_THREAD_PAUSE)
                continue
            if failed is not None:
                log.warning("the session log could not be written: %s", failed)

    def statistics(self) -> SessionLogStatistics:
        return SessionLogStatistics(
            records_written=self._files.records,
            records_dropped=self._records_refused + self._files.records_lost,
            bytes_dropped=self._bytes_refused + self._files.bytes_lost,
            bytes_queued=self._queued,
        )


@final
class _Files:
    """The files and the decoders; used by one thread at a time, whichever has the lock.

    A thread that hangs in a write (a dead network disk) is abandoned with the lock. It closes the file when it
    comes back, if that was asked for meanwhile.
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
        # A terminal, /dev/null or the like is written to as it is. Its name must not become a file's.
        self._rotates = stat.S_ISREG(about.st_mode)

    @staticmethod
    def _open(path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, queue: deque[_Record]) -> OSError | None:
        """Write what is queued, and settle all of it; returns the error that kept some from being written."""
        error = None
        with self._lock:
            # Taken here, and not by who asked: a record is in the queue until a thread has it in hand. That the
            # router appends at the other end meanwhile does no harm.
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
            # No half lines: a reader of JSON Lines would stumble over everything behind one.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
                self._size = start
            raise
        self.records += 1

    def _rotate(self) -> None:
        # The new file first, under a name of its own: if there cannot be one, nothing has moved, and trying
        # again with each line pushes no older file out.
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
        """The session is over: what its decoders still hold is no character and never will be."""
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
