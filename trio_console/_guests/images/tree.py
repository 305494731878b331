"""The tree that layers add up to, in memory: what a name means, what a whiteout hides, what a link leads to.

Nothing is looked up on this machine's disk here. A path is walked in the tree, and a symbolic link in the middle
of a path leads to a place in the tree, or nowhere; so no entry of a layer can name anything outside of it.

This module must not know archives, nor how the tree is written down.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias, final

from trio_console._guests.images.bounds import BadImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from trio_console._guests.images.bounds import Bounds

__all__ = ["Content", "Entry", "Kind", "Node", "Piece", "Tree", "parts_of"]

#: Symbolic links in one path, as for the kernel.
_MOST_LINKS: Final = 40

_LONGEST_NAME: Final = 255
#: A symbolic link of the kernel's longest path.
_LONGEST_LINK: Final = 4095

_WHITEOUT: Final = b".wh."
#: What one union file system has kept in its layers for itself. No part of the image, but for the opaque mark.
_PRIVATE: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"


class Kind(enum.Enum):
    DIRECTORY = "directory"
    FILE = "file"
    SYMLINK = "symbolic link"
    FIFO = "named pipe"
    HARD_LINK = "hard link"
    """Only of an entry: another name of a node."""


@final
@dataclass(frozen=True)
class Piece:
    """Bytes of a file that are not a hole: where they belong in it, and where they are in their layer."""

    at: int
    source: int
    size: int


@final
@dataclass(frozen=True)
class Content:
    """What a file holds: pieces of a layer, by its number, in order; the rest is holes."""

    layer: int
    size: int
    pieces: tuple[Piece, ...]


@final
@dataclass
class Node:
    """A file, directory, symbolic link or named pipe. It has one name, or several (hard links)."""

    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: bytes = b""
    content: Content | None = None
    capability: bytes = b""
    children: dict[bytes, Node] = field(default_factory=dict)
    depth: int = 0

    @property
    def is_directory(self) -> bool:
        return self.kind is Kind.DIRECTORY


@final
@dataclass(frozen=True)
class Entry:
    """A name in a layer: what is to be there. A hard link's node holds the path it links to as ``target``."""

    path: tuple[bytes, ...]
    node: Node


Path: TypeAlias = "Sequence[bytes]"


def parts_of(name: bytes) -> tuple[bytes, ...]:
    """The parts of a path in an archive; one that starts with a slash means the root of the image.

    Raises:
        BadImageError: a part is ``..``, too long, or no name.
    """
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    for part in parts:
        if part == b".." or b"\0" in part or len(part) > _LONGEST_NAME:
            raise BadImageError(f"an entry is named {_shown(name)}, which is no name of a file in an image")
    return parts


