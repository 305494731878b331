"""Machines that users have prepared, as they are kept: in directories of the cache, of which some have a name.

An entry has all that its clones need. It is held by the programs that have made or loaded it, by a shared lock on
a file beside it, which the system releases if they are killed. One that nobody holds and that has no name is left
of a program that was killed, and is removed by the next that makes one. A name is a file that says which entry has
it; it is written last, and replaced as a whole. So a program that is killed leaves the name with the former entry.
Of two that give the same name the last one has it, while the entry of the other goes on without.

This module must not know how machines are made or started.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.machine.qemu import Plan
from trio_console._guests.machine.saved.running import Kind
from trio_console._guests.machine.saved.template import processor
from trio_console._guests.machine.stock.cache import directory, key_of, stamp
from trio_console._machine.welcome import WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

__all__ = ["PREPARED", "Entry", "discard", "find", "keep", "new_place", "prune_prepared"]

#: The directory of these in the cache.
PREPARED: Final = "prepared"

_LOCK: Final = ".lock"
_NAME: Final = ".name"
_TOLD: Final = "machine.json"

#: Files of a machine that it needs again when it is loaded, by their names in the plan.
_PARTS: Final = ("kernel", "initramfs", "disk")

#: The locks that this program holds, by entry; and the entries that end with it.
_held: Final[dict[Path, FileIO]] = {}
_passing: Final[set[Path]] = set()


@final
@dataclass(frozen=True)
class Entry:
    """A machine that is kept.

    Attributes:
        place: its directory.
        kind: what its clones are.
        root: the root directory that its first user has asked for, in words.
    """

    place: Path
    kind: Kind
    root: str


def _folder() -> Path:
    return directory() / PREPARED


def new_place() -> Path:
    """A new, empty directory, which ends with this program until it has a name. Blocks: it removes what is left.

    Raises:
        OSError: there is no room for it.
    """
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _sweep(folder)
    place = folder / secrets.token_hex(8)
    _hold(place)
    if not _passing:
        atexit.register(_remove_passing, os.getpid())
    _passing.add(place)
    place.mkdir()
    return place


def keep(place: Path, kind: Kind, root: str, name: str | None) -> Entry:
    """Make an entry of a directory in which a machine was saved. Blocks for a moment.

    Raises:
        OSError: there is no room for it.
    """
    plan = kind.plan
    for part in _PARTS:
        if (path := getattr(plan, part)) is not None:
            _link(path, place / part)
    told = {
        "model": kind.model,
        "release": kind.release,
        "root": root,
        "accelerator": plan.accelerator,
        "memory_mib": plan.memory_mib,
        "cpus": plan.cpus,
        "extra_args": list(plan.extra_args),
        "ports": list(plan.ports),
        "disk": plan.disk is not None,
        "qemu": plan.qemu,
        "made_with": _made_with(plan.qemu),
    }
    (place / _TOLD).write_text(json.dumps(told))
    entry = _read(place)
    if name is not None:
        _replace(_file_of(name), place.name)
        _passing.discard(place)
    return entry


def find(name: str) -> Entry:
    """The entry with a name; this program holds it from then on.

    Raises:
        LookupError: there is none, or it cannot be loaded here any more.
    """
    place: Path | None = None
    try:
        place = _folder() / _file_of(name).read_text()
        if place not in _held:
            _hold(place)
        entry = _read(place)
        fits = json.loads((place / _TOLD).read_text())["made_with"] == _made_with(entry.kind.plan.qemu)
    except FileNotFoundError:
        if place is not None and not place.is_dir():
            discard(place)  # only its lock, which was made again
        raise LookupError(
            f"there is no template {name!r:.100}: make it with make_template(..., name=...)"
        ) from None
    except (ValueError, KeyError, TypeError) as exc:
        raise LookupError(f"the template {name!r:.100} is damaged: make it again") from exc
    if not fits:
        raise LookupError(
            f"the template {name!r:.100} was made with another QEMU, by a version of trio_console that says other "
            "words to machines, or on another processor: make it again"
        )
    return entry


def discard(place: Path) -> None:
    """Remove an entry of this program that was not finished, or has no name."""
    shutil.rmtree(place, ignore_errors=True)
    _passing.discard(place)
    if (lock := _held.pop(place, None)) is not None:
        with suppress(FileNotFoundError):
            os.unlink(_lock_of(place))
        lock.close()


def prune_prepared() -> int:
    """Remove all names, and all entries that no program holds; returns how many bytes they took.

    An entry that is held goes on without its name.
    """
    folder = _folder()
    for path in _listed(folder, _NAME):
        path.unlink(missing_ok=True)
    freed = _sweep(folder)
    with suppress(OSError):
        folder.rmdir()
    return freed


def _made_with(qemu: str) -> str:
    """A word for what must be as it was when a machine was saved: its agent is the one of that time."""
    return key_of(stamp(qemu), processor(), WORDS)


def _file_of(name: str) -> Path:
    return _folder() / f"{key_of(name)}{_NAME}"


def _lock_of(place: Path) -> Path:
    return place.with_name(place.name + _LOCK)


def _listed(folder: Path, suffix: str) -> list[Path]:
    with suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if path.suffix == suffix)
    return []


def _read(place: Path) -> Entry:
    told = json.loads((place / _TOLD).read_text())
    plan = Plan(
        qemu=told["qemu"],
        kernel=place / "kernel",
        initramfs=place / "initramfs",
        accelerator=told["accelerator"],
        memory_mib=told["memory_mib"],
        cpus=told["cpus"],
        shared=(),
        extra_args=tuple(told["extra_args"]),
        disk=place / "disk" if told["disk"] else None,
        ports=tuple(told["ports"]),
    )
    return Entry(place, Kind(plan, told["model"], told["release"]), told["root"])


def _link(path: Path, new: Path) -> None:
    """Keep a file also if it is removed where it is."""
    try:
        os.link(path, new)
    except OSError:  # it is on another file system, or another user's
        shutil.copyfile(path, new)


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f"{secrets.token_hex(8)}.new")
    new.write_text(text)
    new.replace(path)


def _hold(place: Path) -> None:
    """Take a shared lock on an entry, which this program keeps."""
    while True:
        with no_fork():
            file = let_go_in_child(open(_lock_of(place), "ab", buffering=0))  # noqa: SIM115  (kept)
        fcntl.flock(file, fcntl.LOCK_SH)  # others have it for a moment
        # Whoever has removed the entry before has removed the file: then nobody else sees this lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(_lock_of(place))):
                _held[place] = file
                return
        file.close()


def _sweep(folder: Path) -> int:
    """Remove the entries that nobody holds and that have no name; returns how many bytes they took."""
    freed = 0
    for path in _listed(folder, ".new"):
        path.unlink(missing_ok=True)
    for lock in _listed(folder, _LOCK):
        place = lock.with_suffix("")
        # (The names are read when the entry is locked: a program gives a name while it holds the entry.)
        with suppress(OSError), open(lock, "ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if place.name not in _named(folder):
                freed += 512 * sum(entry.lstat().st_blocks for entry in place.rglob("*") if place.is_dir())
                shutil.rmtree(place, ignore_errors=True)
                lock.unlink()
    return freed


def _named(folder: Path) -> Iterator[str]:
    for path in _listed(folder, _NAME):
        with suppress(FileNotFoundError):
            yield path.read_text()


def _remove_passing(owner: int) -> None:
    if os.getpid() == owner:  # and not a forked child
        for place in list(_passing):
            discard(place)
