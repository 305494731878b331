"""The catalogue of message types: everything there is to know of a type besides its fields.

The one table that drives encoding, decoding, flags, directions and generations; nothing else in the
package repeats any of it. It knows nothing of bytes, and nothing of sessions.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, final

from trio_console._wire.frames import FLAG_SESSION_START, FLAG_SHUTDOWN, FLAG_TERMINAL
from trio_console._wire.messages import (
    Bootstrap,
    Cancel,
    ClientDisconnected,
    ClockSync,
    Credit,
    Error,
    ExecExited,
    ExecFailed,
    ExecRequest,
    ExecResize,
    ExecSignal,
    ExecStarted,
    ExecStderr,
    ExecStdin,
    ExecStdinError,
    ExecStdout,
    FsData,
    FsRequest,
    FsResponse,
    InitAck,
    InitResolved,
    Message,
    Ping,
    Pong,
    Ready,
    Shutdown,
    TcpClose,
    TcpClosed,
    TcpConnect,
    TcpConnected,
    TcpData,
    TcpEof,
    TcpFailed,
    Touch,
    Touched,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

GENERATION: Final = 7
"""The protocol generation of this build; stamped on every envelope."""


class Direction(enum.Flag):
    """Who sends a type. Relays pass between the two and count as host."""

    HOST_TO_AGENT = enum.auto()
    AGENT_TO_HOST = enum.auto()


@final
@dataclass(frozen=True)
class MessageType:
    """What there is to know of a message type.

    Attributes:
        name: its name on the wire.
        cls: the class of its messages.
        flags: the only flags its frames may have.
        generation: the generation that introduced it.
        direction: who sends it.
        control: belongs to no session: sent with id 0.
    """

    name: str
    cls: type[Message]
    flags: int
    generation: int
    direction: Direction
    control: bool = False


def _table() -> Mapping[str, MessageType]:
    down, up = Direction.HOST_TO_AGENT, Direction.AGENT_TO_HOST
    last, first = FLAG_TERMINAL, FLAG_SESSION_START
    rows = (
        MessageType("core.bootstrap", Bootstrap, 0, 7, down, control=True),
        MessageType("core.init.resolved", InitResolved, 0, 1, up, control=True),
        MessageType("core.init.ack", InitAck, 0, 1, down, control=True),
        MessageType("core.ready", Ready, 0, 1, up, control=True),
        MessageType("core.shutdown", Shutdown, FLAG_SHUTDOWN, 1, down, control=True),
        MessageType("core.relay.client.disconnected", ClientDisconnected, 0, 1, down, control=True),
        MessageType("core.clock.sync", ClockSync, 0, 1, down, control=True),
        MessageType("core.ping", Ping, 0, 6, down),
        MessageType("core.pong", Pong, last, 6, up),
        MessageType("core.touch", Touch, 0, 6, down),
        MessageType("core.touched", Touched, last, 6, up),
        MessageType("core.error", Error, last, 5, up),
        MessageType("core.exec.request", ExecRequest, first, 1, down),
        MessageType("core.exec.started", ExecStarted, 0, 1, up),
        MessageType("core.exec.stdin", ExecStdin, 0, 1, down),
        MessageType("core.exec.stdin.error", ExecStdinError, 0, 1, up),
        MessageType("core.exec.stdout", ExecStdout, 0, 1, up),
        MessageType("core.exec.stderr", ExecStderr, 0, 1, up),
        MessageType("core.exec.exited", ExecExited, last, 1, up),
        MessageType("core.exec.failed", ExecFailed, last, 1, up),
        MessageType("core.exec.resize", ExecResize, 0, 1, down),
        MessageType("core.exec.signal", ExecSignal, 0, 1, down),
        MessageType("core.fs.request", FsRequest, first, 2, down),
        MessageType("core.fs.response", FsResponse, last, 2, up),
        MessageType("core.fs.data", FsData, 0, 2, down | up),
        MessageType("core.tcp.connect", TcpConnect, first, 4, down),
        MessageType("core.tcp.connected", TcpConnected, 0, 4, up),
        MessageType("core.tcp.data", TcpData, 0, 4, down | up),
        MessageType("core.tcp.eof", TcpEof, 0, 4, down | up),
        MessageType("core.tcp.close", TcpClose, 0, 4, down),
        MessageType("core.tcp.closed", TcpClosed, last, 4, up),
        MessageType("core.tcp.failed", TcpFailed, last, 4, up),
        # No generation of the protocol has these; both sides say in-band that they speak them.
        MessageType("trio.credit", Credit, 0, 7, down | up),
        MessageType("trio.cancel", Cancel, 0, 7, down),
    )
    return MappingProxyType({row.name: row for row in rows})


MESSAGE_TYPES: Final = _table()
"""Message types by their name on the wire."""

_BY_CLASS: Final[Mapping[type[Any], MessageType]] = {row.cls: row for row in MESSAGE_TYPES.values()}


def type_of(message: Message | type[Message]) -> MessageType:
    """Return the table row of a message or of a message class.

    Raises:
        KeyError: it is neither.
    """
    return _BY_CLASS[message if isinstance(message, type) else type(message)]
