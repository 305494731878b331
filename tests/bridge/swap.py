"""Puts a guest under tests that were written for trio: what they call is carried out in a guest of their run."""

from __future__ import annotations

import functools
import importlib
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import trio

from trio_console import Guest, GuestProcess, open_guest
from trio_console._session.files.file import GuestFile
from trio_console._session.files.operations import FileSystem
from trio_console._session.files.path import GuestPath
from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["in_guest", "swap"]

#: Seconds after which a test has hung.
_HANG = 60


class _Current:
    """The guest of the test that runs, and a nursery for the blocks of its processes."""

    guest: Guest | None = None
    nursery: trio.Nursery | None = None


@asynccontextmanager
async def _guest() -> AsyncIterator[Guest]:
    """The guest of this test; one of its own for a call of a test that begins its trio run itself."""
    if _Current.guest is not None:
        yield _Current.guest
        return
    async with open_guest() as guest:
        yield guest


def in_guest(test: Callable[..., Any]) -> Callable[..., Any]:
    """An asynchronous test, with a guest around it."""

    @functools.wraps(test)
    async def bridged(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(_HANG):
            async with open_guest() as _Current.guest, hidden_nursery() as _Current.nursery:
                try:
                    await test(*args, **kwargs)
                finally:
                    _Current.nursery.cancel_scope.cancel()
                    _Current.guest = None

    return bridged


# What is swapped


async def run_process(command: Any, **options: Any) -> Any:
    async with _guest() as guest:
        return await guest.run_process(command, **options)


async def open_process(command: Any, **options: Any) -> Any:
    """The process of a block that lasts until the end of the test."""
    assert _Current.nursery is not None
    guest = _Current.guest
    assert guest is not None

    async def hold(task_status: trio.TaskStatus[GuestProcess]) -> None:
        async with guest.open_process(command, **options) as process:
            task_status.started(process)
            await trio.sleep_forever()

    return await _Current.nursery.start(hold)


async def open_file(file: Any, *args: Any, **options: Any) -> Any:
    async with _guest() as guest:
        return await guest.open_file(file, *args, **options)


async def open_tcp_stream(*args: Any, **options: Any) -> Any:
    async with _guest() as guest:
        return await guest.open_tcp_stream(*args, **options)


class _LateFiles:
    """The file system of the guest of the test: paths are made before there is one."""

    def __getattr__(self, name: str) -> Any:
        if name == "connection" and _Current.guest is None:
            return self
        assert _Current.guest is not None, "a test that asks the guest runs in one"
        connection = _Current.guest._connection
        return getattr(FileSystem(connection, _Current.guest._confirmations), name)


_FILES: Any = _LateFiles()


class _PathMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, GuestPath)

    def __getattr__(cls, name: str) -> Any:
        return getattr(GuestPath, name)


class Path(metaclass=_PathMeta):
    """Stands for `trio.Path`."""

    def __new__(cls, *segments: Any) -> Any:
        return GuestPath(_FILES, PurePosixPath(*map(_segment, segments)))

    @staticmethod
    async def home() -> Any:
        """As of `GuestPath`."""
        async with _guest() as guest:
            return await guest.path("").home()

    @staticmethod
    async def cwd() -> Any:
        """As of `GuestPath`."""
        async with _guest() as guest:
            return await guest.path("").cwd()


def _segment(segment: Any) -> Any:
    return str(segment) if isinstance(segment, GuestPath) else segment


class _FileMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, GuestFile)


class File(metaclass=_FileMeta):
    """Stands for the class of trio's files."""


class _Core:
    """Stands for the core of trio in a test that begins its trio run itself: the run has a guest."""

    def __init__(self, core: Any) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def run(self, test: Callable[..., Any], **options: Any) -> None:
        trio.run(in_guest(test), **options)


def _rename(cls: type, old: str, new: str) -> None:
    """Have ``repr`` name a class as trio names its own."""
    real = cls.__repr__
    cls.__repr__ = lambda self: real(self).replace(old, new, 1)  # type: ignore[assignment]


def swap() -> None:
    """Put the guest under trio's tests. The names that a test module has imported itself are swapped there."""
    trio.Path = Path  # type: ignore[assignment,misc]
    trio.PosixPath = Path  # type: ignore[assignment,misc]
    trio.open_file = open_file  # type: ignore[assignment]
    trio.open_tcp_stream = open_tcp_stream
    GuestProcess._pidfd = None  # type: ignore[attr-defined]  # trio's, which its tests look at
    _rename(GuestProcess, "<trio_console.GuestProcess", "<trio.Process")
    _rename(GuestPath, "GuestPath(", "trio.Path(")
    for method in ("resolve",):
        getattr(GuestPath, method).__qualname__ = f"Path.{method}"
    names: dict[str, dict[str, Any]] = {
        "test_subprocess": {
            "run_process": run_process,
            "open_process": open_process,
            "Process": GuestProcess,
        },
        "test_path": {"AsyncIOWrapper": File},
        "test_file_io": {"AsyncIOWrapper": File},
        "test_highlevel_open_tcp_stream": {"open_tcp_stream": open_tcp_stream},
    }
    for module, swapped in names.items():
        found = vars(importlib.import_module(f"trio._tests.{module}"))
        found.update(swapped)
        if "_core" in found:
            found["_core"] = _Core(found["_core"])
