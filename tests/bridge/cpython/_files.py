"""Files of a guest with the interface of `io`: synchronous, and in layers that can be put together."""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import suppress
from functools import partial
from typing import Any, Self

import trio

from tests.bridge.cpython._home import HOME
from trio_console._session.files import open as opening
from trio_console._session.files.binary import BinaryFile
from trio_console._session.files.text import TextFile

__all__ = [
    "BufferedRandom",
    "BufferedReader",
    "BufferedWriter",
    "BytesIO",
    "FileIO",
    "MockRawIO",
    "TextIOWrapper",
    "open_in_guest",
]

#: Methods that answer at once.
_AT_ONCE = ("readable", "writable", "seekable", "isatty", "fileno")


class _Layer:
    """A file of the guest."""

    _file: Any
    _below: Any = None

    def __getattr__(self, name: str) -> Any:
        if name == "_file":
            raise AttributeError("the file was not opened")
        if name == "aclose":
            raise AttributeError(name)
        found = getattr(self._file, name)
        if name in _AT_ONCE or not callable(found):
            return found
        return partial(self._run, found)

    def _run(self, method: Any, *args: Any) -> Any:
        return HOME.run(method, *args)

    def close(self) -> None:
        try:
            HOME.run(self._file.aclose)
        finally:
            if self._below is not None:
                self._below.close()

    def __enter__(self) -> Self:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self

    def __next__(self) -> Any:
        if line := self.readline():
            return line
        raise StopIteration

    def __del__(self) -> None:
        # The file is collected with this object, and what it then has to do in the guest has been done when this
        # returns, as at home.
        if "_file" in self.__dict__ and not HOME.within():
            self.__dict__.pop("_file")
            with suppress(trio.RunFinishedError):
                HOME.run(_until_buried)


async def _until_buried() -> None:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    (system,) = root.child_nurseries[:1]
    while any(task.name.endswith("._bury") for task in system.child_tasks):
        await trio.sleep(0.001)


class FileIO(_Layer):
    """Stands for `io.FileIO`."""

    def __init__(self, name: Any, mode: str = "r", closefd: bool = True, opener: Any = None) -> None:
        binary = mode if "b" in mode else mode + "b"
        options = {"closefd": closefd, "opener": opener}
        self._file = HOME.run(HOME.guest().open_file, name, binary, buffering=0, **options)


class BytesIO(_Layer):
    """Stands for `io.BytesIO`: an unbuffered file of the guest, which nobody else knows."""

    def __init__(self, initial_bytes: Any = b"") -> None:
        number, path = tempfile.mkstemp()
        try:
            os.write(number, initial_bytes)
            os.close(number)
            self._file = HOME.run(HOME.guest().open_file, path, "r+b", buffering=0)
            self._value = HOME.run(HOME.guest().open_file, path, "rb", buffering=0)
        finally:
            os.unlink(path)

    def __del__(self) -> None:
        for name in ("_file", "_value"):
            if name in self.__dict__ and not HOME.within():
                with suppress(trio.RunFinishedError):
                    HOME.sync(self.__dict__.pop(name).abandon)

    def getvalue(self) -> bytes:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self._bytes()

    def _bytes(self) -> bytes:
        HOME.run(self._value.seek, 0)
        return HOME.run(self._value.read)


class MockRawIO(BytesIO):
    """Stands for a raw file of the tests that gives prepared bytes: a file of the guest with these bytes."""

    def __init__(self, read_stack: Any = ()) -> None:
        if type(self) is not MockRawIO or None in read_stack:
            raise ForeignError("a file of a guest does not do what this one does")
        super().__init__(b"".join(read_stack))

    @property
    def _write_stack(self) -> list[bytes]:
        return list(filter(None, [self._bytes()]))


class ForeignError(NotImplementedError):
    """The layer below is an object of the test's own, and no file of a guest."""


def _of_guest(raw: Any) -> Any:
    if not isinstance(raw, _Layer):
        raise ForeignError(f"{type(raw).__name__} is no file of a guest")
    return raw._file


