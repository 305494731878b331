"""Finding and killing what a dead agent has left behind on this machine.

A process whose agent was killed belongs to nobody: it has a session of its own, and its parent is gone. But
it has inherited its environment, and there is a mark in it that no other guest has.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GUEST_MARK", "kill_marked_processes"]

#: The environment variable that carries the mark.
GUEST_MARK: Final = "TRIO_CONSOLE_GUEST"

#: Scans in a row that must find nothing. One is not enough: a process in the middle of an exec shows no
#: environment, and one may come and its parent go between the listing and the look at them.
_CLEAN_SCANS: Final = 2

#: Scans, at most. A process that forks between two scans is found by the next; one that forks
#: faster than it can be killed for so long is a fork bomb, and needs other means.
_MAX_SCANS: Final = 20


def kill_marked_processes(mark: str) -> int:
    """Kill every process of this user that carries ``mark``, and return how many there were. Blocking.

    Returns 0 where there is no ``/proc``.
    """
    killed: set[int] = set()
    needle = f"{GUEST_MARK}={mark}".encode()
    clean = 0
    for _ in range(_MAX_SCANS):
        found = set(_marked(needle))
        killed |= found
        clean = 0 if found else clean + 1
        if clean == _CLEAN_SCANS:
            break
    return len(killed)


def _marked(needle: bytes) -> Iterator[int]:
    """Kill marked processes one by one, and tell which. A zombie has no environment, so it is not found."""
    try:
        entries = os.listdir("/proc")
    except OSError:
        return
    for entry in entries:
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with suppress(OSError):
            fd = os.open(f"/proc/{entry}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _has_mark(fd, needle):
                    # A directory of /proc stays with its process: if that ended meanwhile and its number was
                    # taken by another, the pidfd below is of another process than the directory.
                    _kill(int(entry), fd, needle)
                    yield int(entry)
            finally:
                os.close(fd)


def _has_mark(proc_fd: int, needle: bytes) -> bool:
    environ = os.open("environ", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        parts = []
        while part := os.read(environ, 65536):
            parts.append(part)
    finally:
        os.close(environ)
    return needle in b"".join(parts).split(b"\0")


def _kill(pid: int, proc_fd: int, needle: bytes) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        # Looked at again, through the directory that was opened before the pidfd: still the same process.
        if _has_mark(proc_fd, needle):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
