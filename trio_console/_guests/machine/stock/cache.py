"""A directory of things that take time to make, each named by what it was made of: whole, or not there.

Several programs may use it at once. An entry is made under a lock, beside its place, and then renamed; so it is
made once, and a program that is killed leaves nothing that could be taken for an entry. An entry never changes.

This module must not know what the entries are.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.machine.stock.progress import shown
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.threads import NoThreadError, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from io import FileIO

__all__ = ["by_thread", "directory", "discard", "kept", "key_of", "prune", "stamp"]

#: Seconds between two looks at a lock that another program has. (A thread that waited for it could not be
#: cancelled.)
_PAUSE: Final = 0.02

#: Seconds after its last use in which an entry is not removed for its age: a program that has found it may not
#: have opened its files yet. (One that has keeps them.)
_RECENT: Final = 600.0

_LOCK: Final = ".lock"
_NEW: Final = ".new"


def directory() -> Path:
    """The directory: ``trio_console`` in ``$XDG_CACHE_HOME``, or in ``~/.cache`` if that is no absolute path."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "trio_console"


def key_of(*parts: object) -> str:
    """A name for what is made of these parts: another one if any of them is another."""
    return hashlib.sha256(repr(parts).encode(errors="surrogateescape")).hexdigest()[:32]


def stamp(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """What tells a file from an older one in its place, without reading it: path, size and time of change."""
    found = os.stat(path)
    return os.fspath(path), found.st_size, found.st_mtime_ns


async def kept(
    kind: str, key: str, make: Callable[[Path], Awaitable[None]], *, what: str = "", most: int | None = None
) -> Path:
    """The directory of an entry; it is made first if it is not there.

    Args:
        kind: the directory of all entries of its kind.
        key: the name of the entry.
        make: is awaited with a new, empty directory, which becomes the entry when it returns. What it raises, also
            if it is cancelled, comes out, and there is no entry.
        what: says what is done meanwhile, on a terminal that is this program's stderr; empty for something quick.
        most: how many entries of the kind are kept when one is made: those that were used last; `None` for all.
    """
    place = directory() / kind / key
    if place.is_dir():
        _note_use(place)
        return place
    async with shown(what) if what else nullcontext(), _locked(place):
        if not place.is_dir():
            await _make(place, make)
    if most is not None:
        with suppress(OSError, NoThreadError):  # they are in nobody's way
            await in_thread("to remove files", partial(_trim, place.parent, most))
    return place


def _note_use(place: Path) -> None:
    with suppress(OSError):
        os.utime(place)


def _trim(folder: Path, most: int) -> None:
    """Remove all entries but those that were used last, and those that a program may be about to use."""
    entries = [folder / name for name in _listed(folder) if not name.endswith((_LOCK, _NEW))]
    used = {place: place.stat().st_mtime for place in entries}
    for place in sorted(entries, key=used.__getitem__, reverse=True)[most:]:
        if used[place] < time.time() - _RECENT and (lock := _try_lock(place.with_name(place.name + _LOCK))):
            with lock:
                # Who looks for it finds all of it, or nothing.
                new = place.with_name(place.name + _NEW)
                shutil.rmtree(new, ignore_errors=True)
                place.rename(new)
                shutil.rmtree(new, ignore_errors=True)
                os.unlink(place.with_name(place.name + _LOCK))


async def _make(place: Path, make: Callable[[Path], Awaitable[None]]) -> None:
    new = place.with_name(place.name + _NEW)
    shutil.rmtree(new, ignore_errors=True)  # of a program that was killed
    new.mkdir()
    try:
        await make(new)
        new.rename(place)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def by_thread(function: Callable[[Path], object]) -> Callable[[Path], Awaitable[None]]:
    """A maker of entries, for `kept`, that runs in a thread. If cancelled, it waits for the thread."""

    async def make(place: Path) -> None:
        await in_thread("to make what virtual machines need", partial(function, place))

    return make


async def discard(place: Path) -> None:
    """Remove an entry that turned out to be of no use, so that it is made anew."""
    async with _locked(place):
        await in_thread("to remove files", partial(_remove, place))


async def prune(kinds: Iterable[str]) -> int:
    """Remove all entries of these kinds; returns how many bytes they took. Waits for one that is being made.

    A running machine keeps its files. If cancelled, some entries are left.
    """
    freed = 0
    for kind in kinds:
        folder = directory() / kind
        names = {name.removesuffix(_LOCK).removesuffix(_NEW) for name in _listed(folder)}
        for name in sorted(names):
            place = folder / name
            async with _locked(place) as lock:
                for path in (place, place.with_name(name + _NEW)):
                    freed += await in_thread("to remove files", partial(_remove, path))
                os.unlink(lock)
        with suppress(OSError):
            folder.rmdir()
    return freed


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _remove(path: Path) -> int:
    # (A sparse file takes less than its size.)
    blocks = sum(entry.lstat().st_blocks for entry in path.rglob("*")) if path.is_dir() else 0
    shutil.rmtree(path, ignore_errors=True)
    return 512 * blocks


@interrupt_safe
@asynccontextmanager
async def _locked(place: Path) -> AsyncIterator[Path]:
    """Be the only program that makes or removes an entry; yields the path of the lock."""
    path = place.with_name(place.name + _LOCK)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            file = _try_lock(path)
        except FileNotFoundError:  # removed just now, with its directory
            file = None
        if file is not None:
            break
        await trio.sleep(_PAUSE)
    with file:
        yield path


def _try_lock(path: Path) -> FileIO | None:
    """The lock, or `None` if another program has it; it is given up when the file is closed."""
    with no_fork():
        file = let_go_in_child(open(path, "ab", buffering=0))  # noqa: SIM115  (the caller closes it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever has pruned meanwhile has removed the file: then this is a lock that nobody else will see.
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None
