"""What a result depends on beside the code: the load, and what a hand-over between threads costs."""

from __future__ import annotations

import os
import statistics
import threading
import time
from contextlib import suppress
from typing import Final

from trio_console.agent._system.machine import become_subreaper

__all__ = ["MOST_LOAD", "OthersLoad", "adopt_orphans", "collect_orphans", "handover"]

#: The most processors that other programs may keep busy if the result is to be kept.
MOST_LOAD: Final = 0.2


def adopt_orphans() -> None:
    """Make processes whose parent has ended children of this one, where the system can do that.

    A daemon's processes often outlive the one that started them. What they have used would count as others'.
    """
    with suppress(OSError):
        become_subreaper()


def collect_orphans() -> None:
    """Wait for the adopted processes that have ended. Not while anything else waits for children of this one."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


class OthersLoad:
    """The processors that other programs than this process and its children keep busy, on average."""

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """The clock, the seconds that all processors were busy, and the part of them that this program used."""
        with open("/proc/stat") as file:
            user, nice, system, _idle, _wait, irq, soft, steal = (
                int(word) for word in file.readline().split()[1:9]
            )
        own = os.times()
        busy = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, own.user + own.system + own.children_user + own.children_system

    def so_far(self) -> float:
        """The average since this object was made. Children count as other programs until they were waited for."""
        then, busy, own = self._start
        now, more_busy, more_own = self._read()
        return max(0.0, (more_busy - busy - (more_own - own)) / (now - then))


def handover(batches: int = 9, n: int = 200) -> float:
    """Seconds for which two threads need to wake each other once by eventfds: what a round trip costs at least.

    Machines of one kind differ by half in this, and with it differs whatever changes between threads.
    """
    there, back = os.eventfd(0), os.eventfd(0)

    def answer() -> None:
        for _ in range(batches * n):
            os.eventfd_read(there)
            os.eventfd_write(back, 1)

    thread = threading.Thread(target=answer)
    thread.start()
    seconds = []
    try:
        for _ in range(batches):
            start = time.perf_counter()
            for _ in range(n):
                os.eventfd_write(there, 1)
                os.eventfd_read(back)
            seconds.append((time.perf_counter() - start) / n)
    finally:
        thread.join()
        os.close(there)
        os.close(back)
    return statistics.median(seconds)
