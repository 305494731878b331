"""A log file that is rotated by its size, and that no other user can write or replace.

* The file, and its directory if it is a regular file, belong to this user or to root, and no other user can write
  to them. A link at the path is not followed.
* A lock is held on a regular file, so that two relays never write to one log and rotate each other's files. Where
  a file system or a sandbox has no such locks, nothing is locked.
* Lines are printable text. Control characters, such as those of a terminal, and those by which text runs from
  right to left, are written as escapes of JSON: showing a log with ``cat`` does nothing to a terminal.

All calls block.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
from typing import TYPE_CHECKING, Final, final

from trio_console._forked import let_go_in_child, no_fork
from trio_console._relay.trust import check_directory, is_own

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LogFile", "json_line"]

#: How often the file is opened anew because another relay has just rotated it.
_ATTEMPTS: Final = 5

#: Characters that JSON allows in strings, and that do something when text is shown.
_UNSAFE: Final = re.compile("[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


def json_line(fields: Mapping[str, object]) -> bytes:
    """A JSON object as one line; see the module for its characters. Lone surrogates are escapes, too."""
    text = json.dumps(fields, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode(errors="backslashreplace") + b"\n"


@final
class LogFile:
    """See the module.

    Args:
        path: path of the file. It is made with mode 0600 if it does not exist; an existing file is appended to.
        max_bytes: size at which it is rotated.
        backups: rotated files that are kept.

    Attributes:
        records: lines written.

    Raises:
        PermissionError: another user can write to the file or its directory, or owns one of them.
        BlockingIOError: another relay writes to the file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int, backups: int) -> None:
        self._path: Final = os.path.abspath(os.fspath(path))
        self._max_bytes: Final = max_bytes
        self._backups: Final = backups
        self._fd = -1
        self.records = 0
        let_go_in_child(self, lambda file: (file._fd,))
        try:
            self._open_first()
            about = os.fstat(self._fd)
        except BaseException:
            self.close()
            raise
        self._size = about.st_size
        # Only regular files are rotated: a rotation would replace a terminal or /dev/null by a file.
        self._rotates: Final = stat.S_ISREG(about.st_mode)

    def _open_first(self) -> None:
        for _ in range(_ATTEMPTS):
            with no_fork():
                self._fd = self._open(self._path, 0)
            self._check()
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                return
            if not self._lock(self._fd):
                why = "another relay writes to this log: give each relay a file of its own"
                raise BlockingIOError(errno.EWOULDBLOCK, why, self._path)
            # Between the opening and the lock another relay may have rotated the file, and ended.
            if self._is_at_path():
                return
            self.close()
        raise OSError(errno.EBUSY, "the file is replaced again and again", self._path)

    @staticmethod
    def _open(path: str, flags: int) -> int:
        # (Not blocking, or a FIFO that nobody reads would never be opened.)
        usual = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(path, usual | flags, 0o600)
        os.set_blocking(fd, True)
        return fd

    def _check(self) -> None:
        about = os.fstat(self._fd)
        if about.st_uid != 0 and not is_own(about, self._fd):
            why = f"the file belongs to user {about.st_uid}, and a log holds secrets: use a file of your own"
            raise PermissionError(errno.EPERM, why, self._path)
        if not stat.S_ISREG(about.st_mode):
            return
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            why = f"other users can write to the file (mode {stat.S_IMODE(about.st_mode):04o}): chmod it to 0600"
            raise PermissionError(errno.EPERM, why, self._path)
        folder = os.path.dirname(self._path)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check_directory(directory, folder)
        finally:
            os.close(directory)

    @staticmethod
    def _lock(fd: int) -> bool:
        """Lock an open file; returns false if another program has locked it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # there are no locks here
        return True

    def _is_at_path(self) -> bool:
        here = os.fstat(self._fd)
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def write_line(self, line: bytes) -> None:
        """Write a whole line, or nothing.

        Raises:
            OSError: it could not be written.
        """
        if self._rotates and self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        start, view = self._size, memoryview(line)
        try:
            while view:
                count = os.write(self._fd, view)
                self._size += count
                view = view[count:]
        except OSError:
            # A half line is removed, because a reader of JSON Lines could not read the lines after it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
                self._size = start
            raise
        self.records += 1

    def _rotate(self) -> None:
        # The new file is made first, under a temporary name, and locked. If that fails, no file was renamed, so a
        # new attempt with each line does not push the older files out.
        coming = f"{self._path}.0"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(coming)
        with no_fork():
            fd = self._open(coming, os.O_EXCL)
            old, self._fd = self._fd, fd
        try:
            self._lock(fd)
            for number in range(self._backups, 0, -1):
                older = f"{self._path}.{number}"
                newer = f"{self._path}.{number - 1}" if number > 1 else self._path
                with contextlib.suppress(FileNotFoundError):
                    os.replace(newer, older)
            os.replace(coming, self._path)
        except OSError:
            self._fd = old
            os.close(fd)
            raise
        os.close(old)
        self._size = os.fstat(fd).st_size

    def close(self) -> None:
        """Close it. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
