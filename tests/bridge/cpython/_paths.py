"""Paths of a guest with the interface of `pathlib.Path`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from tests.bridge.cpython._files import layers_of
from tests.bridge.cpython._home import HOME
from trio_console._session.files.file import GuestFile
from trio_console._session.files.operations import FileSystem
from trio_console._session.files.path import GuestPath

__all__ = ["Path"]


class _Files:
    """The file system of the guest for the state in which this program is when it is asked."""

    def __getattr__(self, name: str) -> Any:
        guest = HOME.guest()
        return getattr(FileSystem(guest._connection, guest._confirmations), name)


_FILES: Any = _Files()


def _there(value: Any) -> Any:
    """An argument for a method of a path of a guest."""
    return value._path if isinstance(value, Path) else value


def _here(value: Any) -> Any:
    """The result of such a method, for this program."""
    if isinstance(value, GuestPath):
        return Path._of(value)
    if isinstance(value, GuestFile):
        return layers_of(value)
    if isinstance(value, tuple) and value and isinstance(value[0], GuestPath):
        return tuple(map(_here, value))
    return map(_here, value) if isinstance(value, Iterator) else value


def _segment(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class Path:
    """Stands for `pathlib.Path`, and for its pure parts."""

    _path: GuestPath
    _flavour = PurePosixPath._flavour  # type: ignore[attr-defined]  # which the tests look at

    def __new__(cls, *segments: Any) -> Any:
        return cls._of(GuestPath(_FILES, PurePosixPath(*map(_segment, segments))))

    @classmethod
    def _of(cls, path: GuestPath) -> Any:
        HOME.uses += 1
        self = super().__new__(cls)
        self._path = path
        return self

    @classmethod
    def cwd(cls) -> Any:
        return cls().absolute()

    @classmethod
    def home(cls) -> Any:
        return cls().__getattr__("home")()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        HOME.uses += 1
        found = getattr(self._path, name)
        return partial(_call, found) if callable(found) else _here(found)

    def __fspath__(self) -> str:
        return str(self._path)

    __str__ = __fspath__

    def __repr__(self) -> str:
        return repr(self._path).replace("GuestPath", "Path", 1)

    def __bytes__(self) -> bytes:
        return bytes(self._path)

    def __hash__(self) -> int:
        return hash(self._path)


def _call(method: Any, *args: Any, **options: Any) -> Any:
    given = [_there(value) for value in args], {name: _there(value) for name, value in options.items()}
    if not inspect.iscoroutinefunction(inspect.unwrap(method)):
        return _here(method(*given[0], **given[1]))
    HOME.guest()  # it is there when it is asked for in the run of the guests, which cannot wait for it
    return _here(HOME.run(method, *given[0], **given[1]))


def _operator(name: str) -> Any:
    def operate(self: Path, other: Any) -> Any:
        return _here(getattr(self._path, name)(_there(other)))

    return operate


for _name in ("truediv", "rtruediv", "eq", "lt", "le", "gt", "ge"):
    setattr(Path, f"__{_name}__", _operator(f"__{_name}__"))
