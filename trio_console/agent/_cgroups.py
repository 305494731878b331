"""The cgroups of commands: a directory of the agent's own, and in it one cgroup for each command.

All that a command starts is born in its cgroup, and stays there whatever else it gets rid of. So it is found
whole. The usual ways into a cgroup are no good here. A process that is moved makes the kernel wait for all
processors (5 to 18 ms, and a whole command takes 1.2), and may start others before. And Python cannot start a
process in a cgroup (clone3 can). But a thread that moves itself within a *threaded* tree of cgroups makes nobody
wait (it takes some 40 µs), and what it forks is born where the thread is. `_process.births` has such threads.

A threaded cgroup has no ``cgroup.kill``, so its processes are frozen first, and killed one by one then: nothing
that is frozen forks, and a frozen process can be killed. `Cgroup.is_populated` says when all have ended.

What the agent needs for that:

* Linux 5.5, before which a thread that moves makes the kernel wait, too; and pidfds, without which the agent
  starts a thread for each command (it would be born in the command's cgroup).
* A cgroup that is the agent's to divide (`_is_ours`). If it is the root of all cgroups, the agent stays there, and
  its directory is a threaded one beside it: a root may be that of a threaded tree and have other children. Any
  other cgroup would lose its other children by that. There the agent moves into its own directory, once, at its
  start.

Whatever of this fails, commands have no cgroups, and are found by their marks. It is never an error.

A directory is locked (``flock``) for as long as its agent lives, also beyond its namespaces. One that can be
locked is left of an agent that was killed. The next agent ends what is in it, and removes it.

This module must not know commands.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import itertools
import os
import re
import secrets
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Cgroup", "Cgroups", "Stay", "open_cgroups", "remove_stale"]

#: The names of the agents' directories begin with this.
PREFIX: Final = "trio-console-"

#: From this Linux on, a thread that moves itself waits for nothing.
_QUICK_KERNEL: Final = (5, 5)

#: The names of systemd's own cgroups end with one of these.
_UNITS: Final = (".scope", ".service", ".slice")

#: The errors of a process that has no descriptors or memory for a look; they say nothing of the cgroup.
_LACKING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: Seconds for all that killed agents have left. What has not ended by then is left to the next agent.
_STALE_TIME: Final = 0.5
_PAUSE: Final = 0.001

#: Cgroups that are kept for the next commands.
_FEW_FREE: Final = 8

#: The events of an empty cgroup that is as it was made, and the links of a directory without others in it.
_EMPTY: Final = b"populated 0\nfrozen 0"
_LINKS_OF_EMPTY: Final = 2

#: Names that are tried for a directory, if it is taken for a stale one before it is locked.
_TRIES: Final = 3


class Stay(enum.Enum):
    """Where the agent's own thread is that starts a command in its cgroup."""

    THREAD_IN = enum.auto()
    THREAD_OUT = enum.auto()
    THREAD_STUCK = enum.auto()


@final
class Cgroup:
    """A cgroup for as long as it is one command's.

    ``stay`` says whether a thread of the agent is in it. Only that thread writes it, and the last value is
    `THREAD_OUT` or `THREAD_STUCK`. So whoever reads one of these may rely on it: in the first case the cgroup has
    the command's processes alone, in the second it must never be frozen.

    When nothing is in it any more, the kernel's cgroup may become another command's. That is decided under a lock
    (`Cgroups.take_back`), which all methods take. So each of them either finds the cgroup still its command's, for
    as long as it looks, or does nothing, and finds nothing.

    If this process has no descriptors or memory for a look, the methods raise `OSError`, and nothing is known.

    Attributes:
        mark: the mark of the command; empty before it was started.
    """

    __slots__ = ("_is_over", "_lock", "_path", "_was_frozen", "mark", "stay")

    def __init__(self, path: str) -> None:
        self._path: Final = path
        self._lock: Final = threading.Lock()
        self._was_frozen = False
        self._is_over = False
        self.stay = Stay.THREAD_IN
        self.mark = ""

    def enter(self) -> None:
        """Move the calling thread into it; all that it forks is born there.

        Raises:
            OSError: the thread is where it was.
        """
        _write(f"{self._path}/cgroup.threads", b"0")

    def freeze(self) -> None:
        """Let no process in it run any more. It takes effect soon, and is no obstacle to SIGKILL."""
        assert self.stay is Stay.THREAD_OUT, "a cgroup is frozen when no thread of the agent is in it"
        self._set_frozen(b"1")

    def thaw(self) -> None:
        """Take back `freeze`."""
        self._set_frozen(b"0")

    def _set_frozen(self, state: bytes) -> None:
        with self._lock:
            if not self._is_over:
                self._was_frozen = True
                try:
                    _write(f"{self._path}/cgroup.freeze", state)
                except OSError as exc:
                    _raise_lack(exc)

    def members(self) -> frozenset[int]:
        """The ids of all threads in it, and in the cgroups that its processes have made in it."""
        with self._lock:
            return frozenset() if self._is_over else _members(self._path)

    def kill(self) -> None:
        """Freeze it, and send SIGKILL to the process of each thread in it."""
        self.freeze()
        with self._lock:
            if not self._is_over:
                _kill_members(self._path)

    def is_populated(self) -> bool:
        """Whether a process in it has not let go of everything yet. (Zombies do not count.)"""
        with self._lock:
            return not self._is_over and b"populated 1" in _read(f"{self._path}/cgroup.events")

    def end(self, free: deque[str] | None = None) -> bool:
        """Take it from its command, if there is no process in it; returns whether that is done.

        Args:
            free: gets the path, if it may be another command's as it is; otherwise, or with `None`, it is removed.
        """
        with self._lock:
            if not self._is_over:
                if free is not None and self._is_like_new():
                    self._is_over = True
                    free.append(self._path)
                else:
                    self._is_over = _remove(self._path)
            return self._is_over

    def _is_like_new(self) -> bool:
        return (
            not self._was_frozen
            and _read(f"{self._path}/cgroup.events") == _EMPTY
            and os.stat(self._path).st_nlink == _LINKS_OF_EMPTY
        )


