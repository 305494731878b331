"""Finding the threads, descriptors and child processes that a block of a program has left behind.

This module must not import trio: it inspects the process from outside.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["nothing_left_behind"]

#: Seconds for threads and processes that are just ending to be gone.
_GRACE: Final = 5.0

_POLL: Final = 0.005


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fail if a block leaves a thread, an open descriptor or a child process of this program behind.

    Threads and processes that are just ending have 5 seconds, and the garbage collector runs first. The idle
    threads that trio keeps for ten seconds do not count, nor do zombies. Descriptors and child processes are found
    only on a system with ``/proc``, so on Linux. A block that raises is not checked, because its traceback keeps
    objects alive.

    For use around a whole `trio.run`; or, inside of one, around a block that opens and closes a guest.

    Raises:
        AssertionError: something was left; the message names it.
    """
    threads = _busy_threads()
    descriptors = _descriptors()
    children = _children()
    yield
    deadline = time.monotonic() + _GRACE
    while True:
        left = [f"thread {thread.name!r}" for thread in _busy_threads() - threads]
        left += [f"child process {pid}" for pid in sorted(_children() - children)]
        if not left:
            left = _new_descriptors(descriptors)
            if left:
                gc.collect()
                left = _new_descriptors(descriptors)
        if not left:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind: {', '.join(left)}")
        time.sleep(_POLL)


def _busy_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}


def _descriptors() -> dict[int, str]:
    """The number of every open descriptor, and the file behind it."""
    found = {}
    for name in _listing("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor with which the directory was listed
    return found


def _new_descriptors(before: dict[int, str]) -> list[str]:
    return [f"descriptor {fd} ({what})" for fd, what in _descriptors().items() if before.get(fd) != what]


def _children() -> set[int]:
    """Child processes that still run."""
    own = str(os.getpid()).encode()
    found = set()
    for name in _listing("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue
            if parent == own and state != b"Z":
                found.add(int(name))
    return found


def _listing(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
