"""The threads, descriptors, processes and tasks in use before and after a piece of work, which must be the same.

This check is stricter than the one for every test: a descriptor that waits for the garbage collector also counts
as left behind. Cancellation makes reference cycles of tracebacks and frames, and a program that has no descriptors
left cannot wait for the collector.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import trio

from tests.tools.leftovers import children, descriptors, is_dying, marked, name_thread, threads, wait_until_none

if TYPE_CHECKING:
    import threading

__all__ = ["Ground"]

#: Seconds between two looks at what is still going.
LOOK = 0.001

#: Threads that an agent keeps, by their names, and how many. One that lives on may have others than before: a look
#: that takes long on a busy machine is given up with its thread, and a start begins another while the last one is
#: still busy.
KEPT = {"thread for commands": 2, "thread to look for processes": 1}


def _sockets(directory: str) -> set[str]:
    return {
        entry.path for entry in os.scandir(directory) if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    }


def _describe(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return f"process {pid}: {file.read()!r}"
    except OSError:
        return f"process {pid}"  # ended by now


class Ground:
    """What there is now, in a trio run and before the work.

    Args:
        mark: the name of the mark that the work's processes carry.
        directory: where its sockets would be.
    """

    def __init__(self, mark: str, directory: str) -> None:
        self._mark = mark
        self._directory = directory
        self._threads = threads()
        self._descriptors = descriptors()
        self._processes = self._living()
        self._marked = marked(mark)
        self._tasks = trio.lowlevel.current_statistics().tasks_living
        self._lives_on = False  # an agent in this process

    def _living(self) -> set[str]:
        found = {f"child {pid}" for pid in children()} | _sockets(self._directory)
        return found | {f"process {pid}" for pid in marked(self._mark)}

    def processes(self) -> list[str]:
        """Processes that exist now and did not exist then, except those that were killed and are about to die."""
        return sorted(_describe(pid) for pid in marked(self._mark) - self._marked if not is_dying(pid))

    async def left(self, patience: float) -> list[str]:
        """What there is now and was not then.

        Args:
            patience: seconds that others in this trio run, such as a guest that lives on, may take to get rid of
                it. Without that, only threads that are on their way out are waited for, and no task has a turn.
        """
        if not patience:
            processes = self._living() - self._processes
            wait_until_none(lambda: threads() - self._threads)
            return sorted(processes) or self._left()
        self._lives_on = True
        give_up = trio.current_time() + patience
        while (found := self._left()) and trio.current_time() < give_up:
            await trio.sleep(LOOK)
        return found

    def _left(self) -> list[str]:
        found = (self._living() - self._processes) | (descriptors() - self._descriptors)
        found |= {name_thread(thread) for thread in self._new_threads()}
        tasks = trio.lowlevel.current_statistics().tasks_living - self._tasks
        return sorted(found) + ([f"{tasks} tasks"] if tasks > 0 else [])

    def _new_threads(self) -> set[threading.Thread]:
        now = threads()
        kept: set[threading.Thread] = set()
        for name, most in KEPT.items():
            pool = {thread for thread in now if thread.name == name}
            if self._lives_on and len(pool) <= most:
                kept |= pool
        return now - self._threads - kept
