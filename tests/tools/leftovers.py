"""The threads, descriptors and processes that this program has in use, for every check for leftovers.

The package has such a check of its own, `trio_console.testing.nothing_left_behind`. That one is tested, so the
tests of everything else do not rely on it.
"""

from __future__ import annotations

import os
import pathlib
import secrets
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import trio

from tests.tools.limits import ENDING, HANG

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = [
    "becomes",
    "children",
    "descriptors",
    "idle_threads",
    "is_dying",
    "mark",
    "marked",
    "marking",
    "name_thread",
    "runs",
    "started_with",
    "state_of",
    "threads",
    "wait_until_none",
]

C = TypeVar("C", bound="Collection[object]")

#: Marks are variables in the environment of a process, and inherited by all that it starts. Their names begin with
#: this. Each mark has a name of its own, so that a check inside of another one hides no process from that.
_MARK = "TRIO_CONSOLE_TEST_"

#: Seconds between two looks.
_LOOK = 0.001


# Threads and descriptors of this process


def threads() -> set[threading.Thread]:
    """The threads that work, with the main thread, and without the idle threads of trio's cache.

    Those are known by their default names, and end by themselves after ten seconds.
    """
    return set(threading.enumerate()) - idle_threads()


def idle_threads() -> set[threading.Thread]:
    """The idle threads in trio's cache."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("Trio thread ")}


def name_thread(thread: threading.Thread) -> str:
    return f"thread {thread.name} ({thread.native_id})"


def descriptors() -> set[str]:
    """Each open descriptor, with its file."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"descriptor {name} of {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the one that listed the directory
    return found


# Processes


def children(of: int | None = None) -> set[int]:
    """Child processes of this one, or of another: zombies too."""
    tasks = f"/proc/{'self' if of is None else of}/task"
    found: set[int] = set()
    for task in os.listdir(tasks):
        try:
            with open(f"{tasks}/{task}/children", encoding="ascii") as file:
                found.update(map(int, file.read().split()))
        except OSError:
            continue  # a thread that has just ended
    return found


def mark(name: str) -> bytes:
    """Mark this process, and with it all that it starts; what stands in their environments."""
    os.environ[_MARK + name] = "1"
    return f"{_MARK}{name}=1".encode()


@contextmanager
def marking() -> Iterator[str]:
    """Mark all processes that are started in a block; the name of their mark."""
    name = secrets.token_hex(8)
    mark(name)
    try:
        yield name
    finally:
        del os.environ[_MARK + name]


def marked(name: str) -> set[int]:
    """Living processes that carry the mark, whoever their parents are by now; without this process."""
    return started_with({f"{_MARK}{name}=1".encode()})


def started_with(variables: set[bytes]) -> set[int]:
    """Living processes that were started with these variables in their environment; without this process."""
    found = set()
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if variables.issubset(file.read().split(b"\0")):
                        found.add(int(pid))
            except OSError:
                continue  # ended, or of another user
    return found


def state_of(pid: int) -> str | None:
    """The state of a process, as `ps` names it: S sleeps, T is stopped, Z is a zombie. `None`: there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode("ascii")
    except OSError:
        return None


def runs(pid: int) -> bool:
    """Whether a process exists, and is neither a zombie nor dying."""
    return state_of(pid) not in (None, "Z", "X")


async def becomes(pid: int, program: bytes) -> None:
    """Wait until a process runs a program, given by its first argument: before that it is a copy of its parent."""
    with trio.fail_after(HANG):
        while not pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().startswith(program):
            await trio.sleep(_LOOK)


def is_dying(pid: int) -> bool:
    """Whether a process is gone, or has got SIGKILL and only waits for the processor to die."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            pending = [int(line.split()[1], 16) for line in file if line.startswith(("SigPnd", "ShdPnd"))]
    except OSError:
        return True
    return any(signals >> signal.SIGKILL - 1 & 1 for signals in pending)


def wait_until_none(look: Callable[[], C], patience: float | None = None) -> C:
    """What ``look`` finds, once it finds nothing any more or when ``patience`` seconds (`ENDING`) are over.

    It blocks.
    """
    deadline = time.monotonic() + (ENDING if patience is None else patience)
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return found
