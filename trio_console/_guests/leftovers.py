"""Finding and killing what a dead agent has left behind on this machine.

A process whose agent was killed belongs to nobody: it has a session of its own, and its parent is gone. But
it has inherited its environment, and there is a mark in it that no other guest has.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import suppress
from typing import Final, NamedTuple

__all__ = ["GUEST_MARK", "Leftovers", "kill_marked_processes"]

#: The environment variable that carries the mark.
GUEST_MARK: Final = "TRIO_CONSOLE_GUEST"

#: Scans in a row that must find nothing. One is not enough: a process may come, and its parent go, between the
#: listing and the look at them.
_CLEAN_SCANS: Final = 2

#: Seconds, at most. What forks between two scans is found by the next; what forks faster than it can be killed
#: for so long is a fork bomb, and needs other means. On a busy machine what was killed may have to wait for a
#: processor to die on, and what is in the middle of an exec for one to get through it.
_MAX_TIME: Final = 1.0

#: States of processes that only wait to be reaped, and the flag of threads of the kernel's, in ``/proc/PID/stat``.
_DEAD: Final = (b"Z", b"X")
_PF_KTHREAD: Final = 0x0020_0000

#: Seconds between scans while somebody is waited for.
_PAUSE: Final = 0.001


class Leftovers(NamedTuple):
    """What became of the processes that carried a mark: their ids.

    Attributes:
        killed: were sent SIGKILL.
        left: of those, still there when the time was over, such as in an uninterruptible system call.
    """

    killed: frozenset[int]
    left: frozenset[int]


def kill_marked_processes(mark: str) -> Leftovers:
    """Kill every process of this user that carries ``mark``, and wait for them to be gone. Blocking, for a second.

    Finds none where there is no ``/proc``.
    """
    killed: set[int] = set()
    needle = f"{GUEST_MARK}={mark}".encode()
    deadline = time.monotonic() + _MAX_TIME
    clean = 0
    found: set[int] = set()
    while clean < _CLEAN_SCANS and time.monotonic() < deadline:
        found, unclear = _kill_marked(needle)
        killed |= found
        clean = 0 if found or unclear else clean + 1
        if not clean:
            time.sleep(_PAUSE)
    return Leftovers(frozenset(killed), frozenset(found))


def _kill_marked(needle: bytes) -> tuple[set[int], int]:
    """Kill the marked processes there are; tells which, and how many do not show yet whether they are marked.

    A zombie has no environment, so it is not found.
    """
    found: set[int] = set()
    unclear = 0
    try:
        entries = os.listdir("/proc")
    except OSError:
        return found, 0
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
                    found.add(int(entry))
                elif _in_exec(fd):
                    unclear += 1
            finally:
                os.close(fd)
    return found, unclear


def _in_exec(proc_fd: int) -> bool:
    """Whether a process has given up its old memory and not filled the new: it shows no environment.

    That may take long on a busy machine. It shows no arguments either; one whose environment is empty does. Nor do
    zombies and the kernel's threads, where the kernel lets their environment be opened at all, and those stay so.
    """
    if _read(proc_fd, "environ") or _read(proc_fd, "cmdline"):
        return False
    # What follows the name, in parentheses, which may hold anything: the state, five numbers, the flags.
    state, *_, flags = _read(proc_fd, "stat").rpartition(b")")[2].split(None, 7)[:7]
    return state not in _DEAD and not int(flags) & _PF_KTHREAD


def _has_mark(proc_fd: int, needle: bytes) -> bool:
    return needle in _read(proc_fd, "environ").split(b"\0")


def _read(proc_fd: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def _kill(pid: int, proc_fd: int, needle: bytes) -> None:
    pidfd = _open_pidfd(pid)
    if pidfd is None:
        # Another process could get the number between this look and the signal: it would take 32 thousand starts
        # within microseconds.
        if _has_mark(proc_fd, needle):
            os.kill(pid, signal.SIGKILL)
        return
    try:
        # Looked at again, through the directory that was opened before the pidfd: still the same process.
        if _has_mark(proc_fd, needle):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _open_pidfd(pid: int) -> int | None:
    """A pidfd; `None` where the kernel, a sandbox or the C library that Python was built with has none."""
    if not (hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as exc:
        if exc.errno in (errno.ENOSYS, errno.EPERM):
            return None
        raise