class _Buffered(_Layer):
    """A buffer above an unbuffered file."""

    _reads = _writes = False

    def __init__(self, raw: Any, buffer_size: int = io.DEFAULT_BUFFER_SIZE) -> None:
        _of_guest(raw)
        opening._check_types("rb", buffer_size)
        if buffer_size <= 0:
            raise ValueError("buffer size must be strictly positive")
        if self._reads and not raw.readable():
            raise OSError("File or stream is not readable.")
        if self._writes and not raw.writable():
            raise OSError("File or stream is not writable.")
        if self._reads and self._writes:
            raw._file.check_seekable()
        if "_file" in self.__dict__:  # it is made anew, above the same file
            self.detach()
        self._file = HOME.sync(self._above, raw._file, buffer_size)
        self._below = raw

    def _above(self, below: BinaryFile, buffer_size: int) -> BinaryFile:
        file = BinaryFile(
            below._handle,
            name=below.name,
            mode=below.mode,
            readable=self._reads,
            writable=self._writes,
            append=below._append,
            buffer_size=buffer_size,
            confirmations=below._confirmations,
            seekable=below._seekable,
            terminal=below._terminal,
        )
        file._position = below._position
        return file

    @property
    def raw(self) -> Any:
        return self if self._below is None else self._below  # (a guest's file has no object of its own for this)

    def detach(self) -> Any:
        raw = HOME.run(self._file.detach)
        if self._below is None:
            return layers_of(raw)
        self._below._file._detached = True
        self._below._file = raw
        return self._below


class BufferedReader(_Buffered):
    """Stands for `io.BufferedReader`."""

    _reads = True


class BufferedWriter(_Buffered):
    """Stands for `io.BufferedWriter`."""

    _writes = True


class BufferedRandom(_Buffered):
    """Stands for `io.BufferedRandom`."""

    _reads = _writes = True


class TextIOWrapper(_Layer):
    """Stands for `io.TextIOWrapper`."""

    def __init__(
        self,
        buffer: Any,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        line_buffering: bool = False,
        write_through: bool = False,
    ) -> None:
        below = _of_guest(buffer)
        if write_through:
            raise TypeError("a guest's files have no write_through")
        opening._check_types("r", -1, encoding=encoding, errors=errors, newline=newline)
        text = opening._parse_mode("r")
        opening._check_arguments(text, -1, encoding, errors, newline)
        self._file = HOME.sync(self._above, below, encoding, errors, newline, line_buffering)
        self._below = buffer

    def _above(
        self,
        below: BinaryFile,
        encoding: str | None,
        errors: str | None,
        newline: str | None,
        line_buffering: bool,
    ) -> TextFile:
        return TextFile(
            below,
            encoding="utf-8" if encoding in (None, "locale") else encoding,
            errors=errors or "strict",
            newline=newline,
            line_buffering=line_buffering,
            mode=below.mode,
        )

    @property
    def buffer(self) -> Any:
        return self._below

    def detach(self) -> Any:
        HOME.run(self._file.detach)
        return self._below


for _abc, *_layers in (
    (io.RawIOBase, FileIO),
    (io.BufferedIOBase, BytesIO, BufferedReader, BufferedWriter, BufferedRandom),
    (io.TextIOBase, TextIOWrapper),
):
    for _layer in _layers:
        _abc.register(_layer)

_BINARY = {(True, False): BufferedReader, (False, True): BufferedWriter, (True, True): BufferedRandom}


def open_in_guest(file: Any, *args: Any, **options: Any) -> Any:
    """Stands for `io.open`."""
    return layers_of(HOME.run(HOME.guest().open_file, file, *args, **options))


def layers_of(opened: Any) -> Any:
    """The layers of an open file of the guest."""
    if isinstance(opened, TextFile):
        text = TextIOWrapper.__new__(TextIOWrapper)
        text._file, text._below = opened, layers_of(opened._binary)
        return text
    cls: Any = FileIO if opened._limit == 0 else _BINARY[opened.readable(), opened.writable()]
    layer = cls.__new__(cls)
    layer._file = opened
    return layer
