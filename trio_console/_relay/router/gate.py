"""What a client may send, and what it is told of the rest: the tables, and what follows from them alone.

An agent of another make exits at a body it cannot decode, and the guest with it; a message that only a relay may
send could end other clients' work; and a message for a session of another kind makes an agent answer with a
terminal frame, by which the relay would forget a command that still runs. So none of these is forwarded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trio_console import _wire as wire
from trio_console._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["OPENERS", "ORPHANS", "WITHIN", "answer_to", "check_allowed", "may_end", "refusal"]

#: ``core.error`` was introduced with this generation; older peers do not know it.
_ERROR_GENERATION: Final = 5

OPENERS: Final = {
    wire.ExecRequest: "exec",
    wire.FsRequest: "fs",
    wire.TcpConnect: "tcp",
    wire.Ping: "call",
    wire.Touch: "call",
}

#: What may be sent within a session of which kind. (Credit and Cancel know their session by its id alone.)
WITHIN: Final = {
    wire.ExecStdin: "exec",
    wire.ExecSignal: "exec",
    wire.ExecResize: "exec",
    wire.FsData: "fs",
    wire.TcpData: "tcp",
    wire.TcpEof: "tcp",
    wire.TcpClose: "tcp",
}

#: What an agent answers to data for an id that it does not know; the rest is ignored.
ORPHANS: Final[Mapping[type[wire.Message], Callable[[int], wire.Message]]] = {
    wire.FsData: lambda n: wire.FsResponse(ok=False, error=f"unknown write session: {n}"),
    wire.TcpData: lambda n: wire.TcpFailed(f"unknown TCP session: {n}"),
}

#: Which terminal frames end which kind of session only. (An error ends any.)
_ENDS: Final[Mapping[type[wire.Message] | None, str]] = {
    wire.ExecExited: "exec",
    wire.ExecFailed: "exec",
    wire.FsResponse: "fs",
    wire.TcpClosed: "tcp",
    wire.TcpFailed: "tcp",
    wire.Pong: "call",
    wire.Touched: "call",
}


def may_end(cls: type[wire.Message] | None, kind: str) -> bool:
    """Whether a terminal frame of the agent (`None`: of a class that nobody knows) can be of a session of a kind.

    If not, it is of the id's former session: the answer to data that came too late for that. A command that was
    forgotten for it would run on, and be left to the slot's next client.
    """
    return _ENDS.get(cls, kind) == kind


def check_allowed(message: wire.Message, *, credit: bool) -> None:
    """Refuse what is not a client's to send, or not known to an agent that counts no credit.

    Raises:
        ProtocolError: with what it is to be told.
    """
    row = wire.type_of(message)
    if not row.direction & wire.Direction.HOST_TO_AGENT or (
        row.control and not isinstance(message, wire.Shutdown)
    ):
        raise refusal(message, "unsupported_message_type", "is not a client's to send")
    if isinstance(message, wire.Cancel) and not credit:
        raise refusal(message, "unsupported_message_type", "is not known to this guest's agent")


def answer_to(frame: wire.Frame, exc: ProtocolError) -> wire.Error:
    """What a client is told in the agent's place of a frame that the agent is never to see.

    Raises:
        ProtocolError: this one, if nobody expects an answer: clients close the connection at one with id 0, and
            those of before `_ERROR_GENERATION` do not know what it is.
    """
    version = exc.version
    if version is None:
        try:
            version = wire.decode_envelope(frame.body).version
        except ProtocolError:
            version = wire.GENERATION  # unknown; nearly every client can be told
    if version < _ERROR_GENERATION or frame.id == 0:
        raise exc
    return wire.Error(exc.kind, str(exc), wire.UNSET if exc.message_type is None else exc.message_type)


def refusal(message: wire.Message, kind: str, why: str) -> ProtocolError:
    """The error of a message that is well formed and out of place."""
    name = wire.type_of(message).name
    return ProtocolError(f"{name} {why}", kind=kind, message_type=name)
