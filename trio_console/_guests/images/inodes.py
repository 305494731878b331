"""The inodes of an ext4 file system in a file: read, changed and written again, where nothing else is needed.

It is for file systems that this package has just made itself: with blocks of 4 KiB, and without checksums.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["BLOCK_SIZE", "INODE_SIZE", "ROOT", "Inode", "edited"]

BLOCK_SIZE: Final = 4096
INODE_SIZE: Final = 256

#: The number of the root directory.
ROOT: Final = 2

_SUPERBLOCK: Final = 1024
_MAGIC: Final = 0xEF53
_DESCRIPTOR_SIZE: Final = 32
#: Where a group's descriptor has the block at which its inodes begin.
_TABLE: Final = 8
#: Bits for the kind of a file; the others are its rights.
_KIND: Final = 0o170000


@final
class Inode:
    """An inode in use: its fields, in the table it is in."""

    __slots__ = ("_at", "_table", "number")

    def __init__(self, number: int, table: bytearray, at: int) -> None:
        self.number = number
        self._table = table
        self._at = at

    @property
    def mtime(self) -> int:
        return self._get("I", 0x10)

    @property
    def mode(self) -> int:
        return self._get("H", 0x00)

    @property
    def owner(self) -> tuple[int, int]:
        """Numbers of the user and the group."""
        return (
            self._get("H", 0x02) | self._get("H", 0x78) << 16,
            self._get("H", 0x18) | self._get("H", 0x7A) << 16,
        )

    def set_rights(self, rights: int) -> None:
        """The last twelve bits of the mode: the kind stays."""
        self._set("H", 0x00, self.mode & _KIND | rights & ~_KIND)

    def set_owner(self, uid: int, gid: int) -> None:
        self._set("H", 0x02, uid & 0xFFFF)
        self._set("H", 0x78, uid >> 16)
        self._set("H", 0x18, gid & 0xFFFF)
        self._set("H", 0x7A, gid >> 16)

    def set_times(self, seconds: int) -> None:
        """Of the last access and both changes. (The parts of a second, and the time of birth, become 0.)"""
        for at in (0x08, 0x0C, 0x10):
            self._set("I", at, seconds)
        for at in (0x84, 0x88, 0x8C, 0x90, 0x94):
            self._set("I", at, 0)

    def _get(self, form: str, at: int) -> int:
        (value,) = struct.unpack_from("<" + form, self._table, self._at + at)
        return int(value)

    def _set(self, form: str, at: int, value: int) -> None:
        struct.pack_into("<" + form, self._table, self._at + at, value)


def edited(file: BinaryIO) -> Iterator[Inode]:
    """Each inode that is in use, in order of their numbers. What was changed in them is written as they go by."""
    file.seek(_SUPERBLOCK)
    head = file.read(1024)
    inodes, blocks = struct.unpack_from("<II", head)
    (in_group,) = struct.unpack_from("<I", head, 40)
    made = struct.unpack_from("<H", head, 56) + struct.unpack_from("<H", head, 88)
    if made != (_MAGIC, INODE_SIZE) or not blocks:
        raise OSError(errno.EIO, "mke2fs has made another file system than it was asked for")
    file.seek(BLOCK_SIZE)
    groups = -(-inodes // in_group)
    descriptors = file.read(groups * _DESCRIPTOR_SIZE)
    for group in range(groups):
        (block,) = struct.unpack_from("<I", descriptors, group * _DESCRIPTOR_SIZE + _TABLE)
        file.seek(block * BLOCK_SIZE)
        table = bytearray(file.read(in_group * INODE_SIZE))
        before = bytes(table)
        for index in range(in_group):
            inode = Inode(group * in_group + index + 1, table, index * INODE_SIZE)
            if inode.mode:
                yield inode
        if table != before:
            file.seek(block * BLOCK_SIZE)
            file.write(table)
