"""Names that need not be UTF-8: paths, and the arguments and variables of commands.

A name in a program is text as `os.fsdecode` makes it: a byte that is not UTF-8 is a lone surrogate. Text on the
wire cannot have those. So a request that asks for it (``octets``) has its names *packed*: one character, U+0000 to
U+00FF, for each byte. A name of ASCII is the same in both forms.

This module must not know messages.
"""

from __future__ import annotations

__all__ = ["lossy", "name_bytes", "name_text", "packed", "unpacked"]


def name_bytes(name: str) -> bytes:
    """The bytes of a name.

    Raises:
        UnicodeEncodeError: it has a surrogate that stands for no byte.
    """
    return name.encode("utf-8", "surrogateescape")


def name_text(raw: bytes) -> str:
    """The name that has these bytes."""
    return raw.decode("utf-8", "surrogateescape")


def packed(name: str) -> str:
    """A name in the form for the wire; see the module."""
    return name if name.isascii() else name_bytes(name).decode("latin-1")


def unpacked(text: str) -> str:
    """The name of which this is the form for the wire.

    Raises:
        ValueError: it has a character above U+00FF.
    """
    if text.isascii():
        return text
    try:
        return name_text(text.encode("latin-1"))
    except UnicodeEncodeError:
        raise ValueError(f"octets must be characters up to U+00FF, not {text!r:.80}") from None


def lossy(name: str) -> str:
    """A name as UTF-8 for people: a byte that is not UTF-8 is a replacement character."""
    return name if name.isascii() else name_bytes(name).decode("utf-8", "replace")
