"""What is swapped in each module of CPython's tests, and which of its cases then run in a guest."""

from __future__ import annotations

import io
import pathlib
import subprocess
import unittest
from typing import TYPE_CHECKING, Any

from tests.bridge.cpython import _files, _paths, _processes

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["SWAPS"]


class _Instead:
    """Stands for a module in which some names are swapped."""

    def __init__(self, module: ModuleType, names: dict[str, Any]) -> None:
        self.__dict__ |= names
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _fileio(module: Any) -> list[type[unittest.TestCase]]:
    cases = [module.CAutoFileTests, module.COtherFileTests]
    for case in cases:
        case.FileIO = _files.FileIO
    return cases


#: The classes of `io` that stand for files of a guest.
_LAYERS = ("FileIO", "BytesIO", "MockRawIO", "BufferedReader", "BufferedWriter", "BufferedRandom", "TextIOWrapper")


def _io(module: Any) -> list[type[unittest.TestCase]]:
    cases: list[Any] = [
        case for name, case in vars(module).items() if name.startswith("C") and name.endswith("Test")
    ]
    names = {name: getattr(io, name) for name in io.__all__}
    names |= {name[1:]: mock for name, mock in vars(module).items() if name.startswith("CMock")}
    names |= {
        name[1:]: getattr(module, name) for name in ("CMisbehavedRawIO", "CCloseFailureIO", "CSlowFlushRawIO")
    }
    names |= {name: getattr(_files, name) for name in _LAYERS}
    module.io = _Instead(io, {**names, "open": _files.open_in_guest})
    names["open"] = staticmethod(_files.open_in_guest)
    for case in cases:
        for name, value in names.items():
            setattr(case, name, value)
        if (tested := getattr(case, "tp", None)) is not None:
            case.tp = names[tested.__name__]
        case.is_C = True
    return cases


def _own_tests(case: type[unittest.TestCase]) -> Any:
    """A class with the tests of ``case`` alone, without those that it inherits."""
    return type(case.__name__, (unittest.TestCase,), dict(vars(case)))


def _pathlib(module: Any) -> list[type[unittest.TestCase]]:
    cases: list[Any] = [module.PurePosixPathTest, module.PosixPathTest, module.CompatiblePathTest]
    # The rest of these two is that of the first two.
    cases += [_own_tests(module.PurePathTest), _own_tests(module.PathTest)]
    for case in cases:
        case.cls = _paths.Path
    module.pathlib = _Instead(
        pathlib, dict.fromkeys(("PurePath", "PurePosixPath", "Path", "PosixPath"), _paths.Path)
    )
    return cases


def _subprocess(module: Any) -> list[type[unittest.TestCase]]:
    subprocess.Popen = _processes.Popen  # type: ignore[misc]
    return [
        case
        for name, case in vars(module).items()
        if isinstance(case, type) and issubclass(case, unittest.TestCase)
    ]


#: By the name of the module: swaps, and returns the cases.
SWAPS: dict[str, Any] = {
    "test_fileio": _fileio,
    "test_io": _io,
    "test_pathlib": _pathlib,
    "test_subprocess": _subprocess,
}
