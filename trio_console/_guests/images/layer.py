"""A layer's archive to its entries.

The standard library's `tarfile` parses it, and extracts nothing: its filters see to it that one archive writes
into one directory, but know neither whiteouts nor layers on one another, and would need a directory in which a
link of one layer is already waiting for the next one. So headers alone are taken from it, and checked here, and
the bytes of files are found by their place in the archive.

What it would let pass is looked at here: headers that take much memory, ones that lead back to an earlier place,
and a damaged header in the middle, at which it would end as if the archive were over.
"""

from __future__ import annotations

import io
import math
import tarfile
from typing import TYPE_CHECKING, Final, final

from trio_console._guests.images.bounds import BadImageError
from trio_console._guests.images.tree import Content, Entry, Kind, Node, Piece, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from trio_console._guests.images.bounds import Bounds

__all__ = ["entries_of", "members_of"]

_BLOCK: Final = tarfile.BLOCKSIZE

_KINDS: Final = {
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARD_LINK,
    tarfile.FIFOTYPE: Kind.FIFO,
    **dict.fromkeys(tarfile.REGULAR_TYPES, Kind.FILE),
}

#: What `tarfile` raises on strangers' bytes.
_DAMAGE: Final = (
    tarfile.TarError,
    ArithmeticError,
    EOFError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

#: The largest id of a user, and the largest time that every ext4 can hold.
_MOST_ID: Final = 2**32 - 2
_LAST_TIME: Final = 2**31 - 1

#: File capabilities: the one extended attribute without which a program of the image does not work.
_CAPABILITY: Final = "SCHILY.xattr.security.capability"
_LONGEST_CAPABILITY: Final = 64


def entries_of(file: BinaryIO, layer: int, bounds: Bounds, look: Callable[[], None]) -> list[Entry]:
    """The entries of a layer, in their order.

    Args:
        file: the archive, not compressed; it can seek.
        layer: its number, for the content of its files.
        look: called now and then; what it raises comes out.

    Raises:
        BadImageError: it is damaged, or has what an image may not have.
    """
    entries: list[Entry] = []
    length = file.seek(0, io.SEEK_END)
    total = 0
    for member in members_of(file, bounds):
        if len(entries) >= bounds.entries:
            raise BadImageError(f"a layer has more than {bounds.entries} entries")
        if len(entries) % 256 == 0:
            look()
        path = parts_of(_octets(member.name))
        if (member.ischr() or member.isblk()) and path[:1] == (b"dev",):
            continue  # the machine has its own
        node = _node(member, path, layer, length)
        total += node.content.size if node.content else 0
        if total > bounds.total_bytes:
            raise BadImageError(f"the files of a layer have more than {bounds.total_bytes} bytes")
        entries.append(Entry(path, node))
    return entries


def members_of(file: BinaryIO, bounds: Bounds) -> Iterator[tarfile.TarInfo]:
    """The headers of an archive, up to its end; the place of their bytes is in ``offset_data``, or ``sparse``.

    Raises:
        BadImageError: it is no archive, or is damaged.
    """
    meter = _Meter(file, bounds.header_bytes)
    file.seek(0)
    try:
        with tarfile.TarFile(fileobj=meter, mode="r", encoding="utf-8", errors="surrogateescape") as archive:
            before = -1
            # (The constructor has read the first header already.)
            while (member := archive.next()) is not None:
                if archive.offset <= before or member.size < 0:
                    raise BadImageError("an archive has a header that leads back to an earlier one")
                before = archive.offset
                archive.members = []  # type: ignore[attr-defined]  # which would hold every header
                yield member
                meter.left = bounds.header_bytes
            _check_end(file, archive.offset)
    except BadImageError:
        raise
    except _DAMAGE as exc:
        raise BadImageError(f"an archive is damaged, or is none: {str(exc)!a}") from exc


def _check_end(file: BinaryIO, offset: int) -> None:
    """Refuse what `tarfile` takes for an end: a header that is damaged, or that is not there in full."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if block and block != bytes(_BLOCK):
        raise BadImageError(f"an archive is damaged: what is at its byte {offset} is no header")


@final
class _Meter(io.RawIOBase):
    """A file from which only so many bytes are read for one header.

    `tarfile` reads as many bytes of a name, a link or attributes as the header says, and holds all of them.
    """

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self.left = self._most = most

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= self.left:
            raise BadImageError(f"an entry of an archive has a header of more than {self._most} bytes")
        self.left -= size
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _node(member: tarfile.TarInfo, path: tuple[bytes, ...], layer: int, length: int) -> Node:
    kind = _KINDS.get(member.type)
    if kind is None:
        raise BadImageError(
            f"{member.name[:200]!a} is a device, or of an unknown kind (type {member.type!r}): an image for a "
            "machine has devices in /dev only, where the machine has its own"
        )
    for what, number in (("user", member.uid), ("group", member.gid)):
        if not 0 <= number <= _MOST_ID:
            raise BadImageError(f"{member.name[:200]!a} belongs to the {what} {number}, which cannot be")
    return Node(
        kind,
        mode=0o777 if kind is Kind.SYMLINK else member.mode & 0o7777,  # as every symbolic link's
        uid=member.uid,
        gid=member.gid,
        mtime=_time(member.mtime),
        target=_octets(member.linkname) if kind in (Kind.SYMLINK, Kind.HARD_LINK) else b"",
        content=_content(member, layer, length) if kind is Kind.FILE else None,
        capability=_capability(member) if kind is Kind.FILE else b"",
    )


def _content(member: tarfile.TarInfo, layer: int, length: int) -> Content:
    # (Its map of pieces, which is in no type stub, is ``(where, size)`` for each.)
    sparse: list[tuple[int, int]] | None = getattr(member, "sparse", None)
    pieces, source, end = [], member.offset_data, 0
    for at, size in [(0, member.size)] if sparse is None else sparse:
        if at < end or size < 0 or at + size > member.size or source + size > length:
            raise BadImageError(f"{member.name[:200]!a} has pieces that are not in it")
        if size:
            pieces.append(Piece(at, source, size))
        source, end = source + size, at + size
    return Content(layer, member.size, tuple(pieces))


def _capability(member: tarfile.TarInfo) -> bytes:
    value = _octets(member.pax_headers.get(_CAPABILITY, ""))
    if len(value) > _LONGEST_CAPABILITY:
        raise BadImageError(f"{member.name[:200]!a} has capabilities of {len(value)} bytes")
    return value


def _time(value: float) -> int:
    """Whole seconds, of those that every ext4 can hold the one that is nearest."""
    return int(min(max(value, 0), _LAST_TIME)) if math.isfinite(value) else 0


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
