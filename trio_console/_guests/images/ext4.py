"""A tree to an ext4 file system in a file, by mke2fs, as any user.

mke2fs copies a directory as it is, and only root may give files away. So a tree is staged with a number in place
of each time, and in the image, where the number tells which inode is which, the rights, owner and time are
written over it. No name is read back from the image, and none is given to another program. (The latest versions
of mke2fs copy an archive with its owners; this works with each.)

This module must not know archives.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, final

from trio_console._guests.images.inodes import BLOCK_SIZE, INODE_SIZE, ROOT, edited
from trio_console._guests.images.staging import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import BinaryIO

    from trio_console._guests.images.tree import Node

__all__ = ["Tools", "find_tools", "image_of_directory", "image_of_tree", "lstats"]

#: Where distributions have mke2fs: few have these directories in the path of users other than root.
_SBIN: Final = "/usr/sbin:/sbin:/usr/local/sbin"

#: A disk that is only read needs no journal, no room to grow, and no checksums, which would have to be made again
#: when an inode is written over.
_FEATURES: Final = (
    "none,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,huge_file,large_file,sparse_super"
)

#: Seconds between two looks whether the image is still wanted, while mke2fs works.
_PAUSE: Final = 0.1

#: Bytes of mke2fs's complaints that are in an error.
_TAIL: Final = 2000

_CAPABILITY: Final = "security.capability"


class Tools(NamedTuple):
    """Paths of two programs, which come in one package."""

    mke2fs: str
    debugfs: str


def find_tools() -> Tools:
    """Where mke2fs and debugfs are.

    Raises:
        FileNotFoundError: one of them is not installed.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), _SBIN))
    found = {name: shutil.which(name, path=path) for name in Tools._fields}
    missing = [name for name, each in found.items() if each is None]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is not installed, which is needed to make a disk of a directory or an image: install "
            "the package e2fsprogs"
        )
    return Tools(*map(str, found.values()))


def image_of_tree(
    root: Node, contents: Mapping[int, BinaryIO], disk: Path, tools: Tools, look: Callable[[], None]
) -> None:
    """Make a file system of a tree. While it does, all files of the tree are once more beside it.

    Args:
        contents: the layers, by their numbers, in which the contents of files are.
        disk: the file, which is made.
        look: called often; what it raises comes out.

    Raises:
        OSError: there is no room, or mke2fs has failed.
    """
    with tempfile.TemporaryDirectory(prefix="tree.", dir=disk.parent) as place:
        nodes = stage(root, Path(place), contents, look)
        size = _Size()
        for node in (root, *nodes):
            size.add(node.content.size if node.content else len(node.target), node.children)
        _run_mke2fs(Path(place), disk, size, tools, look)
    found: dict[int, Node] = {}
    with open(disk, "r+b") as file:
        for inode in edited(file):
            if inode.number == ROOT or 0 < inode.mtime <= len(nodes):
                node = root if inode.number == ROOT else nodes[inode.mtime - 1]
                found[inode.number] = node
                inode.set_rights(node.mode)
                inode.set_owner(node.uid, node.gid)
                inode.set_times(node.mtime)
    if len(found) != len(nodes) + 1:
        raise OSError(f"mke2fs has copied {len(found) - 1} of the {len(nodes)} files of an image")
    _set_capabilities({number: node.capability for number, node in found.items() if node.capability}, disk, tools)


def image_of_directory(directory: Path, disk: Path, tools: Tools, look: Callable[[], None]) -> None:
    """Make a file system of a directory; what belongs to this program's user and group is root's in it.

    Raises:
        OSError: something in it cannot be read, there is no room, or mke2fs has failed.
    """
    size = _Size()
    for _path, found, names in lstats(directory):
        look()
        size.add(found.st_size, names)
    _run_mke2fs(directory, disk, size, tools, look)
    top = directory.stat()
    users, groups = {os.geteuid(): 0}, {os.getegid(): 0}
    with open(disk, "r+b") as file:
        for inode in edited(file):
            uid, gid = inode.owner
            if inode.number == ROOT:  # which not every version of mke2fs copies
                uid, gid = top.st_uid, top.st_gid
                inode.set_rights(stat.S_IMODE(top.st_mode))
                inode.set_times(min(max(int(top.st_mtime), 0), 2**31 - 1))
            inode.set_owner(users.get(uid, uid), groups.get(gid, gid))