@final
class Cgroups:
    """The directory of an agent.

    Args:
        path: the directory.
        lock: a descriptor by which the directory is locked; `close` closes it.
        place: the cgroup that the directory is in.
        moved: whether the agent has moved from there into the directory. If not, its threads are there.
        most: the most threads that each command may have; `None` for no limit.
    """

    def __init__(self, path: str, lock: int, place: str, *, moved: bool, most: int | None = None) -> None:
        self.path: Final = path
        self._lock: Final = lock
        self._place: Final = place
        self._moved: Final = moved
        self._most: Final = most
        self._serials: Final = itertools.count(1)
        self._free: Final[deque[str]] = deque()  # cgroups that nothing is in
        # It is open for good, so that a thread can leave when the agent has no descriptors any more.
        self._home: Final = os.open(f"{path if moved else place}/cgroup.threads", os.O_WRONLY | os.O_CLOEXEC)

    def new(self) -> Cgroup:
        """A cgroup that is empty, for one command.

        Raises:
            OSError: none could be made.
        """
        with contextlib.suppress(IndexError):
            return Cgroup(self._free.pop())
        path = f"{self.path}/{next(self._serials)}"
        os.mkdir(path)
        try:
            _write(f"{path}/cgroup.type", b"threaded")
            if self._most is not None:
                _write(f"{path}/pids.max", b"%d" % self._most)
        except OSError:
            _remove(path)
            raise
        return Cgroup(path)

    def take_back(self, cgroup: Cgroup) -> bool:
        """Take a cgroup from its command, if nothing is in it; returns whether the command has none any more.

        It is used again, if a few are left. To make and remove one takes three times as long as to move into it.
        But it is not, if a command could have set limits in it, or made others in it.
        """
        reuse = len(self._free) < _FEW_FREE and not _read(f"{self.path}/cgroup.subtree_control").strip()
        return cgroup.end(self._free if reuse else None)

    def leave(self) -> None:
        """Move the calling thread back to the agent's other threads.

        Raises:
            OSError: the thread is where it was.
        """
        os.write(self._home, b"0")

    def close(self) -> None:
        """Remove the directory with all that is in it, as far as nothing runs there; the next agent does the rest.

        All threads must have left.
        """
        os.close(self._home)
        if self._moved:
            with contextlib.suppress(OSError):
                _write(f"{self._place}/cgroup.procs", b"0")
        _remove(self.path)
        os.close(self._lock)


# --- the place ------------------------------------------------------------------------------------


def open_cgroups(proc: str = "/proc/self") -> Cgroups | None:
    """Make the agent's directory; `None` if it may have none here.

    It may move this process to another cgroup, which takes some milliseconds.
    """
    if not (_has_pidfds() and _is_quick(os.uname().release)):
        return None
    try:
        place = _find(proc)
        return None if place is None else _open_in(place)
    except (OSError, ValueError):
        return None


def _has_pidfds() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _is_quick(release: str) -> bool:
    match = re.match(r"(\d+)\.(\d+)", release)
    return match is not None and (int(match[1]), int(match[2])) >= _QUICK_KERNEL


def _find(proc: str) -> str | None:
    """The cgroup of this process in the one hierarchy of version 2, if it can be seen and is ours."""
    own = next((line[3:] for line in _read_lines(f"{proc}/cgroup") if line.startswith(b"0::/")), None)
    if own is None:
        return None
    for line in _read_lines(f"{proc}/mountinfo"):
        mount, _, kind = line.partition(b" - ")
        if kind.startswith(b"cgroup2 "):
            root, target = (_unescaped(field).rstrip(b"/") for field in mount.split(b" ")[3:5])
            within = (own.rstrip(b"/") + b"/").removeprefix(root)
            if within.startswith(b"/") and own.startswith(root):
                place = os.fsdecode(target + within.rstrip(b"/"))
                return place if _is_ours(place, is_top=within == b"/") else None
    return None


