"""File operations of more than one system call: directories with their parents, copies, whole trees.

All raise `OSError`. A thread cannot be stopped, so a long operation checks from time to time whether a `Stop` asks
it to end. These functions are called in threads beside trio; this module must know only the operating system.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Stop", "copy_file", "make_directories", "remove_tree"]

_COPY_SIZE: Final = 16 * 1024 * 1024

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

#: The errors of `copy_file_range` for files that it cannot copy, but that can be copied by other calls.
_NOT_IN_THE_KERNEL: Final = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


@final
class Stop:
    """Asks a thread to stop. The thread may see that late or never, so nothing may depend on it."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raise ECANCELED if asked to stop."""
        if self.asked:
            raise OSError(errno.ECANCELED, "stopped")


def make_directories(path: bytes) -> None:
    """Make a directory, and its parents that are missing. Does nothing if it exists."""
    missing: list[bytes] = []
    while not _make_directory(path):
        missing.append(path)
        parent = os.path.dirname(path.rstrip(b"/"))
        if parent in (b"", path):
            raise FileNotFoundError(errno.ENOENT, "no such directory")
        path = parent
    for child in reversed(missing):
        if not _make_directory(child):
            raise FileNotFoundError(errno.ENOENT, "removed meanwhile")


def _make_directory(path: bytes) -> bool:
    """Make a directory, if it does not exist; returns whether it exists now. If not, its parent is missing."""
    try:
        os.mkdir(path)
    except FileNotFoundError:
        return False
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    return True


# --- copies ---------------------------------------------------------------------------------------


def copy_file(source: bytes, target: bytes, stop: Stop) -> None:
    """Copy contents and permission bits of a regular file, following links."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    reader = os.open(source, os.O_RDONLY | flags)
    try:
        found = os.fstat(reader)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL, "not a regular file")
        mode = stat.S_IMODE(found.st_mode)
        # The target is not truncated yet, because it may be the same file as the source.
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | flags, mode)
        try:
            if os.path.samestat(found, os.fstat(writer)):
                raise OSError(errno.EINVAL, "a file cannot be copied onto itself")
            os.truncate(writer, 0)
            os.fchmod(writer, mode)
            _copy_contents(reader, writer, stop)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_contents(reader: int, writer: int, stop: Stop) -> None:
    """Copy all bytes. Only the parts with data are copied, so that holes stay holes."""
    at = 0
    while True:
        # (Read before the look for data, so that bytes that are appended meanwhile lie behind it.)
        size = os.fstat(reader).st_size
        try:
            start = os.lseek(reader, at, os.SEEK_DATA)
            at = os.lseek(reader, start, os.SEEK_HOLE)
        except OSError as exc:
            # ENXIO: there is a hole up to the end. Otherwise this file system does not tell holes.
            at = max(at, size) if exc.errno == errno.ENXIO else at
            os.truncate(writer, at)
            break
        if _copy_bytes(reader, writer, start, at - start, stop) < at - start:
            return  # the file ends here, whatever its size is: its contents are made when it is read
    _copy_bytes(reader, writer, at, math.inf, stop)


def _copy_bytes(reader: int, writer: int, start: int, count: float, stop: Stop) -> int:
    """Copy up to ``count`` bytes from ``start`` on; returns how many, which is fewer at the end of the file."""
    os.lseek(reader, start, os.SEEK_SET)
    os.lseek(writer, start, os.SEEK_SET)
    copy: Callable[[int, int, int], int] = getattr(os, "copy_file_range", _send)  # missing with old C libraries
    done = 0
    while done < count:
        stop.check()
        try:
            copied = copy(reader, writer, int(min(_COPY_SIZE, count - done)))
        except OSError as exc:
            if copy is _send or exc.errno not in _NOT_IN_THE_KERNEL:
                raise
            copied = 0
        done += copied
        if not copied:
            if copy is _send:
                break
            # This is the end of the file, or a file of size 0 whose contents are made when it is read (in /proc).
            copy = _send
    return done


def _send(reader: int, writer: int, size: int) -> int:
    return os.sendfile(writer, reader, None, size)


# --- removing -------------------------------------------------------------------------------------


class _Identity(NamedTuple):
    device: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> _Identity:
        found = os.fstat(fd)
        return cls(found.st_dev, found.st_ino)


class _Level(NamedTuple):
    """A directory on the way down: its identity, and the directories in it that are left."""

    identity: _Identity
    children: list[bytes]


def remove_tree(path: bytes, stop: Stop) -> None:
    """Remove a directory with everything in it. No link is followed, not even ``path`` itself.

    This takes one descriptor, however deep the tree is. Each name is looked up in the directory of that
    descriptor. So if a directory is replaced by a link in the meantime, this fails, and never leaves the tree. It
    also fails if a directory is moved: after each step back up, the identity of the parent is checked.
    """
    path = path.rstrip(b"/") or path
    fd = os.open(path, _DIRECTORY)
    try:
        levels = [_Level(_Identity.of(fd), _remove_files(fd, stop))]
        while True:
            if levels[-1].children:
                fd = _step(fd, levels[-1].children[-1])
                levels.append(_Level(_Identity.of(fd), _remove_files(fd, stop)))
                continue
            levels.pop()
            if not levels:
                break
            fd = _step(fd, b"..")
            if _Identity.of(fd) != levels[-1].identity:
                raise OSError(errno.EBUSY, "moved while it was being removed")
            os.rmdir(levels[-1].children.pop(), dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(path)


def _step(fd: int, name: bytes) -> int:
    """Open a child or the parent of a directory under the directory's own descriptor."""
    neighbour = os.open(name, _DIRECTORY, dir_fd=fd)
    os.dup2(neighbour, fd, inheritable=False)
    os.close(neighbour)
    return fd


def _remove_files(fd: int, stop: Stop) -> list[bytes]:
    """Remove all files of a directory; return the names of the directories in it."""
    directories: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            stop.check()
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                directories.append(name)
            else:
                os.unlink(name, dir_fd=fd)
    return directories
