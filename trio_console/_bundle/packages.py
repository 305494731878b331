"""Where the modules are that the agent needs, this package among them, as far as they are no part of Python.

They are found by the metadata of what is installed, or, where there is none, by the import system.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["needed_modules"]

#: What this package requires (its own metadata may be missing, or those of another version).
_REQUIRED: Final = ("trio", "outcome", "cbor2", "msgspec")

#: Requirements for something else than this: for extras, for another system, for an older Python.
_FOR_OTHERS: Final = re.compile(r"""extra\s*==|["'](nt|win32|Windows)["']|python_(full_)?version\s*<""")


def needed_modules() -> dict[str, str]:
    """The path of each top-level module or package that is needed, by the name of its file or directory.

    Raises:
        ModuleNotFoundError: one is not there as files. (It may be in an archive.)
    """
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not os.path.isdir(ours):
        raise ModuleNotFoundError(f"trio_console is in an archive ({ours}), and has no files of its own")
    found = {"trio_console": ours}
    seen: set[str] = set()
    wanted = list(_REQUIRED)
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        found.update(_modules_of(name, required=name in _REQUIRED))
        wanted.extend(_requirements(name))
    return found


def _requirements(name: str) -> Iterator[str]:
    try:
        requirements = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in requirements:
        text, _, marker = requirement.partition(";")
        if not _FOR_OTHERS.search(marker) and (match := re.match(r"[A-Za-z0-9._-]+", text)):
            yield match[0]


def _modules_of(name: str, *, required: bool) -> dict[str, str]:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        files = []
    else:
        files = distribution.files or []
    tops = {file.parts[0]: str(distribution.locate_file(file.parts[0])) for file in files}
    modules = {top: path for top, path in tops.items() if _is_module(top, path)}
    if modules:
        return modules
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or spec.origin is None or not os.path.exists(spec.origin):
        if required:
            raise ModuleNotFoundError(f"the files of the package {name!r} are not found")
        return {}  # a requirement for another system, in words that are not understood here
    path = os.path.dirname(spec.origin) if spec.submodule_search_locations else spec.origin
    return {os.path.basename(path): path}


def _is_module(top: str, path: str) -> bool:
    if top.endswith((".py", ".so")):
        return os.path.isfile(path)
    return top.isidentifier() and top != "__pycache__" and os.path.isdir(path)
