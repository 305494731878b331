"""Patterns of paths, as `pathlib.Path.glob` has them, matched in the guest directory by directory.

As in pathlib, ``*`` also matches names that begin with a dot, ``**`` follows no links, and directories that may
not be read count as empty.
"""

from __future__ import annotations

import re
import sys
from fnmatch import translate
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio_console._session.files.path import GuestPath

__all__ = ["matches", "parse"]

_MAGIC: Final = re.compile(r"[*?[]")

#: Since Python 3.13 a ``**`` at the end matches files as well, and within a component it is the same as ``*``.
_NEW_STARS: Final = sys.version_info >= (3, 13)

#: The last component of a pattern that ends with a slash.
_DIRECTORY: Final = ""


def parse(pattern: str, *, anywhere: bool) -> list[str]:
    """The components of a pattern; ``anywhere`` puts ``**`` in front.

    Raises:
        ValueError: the pattern is empty, or not valid.
        NotImplementedError: it is absolute.
    """
    if not pattern and not anywhere:
        raise ValueError(f"Unacceptable pattern: {pattern!r}")
    if pattern.startswith("/"):
        raise NotImplementedError("Non-relative patterns are unsupported")
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not _NEW_STARS and any("**" in part and part != "**" for part in parts):
        raise ValueError("Invalid pattern: '**' can only be an entire path component")
    if pattern.endswith("/"):
        parts.append(_DIRECTORY)
    return ["**", *parts] if anywhere else parts


async def matches(path: GuestPath, parts: Sequence[str]) -> list[GuestPath]:
    """The paths below ``path`` that match, each once."""
    found = [path]
    for number, part in enumerate(parts, 1):
        step = _one_step(part, last=number == len(parts))
        found = list(dict.fromkeys([match for start in found for match in await step(start)]))
    return found


def _one_step(part: str, *, last: bool) -> Callable[[GuestPath], Awaitable[list[GuestPath]]]:
    """A function that finds the matches of one component, in or at a path; not at the end: only directories."""
    if part == "**":
        return partial(_below, files=_NEW_STARS and last)
    if _MAGIC.search(part):
        return partial(_fitting, fits=re.compile(translate(part)).match, directories=not last)
    return partial(_named, part=part, directory=not last or part == _DIRECTORY)


async def _named(path: GuestPath, *, part: str, directory: bool) -> list[GuestPath]:
    child = path / part
    return [child] if await (child.is_dir() if directory else child.exists()) else []


async def _fitting(path: GuestPath, *, fits: Callable[[str], object], directories: bool) -> list[GuestPath]:
    return [
        path / name
        for name, kind in await _entries(path)
        if fits(name) and (not directories or await _is_directory(path / name, kind))
    ]


async def _entries(path: GuestPath) -> list[tuple[str, str]]:
    try:
        return await path._fs.list_entries(str(path))
    except (PermissionError, FileNotFoundError, NotADirectoryError):
        return []


async def _is_directory(path: GuestPath, kind: str) -> bool:
    return kind == "dir" or (kind in ("symlink", "other") and await path.is_dir())


async def _below(path: GuestPath, *, files: bool) -> list[GuestPath]:
    """A directory, and all directories below it, or all files as well."""
    found: list[GuestPath] = []
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        found.append(directory)
        children = await _entries(directory)
        waiting += [directory / name for name, kind in reversed(children) if kind == "dir"]
        found += [directory / name for name, kind in children if files and kind != "dir"]
    return found
