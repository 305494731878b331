"""The arguments of `builtins.open` for files of the guest, with the same meaning and the same errors."""

from __future__ import annotations

import errno
import os
import stat
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from trio_console import _wire as wire
from trio_console._session.files.binary import BinaryFile
from trio_console._session.files.handle import FileHandle
from trio_console._session.files.text import TextFile, check_encoding, check_newline
from trio_console._session.sending import SLICE

if TYPE_CHECKING:
    from trio_console._session.files.file import GuestFile
    from trio_console._session.files.operations import FileSystem

__all__ = ["open_guest_file"]

#: Bytes of each buffer by default: one frame.
_BUFFER_SIZE: Final = SLICE


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
    if not isinstance(mode, str):
        raise TypeError(f"open_file() argument 'mode' must be str, not {type(mode).__name__}")
    given = set(mode)
    if given - set("rwaxbt+") or len(given) != len(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    if {"b", "t"} <= given:
        raise ValueError("can't have text and binary mode at once")
    kinds = given & set("rwax")
    if len(kinds) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    return _Mode(kinds.pop(), "+" in given, "b" not in given)


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
                stacklevel=4,
            )
        return
    if buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    check_newline(newline)
    if encoding is not None:
        check_encoding(encoding)


async def open_guest_file(
    fs: FileSystem,
    path: str,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> GuestFile[Any]:
    """See `Guest.open_file`."""
    parsed = _parse_mode(mode)
    _check_arguments(parsed, buffering, encoding, errors, newline)
    handle = FileHandle(fs, await fs.open(path, parsed.options), path)
    # From here on a handle is open in the guest, which must be closed here if the file does not reach the user.
    if not parsed.writing:
        await _check_no_directory(handle, path)
    binary = BinaryFile(
        handle,
        name=path,
        mode=mode,
        readable=parsed.reading,
        writable=parsed.writing,
        append=parsed.kind == "a",
        buffer_size=_BUFFER_SIZE if buffering in (-1, 1) or buffering < 0 else buffering,
        confirmations=fs.confirmations,
    )
    if not parsed.text:
        return binary
    return TextFile(
        binary,
        encoding=encoding or "utf-8",
        errors=errors or "strict",
        newline=newline,
        line_buffering=buffering == 1,
    )


async def _check_no_directory(handle: FileHandle, path: str) -> None:
    """Raise for a directory, as Python's `open` does: a guest can open a directory, and only reads of it fail."""
    try:
        if stat.S_ISDIR((await handle.stat()).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    except BaseException:
        handle.drop()
        raise
