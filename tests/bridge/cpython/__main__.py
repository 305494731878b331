"""Runs CPython's own tests of files in a guest: ``python -m tests.bridge.cpython [MODULE...]``.

They are synchronous, so each call is carried out by a trio run on another thread. If this Python has no tests, or
is of a version for which nothing is known, none is run. The exit status is 1 if a test fails that is not in the
kept list, if one passes that is, or if one passes without a use of a guest.

``--write`` brings the lists up to date. A test that is new in them has the reason ``"?"``, which must be replaced.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import logging
import os
import re
import signal
import sys
import tempfile
import time
import tomllib
import unittest
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.at_home.table import DIFFERENCES
from tests.bridge.cpython._home import HOME
from tests.bridge.cpython._swap import SWAPS

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent

#: The version of Python whose tests the lists are about.
_KNOWN = (3, 11)

#: Seconds after which a test has hung, and after which a module has.
_HANG, _HANG_OF_MODULE = 60, 900


@dataclass
class _Lists:
    """What is known of a module: tests with their reasons."""

    module: str
    failures: dict[str, str] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, module: str) -> _Lists:
        path = _HERE / f"{module}.toml"
        return cls(module, **(tomllib.loads(path.read_text()) if path.exists() else {}))

    def left_out(self, name: str) -> str | None:
        """The entry for which a test is not run: its own, or its class's."""
        return next((one for one in (name, name.partition(".")[0]) if one in self.not_applicable), None)

    def surprises(self, result: _Result, out: set[str], *, all_were_run: bool) -> Iterator[str]:
        """What is not as listed; ``out`` are the entries for which tests were not run."""
        for test, text in sorted(result.failed.items()):
            if test not in self.failures:
                yield f"failed: {test}\n{text}"
        for test in sorted(result.not_reached):
            yield f"passes without a use of a guest: {test}"
        if all_were_run:
            yield from (
                f"passes, or is not there: {test}" for test in sorted(self.failures.keys() - result.failed)
            )
            yield from (f"is not there: {entry}" for entry in sorted(self.not_applicable.keys() - out))
        reasons = tomllib.loads((_HERE / "reasons.toml").read_text())
        known = {"failures": {*DIFFERENCES, *reasons["failures"]}, "not_applicable": {*reasons["not_applicable"]}}
        for table, names in known.items():
            for test, reason in getattr(self, table).items():
                if reason not in names:
                    yield f"has no reason: {test}"

    def update(self, result: _Result, out: set[str]) -> None:
        self.failures = {test: self.failures.get(test, "?") for test in result.failed}
        self.not_applicable = {entry: why for entry, why in self.not_applicable.items() if entry in out}
        self.not_applicable |= dict.fromkeys(result.not_reached, "?")

    def write(self) -> None:
        with (_HERE / f"{self.module}.toml").open("w") as file:
            for table in ("failures", "not_applicable"):
                rows = sorted(getattr(self, table).items())
                file.write(f"[{table}]\n" + "".join(f'"{name}" = "{reason}"\n' for name, reason in rows))


class _Result(unittest.TestResult):
    """Notes what each test came to, and whether it used a guest."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: set[str] = set()
        self.not_reached: set[str] = set()
        self.failed: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._uses = HOME.uses
        self._began = time.monotonic()
        signal.signal(signal.SIGALRM, _on_alarm)
        signal.alarm(_HANG)
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        signal.alarm(0)
        super().stopTest(test)
        name = name_of(test)
        for bad, text in (*self.errors, *self.failures):
            self.failed.setdefault(name_of(bad), text)
        self.failed |= {name_of(bad): f"skipped: {why}" for bad, why in self.skipped}
        for outcomes in (self.errors, self.failures, self.skipped):
            outcomes.clear()
        if name not in self.failed:
            self.passed.add(name)
            if HOME.uses == self._uses:
                self.not_reached.add(name)
        if os.environ.get("BRIDGE_VERBOSE"):
            print(f"{time.monotonic() - self._began:6.2f} {'ok' if name in self.passed else 'FAILED'} {name}")


def _on_alarm(*_: object) -> None:
    raise TimeoutError(f"it takes longer than {_HANG} s")


def name_of(test: Any) -> str:
    """The name of a test in the lists; of a part of a test (``subTest``) that of the test."""
    found = re.search(r"(\w+\.\w+)(?: [\[(].*)?$", test.id(), re.DOTALL)
    assert found is not None
    return found[1]


def _tests(name: str, only: str) -> dict[str, unittest.TestCase]:
    module = importlib.import_module(f"test.{name}")
    loaded = [unittest.defaultTestLoader.loadTestsFromTestCase(case) for case in SWAPS[name](module)]
    tests: list[Any] = [test for suite in loaded for test in suite]
    return {name_of(test): test for test in tests if only in name_of(test)}


def _run(name: str, *, only: str, write: bool) -> bool:
    """Run the tests of a module; returns whether everything is as listed."""
    lists = _Lists.read(name)
    tests = _tests(name, only)
    out = {test: entry for test in tests if (entry := lists.left_out(test))}
    began = time.monotonic()
    result = _Result()
    unittest.TestSuite(test for one, test in tests.items() if one not in out).run(result)
    result.failed |= {str(holder): text for holder, text in result.errors}  # of the module as a whole
    counts = (
        f"{len(result.passed)} passed, {len(result.failed)} failed as listed or above, {len(out)} do not apply"
    )
    seconds = time.monotonic() - began
    if write:
        lists.update(result, set(out.values()))
        lists.write()
    surprises = list(lists.surprises(result, set(out.values()), all_were_run=not only))
    for surprise in surprises:
        print(f"{name}: {surprise}")
    print(f"{name}: {counts} ({seconds:.0f} s)")
    return not surprises


def main() -> int:
    """Run them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bridge.cpython")
    parser.add_argument("modules", nargs="*", default=[*SWAPS], metavar="MODULE")
    parser.add_argument("--only", default="", metavar="TEXT", help="run the tests whose names contain it")
    parser.add_argument("--write", action="store_true", help="bring the lists up to date")
    options = parser.parse_args()
    if sys.version_info[:2] != _KNOWN:
        print("the lists are about Python {}.{}: CPython's tests are not run".format(*_KNOWN))
        return 0
    if importlib.util.find_spec("test.support") is None:
        print("this Python has no tests")
        return 0
    warnings.simplefilter("ignore")
    logging.disable()  # layers of one file share a handle, and each closes it
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        HOME.open()
        try:
            as_listed = True
            for name in options.modules:
                faulthandler.dump_traceback_later(_HANG_OF_MODULE, exit=True)
                as_listed &= _run(name, only=options.only, write=options.write)
        finally:
            faulthandler.cancel_dump_traceback_later()
            HOME.close()
            os.chdir("/")
    return 0 if as_listed else 1


if __name__ == "__main__":
    sys.exit(main())
