"""The session log: the output of every command in the guest, as JSON Lines.

Each line is one object:

* ``session``: the number of the command, counted from 1 in the life of the relay; 0 is the log itself;
* ``source``: ``stdout``, ``stderr``, ``output`` (of a terminal) or ``system`` (the command line, and the end);
* ``time``: when the relay got the frame, in UTC, by RFC 3339 with microseconds;
* ``text``; or ``base64`` for bytes that are not UTF-8. A character that is split over two frames is put together,
  and no byte is replaced: all texts and bytes of one source of a session, joined, are exactly the bytes that it
  wrote.

The router passes references to the log and never waits; see `log_writer`. Files are rotated by size: ``log``,
``log.1``, ``log.2`` and so on. Control characters are escaped; see `log_files`.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple, final

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._relay.log_files import LogFile, json_line
from trio_console._relay.log_writer import LogStatistics, LogWriter

if TYPE_CHECKING:
    import os

__all__ = ["SessionLog", "ending_of", "time_text", "words_of"]

_SYSTEM: Final = "system"


_SOURCES: Final = wire.streams_of("exec", wire.Direction.AGENT_TO_HOST)


def ending_of(message: wire.Message) -> str:
    """The end of a command in words, by the terminal message of its session."""
    match message:
        case wire.ExecExited(code, number):
            return f"exited with status {code}" if number is wire.UNSET else f"killed by signal {number}"
        case wire.ExecFailed():
            return f"could not be started: {message.message}"
        case wire.Error():
            return f"refused: {message.message}"
        case _:
            return f"ended with {wire.type_of(message).name}"


def words_of(request: wire.ExecRequest) -> list[str]:
    """A command with its arguments; bytes that are not UTF-8 are lone surrogates."""
    words = [request.cmd, *request.args]
    if request.octets is True:
        with contextlib.suppress(ValueError):  # the agent will refuse it
            words = [wire.unpacked(word) for word in words]
    return words


def time_text(time: float) -> str:
    """A time in UTC, by RFC 3339 with microseconds."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class _Record(NamedTuple):
    session: int
    source: str
    time: float
    data: bytes
    last: bool = False

    @property
    def size(self) -> int:
        return len(self.data)


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
        lines = _Lines()
        self._writer: Final = LogWriter("session", LogFile(path, max_bytes, backups), lines.of, lines.report)
        self._next_session = 1
        self._sessions: dict[int, tuple[int, bool]] = {}  # frame id to session number and whether it is a terminal
        self._unsaid: dict[int, int] = {}  # session number to bytes dropped and not yet reported

    # The router's side

    def opened(self, session_id: int, request: wire.ExecRequest) -> None:
        """Record that a client has requested a command."""
        number = self._next_session
        self._next_session += 1
        self._sessions[session_id] = number, request.tty
        self._put(number, _SYSTEM, "run: " + json.dumps(words_of(request), ensure_ascii=False))

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
            how = ending_of(message)
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
        if not self._writer.has_room(len(raw)) and not last:
            self._writer.refuse(len(raw))
            self._unsaid[session] = self._unsaid.get(session, 0) + len(raw)
            return
        now = datetime.now(UTC).timestamp()
        missing = self._unsaid.pop(session, 0)
        if missing:
            text = f"{missing} bytes of output were not logged: the log could not keep up"
            self._writer.put(_Record(session, _SYSTEM, now, text.encode()))
        self._writer.put(_Record(session, source, now, raw, last))

    async def run(self) -> None:
        """Write until cancelled; then write the queued records, within a second."""
        await self._writer.run()

    def close(self) -> None:
        """Close the file. Records that are still queued are not written. A second call does nothing."""
        self._writer.close()

    def statistics(self) -> LogStatistics:
        return self._writer.statistics()


@final
class _Lines:
    """The lines of records, with a decoder for each source of a session that has said half a character."""

    def __init__(self) -> None:
        self._decoders: dict[tuple[int, str], codecs.IncrementalDecoder] = {}

    def report(self, text: str) -> bytes:
        """The line of session 0 for what could not be written."""
        return self._line(_Record(0, _SYSTEM, datetime.now(UTC).timestamp(), b""), "text", text)

    def of(self, record: _Record) -> list[bytes]:
        """The lines of a record."""
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
        fields = {"session": record.session, "source": record.source, "time": time_text(record.time), key: value}
        return json_line(fields)
