"""Names that users pass: paths, and the words, variables and directories of commands.

A name is text as `os.fsdecode` makes it where names are UTF-8: a byte that is not UTF-8 is a lone surrogate. Such
a name can be sent only to an agent that knows octets (see `_wire.octets`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from trio_console import _wire as wire
from trio_console._errors import UnsupportedByPeer
from trio_console._session.files.pure_path import PureGuestPath

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_console._session.connection import Connection

__all__ = ["Name", "checked_name", "name_of", "need_octets"]

Name: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes] | PureGuestPath"

#: Said of a number: on this machine it would be a descriptor.
_NO_DESCRIPTORS: Final = ": a guest shares no descriptors with this program"


def name_of(value: Any, what: str, connection: Connection) -> str:
    """The name that a user has passed, for requests on ``connection``.

    Raises:
        TypeError: it is neither text nor a path.
        ValueError: it has a null character, is a path of another guest, or has a surrogate that is no byte.
    """
    return checked_name(plain_name(value, what, connection), what)


def plain_name(value: Any, what: str, connection: Connection) -> str:
    """The same, and it may have null characters: a path may be made with them, and is nowhere."""
    if isinstance(value, PureGuestPath):
        if value._fs.connection is not connection:
            raise ValueError(f"{value!r} is a path of another guest: convert it to str to use the same path here")
        return str(value)
    if not isinstance(value, (str, bytes, os.PathLike)):
        hint = _NO_DESCRIPTORS if isinstance(value, int) else ""
        raise TypeError(f"{what} must be a string, bytes or a path, not {type(value).__name__}{hint}")
    name = os.fspath(value)
    return wire.name_text(name) if isinstance(name, bytes) else name


def checked_name(name: str, what: str) -> str:
    """The name, if it can be one.

    Raises:
        ValueError: see `name_of`.
    """
    if "\0" in name:
        raise ValueError(f"embedded null byte in {what}")
    try:
        wire.name_bytes(name)
    except UnicodeEncodeError:
        raise ValueError(f"{what} has a surrogate that stands for no byte: {name!r:.80}") from None
    return name


def need_octets(names: Iterable[str], connection: Connection) -> bool:
    """Whether one of the names is not UTF-8, so that it has to be sent as octets.

    Raises:
        UnsupportedByPeer: the agent takes only UTF-8.
    """
    odd = next((name for name in names if not _is_utf8(name)), None)
    if odd is not None and wire.OCTETS not in (connection.ready.features or ()):
        agent = connection.ready.agent_version or "no version given"
        raise UnsupportedByPeer(
            f"{odd!r:.80} is not UTF-8, and the guest's agent ({agent}) takes only names that are"
        )
    return odd is not None


def _is_utf8(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
