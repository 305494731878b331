"""The audit log: who did what through the relay, as JSON Lines, without the bytes that were sent.

Each line is one object with ``time`` and ``event``, and with ``client`` (a number for each connection), ``uid``
and ``pid`` where a client is meant. The events:

* ``connected``, ``disconnected``, and ``refused``, with ``why``: a process that did not get in, or a request that
  was not forwarded;
* ``run``, with ``session`` (its number in the session log), ``command``, ``cwd``, ``env`` (names, no values),
  ``user`` and ``tty``; ``signal``; ``ended``, with ``how``;
* ``file``, with ``op`` and its paths. What is done with an open file is not recorded: ``access`` is what it was
  opened for;
* ``connect``, with ``host`` and ``port``; ``shutdown``;
* ``left_out``: how many records of a user and of one kind are missing.

A client that could fill the log would push its own traces out. So each user has a share: in a day its records take
at most a quarter of all that the log keeps, and each kind of event a quarter of that. Records beyond it are
counted, and the number is told. So a user who does very much can hide what it does next of the same kind, but
nothing that it did before. All users who may not connect have one share together. Long strings are cut.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, final

from trio_console import _wire as wire
from trio_console._relay.log import ending_of, time_text, words_of
from trio_console._relay.log_files import LogFile, json_line
from trio_console._relay.log_writer import LogStatistics, LogWriter

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["AuditLog"]

#: Characters of the strings of one field, together.
_LONGEST: Final = 4096

#: A share is this part of the log: there are four kinds of events (clients, commands, files and connections), and
#: all shares of a user are a quarter of the log.
_PART: Final = 16

#: The user of all processes that may not connect, as far as shares are meant.
_STRANGERS: Final = -1

_DAY: Final = 24 * 60 * 60.0

#: The fields of operations on files that are recorded.
_FIELDS: Final = ("path", "src", "dst", "target", "link_path", "handle", "mode", "recursive", "kind", "key")

#: Operations on a handle that was recorded when it was opened.
_WITH_HANDLE: Final = ("Read", "Write", "ReadDir", "FStat", "Seek", "CloseHandle")


class _Record(NamedTuple):
    line: bytes

    @property
    def size(self) -> int:
        return len(self.line)


class _Client(NamedTuple):
    number: int
    uid: int
    pid: int


@final
class _Share:
    """Bytes that a user may write of one kind of event: so many at once, and as many again in a day."""

    def __init__(self, size: int) -> None:
        self._size: Final = size
        self._left = float(size)
        self._then = time.monotonic()

    def take(self, size: int) -> bool:
        """Take bytes out of the share; returns false if it has not enough."""
        now = time.monotonic()
        self._left = min(self._size, self._left + self._size * (now - self._then) / _DAY)
        self._then = now
        if size > self._left:
            return False
        self._left -= size
        return True


@final
class AuditLog:
    """Writes the log; see the module. The router and the door of the relay tell it what happens.

    Args:
        path, max_bytes, backups: as for `LogFile`, whose errors this raises.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int, backups: int) -> None:
        self._writer: Final = LogWriter[_Record](
            "audit", LogFile(path, max_bytes, backups), lambda record: [record.line], _report, self._finish
        )
        self._share_size: Final = max_bytes * (backups + 1) // _PART
        self._shares: Final[dict[tuple[int, str], _Share]] = {}
        self._left_out: Final[Counter[tuple[int, str]]] = Counter()
        self._clients: Final[dict[int, _Client]] = {}  # by their slots
        self._sessions: Final[dict[int, tuple[int, _Client]]] = {}  # commands, by their ids
        self._next_client = 1
        self._next_session = 1

    # What happens

    def connected(self, slot: int, uid: int, pid: int) -> None:
        """Record that a process has connected, and its slot."""
        self._clients[slot] = _Client(self._next_client, uid, pid)
        self._next_client += 1
        self._put(self._clients[slot], "clients", "connected")

    def not_admitted(self, uid: int, pid: int, why: str) -> None:
        """Record that a process was not let in."""
        self._put(_Client(0, uid, pid), "clients", "refused", {"why": why}, _STRANGERS)

    def disconnected(self, slot: int) -> None:
        """Record that a client has gone."""
        self._put(self._clients.pop(slot), "clients", "disconnected")

    def asked(self, slot: int, session_id: int, request: wire.Message) -> None:
        """Record a request that is forwarded."""
        self._ask(self._clients[slot], session_id, request, None)

    def refused(self, slot: int, request: wire.Message, why: str) -> None:
        """Record a request that is not forwarded."""
        self._ask(self._clients[slot], 0, request, why)

    def _ask(self, client: _Client, session_id: int, request: wire.Message, why: str | None) -> None:
        extra: dict[str, object] = {} if why is None else {"why": why}
        match request:
            case wire.ExecRequest():
                if why is None:
                    self._sessions[session_id] = self._next_session, client
                    extra["session"] = self._next_session
                    self._next_session += 1
                self._put(client, "commands", "run" if why is None else "refused", {**extra, **_command(request)})
            case wire.FsRequest(op):
                name = type(op).__name__.removeprefix("Op")
                if why is not None or name not in _WITH_HANDLE:
                    fields = _operation(op, octets=request.octets is True)
                    self._put(client, "files", "file" if why is None else "refused", {**extra, **fields})
            case wire.TcpConnect(host, port):
                event = "connect" if why is None else "refused"
                self._put(client, "connections", event, {**extra, "host": _cut([host])[0], "port": port})
            case wire.Shutdown():
                self._put(client, "clients", "shutdown" if why is None else "refused", {**extra, "shutdown": True})

    def said(self, session_id: int, message: wire.Message) -> None:
        """Record what a client or the guest says of a command, if it is a signal or its end."""
        session = self._sessions.get(session_id)
        if session is None:
            return
        number, client = session
        match message:
            case wire.ExecSignal(signal):
                self._put(client, "commands", "signal", {"session": number, "signal": signal})
            case wire.ExecKill():
                self._put(client, "commands", "signal", {"session": number, "signal": 9})
            case _ if wire.type_of(message).flags & wire.FLAG_TERMINAL:
                self.ended(session_id, ending_of(message))

    def ended(self, session_id: int, how: str) -> None:
        """Record the end of a command, or why its end will not be known."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._put(session[1], "commands", "ended", {"session": session[0], "how": _cut([how])[0]})

    def _put(
        self,
        client: _Client,
        kind: str,
        event: str,
        fields: Mapping[str, object] = MappingProxyType({}),
        sharer: int | None = None,
    ) -> None:
        who = {"client": client.number} if client.number else {}
        head = {"time": time_text(time.time()), "event": event, **who, "uid": client.uid, "pid": client.pid}
        line = json_line({**head, **fields})
        self._share_out(client.uid if sharer is None else sharer, kind, line)

    def _share_out(self, uid: int, kind: str, line: bytes) -> None:
        key = uid, kind
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share(self._share_size)
        missing = self._left_out.get(key, 0)
        report = _left_out(uid, kind, missing) if missing else b""
        if not share.take(len(line) + len(report)) or not self._writer.has_room(len(line) + len(report)):
            self._left_out[key] += 1
            return
        if missing:
            del self._left_out[key]
            self._writer.put(_Record(report))
        self._writer.put(_Record(line))

    # The writer

    async def run(self) -> None:
        """Write until cancelled; then write the queued records, within a second."""
        await self._writer.run()

    def _finish(self) -> None:
        """Queue the numbers of the records that are missing, because the relay ends."""
        for (uid, kind), missing in self._left_out.items():
            self._writer.put(_Record(_left_out(uid, kind, missing)))
        self._left_out.clear()

    def close(self) -> None:
        """Close the file. Records that are still queued are not written. A second call does nothing."""
        self._writer.close()

    def statistics(self) -> LogStatistics:
        return self._writer.statistics()


def _left_out(uid: int, kind: str, missing: int) -> bytes:
    what = {"time": time_text(time.time()), "event": "left_out", "uid": uid, "of": kind, "records": missing}
    return json_line(what)


def _report(text: str) -> bytes:
    return json_line({"time": time_text(time.time()), "event": "left_out", "why": text})


def _cut(words: list[str]) -> list[str]:
    """Words of bounded length together: what is too long is cut, and says so."""
    left, kept = _LONGEST, []
    for number, word in enumerate(words):
        if len(word) > left:
            kept.append(f"{word[:left]}... ({len(word) - left} characters more)")
            if rest := len(words) - number - 1:
                kept.append(f"... ({rest} more)")
            break
        kept.append(word)
        left -= len(word)
    return kept


def _name(text: str, *, octets: bool) -> str:
    """A name as text; bytes that are not UTF-8 are lone surrogates."""
    if octets:
        with contextlib.suppress(ValueError):  # the agent will refuse it
            text = wire.unpacked(text)
    return _cut([text])[0]


def _command(request: wire.ExecRequest) -> dict[str, object]:
    octets = request.octets is True
    return {
        "command": _cut(words_of(request)),
        "cwd": None if request.cwd is None else _name(request.cwd, octets=octets),
        "env": _cut([_name(variable.partition("=")[0], octets=octets) for variable in request.env]),
        "user": None if request.user is None else _cut([request.user])[0],
        "tty": request.tty,
    }


def _operation(op: wire.FsOp, *, octets: bool) -> dict[str, object]:
    found: dict[str, object] = {"op": type(op).__name__.removeprefix("Op")}
    for name in _FIELDS:
        value = getattr(op, name, None)
        if value is not None:
            found[name] = _name(value, octets=octets) if isinstance(value, str) else value
    if isinstance(op, wire.OpOpenFile):
        names = ("read", "write", "append", "create", "truncate", "create_new")
        found["access"] = [name for name in names if getattr(op.options, name)]
    return found
