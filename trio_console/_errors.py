"""The errors that need no event loop.

What a peer did wrong and what a peer cannot do are told apart by type. Errors of a lost guest live in
``_trio.lost``, because they are trio's ``BrokenResourceError`` and this module must not import trio.
"""

from __future__ import annotations

import copy
from typing import TypeVar

__all__ = ["ProtocolError", "UnsupportedByPeer", "again"]

_E = TypeVar("_E", bound=BaseException)


def again(error: _E) -> _E:
    """A copy of a stored error, to be raised.

    One instance raised in two tasks, or twice, would gather the tracebacks and contexts of both.
    """
    twin = copy.copy(error)
    twin.__cause__ = error.__cause__
    return twin


class ProtocolError(Exception):
    """The peer sent something the wire format does not allow.

    The message says which frame and which field. The attributes say the same for programs; each is
    ``None`` where it is not known.

    Attributes:
        kind: a word for the sort of mistake: ``bad_frame`` (the byte stream is out of step for good),
            ``malformed_message``, ``unsupported_message_type``, ``invalid_flags``,
            ``invalid_payload`` or ``invalid_session``.
        frame_id: the correlation id of the frame.
        message_type: its message type, such as ``core.exec.request``.
        field: the path of the field concerned, such as ``rlimits[0].soft``.
        version: the generation the peer stamped on the envelope.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "malformed_message",
        frame_id: int | None = None,
        message_type: str | None = None,
        field: str | None = None,
        version: int | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.frame_id = frame_id
        self.message_type = message_type
        self.field = field
        self.version = version


class UnsupportedByPeer(RuntimeError):
    """The peer's generation is too old for what was asked; nothing was sent."""
