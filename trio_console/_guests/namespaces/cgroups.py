"""The cgroups of a guest, which keep its limits: one for each hierarchy that has a controller for them.

In version 2 of cgroups a process of ours keeps our own cgroup from having controllers for cgroups within, so a
guest's is made beside ours, in the parent, if that is delegated to us. In version 1 it is made in ours.

The process that is put into it has started no other yet. This module must not know what it is.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from trio_console._processes import start_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_console._guests.roots import Limits

__all__ = ["Cgroups", "limited"]

#: A directory is named by this, the process id and the start time of the program, and a random word. (Names that
#: begin with ``trio-console-`` are those of agents, who end what they find in them.)
PREFIX: Final = "trio-console.guest-"

_PROC: Final = "/proc/self"
_MIB: Final = 2**20

#: Seconds for the kernel to see that the last process of a cgroup is gone, after it was reaped.
_EMPTY_TIME: Final = 1.0
_PAUSE: Final = 0.001

_HELP: Final = (
    "under systemd, start this program with `systemd-run --user --scope -p Delegate=yes COMMAND` (as root without "
    "--user); or leave the limits out"
)


@final
@dataclass(frozen=True)
class _Place:
    """A directory in which cgroups with a controller can be made."""

    path: str
    version: int


class Cgroups:
    """The cgroups of one guest; none for a guest without limits."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths

    def add(self, pid: int) -> None:
        """Put a process into them.

        Raises:
            ProcessLookupError: it has ended.
            OSError: it may not be moved.
        """
        for path in self._paths:
            with open(f"{path}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(pid))

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed one of their processes because of the limit of memory."""
        for path in self._paths:
            for name in ("memory.events", "memory.oom_control"):
                with suppress(OSError), open(f"{path}/{name}", encoding="ascii") as file:
                    words = dict(line.split() for line in file if len(line.split()) == 2)
                    if int(words.get("oom_kill", "0")):
                        return True
        return False


@contextmanager
def limited(limits: Limits) -> Iterator[Cgroups]:
    """Cgroups with limits; they are removed at the end, when their processes are gone.

    Raises:
        PermissionError: this program may not make them here.
        OSError: a limit cannot be set.
    """
    wanted: dict[str, dict[str, int]] = {}
    if limits.memory_mib is not None:
        wanted["memory"] = {"memory": limits.memory_mib * _MIB}
    if limits.processes is not None:
        wanted["pids"] = {"pids": limits.processes}
    made: dict[str, str] = {}
    try:
        for controller, values in wanted.items():
            place = _find_place(controller)
            path = made.get(place.path)
            if path is None:
                _remove_stale(place.path)
                path = made[place.path] = _make(place.path)
            for value in values.values():
                _set(path, controller, value, place.version)
        yield Cgroups(list(made.values()))
    finally:
        for path in made.values():
            _remove(path)


def _find_place(controller: str) -> _Place:
    refused = ""
    for place in _candidates(controller):
        if os.access(place.path, os.W_OK) and os.access(f"{place.path}/cgroup.procs", os.W_OK):
            return place
        refused = f": this user may not write to {place.path}"
    raise PermissionError(
        errno.EPERM,
        f"a limit of {'memory' if controller == 'memory' else 'processes'} needs a cgroup with the controller "
        f"{controller!r} that this program may divide, and there is none{refused}. {_HELP}",
    )


def _candidates(controller: str) -> Iterator[_Place]:
    """Where a cgroup with the controller could be made, by what the kernel lists."""
    ours = {}
    for line in _lines(f"{_PROC}/cgroup"):
        _, names, path = line.split(":", 2)
        ours.update(dict.fromkeys(names.split(","), path))
    for line in _lines(f"{_PROC}/mountinfo"):
        before, _, after = line.partition(" - ")
        root, mounted = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        name = "" if kind == "cgroup2" else controller
        if name not in ours or kind not in ("cgroup", "cgroup2"):
            continue
        path = os.path.normpath(f"{mounted}/{os.path.relpath(ours[name], root)}")
        if kind == "cgroup" and controller in options.split(","):
            yield _Place(path, 1)
        elif kind == "cgroup2":
            for candidate in (path, os.path.dirname(path)):
                if controller in _words(f"{candidate}/cgroup.subtree_control"):
                    yield _Place(candidate, 2)


def _lines(path: str) -> list[str]:
    with suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().splitlines()
    return []


def _words(path: str) -> list[str]:
    return " ".join(_lines(path)).split()


def _make(place: str) -> str:
    with open("/proc/self/stat", "rb") as file:  # (`start_time` looks at other processes only)
        started = file.read().rpartition(b")")[2].split()[19].decode()
    path = f"{place}/{PREFIX}{os.getpid()}-{started}-{secrets.token_hex(4)}"
    os.mkdir(path)
    return path


def _set(path: str, controller: str, value: int, version: int) -> None:
    files: dict[str, int] = {"pids.max": value}
    if controller == "memory" and version == 1:
        files = {"memory.limit_in_bytes": value}
    elif controller == "memory":
        files = {"memory.max": value}
    for name, number in files.items():
        with open(f"{path}/{name}", "w", encoding="ascii") as file:
            file.write(str(number))
    if controller == "memory":
        # Without swap, of which there may be much. Where the kernel does not count it, there is no such file.
        name, number = ("memory.memsw.limit_in_bytes", value) if version == 1 else ("memory.swap.max", 0)
        if os.path.exists(f"{path}/{name}"):
            with open(f"{path}/{name}", "w", encoding="ascii") as file:
                file.write(str(number))


def _remove(path: str) -> None:
    """Remove a cgroup. If a process is still in it, the next guest in the same place does it."""
    deadline = time.monotonic() + _EMPTY_TIME
    while True:
        try:
            os.rmdir(path)
        except OSError as exc:
            if exc.errno != errno.EBUSY or time.monotonic() > deadline:
                return
        else:
            return
        time.sleep(_PAUSE)


def _remove_stale(place: str) -> None:
    """Remove the cgroups of programs that were killed, if they are empty."""
    with suppress(OSError):
        for name in os.listdir(place):
            pid, _, rest = name.removeprefix(PREFIX).partition("-")
            if not name.startswith(PREFIX) or not pid.isdecimal() or int(pid) == os.getpid():
                continue
            if start_time(int(pid)) != rest.partition("-")[0]:
                with suppress(OSError):
                    os.rmdir(f"{place}/{name}")
