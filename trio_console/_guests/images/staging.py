"""A tree to a directory that mke2fs can copy, whoever runs it: each node has its number for a time.

Every directory is made new and entered by its descriptor, every file is made new, and no name has a slash or is
one of ``.`` and ``..``; so nothing is written but in the directory. Nothing gets rights but its owner's to read
and write: the bits of setuid, owners and times are only in the image.

This module must not know archives, nor what becomes of the directory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, final

from trio_console._guests.images.bounds import BadImageError
from trio_console._guests.images.tree import Kind, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from trio_console._guests.images.tree import Content

__all__ = ["stage"]

#: Bytes that are copied at once.
_COPIED: Final = 1024**2

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def stage(root: Node, place: Path, contents: Mapping[int, BinaryIO], look: Callable[[], None]) -> list[Node]:
    """Write a tree into an empty directory; returns its nodes without the root, in the order of their numbers.

    The numbers begin at 1, and are the seconds since 1970 at which the node was last changed.

    Args:
        contents: the layers, by their numbers, in which the contents of files are.
        look: called often; what it raises comes out.

    Raises:
        OSError: there is no room, or the file system has no such names.
    """
    staging = _Staging(contents, look)
    staging.fd = os.open(place, _DIRECTORY)
    try:
        staging.fill(root, staging.fd, b"")
    finally:
        os.close(staging.fd)
    return staging.nodes


@final
class _Staging:
    def __init__(self, contents: Mapping[int, BinaryIO], look: Callable[[], None]) -> None:
        self.fd = -1
        self.nodes: list[Node] = []
        self._contents = contents
        self._look = look
        #: By identity: a name of each node that may have several.
        self._names: dict[int, bytes] = {}

    def fill(self, directory: Node, fd: int, path: bytes) -> None:
        """Write what is in a directory; ``path`` is its own from the root on, with a slash at its end."""
        for name, node in directory.children.items():
            if name in (b"", b".", b"..") or b"/" in name:
                raise BadImageError(f"{name!r:.100} is no name of an entry")
            self._look()
            first = self._names.setdefault(id(node), path + name)
            if first != path + name:
                # (What leads to it are directories that were made here: no link is followed.)
                os.link(first, name, src_dir_fd=self.fd, dst_dir_fd=fd, follow_symlinks=False)
                continue
            self.nodes.append(node)
            number = len(self.nodes)
            self._make(node, name, fd, path)
            os.utime(name, (number, number), dir_fd=fd, follow_symlinks=False)

    def _make(self, node: Node, name: bytes, fd: int, path: bytes) -> None:
        match node.kind:
            case Kind.DIRECTORY:
                os.mkdir(name, 0o700, dir_fd=fd)
                inner = os.open(name, _DIRECTORY, dir_fd=fd)
                try:
                    self.fill(node, inner, path + name + b"/")
                finally:
                    os.close(inner)
            case Kind.SYMLINK:
                os.symlink(node.target, name, dir_fd=fd)
            case Kind.FIFO:
                os.mkfifo(name, 0o600, dir_fd=fd)
            case Kind.FILE:
                if node.content is None:
                    raise BadImageError(f"the file {path + name!r:.200} has no content")
                file = os.open(name, _NEW, 0o600, dir_fd=fd)
                try:
                    self._copy(node.content, file)
                finally:
                    os.close(file)
            case Kind.HARD_LINK:  # pragma: no cover
                raise AssertionError("the tree has another name of a node in place of a link")

    def _copy(self, content: Content, file: int) -> None:
        os.truncate(file, content.size)
        for piece in content.pieces:
            layer = self._contents[content.layer].fileno()
            done = 0
            while done < piece.size:
                self._look()
                chunk = os.pread(layer, min(_COPIED, piece.size - done), piece.source + done)
                if not chunk:
                    raise BadImageError("a layer ends before the file that is in it")
                done += os.pwrite(file, chunk, piece.at + done)
