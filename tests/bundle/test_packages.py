"""The packages that the agent needs are found, whatever is known of them."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.limits import HANG
from trio_console._bundle import packages

NEEDED = {
    "attr",
    "attrs",
    "cbor2",
    "idna",
    "msgspec",
    "outcome",
    "sniffio",
    "sortedcontainers",
    "trio",
    "trio_console",
}


def test_it_is_all_that_the_agent_imports() -> None:
    found = packages.needed_modules()
    assert set(found) >= NEEDED
    program = f"""
import importlib.util, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in FOUND:
            place = FOUND[name]
            options = dict(submodule_search_locations=[place])
            return importlib.util.spec_from_file_location(name, place + "/__init__.py", **options)

FOUND = {found!r}
sys.meta_path.append(Finder())
import trio_console.agent._main
print("imported")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, timeout=HANG, check=False
    )
    assert done.stdout == b"imported\n", done.stderr


def test_what_is_for_tests_is_not_in_it() -> None:
    assert not {"pytest", "hypothesis", "cffi", "h11"} & set(packages.needed_modules())


def test_without_metadata_the_import_system_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    found = packages.needed_modules()
    assert {"cbor2", "msgspec", "outcome", "trio", "trio_console"} <= set(found)
    assert all(Path(path).exists() for path in found.values())


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_REQUIRED", ("no-such-package",))
    with pytest.raises(ModuleNotFoundError, match="'no-such-package'"):
        packages.needed_modules()
