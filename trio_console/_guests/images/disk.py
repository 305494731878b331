"""The door of this room: a path of this machine to a disk image of it, which is made once."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

from trio_console._guests.images.blobs import ArchiveSource, DirectorySource, layer_copy
from trio_console._guests.images.bounds import BOUNDS, BadImageError
from trio_console._guests.images.ext4 import find_tools, image_of_directory, image_of_tree, lstats
from trio_console._guests.images.layer import entries_of
from trio_console._guests.images.manifest import find_image
from trio_console._guests.images.tree import Tree
from trio_console._trio.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import BinaryIO

    from trio_console._guests.images.blobs import Source
    from trio_console._guests.images.bounds import Bounds
    from trio_console._guests.images.manifest import Image

__all__ = ["KIND", "Kept", "disk_of"]

#: What entries of the cache are called that were made here.
KIND: Final = "disks"

#: Part of each entry's name; another one when the same image would become another disk.
_FORMAT: Final = "1"

_DISK: Final = "disk"

_COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")


class Kept(Protocol):
    """The cache: the directory of an entry, which `make` fills if it is not there.

    `make` gets an empty directory. Another program sees it when `make` has returned, and never otherwise.
    """

    def __call__(self, kind: str, key: str, make: Callable[[Path], Awaitable[None]], /) -> Awaitable[Path]: ...


async def disk_of(source: Path, kept: Kept, *, bounds: Bounds = BOUNDS) -> Path:
    """A disk image (ext4, to be read only) of a root directory; it is made first if the cache does not have it.

    Nothing is fetched, and nobody has to be root. An image is known again by the digests of its layers, a
    directory by the names, attributes and times of what is in it. While it is made, the layers, the files and the
    disk are beside one another: about three times as many bytes as the image has.

    An image's files keep their owners, rights, hard links, times (whole seconds) and file capabilities; other
    extended attributes are left out, and devices in ``/dev``, where a machine has its own. A directory's files
    keep their extended attributes and devices too; what belongs to this program's user and group belongs to root.
    There is a directory ``lost+found`` in addition.

    If cancelled, what was begun is removed.

    Args:
        source: a directory with the files, an OCI image layout (a directory, or an archive), or an archive of
            `docker save`. An archive must not be compressed as a whole; its layers may be, with gzip or zstd.
        kept: the cache.
        bounds: what an image may have.

    Raises:
        BadImageError: it is no image, not one for this machine, damaged, or larger than the bounds.
        FileNotFoundError: it is not there; or mke2fs is not installed, or zstd, which the image needs.
        OSError: it cannot be read, or there is no room.
    """
    with ExitStack() as stack:
        found = await in_thread("to look at an image", lambda: _look_at(source, stack, bounds))

        async def make(place: Path) -> None:
            await in_thread("to make a disk", lambda: found.make(place))

        place = await kept(KIND, found.key, make)
    return place / _DISK


class _Found(Protocol):
    @property
    def key(self) -> str: ...

    def make(self, place: Path) -> None: ...


def _look_at(path: Path, stack: ExitStack, bounds: Bounds) -> _Found:
    if path.is_dir():
        source: Source = DirectorySource(path)
        if not (source.has("oci-layout") and source.has("index.json")):
            return _Directory(path, bounds)
    else:
        # (A named pipe would be waited for.)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        file: BinaryIO = stack.enter_context(os.fdopen(fd, "rb"))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadImageError(f"{path} is neither a directory nor a file")
        if os.pread(file.fileno(), 8, 0).startswith(_COMPRESSED):
            raise BadImageError(f"{path} is compressed as a whole: decompress it first")
        source = ArchiveSource(file, os.fspath(path), bounds)
    return _Layers(source, find_image(source, bounds), bounds)


@final
class _Layers:
    def __init__(self, source: Source, image: Image, bounds: Bounds) -> None:
        self._source = source
        self._image = image
        self._bounds = bounds
        self.key = f"{image.key}-{_FORMAT}"

    def make(self, place: Path) -> None:
        tools = find_tools()
        look = trio.from_thread.check_cancelled
        left = self._bounds.total_bytes
        tree = Tree(self._bounds)
        contents: dict[int, BinaryIO] = {}
        with ExitStack() as stack:
            for number, layer in enumerate(self._image.layers):
                file = layer_copy(self._source, *layer, place, left, look)
                contents[number] = stack.enter_context(file)
                left -= os.fstat(file.fileno()).st_size
                tree.apply(entries_of(file, number, self._bounds, look))
            _check_size(tree, self._bounds)
            image_of_tree(tree.root, contents, place / _DISK, tools, look)
        _seal(place / _DISK)


def _check_size(tree: Tree, bounds: Bounds) -> None:
    nodes = {id(node): node.content.size for _path, node in tree.walk() if node.content is not None}
    if sum(nodes.values()) > bounds.total_bytes:
        raise BadImageError(f"the files of the image have more than {bounds.total_bytes} bytes")


@final
class _Directory:
    def __init__(self, path: Path, bounds: Bounds) -> None:
        self._path = path.resolve()
        self._bounds = bounds
        self.key = f"{self._state()}-{_FORMAT}"

    def make(self, place: Path) -> None:
        if place.resolve().is_relative_to(self._path):
            raise BadImageError(f"{self._path} cannot become a disk: the disk would be in it, at {place}")
        image_of_directory(self._path, place / _DISK, find_tools(), trio.from_thread.check_cancelled)
        if f"{self._state()}-{_FORMAT}" != self.key:
            raise BadImageError(f"{self._path} was changed while a disk was made of it: try again")
        _seal(place / _DISK)

    def _state(self) -> str:
        """A name for what is in the directory now. (Who changes a file cannot set the time of that change.)"""
        hasher = hashlib.sha256(repr((os.geteuid(), os.getegid())).encode())
        size = 0
        for number, (path, found, _names) in enumerate(lstats(self._path)):
            trio.from_thread.check_cancelled()
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
            if number >= self._bounds.entries or size > self._bounds.total_bytes:
                raise BadImageError(
                    f"{self._path} has more than {self._bounds.entries} entries, or "
                    f"{self._bounds.total_bytes} bytes"
                )
            hasher.update(
                repr((path, found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_rdev, found.st_size))
                .encode()
            )  # fmt: skip
            hasher.update(repr((found.st_mtime_ns, found.st_ctime_ns)).encode())
        return hasher.hexdigest()


def _seal(disk: Path) -> None:
    """Nothing is to write to it; and it is on the disk before its name is, should the machine go down."""
    with open(disk, "rb") as file:
        os.fchmod(file.fileno(), 0o400)
        os.fsync(file.fileno())
