"""What a client may send, and what it is told of the rest: what follows from the catalogue alone.

An agent of another make exits at a body it cannot decode, and the guest with it; a message that only a relay may
send could end other clients' work; and a message for a session of another kind makes an agent answer with a
terminal frame, by which the relay would forget a command that still runs. So none of these is forwarded.
"""

from __future__ import annotations

from typing import Final

from trio_console import _wire as wire
from trio_console._errors import ProtocolError

__all__ = ["answer_to", "check_allowed", "may_end", "refusal"]

#: What is a client's to send.
_CLIENTS: Final = frozenset(
    row.cls
    for row in wire.MESSAGE_TYPES.values()
    if wire.Direction.HOST_TO_AGENT in row.direction and not row.host_only
)


def may_end(cls: type[wire.Message] | None, kind: wire.SessionKind) -> bool:
    """Whether a terminal frame of the agent (`None`: of a class that nobody knows) can be of a session of a kind.

    If not, it is of the id's former session: the answer to data that came too late for that. A command that was
    forgotten for it would run on, and be left to the slot's next client.
    """
    row = None if cls is None else wire.type_of(cls)
    return row is None or not row.flags & wire.FLAG_TERMINAL or row.fits(kind)


def check_allowed(message: wire.Message, *, credit: bool) -> None:
    """Refuse what is not a client's to send, or not known to an agent that counts no credit.

    Raises:
        ProtocolError: with what it is to be told.
    """
    if type(message) not in _CLIENTS:
        raise refusal(message, "unsupported_message_type", "is not a client's to send")
    if isinstance(message, wire.Cancel) and not credit:
        raise refusal(message, "unsupported_message_type", "is not known to this guest's agent")


def answer_to(frame: wire.Frame, exc: ProtocolError) -> wire.Error:
    """What a client is told in the agent's place of a frame that the agent is never to see.

    Raises:
        ProtocolError: this one, if nobody expects an answer: clients close the connection at one with id 0, and
            older ones do not know what it is.
    """
    version = exc.version
    if version is None:
        try:
            version = wire.decode_envelope(frame.body).version
        except ProtocolError:
            version = wire.GENERATION  # unknown; nearly every client can be told
    if not wire.knows(version, wire.Error) or frame.id == 0:
        raise exc
    return wire.Error(exc.kind, str(exc), wire.UNSET if exc.message_type is None else exc.message_type)


def refusal(message: wire.Message, kind: str, why: str) -> ProtocolError:
    """The error of a message that is well formed and out of place."""
    name = wire.type_of(message).name
    return ProtocolError(f"{name} {why}", kind=kind, message_type=name)
