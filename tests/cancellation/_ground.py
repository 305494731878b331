"""What is in use around a piece of work: threads, descriptors, processes, tasks. Nothing may be more after it.

This is stricter than what holds for every test: a descriptor that waits for the garbage collector is left behind,
too. Cancellation makes cycles of tracebacks and frames, and a program that is out of descriptors has no time.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
import time

import trio

__all__ = ["MARK", "Ground"]

#: Carried in the environment of every process that a swept session starts, and inherited by all of theirs.
MARK = "TRIO_CONSOLE_SWEEP"

#: Seconds that a thread which is just ending may take to be gone.
THREAD_TIME = 5.0

#: Seconds between two looks at what is still going.
LOOK = 0.001


def _threads() -> set[str]:
    """Threads that are doing something: the idle ones of trio's cache have their default names."""
    return {
        f"thread {thread.name} ({thread.native_id})"
        for thread in threading.enumerate()
        if not thread.name.startswith("Trio thread ")
    }


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"descriptor {name} of {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the one that listed the directory
    return found


def _children() -> set[str]:
    """Child processes of this one, zombies too."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                found.update(file.read().split())
        except OSError:
            continue  # a thread that has just ended
    return {f"child {pid}" for pid in found}


def _marked(mark: str) -> set[str]:
    """Living processes of any parent that carry the mark."""
    needle, found = f"{MARK}={mark}".encode(), set()
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if needle not in file.read().split(b"\0"):
                        continue
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    found.add(f"process {pid}: {file.read()!r}")
            except OSError:
                continue  # ended, or of another user
    return found


def _is_dying(process: str) -> bool:
    """Whether it has got SIGKILL, and has not had the processor since."""
    try:
        with open(f"/proc/{process.split()[1].rstrip(':')}/status", encoding="ascii") as file:
            pending = [int(line.split()[1], 16) for line in file if line.startswith(("SigPnd", "ShdPnd"))]
    except OSError:
        return True
    return any(signals >> signal.SIGKILL - 1 & 1 for signals in pending)


def _sockets(directory: str) -> set[str]:
    return {
        entry.path for entry in os.scandir(directory) if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    }


class Ground:
    """What there is now, in a trio run and before the work.

    Args:
        mark: what the work's processes carry in `MARK`.
        directory: where its sockets would be.
    """

    def __init__(self, mark: str, directory: str) -> None:
        self._mark = mark
        self._directory = directory
        self._threads = _threads()
        self._descriptors = _descriptors()
        self._processes = self._living()
        self._tasks = trio.lowlevel.current_statistics().tasks_living

    def _living(self) -> set[str]:
        return _marked(self._mark) | _children() | _sockets(self._directory)

    def processes(self) -> list[str]:
        """Processes that there are now and were not then, except those that have been killed and are to die."""
        return sorted(one for one in _marked(self._mark) - self._processes if not _is_dying(one))

    async def left(self, patience: float) -> list[str]:
        """What there is now and was not then.

        Args:
            patience: seconds that others in this trio run, such as a guest that lives on, may take to get rid of
                it. Without that, only threads that are on their way out are waited for, and no task has a turn.
        """
        if not patience:
            processes = self._living() - self._processes
            deadline = time.monotonic() + THREAD_TIME
            while _threads() - self._threads and time.monotonic() < deadline:
                time.sleep(LOOK)  # noqa: ASYNC251
            return sorted(processes) or self._left()
        give_up = trio.current_time() + patience
        while (found := self._left()) and trio.current_time() < give_up:
            await trio.sleep(LOOK)
        return found

    def _left(self) -> list[str]:
        found = (self._living() - self._processes) | (_threads() - self._threads)
        found |= _descriptors() - self._descriptors
        tasks = trio.lowlevel.current_statistics().tasks_living - self._tasks
        return sorted(found) + ([f"{tasks} tasks"] if tasks > 0 else [])
