"""The arguments of `builtins.open` for files of the guest, with the same meaning and the same errors."""

from __future__ import annotations

import errno
import io
import operator
import os
import stat
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from trio_console import _wire as wire
from trio_console._session.files.binary import BinaryFile
from trio_console._session.files.handle import FileHandle
from trio_console._session.files.names import checked_name
from trio_console._session.files.text import TextFile, check_encoding, check_newline, make_decoder
from trio_console._session.sending import SLICE

if TYPE_CHECKING:
    from trio_console._session.files.file import GuestFile
    from trio_console._session.files.operations import FileSystem

__all__ = ["open_guest_file", "read_guest_bytes", "read_guest_text"]

#: Bytes of each buffer by default: one frame.
_BUFFER_SIZE: Final = SLICE

#: One more than the largest buffer.
_LARGE: Final = 2**31

#: The name of the locale's encoding, which is UTF-8 in a guest.
_LOCALE: Final = "locale"


@final
@dataclass(frozen=True)
class _Mode:
    """A mode string, taken apart."""

    kind: str
    plus: bool
    text: bool

    @property
    def reading(self) -> bool:
        return self.kind == "r" or self.plus

    @property
    def writing(self) -> bool:
        return self.kind != "r" or self.plus

    @property
    def binary_mode(self) -> str:
        """The mode as binary files of `io` have it."""
        kind = "r" if self.plus and self.kind == "w" else self.kind
        return f"{kind}b{'+' if self.plus else ''}"

    @property
    def options(self) -> wire.OpenOptions:
        return wire.OpenOptions(
            read=self.reading,
            write=self.writing,
            append=self.kind == "a",
            create=self.kind in "wax",
            truncate=self.kind == "w",
            create_new=self.kind == "x",
        )


def _parse_mode(mode: str) -> _Mode:
    given = set(mode)
    if given - set("rwaxbt+") or len(given) != len(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    if {"b", "t"} <= given:
        raise ValueError("can't have text and binary mode at once")
    kinds = given & set("rwax")
    if len(kinds) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    return _Mode(kinds.pop(), "+" in given, "b" not in given)


def _check_types(mode: str, buffering: int, **strings: str | None) -> None:
    """Refuse what the C of `open` does not take, before it looks at what the arguments say."""
    for name, value in (("mode", mode), *strings.items()):
        if value is None and name != "mode":
            continue
        if not isinstance(value, str):
            wanted = "str" if name == "mode" else "str or None"
            raise TypeError(f"open_file() argument {name!r} must be {wanted}, not {type(value).__name__}")
        value.encode()  # raises UnicodeEncodeError
        if "\0" in value:
            raise ValueError(f"embedded null character in {name}")
    if not -_LARGE <= operator.index(buffering) < _LARGE:
        raise OverflowError("buffering is too large")


def _check_arguments(
    mode: _Mode, buffering: int, encoding: str | None, errors: str | None, newline: str | None
) -> None:
    if not mode.text:
        for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                suffix = "" if name == "newline" else " argument"
                what = "a newline argument" if name == "newline" else f"an {name}"
                raise ValueError(f"binary mode doesn't take {what}{suffix}")
        if buffering == 1:
            warnings.warn(
                "line buffering (buffering=1) isn't supported in binary mode, "
                "the default buffer size will be used",
                RuntimeWarning,
                stacklevel=5,
            )
        return
    if buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    check_newline(newline)
    if encoding not in (None, _LOCALE):
        check_encoding(encoding)


@final
@dataclass(frozen=True)
class _How:
    """The arguments of `open` that say how a file is opened, checked."""

    mode: _Mode
    text_mode: str
    buffering: int
    encoding: str
    errors: str
    newline: str | None


def _checked(
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> _How:
    _check_types(mode, buffering, encoding=encoding, errors=errors, newline=newline)
    parsed = _parse_mode(mode)
    _check_arguments(parsed, buffering, encoding, errors, newline)
    name = "utf-8" if encoding is None or encoding == _LOCALE else encoding
    return _How(parsed, mode, buffering, name, errors or "strict", newline)


async def open_guest_file(
    fs: FileSystem,
    path: str,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: object = None,
) -> GuestFile[Any]:
    """See `Guest.open_file`."""
    how = _checked(mode, buffering, encoding, errors, newline)
    if not closefd:
        raise ValueError("Cannot use closefd=False with file name")
    if opener is not None:
        raise ValueError("opener must be None: a guest opens its files itself")
    checked_name(path, "path")
    number, opened = await fs.open(path, how.mode.options)
    return await _file_of(fs, path, how, number, opened)


async def read_guest_bytes(fs: FileSystem, path: str) -> bytes:
    """All bytes of a file; see `GuestPath.read_bytes`."""
    found = await fs.open_whole(path)
    if isinstance(found, bytes):
        return found
    async with await _file_of(fs, path, _checked("rb"), *found) as file:
        data: bytes = await file.read()
    return data


async def read_guest_text(fs: FileSystem, path: str, encoding: str | None, errors: str | None) -> str:
    """All text of a file; see `GuestPath.read_text`."""
    how = _checked("r", encoding=encoding, errors=errors)
    found = await fs.open_whole(path)
    if isinstance(found, bytes):
        return make_decoder(how.encoding, how.errors, None).decode(found, final=True)
    async with await _file_of(fs, path, how, *found) as file:
        text: str = await file.read()
    return text


async def _file_of(
    fs: FileSystem, path: str, how: _How, number: int, opened: wire.Opened | wire.UnsetType
) -> GuestFile[Any]:
    """The file of a handle, which is closed if there is an error."""
    parsed, buffering = how.mode, how.buffering
    seekable = opened is wire.UNSET or opened.seekable
    handle = FileHandle(fs, number, path, positioned=seekable)
    # From here on a handle is open in the guest, which must be closed here if the file does not reach the user.
    try:
        if not parsed.writing:
            mode_bits = (await handle.stat()).st_mode if opened is wire.UNSET else opened.mode
            # As Python's `open` does: a guest can open a directory, and only reads of it fail.
            if stat.S_ISDIR(mode_bits):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if parsed.plus and buffering and not seekable:
            raise io.UnsupportedOperation("File or stream is not seekable.")
    except BaseException:
        handle.drop()
        raise
    terminal = opened is not wire.UNSET and opened.terminal
    binary = BinaryFile(
        handle,
        name=path,
        mode=parsed.binary_mode,
        readable=parsed.reading,
        writable=parsed.writing,
        append=parsed.kind == "a",
        buffer_size=_BUFFER_SIZE if buffering in (-1, 1) or buffering < 0 else buffering,
        confirmations=fs.confirmations,
        seekable=seekable,
        terminal=terminal,
    )
    if not parsed.text:
        return binary
    return TextFile(
        binary,
        encoding=how.encoding,
        errors=how.errors,
        newline=how.newline,
        line_buffering=buffering == 1 or (buffering < 0 and terminal),
        mode=how.text_mode,
    )
