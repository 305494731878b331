"""The attributes of files that the kernel has in memory, for answers without a thread.

`Cached.look` runs in trio's thread, so it must never wait: neither for a disk, nor for a network share whose
server is gone. Three things see to that:

* The path is resolved from the kernel's caches alone, or not at all (``RESOLVE_CACHED`` of openat2). The file is
  not opened by that (``O_PATH``): it may be a device or a FIFO.
* Attributes are read only of files on file systems that keep them in memory with the file. Others, such as FUSE,
  ask a server. Which file system it is, is told by the mount that the path has led to.
* One step is not covered by ``RESOLVE_CACHED``: a file system may ask its server whether a path that ends at its
  mount point is still valid. NFS and 9p do. So if any file system is mounted that is not known to answer at once,
  no path may lead from the root's mount to another one (``RESOLVE_NO_XDEV``); and if the root is such a file
  system, nothing is looked at.

The list of mounts is read in a thread, and again when it has changed. Whatever cannot be answered here is done in
a thread, which also finds the right error.

This module must not know messages, sessions or trio.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys
from collections import deque
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Cached", "Kernel", "Mounts", "read_mounts"]

_MOUNTINFO: Final = "/proc/self/mountinfo"

#: Bytes of the longest list of mounts that is read. It is read again after each change, and a machine that has so
#: many mounts changes them often.
_MOST_MOUNTS: Final = 128 * 1024

#: File systems that have the attributes of each file in memory as long as they have the file.
_IN_MEMORY: Final = frozenset(
    b"btrfs devtmpfs erofs ext2 ext3 ext4 f2fs iso9660 ramfs rootfs squashfs tmpfs xfs".split()
)

#: File systems that do not wait when a path leads to them, nor when they are asked for no attributes at all.
#: (Those with a server ask it for attributes, and to resolve a path, which ``RESOLVE_CACHED`` forbids.) FUSE does
#: not wait either. But every user may mount one, and detach it at the moment when the descriptor in `Cached.look`
#: is the last that is open there: its end would then be waited for.
_PROMPT: Final = _IN_MEMORY | frozenset(
    b"autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts efivarfs exfat fusectl hugetlbfs mqueue "
    b"nsfs proc pstore rpc_pipefs securityfs selinuxfs sysfs tracefs vfat virtiofs".split()
)

_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_CACHED: Final = 0x20

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_MNT_ID: Final = 0x1000
_SIZE_OF_STATX: Final = 256

#: The numbers of the system calls, by machine: openat2 and statx.
_NUMBERS: Final = {"x86_64": (437, 332), "aarch64": (437, 291)}

#: Errors of a kernel or a sandbox that does not know a call or its flags. They will not change.
_UNKNOWN_CALL: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL})


def _numbers() -> tuple[int, int]:
    machine = os.uname().machine
    if machine not in _NUMBERS or sys.platform != "linux" or struct.calcsize("P") != 8:
        raise LookupError(machine)
    return _NUMBERS[machine]


@cache
def _functions() -> tuple[Any, Any]:
    """The C library's way to make any system call, with the arguments of each of the two."""
    library = ctypes.PyDLL(None, use_errno=True)
    long, pointer = ctypes.c_long, ctypes.c_char_p
    openat2, statx = library["syscall"], library["syscall"]
    openat2.argtypes = (long, long, pointer, pointer, long)
    statx.argtypes = (long, long, pointer, long, long, pointer)
    openat2.restype = statx.restype = long
    return openat2, statx


@final
class Kernel:
    """The two system calls that Python does not have. Both raise `OSError`.

    They keep the interpreter lock: they do not wait, and to get the lock back may take longer than they do.

    Raises:
        LookupError: their numbers on this machine are not known.
    """

    __slots__ = ("_buffer", "_openat2", "_openat2_number", "_statx", "_statx_number")

    def __init__(self) -> None:
        self._openat2_number, self._statx_number = _numbers()
        self._openat2, self._statx = _functions()
        self._buffer = ctypes.create_string_buffer(_SIZE_OF_STATX)

    def open_cached(self, path: bytes, flags: int, resolve: int) -> int:
        """A descriptor of a path, which has no NUL in it, if that is found in the kernel's caches."""
        how = struct.pack("=QQQ", flags, 0, resolve)
        fd = self._openat2(self._openat2_number, _AT_FDCWD, path, how, len(how))
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"openat2: {os.strerror(code)}")
        return int(fd)

    def mount_of(self, fd: int) -> int:
        """The number of the mount that a descriptor was opened through; -1 if it is not told."""
        flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
        if self._statx(self._statx_number, fd, b"", flags, 0, self._buffer) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"statx: {os.strerror(code)}")
        mask, number = struct.unpack_from("=I140xQ", self._buffer)
        return int(number) if mask & _STATX_MNT_ID else -1


class Mounts(NamedTuple):
    """What is to be known of a list of mounts.

    Attributes:
        in_memory: the numbers of mounts whose file systems have attributes in memory.
        resolve: how a path may be resolved.
    """

    in_memory: frozenset[int]
    resolve: int