def _unescaped(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def _is_ours(place: str, *, is_top: bool) -> bool:
    """Whether a cgroup is ours to divide, and not that of a manager to which it belongs, such as systemd.

    It is, if it is the top of all that can be seen here (of a machine, or of a container), if its manager has said
    so, or if it belongs to our user, who is not root. But all units of a user's systemd belong to that user.
    """
    if is_top or _is_delegated(place):
        return True
    return 0 != os.geteuid() == os.stat(place).st_uid and not place.endswith(_UNITS)


def _is_delegated(place: str) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(place, name) == b"1":
                return True
    return False


def _open_in(place: str) -> Cgroups:
    remove_stale(place)
    # (The root of all cgroups alone has no type.)
    is_root = not os.path.exists(f"{place}/cgroup.type")
    path, lock = _make_directory(place)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, lock)
        undo.callback(_remove, path)
        most = None
        if is_root:
            _write(f"{path}/cgroup.type", b"threaded")
            most = _share_machine(path)
        else:
            _write(f"{path}/cgroup.procs", b"0")
            undo.callback(_write, f"{place}/cgroup.procs", b"0")
        cgroups = Cgroups(path, lock, place, moved=not is_root, most=most)
        undo.pop_all()
    return cgroups


def _share_machine(path: str) -> int | None:
    """Let no command take all of a machine whose first program is the agent; the most threads for each.

    All commands together have three quarters of the threads that the kernel can have, and each one half. All of
    them together get as much of the processors as a thread of the agent, which is beside them, and each as much
    as another. So an agent and its other commands go on beside a fork bomb. (`agent._init` gives the controllers.)
    """
    if os.getpid() != 1 or not os.path.exists(f"{path}/pids.max"):
        return None
    threads = int(_read("/proc/sys/kernel/threads-max"))
    try:
        _write(f"{path}/pids.max", b"%d" % (threads * 3 // 4))
        _write(f"{path}/cgroup.subtree_control", b"+cpu +pids")
    except OSError:
        return None
    return threads // 2


def _make_directory(place: str) -> tuple[str, int]:
    """A new directory, and the descriptor that locks it.

    Another agent that looks for stale directories may lock it before we do, and remove it. Whichever of the two
    has the lock, the other leaves the directory alone from then on. So one that is there when we have the lock
    stays.
    """
    for _ in range(_TRIES):
        path = f"{place}/{PREFIX}{secrets.token_hex(8)}"
        os.mkdir(path)
        lock = None
        try:
            lock = _locked(path)
        finally:
            if lock is None:
                _remove(path)
        if lock is not None:
            return path, lock
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), place)


def _locked(path: str) -> int | None:
    """A descriptor that locks a directory; `None` if another process has locked or removed it."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(lock).st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def remove_stale(place: str) -> None:
    """End what killed agents have left in a cgroup, and remove their directories.

    Raises:
        OSError: the cgroup cannot be read.
    """
    deadline = time.monotonic() + _STALE_TIME
    for name in _children(place):
        if name.startswith(PREFIX):
            path = f"{place}/{name}"
            with contextlib.suppress(OSError):
                lock = _locked(path)
                if lock is not None:
                    try:
                        _end_all(path, deadline)
                    finally:
                        os.close(lock)


def _end_all(path: str, deadline: float) -> None:
    """Kill all in a directory whose agent has died, and remove it."""
    stale = Cgroup(path)
    stale.stay = Stay.THREAD_OUT
    while not stale.end() and time.monotonic() < deadline:
        stale.kill()
        time.sleep(_PAUSE)


# --- the kernel's files ---------------------------------------------------------------------------


def _raise_lack(exc: OSError) -> None:
    """Raise an error again if it is a lack of ours; any other means that the cgroup is gone, or not ours now."""
    if exc.errno in _LACKING:
        raise exc


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _read(path: str) -> bytes:
    """What a file of a cgroup says; nothing if the cgroup is gone."""
    try:
        return b"\n".join(_read_lines(path))
    except OSError as exc:
        _raise_lack(exc)
        return b""


def _read_lines(path: str) -> list[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).splitlines()


def _kill_members(path: str) -> None:
    # (What is frozen does not end by itself, so none of the ids is another's by now.)
    for number in _members(path):
        with contextlib.suppress(OSError):
            os.kill(number, signal.SIGKILL)


def _members(path: str) -> frozenset[int]:
    return frozenset(number for each in _tree(path) for number in _threads_in(each))


def _threads_in(path: str) -> Iterator[int]:
    for text in _read(f"{path}/cgroup.threads").split():
        # A process that cannot be seen from here, in another namespace, is shown as 0. A signal for 0 would go to
        # our own process group.
        if (number := int(text)) > 0:
            yield number


def _children(path: str) -> list[str]:
    """The cgroups in a cgroup, by name."""
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as exc:
        _raise_lack(exc)
        return []


def _tree(path: str) -> Iterator[str]:
    """A cgroup and all that are in it, parents first."""
    yield path
    for name in _children(path):
        yield from _tree(f"{path}/{name}")


def _remove(path: str) -> bool:
    """Remove a cgroup, with those in it, as far as there is no process in them; returns whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        with contextlib.suppress(OSError):
            removed = [_remove(f"{path}/{name}") for name in _children(path)]
            return all(removed) and bool(removed) and _remove(path)
        return False
    return True