@final
class Tree:
    """What the layers so far add up to."""

    def __init__(self, bounds: Bounds) -> None:
        self.root = Node(Kind.DIRECTORY)
        self._bounds = bounds
        self._taken = 0

    def apply(self, entries: Sequence[Entry]) -> None:
        """Put a layer on top.

        Its whiteouts hide what lower layers have, and nothing of the layer itself, wherever in it they stand.

        Raises:
            BadImageError: an entry cannot be. The tree is of no use any more.
        """
        self._count(len(entries))
        for entry in entries:
            if entry.path and entry.path[-1].startswith(_WHITEOUT):
                self._hide(entry.path)
        for entry in entries:
            if any(part.startswith(_WHITEOUT) for part in entry.path):
                _check_whiteout(entry.path)
            else:
                self._put(entry)

    def _count(self, number: int) -> None:
        self._taken += number
        if self._taken > self._bounds.entries:
            raise BadImageError(f"the image has more than {self._bounds.entries} entries")

    def walk(self) -> Iterator[tuple[tuple[bytes, ...], Node]]:
        """Each name and its node, directories before what is in them. A node with two names comes twice."""
        waiting: list[tuple[tuple[bytes, ...], Node]] = [((), self.root)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            waiting += [((*path, name), child) for name, child in node.children.items()]

    def _hide(self, path: tuple[bytes, ...]) -> None:
        directory = self._find(path[:-1])
        if directory is None or not directory.is_directory:
            return  # no lower layer has it
        if path[-1] == _OPAQUE:
            directory.children.clear()
        elif not path[-1].startswith(_PRIVATE):
            directory.children.pop(path[-1].removeprefix(_WHITEOUT), None)

    def _put(self, entry: Entry) -> None:
        if not entry.path:
            if not entry.node.is_directory:
                raise BadImageError(f"the root of the image would be a {entry.node.kind.value}")
            _dress(self.root, entry.node)
            return
        directory, name = self._directory_for(entry.path[:-1]), entry.path[-1]
        there = directory.children.get(name)
        node = entry.node
        if node.kind is Kind.HARD_LINK:
            directory.children[name] = self._linked(entry)
        elif there is not None and there.is_directory and node.is_directory:
            _dress(there, node)
        else:
            self._add(directory, name, node)

    def _add(self, directory: Node, name: bytes, node: Node) -> None:
        if node.kind is Kind.SYMLINK and not (0 < len(node.target) <= _LONGEST_LINK and b"\0" not in node.target):
            raise BadImageError(f"the symbolic link {_shown(name)} has no target, or none that can be")
        node.depth = directory.depth + 1
        if node.depth > self._bounds.depth:
            raise BadImageError(f"{_shown(name)} lies deeper than {self._bounds.depth} directories")
        directory.children[name] = node

    def _linked(self, entry: Entry) -> Node:
        target = parts_of(entry.node.target)
        directory = self._find(target[:-1])
        found = directory.children.get(target[-1]) if directory is not None and target else None
        if found is None or found.is_directory:
            kind = "does not exist" if found is None else "is a directory"
            raise BadImageError(
                f"{_shown(b'/'.join(entry.path))} is a hard link to {_shown(entry.node.target)}, which {kind}"
            )
        return found

    def _directory_for(self, path: Path) -> Node:
        """The directory at a path; those that nobody has mentioned are made."""
        for length in range(1, len(path) + 1):
            # (Nearly always there, and found at the first try.)
            if (found := self._find(path)) is not None:
                break
            missing = path[:length]
            if self._find(missing) is None:
                parent = self._find(missing[:-1])
                # (A symbolic link to nowhere, or a file.)
                if parent is None or missing[-1] in parent.children or not parent.is_directory:
                    raise BadImageError(f"{_shown(b'/'.join(missing))} leads to no directory, but holds an entry")
                self._count(1)
                self._add(parent, missing[-1], Node(Kind.DIRECTORY))
        found = self._find(path)
        if found is None or not found.is_directory:
            raise BadImageError(f"{_shown(b'/'.join(path))} is no directory, but holds an entry")
        return found

    def _find(self, path: Path) -> Node | None:
        """What a path leads to, through symbolic links, which never lead out of the tree."""
        trail = [self.root]
        waiting, links = list(reversed(path)), 0
        while waiting:
            part = waiting.pop()
            if not trail[-1].is_directory:
                return None
            if part == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            node = trail[-1].children.get(part)
            if node is None:
                return None
            if node.kind is not Kind.SYMLINK:
                trail.append(node)
                continue
            links += 1
            if links > _MOST_LINKS:
                return None
            if node.target.startswith(b"/"):
                del trail[1:]
            waiting += [part for part in reversed(node.target.split(b"/")) if part not in (b"", b".")]
        return trail[-1]


def _dress(there: Node, new: Node) -> None:
    """A directory that two layers have holds what both have put in it, and is otherwise as the upper one says."""
    there.mode, there.uid, there.gid, there.mtime = new.mode, new.uid, new.gid, new.mtime


def _check_whiteout(path: Iterable[bytes]) -> None:
    *above, last = path
    if any(part.startswith(_PRIVATE) for part in (*above, last)):
        return
    if any(part.startswith(_WHITEOUT) for part in above) or last[len(_WHITEOUT) :] in (b"", b".", b".."):
        raise BadImageError(f"{_shown(b'/'.join([*above, last]))} is a mark of a deletion that deletes nothing")


def _shown(name: bytes) -> str:
    """A stranger's name for a message: as Python writes it, so that no control character gets to a terminal."""
    return ascii(name[:200].decode(errors="replace"))