#: Nothing is in memory, and no path is looked at.
_NOTHING: Final = Mounts(frozenset(), _RESOLVE_CACHED | _RESOLVE_NO_XDEV)


def read_mounts(lines: Iterable[bytes]) -> Mounts:
    """The mounts of a ``mountinfo``."""
    in_memory: set[int] = set()
    roots: set[bytes] = set()  # the file systems that are mounted at the root, one over the other
    resolve = _RESOLVE_CACHED
    for line in lines:
        # number parent major:minor root point options optional... - type source options
        about, _, source = line.partition(b" - ")
        fields, kind = about.split(b" "), source.split(b" ", 1)[0]
        if len(fields) < 6 or not fields[0].isdigit() or not kind:
            return _NOTHING
        if kind in _IN_MEMORY:
            in_memory.add(int(fields[0]))
        if kind not in _PROMPT:
            resolve |= _RESOLVE_NO_XDEV
        if fields[4] == b"/":
            roots.add(kind)
    # In a directory that a chroot has made the root, the list may not have the mount that this belongs to.
    if not roots or (resolve & _RESOLVE_NO_XDEV and not roots <= _IN_MEMORY):
        return _NOTHING
    return Mounts(frozenset(in_memory), resolve)


@final
class Cached:
    """See the module. `look` and `close` are called in trio's thread, `refresh` in any.

    Args:
        mountinfo: the file with the list of mounts.
    """

    __slots__ = ("_changes", "_fd", "_kernel", "_mountinfo", "_mounts", "_removed", "_watch")

    def __init__(self, mountinfo: str = _MOUNTINFO) -> None:
        self._kernel: Kernel | None = None
        self._mountinfo: Final = mountinfo
        self._fd = -1
        self._watch = select.poll()
        #: How often the list of mounts has changed; and what was read of it, after how many changes. `look` alone
        #: counts the changes. A thread that reads the list takes that count *before* it opens the file. So if the
        #: list changes while it is read, or `look` learns only then that it has changed, the count is another one
        #: by the next `look`, and what was read is not used. The pair is replaced at once, so no thread sees half
        #: of it; and if two threads read at the same time, either pair is right for its count.
        self._changes = 0
        self._mounts: tuple[int, Mounts] = (-1, _NOTHING)
        #: The descriptor of a file that was removed while it was looked at. There is at most one, because nothing
        #: is looked at until a thread has taken it out, to close it.
        self._removed: deque[int] = deque()
        # The file is opened at once, and not when it is needed, so that the number of descriptors does not change.
        with suppress(LookupError, OSError, AttributeError):  # without them, all is done in threads
            self._fd = os.open(mountinfo, os.O_RDONLY | os.O_CLOEXEC)
            self._watch.register(self._fd, select.POLLPRI)
            self._kernel = Kernel()

    def look(self, path: bytes, *, follow: bool) -> os.stat_result | None:
        """The attributes of a file, as `os.stat` has them; `None` if a thread has to find them, or the error."""
        if self._kernel is None or not path.startswith(b"/") or b"\0" in path:
            return None
        # (A mount that is made after this look is a new one: its server has just answered.)
        if self._watch.poll(0):
            self._changes += 1
        changes, mounts = self._mounts
        if changes != self._changes or not mounts.in_memory or self._removed:
            return None
        flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        try:
            fd = self._kernel.open_cached(path, flags, mounts.resolve)
        except OSError as exc:
            self._give_up_after(exc)
            return None
        try:
            if self._kernel.mount_of(fd) not in mounts.in_memory:
                return None
            found = os.fstat(fd)
            if found.st_nlink:
                return found
            # The last close of a removed file gives its blocks back, which may take long.
            self._removed.append(fd)
            fd = -1
        except OSError as exc:
            self._give_up_after(exc)
        finally:
            if fd != -1:
                os.close(fd)
        return None

    def _give_up_after(self, exc: OSError) -> None:
        """Ask no more if the call is unknown here."""
        if exc.errno in _UNKNOWN_CALL:
            self._kernel = None

    def refresh(self) -> None:
        """Read the list of mounts if it has changed, and close what `look` has left. Blocks."""
        self._close_removed()
        changes = self._changes
        if self._kernel is None or self._mounts[0] == changes:
            return
        with suppress(OSError), open(self._mountinfo, "rb", buffering=0) as file:
            parts: list[bytes] = []
            size = 0
            while size <= _MOST_MOUNTS and (part := file.read(_MOST_MOUNTS)):
                parts.append(part)
                size += len(part)
            lines = b"".join(parts).removesuffix(b"\n").split(b"\n")  # (there may be other line ends in a name)
            self._mounts = (changes, read_mounts(lines) if size <= _MOST_MOUNTS else _NOTHING)

    def _close_removed(self) -> None:
        with suppress(IndexError):  # another thread may have taken it
            os.close(self._removed.popleft())

    def close(self) -> None:
        """Answer no more. A second call does nothing."""
        self._kernel = None
        self._close_removed()
        if self._fd != -1:
            fd, self._fd = self._fd, -1
            os.close(fd)
