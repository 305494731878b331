"""The errors that need no event loop.

Two types tell a peer that broke the protocol from a peer that is too old for a request. The error for a lost guest
is in ``_trio.lost``, because it is a ``BrokenResourceError`` of trio and this module must not import trio.
"""

from __future__ import annotations

import copy
import os
from typing import TypeVar

__all__ = ["ProtocolError", "UnsupportedByPeer", "again", "in_words", "system_error", "without_frames"]

_E = TypeVar("_E", bound=BaseException)


def again(error: _E) -> _E:
    """A copy of a stored error, to be raised.

    If one instance were raised twice, or in two tasks, it would collect the tracebacks and contexts of both.
    """
    twin = copy.copy(error)
    twin.__cause__ = error.__cause__
    return twin


def without_frames(error: _E) -> _E:
    """The error, without its traceback and those of all that it comes from.

    For an error that is expected and that is handed on, by a thread or in a list. Its traceback leads to the
    frames through which it is handed on, and these refer to the error: only the garbage collector would free them.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            todo += [one.__cause__, one.__context__]
            if isinstance(one, BaseExceptionGroup):
                todo += one.exceptions
    return error


def system_error(number: int | None, words: str, *filenames: str) -> OSError:
    """The error that the system's call would have raised here, for an errno; our words are in a note.

    Args:
        number: the errno, or `None` if it is not known: then the words are all that there is.
        words: what happened; no note is made of words that say no more than the errno.
        filenames: none, one or two.
    """
    strerror = words if number is None else os.strerror(number)
    error = OSError(number, strerror, *filenames[:1], *([None, filenames[1]] if len(filenames) == 2 else []))
    if words != strerror:
        error.add_note(words)
    return error


def in_words(error: BaseException) -> str:
    """The text of an error with its notes, in one line."""
    return " ".join([str(error) or repr(error), *getattr(error, "__notes__", [])])


class ProtocolError(Exception):
    """A frame, or its place in the conversation, violates the protocol.

    The message names the frame and the field. The attributes give the same to programs; an attribute is `None` if
    it is not known.

    Attributes:
        kind: the kind of violation: ``bad_frame`` (the byte stream is out of step for good),
            ``malformed_message``, ``unsupported_message_type``, ``invalid_flags``, ``invalid_payload`` or
            ``invalid_session``.
        frame_id: the correlation id of the frame.
        message_type: the message type of the frame, such as ``core.exec.request``.
        field: the path of the field concerned, such as ``rlimits[0].soft``.
        version: the protocol generation that the peer wrote into the frame.
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
    """The peer is too old for the request, or does not have what it needs. So the request was not sent."""
