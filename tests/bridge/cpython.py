"""Runs CPython's own tests of unbuffered files in a guest: ``python -m tests.bridge.cpython``.

They are synchronous, so each call is carried out by a trio run on another thread. If this Python has no tests,
none is run. The exit status is 1 if a test fails that is not in the kept list, or one passes that is.
"""

from __future__ import annotations

import io
import sys
import threading
import tomllib
import unittest
from pathlib import Path
from typing import Any, Self

import trio

from tests.at_home.table import DIFFERENCES
from trio_console import open_guest

_LIST = Path(__file__).parent / "cpython.toml"


class _Guest:
    """A guest on a thread of its own."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.over = trio.Event()
        async with open_guest() as self.guest:
            self._ready.set()
            await self.over.wait()

    def call(self, method: Any, *args: Any, **options: Any) -> Any:
        async def call() -> Any:
            with trio.fail_after(60):
                return await method(*args, **options)

        return trio.from_thread.run(call, trio_token=self.token)

    def close(self) -> None:
        trio.from_thread.run_sync(self.over.set, trio_token=self.token)
        self._thread.join()


class FileIO:
    """Stands for `io.FileIO`: an unbuffered file of the guest."""

    here: _Guest

    def __init__(self, name: Any, mode: str = "r", closefd: bool = True, opener: Any = None) -> None:
        binary = mode if "b" in mode else mode + "b"
        options = {"closefd": closefd, "opener": opener}
        self._file = self.here.call(self.here.guest.open_file, name, binary, buffering=0, **options)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["_file"], name)
        if name in ("readable", "writable", "seekable", "isatty", "fileno") or not callable(found):
            return found
        return lambda *args: self.here.call(found, *args)

    def close(self) -> None:
        self.here.call(self._file.aclose)

    def __enter__(self) -> Self:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if line := self.readline():
            return line
        raise StopIteration


def main() -> int:
    """Run them; returns the exit status."""
    try:
        from test import test_fileio
    except ImportError:
        print("this Python has no tests")
        return 0
    lists = tomllib.loads(_LIST.read_text())
    expected = lists["failures"]
    assert set(expected.values()) <= {*DIFFERENCES, *lists["reasons"]}, "each failure has a reason"
    suite = unittest.TestSuite()
    FileIO.here = _Guest()
    try:
        for cls in (test_fileio.CAutoFileTests, test_fileio.COtherFileTests):
            cls.FileIO = FileIO
            suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(cls))
        names = {test.id().partition("test_fileio.")[2] for test in suite}
        result = unittest.TextTestRunner(stream=io.StringIO()).run(suite)
    finally:
        FileIO.here.close()
    failed = {test.id().partition("test_fileio.")[2]: text for test, text in [*result.failures, *result.errors]}
    for name in sorted(failed.keys() - expected):
        print(f"failed: {name}\n{failed[name]}")
    for name in sorted(expected.keys() - failed):
        print(f"passes, or is not there: {name}")
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed as listed or above")
    return 0 if failed.keys() == expected.keys() else 1


if __name__ == "__main__":
    sys.exit(main())