def lstats(directory: Path) -> Iterable[tuple[bytes, os.stat_result, Sequence[bytes]]]:
    """Each thing in a directory, itself first: its path, its attributes, and the names of what is in it."""
    waiting = [os.fsencode(directory)]
    found = os.stat(waiting[0])
    while waiting:
        path = waiting.pop()
        if path != os.fsencode(directory):
            found = os.lstat(path)
        names = sorted(os.listdir(path)) if stat.S_ISDIR(found.st_mode) else []
        yield path, found, names
        waiting += [os.path.join(path, name) for name in names]


@final
class _Size:
    """How many blocks and inodes a file system needs, at most. Those that stay free take no place in its file."""

    def __init__(self) -> None:
        self.inodes = 64  # those that ext4 has for itself, and the directory for what was lost
        self._blocks = 4096

    def add(self, size: int, names: Iterable[bytes]) -> None:
        """Count one file: its bytes, and the names in it if it is a directory."""
        self.inodes += 1
        # An index splits blocks of names when they are full, so that they are half full at least.
        in_names = 2 * sum(12 + len(name) for name in names)
        # One more for a map of its pieces, or for its attributes, and some for such a map's own pieces.
        self._blocks += -(-size // BLOCK_SIZE) + -(-in_names // BLOCK_SIZE) + 1 + size // BLOCK_SIZE // 256

    @property
    def blocks(self) -> int:
        inodes = self.inodes * INODE_SIZE // BLOCK_SIZE
        return (self._blocks + inodes) * 33 // 32  # maps of what is free


def _run_mke2fs(directory: Path, disk: Path, size: _Size, tools: Tools, look: Callable[[], None]) -> None:
    command = [tools.mke2fs, "-q", "-F", "-O", _FEATURES, "-b", str(BLOCK_SIZE), "-m", "0"]
    command += ["-I", str(INODE_SIZE), "-N", str(size.inodes), "-E", "root_owner=0:0"]
    command += ["-d", os.path.abspath(directory), os.path.abspath(disk), str(size.blocks)]
    _run(command, disk.parent, f"make a disk of {directory}", look)


def _set_capabilities(capabilities: Mapping[int, bytes], disk: Path, tools: Tools) -> None:
    """Of files by their inodes, as no user but root may before."""
    if not capabilities:
        return
    with tempfile.TemporaryDirectory(prefix="attributes.", dir=disk.parent) as place:
        script = []
        for number, value in capabilities.items():
            Path(place, str(number)).write_bytes(value)
            script.append(f"ea_set -f {number} <{number}> {_CAPABILITY}\n")
        Path(place, "script").write_text("".join(script))
        said = _run(
            [tools.debugfs, "-w", "-f", "script", os.path.abspath(disk)], Path(place), "set capabilities", None
        )
        # It ends with status 0 also when it has failed. It repeats each command; what it says of one begins with
        # a name.
        if any(line.startswith("ea_set:") for line in said.splitlines()):
            raise OSError(f"debugfs could not set the capabilities of files: {said[-_TAIL:]}")


def _run(command: Sequence[str], directory: Path, purpose: str, look: Callable[[], None] | None) -> str:
    """Run a program to its end, and return what it has said; it is killed if ``look`` raises."""
    # Neither this user's settings nor the words of another language.
    environment = {"LC_ALL": "C", "MKE2FS_CONFIG": os.devnull, "PATH": _SBIN}
    with tempfile.TemporaryFile(dir=directory) as output:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while process.poll() is None:
                if look is not None:
                    look()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_PAUSE)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
    if process.returncode:
        raise OSError(f"{command[0]} could not {purpose} (status {process.returncode}): {said[-_TAIL:]}")
    return said
