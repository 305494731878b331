"""Finding and killing the processes that a dead agent has left on this machine.

When an agent is killed, its commands go on: each runs in a POSIX session of its own, and its parent is gone. But
each has inherited its environment from the agent, and in it a mark that no other guest has.
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

#: Scans in a row that must find no process. One is not enough: after ``/proc`` was listed, a listed process may
#: fork and end before it is checked, and its child is not in the list.
_CLEAN_SCANS: Final = 2

#: The most seconds for all scans. A process that was forked between two scans is found by the next. Processes that
#: fork faster than they can be killed for so long are a fork bomb, which needs other means. On a busy machine a
#: killed process may need this time to get a processor and die, and a process in an exec to finish it.
_MAX_TIME: Final = 1.0

#: In ``/proc/PID/stat``: states of processes that only wait to be reaped, and the flag of the kernel's own
#: threads.
_DEAD: Final = (b"Z", b"X")
_PF_KTHREAD: Final = 0x0020_0000

#: Seconds between scans while a killed process is still there.
_PAUSE: Final = 0.001


class Leftovers(NamedTuple):
    """The ids of the processes that carried a mark.

    Attributes:
        killed: those that were sent SIGKILL.
        left: of those, the ones that were still there at the end, such as in an uninterruptible system call.
    """

    killed: frozenset[int]
    left: frozenset[int]


def kill_marked_processes(mark: str) -> Leftovers:
    """Kill every process of this user that carries ``mark``, and wait until they are gone.

    It blocks for up to a second. On a system without ``/proc`` it finds no process.
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
    assert found <= killed, "what is left was killed, and is told of"
    return Leftovers(frozenset(killed), frozenset(found))


def _kill_marked(needle: bytes) -> tuple[set[int], int]:
    """Kill the marked processes; returns their ids, and the number of processes whose mark cannot be read yet.

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
                    # An open directory of /proc stays with its process. `_kill` reads the mark through it again,
                    # because the process may have ended, and its number may be another process's by now.
                    _kill(int(entry), fd, needle)
                    found.add(int(entry))
                elif _in_exec(fd):
                    unclear += 1
            finally:
                os.close(fd)
    return found, unclear


def _in_exec(proc_fd: int) -> bool:
    """Whether a process is in an exec: its old memory is gone and the new not filled, so its environment is empty.

    That may last long on a busy machine. Its arguments are empty too, unlike those of a process that really has no
    environment. Zombies and the kernel's threads also show neither, where the kernel lets their environment be
    read; but that does not change, so they do not count.
    """
    if _read(proc_fd, "environ") or _read(proc_fd, "cmdline"):
        return False
    # The fields after the name, which is in parentheses and may hold any byte: the state, five numbers, the flags.
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
    assert pid != os.getpid(), "a guest's end does not end this program, which may be a guest itself"
    pidfd = _open_pidfd(pid)
    if pidfd is None:
        # Between this check and the signal another process could get the number. But that would take 32 thousand
        # process starts within microseconds.
        if _has_mark(proc_fd, needle):
            os.kill(pid, signal.SIGKILL)
        return
    try:
        # Read again, through the directory that was opened before the pidfd: if the process of the directory is
        # still there, it has the number, and so the pidfd is its own.
        if _has_mark(proc_fd, needle):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _open_pidfd(pid: int) -> int | None:
    """A pidfd; `None` if the kernel, a sandbox or the C library that Python was built with does not give one."""
    if not (hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as exc:
        if exc.errno in (errno.ENOSYS, errno.EPERM):
            return None
        raise
