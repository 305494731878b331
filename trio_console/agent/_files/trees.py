"""File operations that are more than one system call: directories with their parents, copies, whole trees.

All raise `OSError`. A long operation checks a `Stop` from time to time: a thread cannot be stopped, but it can be
asked to end. These functions are called in worker threads; this module must know only the operating system.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Stop", "copy_file", "make_directories", "remove_tree"]

_COPY_SIZE: Final = 16 * 1024 * 1024

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

#: What `copy_file_range` says of files it cannot do; plain copying can.
_NOT_IN_THE_KERNEL: Final = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


@final
class Stop:
    """Asks a thread to stop. It may see that a moment late, so nothing may depend on it."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raise ECANCELED if asked to stop."""
        if self.asked:
            raise OSError(errno.ECANCELED, "stopped")


def make_directories(path: bytes) -> None:
    """Make a directory and the parents it lacks; one that exists is fine."""
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
    """Whether it is there now; if not, a parent is missing."""
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
        # Not truncated by this: it may turn out to be the same file.
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
    copy: Callable[[int, int, int], int] = getattr(os, "copy_file_range", _send)  # missing with old C libraries
    while True:
        stop.check()
        try:
            copied = copy(reader, writer, _COPY_SIZE)
        except OSError as exc:
            if copy is _send or exc.errno not in _NOT_IN_THE_KERNEL:
                raise
            copied = 0
        if not copied:
            if copy is _send:
                return
            # The end, or a file whose contents are made up as they are read, whose size is 0.
            copy = _send


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
    """A directory on the way down from the top: what it is, and which of its children are left."""

    identity: _Identity
    children: list[bytes]


def remove_tree(path: bytes, stop: Stop) -> None:
    """Remove a directory with all there is in it, following no link, not even ``path`` itself.

    However deep the tree, this takes one descriptor. Everything is named relative to that, so a directory
    that is replaced by a link meanwhile is an error and not a way out of the tree. So is one that is moved:
    the way back up is checked.
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
    """Open a neighbour of a directory in its place."""
    neighbour = os.open(name, _DIRECTORY, dir_fd=fd)
    os.dup2(neighbour, fd, inheritable=False)
    os.close(neighbour)
    return fd


def _remove_files(fd: int, stop: Stop) -> list[bytes]:
    """Remove from a directory all that is none; return the names of those that are."""
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
