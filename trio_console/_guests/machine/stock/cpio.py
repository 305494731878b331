"""An archive as the kernel unpacks it at its start (cpio, "newc"), written without a tool.

This module must not know what is in it.
"""

from __future__ import annotations

import posixpath
import stat
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from typing import BinaryIO

__all__ = ["Archive"]

_MAGIC: Final = b"070701"
_END: Final = "TRAILER!!!"


@final
class Archive:
    """Files are added one after the other, each path once; missing directories are added before their files."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._paths: set[str] = set()

    def __contains__(self, path: str) -> bool:
        return path.lstrip("/") in self._paths

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory, unless it is there."""
        self._add(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file, unless there is something at its path."""
        self._add(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link, unless there is something at its path."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device, unless there is something at its path."""
        self._add(path, stat.S_IFCHR | mode, b"", major, minor)

    def end(self) -> None:
        """Write the end of the archive, which is needed."""
        self._write(_END, 0, b"", 0, 0)

    def _add(self, path: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        path = posixpath.normpath(path).lstrip("/")
        if path in self._paths or path == ".":
            return
        if above := posixpath.dirname(path):
            self.directory(above)
        self._paths.add(path)
        self._write(path, mode, data, major, minor)

    def _write(self, path: str, mode: int, data: bytes, major: int, minor: int) -> None:
        name = path.encode(errors="surrogateescape") + b"\0"
        number = len(self._paths)  # each file has one name, so any number that is another one will do
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name), 0)
        head = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
        self._file.write(head + b"\0" * (-len(head) % 4))
        self._file.write(data)
        self._file.write(b"\0" * (-len(data) % 4))
