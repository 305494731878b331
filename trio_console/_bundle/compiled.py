"""Compiled modules in an archive of Python modules, from which the import system loads none.

The dynamic loader wants a file. So the bytes of a module go into a file in memory, or, where there is none to be
had, into a temporary one. This is part of the agent's bundle, and runs before all else in it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from zipimport import zipimporter

__all__ = ["load_from"]


def load_from(archive: zipimporter, needed: Sequence[str]) -> None:
    """Let compiled modules be imported from an archive.

    Args:
        archive: the importer of it.
        needed: modules without which nothing works.

    Raises:
        SystemExit: one of these was not made for this Python.
    """
    finder = _Finder(archive)
    for name in needed:
        if finder.contents(name) is None:
            version, suffix = sys.version.partition(" ")[0], EXTENSION_SUFFIXES[0]
            raise SystemExit(
                f"{archive.archive} does not run on this Python {version}: it has no compiled module {name} for "
                f"it ({suffix}). Make one that has: trio-console agent-bundle --python "
                f"{version.rpartition('.')[0]} FILE"
            )
    sys.meta_path.insert(0, finder)


@final
class _Finder(MetaPathFinder):
    def __init__(self, archive: zipimporter) -> None:
        self._archive = archive

    def contents(self, name: str) -> bytes | None:
        """The bytes of a compiled module for this Python; `None` if there is none."""
        path = os.path.join(self._archive.archive, *name.split("."))
        for suffix in EXTENSION_SUFFIXES:
            with suppress(OSError):
                return self._archive.get_data(path + suffix)
        return None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        contents = self.contents(fullname)
        if contents is None:
            return None
        return spec_from_file_location(fullname, "", loader=_Loader(fullname, contents))


@final
class _Loader(ExtensionFileLoader):
    def __init__(self, name: str, contents: bytes) -> None:
        super().__init__(name, "")
        self._contents: Final = contents

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Load the module from a file that is gone afterwards, as far as others can see."""
        try:
            # It stays open: the dynamic loader takes a second file of the same name for the first.
            number = os.memfd_create(self.name)
        except (AttributeError, OSError):
            return self._load_from_disk(spec)
        with open(number, "wb", closefd=False) as file:
            file.write(self._contents)
        spec.origin = f"/proc/self/fd/{number}"
        if not os.path.exists(spec.origin):  # without /proc
            os.close(number)
            return self._load_from_disk(spec)
        return super().create_module(spec)

    def _load_from_disk(self, spec: ModuleSpec) -> ModuleType:
        with tempfile.NamedTemporaryFile(suffix=EXTENSION_SUFFIXES[0]) as file:
            file.write(self._contents)
            file.flush()
            spec.origin = file.name
            return super().create_module(spec)
