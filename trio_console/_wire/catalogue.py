"""The catalogue of message types: everything about a type except its fields.

It is the protocol's only table. It gives each type's encoding, decoding and flags; the kind of session to which it
belongs, what it may do there, and who may send it; whether it overtakes data; and the answer if its id is unknown.
All code that needs one of these reads the row, so a new type is one row here. This module must not know bytes, nor
what sessions do.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, final, get_args

from trio_console._wire.frames import FLAG_SESSION_START, FLAG_SHUTDOWN, FLAG_TERMINAL
from trio_console._wire.messages import (
    EXEC_ENDS,
    RESETS,
    BackgroundKilled,
    Bootstrap,
    Cancel,
    ClientDisconnected,
    ClientForgotten,
    ClockSync,
    Credit,
    DataMessage,
    Error,
    ExecDropped,
    ExecExited,
    ExecFailed,
    ExecKill,
    ExecLeft,
    ExecRelease,
    ExecRequest,
    ExecResize,
    ExecSignal,
    ExecStarted,
    ExecStderr,
    ExecStdin,
    ExecStdinError,
    ExecStdout,
    ExecStreamEnded,
    FsData,
    FsRequest,
    FsResponse,
    InitAck,
    InitResolved,
    KillBackground,
    Message,
    Ping,
    Pong,
    Ready,
    RelayLost,
    Reset,
    ResetDone,
    Shutdown,
    StreamName,
    TcpBroken,
    TcpClose,
    TcpClosed,
    TcpConnect,
    TcpConnected,
    TcpData,
    TcpEof,
    TcpFailed,
    Touch,
    Touched,
    TransportCredit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GENERATION: Final = 7
"""The protocol generation of this build; stamped on every envelope."""


SessionKind: TypeAlias = Literal["exec", "fs", "tcp", "call"]
"""What a session is: a command, an operation on files, a connection, or a question with one answer."""


class Direction(enum.Flag):
    """Who sends a type. Relays pass between the two and count as host."""

    HOST_TO_AGENT = enum.auto()
    AGENT_TO_HOST = enum.auto()


class Place(enum.Enum):
    """What a message does to the session whose id it has."""

    OPENS = enum.auto()
    WITHIN = enum.auto()
    ENDS = enum.auto()
    """The last of its id, which is free behind it: nothing is answered, by neither side."""


@final
@dataclass(frozen=True)
class MessageType:
    """The row of a message type.

    Attributes:
        name: its name on the wire.
        cls: the class of its messages.
        flags: the only flags its frames may have.
        generation: the generation that introduced it.
        direction: who sends it.
        kind: the kind of session it belongs to; ``None`` if it belongs to no session and is sent with id 0.
        place: what it does there; ``None`` if it belongs to no session.
        host_only: whether a client may not send it: only the owner of the console, or a relay, does.
        overtakes: whether it may overtake data, also data of its own session. If not, it stays behind the data.
        activity: whether it counts as activity of the guest.
        stream: the stream that its data belongs to, if it carries data.
        orphan: makes an agent's answer, from the id, if this comes for an unknown id; ``None`` for no answer.
        feature: the word without which in its ``features`` an agent is not sent this; ``None`` if there is none.
        right: the right that a relay's client needs for this; ``None`` for no right. (For a request for files its
            operation says that.)
    """

    name: str
    cls: type[Message]
    flags: int
    generation: int
    direction: Direction
    kind: SessionKind | Literal["any"] | None = None
    place: Place | None = None
    host_only: bool = False
    overtakes: bool = False
    activity: bool = True
    stream: StreamName | None = None
    orphan: Callable[[int], Message] | None = None
    feature: str | None = None
    right: Literal["run", "tcp", "shutdown"] | None = None

    @property
    def control(self) -> bool:
        """Whether it belongs to no session."""
        return self.kind is None

    @property
    def bulk(self) -> bool:
        """Whether an agent that counts all that comes over its console counts this as data, not as control.

        Its data are stdin, what files and connections carry, and the end of each of these.
        """
        return self.stream is not None or self.cls is TcpEof

    def fits(self, kind: SessionKind) -> bool:
        """Whether it can belong to a session of this kind."""
        return self.kind in (kind, "any")


def _no_write(frame_id: int) -> Message:
    return FsResponse(ok=False, error=f"unknown write session: {frame_id}")


def _no_tcp(frame_id: int) -> Message:
    return TcpFailed(f"unknown TCP session: {frame_id}")


def _table() -> Mapping[str, MessageType]:
    down, up = Direction.HOST_TO_AGENT, Direction.AGENT_TO_HOST
    last, first = FLAG_TERMINAL, FLAG_SESSION_START
    opens, within, ends = Place.OPENS, Place.WITHIN, Place.ENDS
    rows = (
        MessageType("core.bootstrap", Bootstrap, 0, 7, down, host_only=True),
        MessageType("core.init.resolved", InitResolved, 0, 1, up),
        MessageType("core.init.ack", InitAck, 0, 1, down, host_only=True),
        MessageType("core.ready", Ready, 0, 1, up),
        MessageType("core.shutdown", Shutdown, FLAG_SHUTDOWN, 1, down, right="shutdown"),
        MessageType("core.relay.client.disconnected", ClientDisconnected, 0, 1, down, host_only=True),
        MessageType("core.clock.sync", ClockSync, 0, 1, down, host_only=True, activity=False),
        MessageType("core.ping", Ping, 0, 6, down, "call", opens, overtakes=True, activity=False),
        MessageType("core.pong", Pong, last, 6, up, "call", ends, overtakes=True, activity=False),
        MessageType("core.touch", Touch, 0, 6, down, "call", opens, overtakes=True),
        MessageType("core.touched", Touched, last, 6, up, "call", ends, overtakes=True, activity=False),
        MessageType("core.error", Error, last, 5, up, "any", ends, activity=False),
        MessageType("core.exec.request", ExecRequest, first, 1, down, "exec", opens, overtakes=True, right="run"),
        MessageType("core.exec.started", ExecStarted, 0, 1, up, "exec", within, overtakes=True),
        MessageType("core.exec.stdin", ExecStdin, 0, 1, down, "exec", within, stream="stdin"),
        MessageType("core.exec.stdin.error", ExecStdinError, 0, 1, up, "exec", within, overtakes=True),
        MessageType("core.exec.stdout", ExecStdout, 0, 1, up, "exec", within, stream="stdout"),
        MessageType("core.exec.stderr", ExecStderr, 0, 1, up, "exec", within, stream="stderr"),
        MessageType("core.exec.exited", ExecExited, last, 1, up, "exec", ends),
        MessageType("core.exec.failed", ExecFailed, last, 1, up, "exec", ends),
        MessageType("core.exec.resize", ExecResize, 0, 1, down, "exec", within, overtakes=True),
        MessageType("core.exec.signal", ExecSignal, 0, 1, down, "exec", within, overtakes=True),
        MessageType("core.fs.request", FsRequest, first, 2, down, "fs", opens, overtakes=True),
        MessageType("core.fs.response", FsResponse, last, 2, up, "fs", ends),
        MessageType("core.fs.data", FsData, 0, 2, down | up, "fs", within, stream="data", orphan=_no_write),
        MessageType("core.tcp.connect", TcpConnect, first, 4, down, "tcp", opens, overtakes=True, right="tcp"),
        MessageType("core.tcp.connected", TcpConnected, 0, 4, up, "tcp", within, overtakes=True),
        MessageType("core.tcp.data", TcpData, 0, 4, down | up, "tcp", within, stream="data", orphan=_no_tcp),
        MessageType("core.tcp.eof", TcpEof, 0, 4, down | up, "tcp", within),
        MessageType("core.tcp.close", TcpClose, 0, 4, down, "tcp", ends),
        MessageType("core.tcp.closed", TcpClosed, last, 4, up, "tcp", ends),
        MessageType("core.tcp.failed", TcpFailed, last, 4, up, "tcp", ends),
        MessageType("core.workload.transport.credit", TransportCredit, 0, 9, up, activity=False),
        # No generation of the protocol has these; each side announces in other messages that it knows them.
        MessageType("trio.credit", Credit, 0, 7, down | up, "any", within, overtakes=True),
        MessageType("trio.cancel", Cancel, 0, 7, down, "any", within, overtakes=True),
        MessageType("trio.relay.lost", RelayLost, 0, 7, up),
        MessageType("trio.tcp.broken", TcpBroken, 0, 7, up, "tcp", within, overtakes=True),
        MessageType("trio.exec.ended", ExecStreamEnded, 0, 7, up, "exec", within),
        MessageType("trio.exec.dropped", ExecDropped, 0, 7, up, "exec", within),
        MessageType("trio.exec.left", ExecLeft, 0, 7, up, "exec", within, overtakes=True),
        MessageType(
            "trio.exec.release", ExecRelease, 0, 7, down, "exec", within, overtakes=True, feature=EXEC_ENDS
        ),
        MessageType("trio.exec.kill", ExecKill, 0, 7, down, "exec", within, overtakes=True, feature=EXEC_ENDS),
        MessageType("trio.relay.forgotten", ClientForgotten, last, 7, up, "call", ends),
        MessageType(
            "trio.background.kill", KillBackground, 0, 7, down, "call", opens, overtakes=True, feature=EXEC_ENDS
        ),
        MessageType("trio.background.killed", BackgroundKilled, last, 7, up, "call", ends, overtakes=True),
        MessageType("trio.reset", Reset, 0, 7, down, host_only=True, feature=RESETS),
        MessageType("trio.reset.done", ResetDone, last, 7, up, "call", ends),
    )
    return MappingProxyType({row.name: row for row in rows})


MESSAGE_TYPES: Final = _table()
"""Message types by their name on the wire."""

_BY_CLASS: Final[Mapping[type[Any], MessageType]] = {row.cls: row for row in MESSAGE_TYPES.values()}


def type_of(message: Message | type[Message]) -> MessageType:
    """Return the table row of a message or of a message class.

    Raises:
        KeyError: the argument is neither.
    """
    return _BY_CLASS[message if isinstance(message, type) else type(message)]


def knows(generation: int, cls: type[Message]) -> bool:
    """Whether a peer of this generation knows a message class."""
    return generation >= _BY_CLASS[cls].generation


def opened_by(message: Message | type[Message]) -> SessionKind:
    """Return the kind of session that a message opens.

    Raises:
        ValueError: the message opens no session.
    """
    row = type_of(message)
    if row.place is not Place.OPENS or row.kind is None or row.kind == "any":
        raise ValueError(f"{row.name} opens no session")
    return row.kind


def streams_of(kind: SessionKind, direction: Direction) -> Mapping[type[DataMessage], StreamName]:
    """Return the streams that go in a direction in sessions of this kind, by the class of their messages."""
    return _STREAMS[kind, direction]


def accepted_in(kind: SessionKind, *, data: bool = True) -> frozenset[type[Message]]:
    """Return the classes that an agent takes within a session of this kind: all of them, or those without data."""
    return frozenset(
        row.cls
        for row in MESSAGE_TYPES.values()
        if Direction.HOST_TO_AGENT in row.direction
        and row.fits(kind)
        and row.place is not Place.OPENS
        and (data or row.stream is None)
    )


_KINDS: Final[tuple[SessionKind, ...]] = get_args(SessionKind)

_STREAMS: Final[Mapping[tuple[SessionKind, Direction], Mapping[type[DataMessage], StreamName]]] = {
    (kind, direction): MappingProxyType(
        {
            row.cls: row.stream
            for row in MESSAGE_TYPES.values()
            if row.stream is not None
            and issubclass(row.cls, DataMessage)
            and row.fits(kind)
            and direction in row.direction
        }
    )
    for kind in _KINDS
    for direction in Direction
}
