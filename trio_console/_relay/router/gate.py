"""The messages that a client may send, and the answers to all others, by the rules of the catalogue.

Three kinds of messages are not forwarded. A body that cannot be decoded makes an agent of another make exit, and
the guest with it. A message that only a relay may send could end other clients' work. A message for a session of
another kind makes an agent answer with a terminal frame, and the relay would then forget a command that still
runs.
"""

from __future__ import annotations

from typing import Final

from trio_console import _wire as wire
from trio_console._errors import ProtocolError

__all__ = ["answer_to", "check_allowed", "may_end", "refusal"]

#: The classes of messages that a client may send.
_CLIENTS: Final = frozenset(
    row.cls
    for row in wire.MESSAGE_TYPES.values()
    if wire.Direction.HOST_TO_AGENT in row.direction and not row.host_only
)


def may_end(cls: type[wire.Message] | None, kind: wire.SessionKind) -> bool:
    """Whether a terminal frame of the agent (`None`: of an unknown class) can end a session of a kind.

    If not, the frame is for the former session under the id: it answers data that came too late for that session.
    If a command were forgotten because of it, the command would run on, and its frames would go to the slot's next
    client.
    """
    row = None if cls is None else wire.type_of(cls)
    return row is None or not row.flags & wire.FLAG_TERMINAL or row.fits(kind)


def check_allowed(message: wire.Message, *, credit: bool) -> None:
    """Refuse a message that a client may not send, or that an agent without credit does not know.

    Raises:
        ProtocolError: with the text for the client.
    """
    if type(message) not in _CLIENTS:
        raise refusal(message, "unsupported_message_type", "may not be sent by a client")
    if isinstance(message, wire.Cancel) and not credit:
        raise refusal(message, "unsupported_message_type", "is not known to this guest's agent")


def answer_to(frame: wire.Frame, exc: ProtocolError) -> wire.Error:
    """The answer to a client's frame that is not forwarded to the agent.

    Raises:
        ProtocolError: ``exc``, if the client cannot be answered: clients close the connection at an error with id
            0, and older clients do not know the message.
    """
    version = exc.version
    if version is None:
        try:
            version = wire.decode_envelope(frame.body).version
        except ProtocolError:
            version = wire.GENERATION  # not known, but nearly every client knows the message
    if not wire.knows(version, wire.Error) or frame.id == 0:
        raise exc
    return wire.Error(exc.kind, str(exc), wire.UNSET if exc.message_type is None else exc.message_type)


def refusal(message: wire.Message, kind: str, why: str) -> ProtocolError:
    """The error for a message that is well formed but not allowed here."""
    name = wire.type_of(message).name
    return ProtocolError(f"{name} {why}", kind=kind, message_type=name)
