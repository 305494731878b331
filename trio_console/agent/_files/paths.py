"""File operations on paths, as blocking calls.

Paths are names as `_wire.octets` has them. Names in results are `Shown`: for a client that has not asked for
octets they have replacement characters for bytes that are not UTF-8. Every failure is an `FsError` with the text
for the client: the operation, and then the system's message with its errno, on which clients rely.

These functions are called in threads beside trio. This module must not know handles, sessions or trio.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final, assert_never, final

import msgspec

from trio_console import _wire as wire
from trio_console._wire import name_bytes
from trio_console.agent._files.trees import Stop, copy_file, make_directories, remove_tree
from trio_console.agent._process.spawn import os_error_text
from trio_console.agent._process.users import look_up

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Directory",
    "FsError",
    "NoReaderError",
    "PathOp",
    "Shown",
    "check_paths",
    "failing",
    "open_file",
    "perform",
    "set_attributes",
    "stat_answer",
    "too_large",
    "unpacked_op",
    "verb",
]

if TYPE_CHECKING:
    _ReadingOp = wire.OpRealPath | wire.OpStat | wire.OpList | wire.OpReadLink
    _ChangingOp = wire.OpSetStat | wire.OpSymlink | wire.OpMkdir | wire.OpRemove | wire.OpRemoveDir
    _OwnOp = wire.OpTouch | wire.OpHardLink | wire.OpAccount
    PathOp = _ReadingOp | _ChangingOp | wire.OpCopy | wire.OpRename | _OwnOp

#: Bytes of the longest path that the system takes, including the NUL at its end.
_PATH_MAX: Final = 4096

_PERMISSIONS: Final = 0o7777
_BILLION: Final = 1_000_000_000

#: Flags of every open: it does not wait for the other end of a pipe, and no terminal becomes the agent's own.
_ALWAYS: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

#: The least and the most bytes of an entry in an answer, without its path.
_LEAST_ENTRY: Final = 62
_MOST_ENTRY: Final = 114

#: About the most bytes of one page of a directory, so that its frame does not hold up other frames for long.
_PAGE: Final = 256 * 1024

#: The names of operations in errors, where they are not the class's name in lower case.
_VERBS: Final = {
    wire.OpList: "readdir",
    wire.OpRemoveDir: "remove_dir",
    wire.OpOpenFile: "open",
    wire.OpCloseHandle: "close",
}


class FsError(Exception):
    """A file operation failed; the text is the answer to the client."""


class NoReaderError(FsError):
    """No process has a FIFO open for reading yet, which was to be opened for writing."""


class Shown(enum.Enum):
    """How names are written in the answer to a request."""

    TEXT = enum.auto()
    OCTETS = enum.auto()  # the client has asked for them, so that every name comes back as it is

    def __call__(self, raw: bytes) -> str:
        """The name for the wire."""
        return raw.decode("latin-1") if self is Shown.OCTETS else raw.decode(errors="replace")


def verb(op: wire.FsOp) -> str:
    """The name of an operation in errors."""
    cls = type(op)
    return _VERBS.get(cls, cls.__name__.removeprefix("Op").lower())


@final
class failing:  # noqa: N801  (used as a function)
    """Turn errors of the system in a block into an `FsError` that names the operation.

    (Not a generator: an error that is thrown into one leads to the frame that throws it, and that to the error.)
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: type[BaseException] | None, exc: BaseException | None, _traceback: object) -> None:
        if isinstance(exc, OSError):
            raise FsError(f"{self._what}: {os_error_text(exc.errno or errno.EIO)}") from exc
        if isinstance(exc, (ValueError, OverflowError)):  # a NUL in a path, or a number that no system call takes
            raise FsError(f"{self._what}: {os_error_text(errno.EINVAL)}") from exc


def check_paths(op: wire.FsOp) -> None:
    """Refuse a path that is longer than the system takes, before it is stored.

    Raises:
        FsError: a path is too long.
    """
    for name in op.__struct_fields__:
        value = getattr(op, name)
        if isinstance(value, str) and len(name_bytes(value)) >= _PATH_MAX:
            raise FsError(f"{verb(op)}: {os_error_text(errno.ENAMETOOLONG)}")


def unpacked_op(op: wire.FsOp) -> wire.FsOp:
    """The operation of a request whose names are octets.

    Raises:
        FsError: a name has a character that is no octet.
    """
    with failing(verb(op)):
        values = ((name, getattr(op, name)) for name in op.__struct_fields__)
        names = {name: wire.unpacked(value) for name, value in values if isinstance(value, str)}
    return msgspec.structs.replace(op, **names)


def perform(op: PathOp, stop: Stop, shown: Shown) -> wire.FsResponse:
    """Do the operation ``op``; returns the answer. A long operation checks ``stop`` from time to time.

    Raises:
        FsError: the operation failed, or was done only in part.
    """
    with failing(verb(op)):
        match op:
            case wire.OpStat():
                path = name_bytes(op.path)
                return stat_answer(path, os.stat(path, follow_symlinks=op.follow_symlink), shown)
            case wire.OpRealPath():
                data: wire.FsResult | None = wire.ResultPath(shown(_real_path(name_bytes(op.path))))
            case wire.OpReadLink():
                data = wire.ResultPath(shown(os.readlink(name_bytes(op.path))))
            case wire.OpList():
                data = wire.ResultList(_list(op.path, stop, shown))
            case wire.OpAccount():
                data = wire.ResultPath(shown(os.fsencode(look_up(op.kind, op.key))))
            case _:
                data = None
                _change(op, stop)
    return wire.FsResponse(ok=True, data=data)


if TYPE_CHECKING:
    _ResultlessOp = _ChangingOp | wire.OpCopy | wire.OpRename | wire.OpTouch | wire.OpHardLink


def _change(op: _ResultlessOp, stop: Stop) -> None:
    match op:
        case wire.OpSetStat():
            set_attributes(name_bytes(op.path), op.attrs, follow=op.follow_symlink)
        case wire.OpSymlink():
            os.symlink(name_bytes(op.target), name_bytes(op.link_path))
        case wire.OpHardLink():
            os.link(name_bytes(op.target), name_bytes(op.link_path))
        case wire.OpMkdir():
            _mkdir(op)
        case wire.OpTouch():
            _touch(op)
        case wire.OpRemove():
            os.unlink(name_bytes(op.path))
        case wire.OpRemoveDir():
            (remove_tree if op.recursive else _rmdir)(name_bytes(op.path), stop)
        case wire.OpCopy():
            copy_file(name_bytes(op.src), name_bytes(op.dst), stop)
        case wire.OpRename():
            os.rename(name_bytes(op.src), name_bytes(op.dst))
        case _:
            assert_never(op)


# --- one path -------------------------------------------------------------------------------------


def _real_path(path: bytes) -> bytes:
    """The canonical path. The last component may be missing: then it is the path that the file would have."""
    if not path:
        raise FileNotFoundError(errno.ENOENT, "empty path")
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        parent, name = os.path.split(path.rstrip(b"/"))
        if name in (b"", b".", b".."):
            raise
    return os.path.join(os.path.realpath(parent or b".", strict=True), name)


def stat_answer(path: bytes, found: os.stat_result, shown: Shown) -> wire.FsResponse:
    """The answer with all that is known of a file."""
    more = wire.StatMore(
        dev=found.st_dev,
        ino=found.st_ino,
        nlink=found.st_nlink,
        rdev=found.st_rdev,
        blksize=found.st_blksize,
        blocks=found.st_blocks,
        atime_ns=found.st_atime_ns,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
    )
    return wire.FsResponse(ok=True, data=wire.ResultStat(_entry_info(shown(path), found)), more=more)


def _entry_info(path: str, found: os.stat_result | None) -> wire.EntryInfo:
    """The information on a file. ``found`` is ``None`` if it could not be read."""
    if found is None:
        return wire.EntryInfo(path=path, kind="other", size=0, mode=0, uid=0, gid=0)
    modified = found.st_mtime_ns // _BILLION
    return wire.EntryInfo(
        path=path,
        kind=_KINDS.get(stat.S_IFMT(found.st_mode), "other"),
        size=found.st_size,
        mode=found.st_mode,
        modified=modified,
        uid=found.st_uid,
        gid=found.st_gid,
        atime=found.st_atime_ns // _BILLION,
        mtime=modified,
    )


_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink"}


def set_attributes(target: bytes | int, attrs: wire.SetAttrs, *, follow: bool = True) -> None:
    """Change size, mode, owner and times of a path or an open file, in this order, up to the first failure."""
    if attrs.size is not None:
        _truncate(target, attrs.size, follow=follow)
    if attrs.mode is not None:
        _chmod(target, attrs.mode & _PERMISSIONS, follow=follow)
    if attrs.uid is not None or attrs.gid is not None:
        uid = -1 if attrs.uid is None else attrs.uid
        os.chown(target, uid, -1 if attrs.gid is None else attrs.gid, follow_symlinks=follow)
    if attrs.atime is not None or attrs.mtime is not None:
        old = os.stat(target, follow_symlinks=follow)
        atime = old.st_atime_ns // _BILLION if attrs.atime is None else attrs.atime
        mtime = old.st_mtime_ns // _BILLION if attrs.mtime is None else attrs.mtime
        os.utime(target, ns=(atime * _BILLION, mtime * _BILLION), follow_symlinks=follow)


def _truncate(target: bytes | int, size: int, *, follow: bool) -> None:
    if follow:
        os.truncate(target, size)
        return
    assert isinstance(target, bytes), "only a path can lead over a link: a descriptor is of the file itself"
    fd = os.open(target, os.O_WRONLY | os.O_NOFOLLOW | _ALWAYS)
    try:
        os.truncate(fd, size)
    finally:
        os.close(fd)


def _chmod(target: bytes | int, mode: int, *, follow: bool) -> None:
    if follow:
        os.chmod(target, mode)
        return
    assert isinstance(target, bytes), "only a path can lead over a link: a descriptor is of the file itself"
    # No system call changes a mode without following links. This descriptor is of the file itself, so a link that
    # is put into the file's place in the meantime is not followed either.
    fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.EOPNOTSUPP, "a link has no mode of its own")
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _mkdir(op: wire.OpMkdir) -> None:
    path = name_bytes(op.path)
    make_directories(path)
    if op.mode is not None:
        with failing("chmod"):
            os.chmod(path, op.mode & _PERMISSIONS)


def _touch(op: wire.OpTouch) -> None:
    path = name_bytes(op.path)
    if op.exist_ok:
        # The system takes the time, with all its digits, from its own clock: so no file ever gets older.
        with suppress(OSError):  # the attempt to create it will raise the right error
            os.utime(path)
            return
    flags = os.O_CREAT | os.O_WRONLY | (0 if op.exist_ok else os.O_EXCL)
    os.close(os.open(path, flags | _ALWAYS, op.mode & _PERMISSIONS))


def _rmdir(path: bytes, _stop: Stop) -> None:
    os.rmdir(path)


def open_file(op: wire.OpOpenFile) -> int:
    """Open a file. Calls with the descriptor block only for a disk.

    Raises:
        NoReaderError: it is a FIFO to be written, which no process reads yet.
        FsError: the file could not be opened, or the options ask for neither reading nor writing.
    """
    path = name_bytes(op.path)
    options = op.options
    writes = options.write or options.append
    flags = os.O_RDWR if writes and options.read else os.O_WRONLY if writes else os.O_RDONLY
    flags |= os.O_APPEND if options.append else 0
    flags |= os.O_CREAT if options.create or options.create_new else 0
    flags |= os.O_EXCL if options.create_new else 0
    flags |= os.O_TRUNC if options.truncate else 0
    mode = 0o666 if options.mode is None else options.mode & _PERMISSIONS
    with failing("open"):
        if not (options.read or writes) or (options.truncate and not writes):
            raise OSError(errno.EINVAL, "no access asked for")
        try:
            return os.open(path, flags | _ALWAYS, mode)
        except OSError as exc:
            if exc.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(path).st_mode):
                raise NoReaderError(f"open: {os_error_text(errno.ENXIO)}") from None
            raise


# --- directories ----------------------------------------------------------------------------------


@final
class Directory:
    """An open directory that is read entry by entry. It takes two descriptors.

    All but `close` may raise `OSError`.
    """

    __slots__ = ("_entries", "_fd", "_prefix")

    def __init__(self, path: str) -> None:
        raw = name_bytes(path)
        self._prefix = raw if raw.endswith(b"/") else raw + b"/"
        self._fd = os.open(raw, os.O_RDONLY | os.O_DIRECTORY | _ALWAYS)
        try:
            self._entries = os.scandir(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def entries(self, shown: Shown) -> Iterator[wire.EntryInfo]:
        """The entries that were not read yet."""
        for entry in self._entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                found = None
            yield _entry_info(shown(self._prefix + os.fsencode(entry.name)), found)

    def read_page(self, limit: int, shown: Shown) -> list[wire.EntryInfo]:
        """The next ``limit`` entries, or fewer if their names are long; an empty list if none is left."""
        page: list[wire.EntryInfo] = []
        size = 0
        for entry in self.entries(shown):
            page.append(entry)
            size += _MOST_ENTRY + len(entry.path.encode())
            if len(page) >= limit or size > _PAGE:
                break
        return page

    def close(self) -> None:
        """Close it. A second call does nothing."""
        self._entries.close()
        if self._fd != -1:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _list(path: str, stop: Stop, shown: Shown) -> list[wire.EntryInfo]:
    with failing("readdir: opendir"):
        directory = Directory(path)
    entries: list[wire.EntryInfo] = []
    size = 0
    with closing(directory):
        for entry in directory.entries(shown):
            stop.check()
            entries.append(entry)
            size += _LEAST_ENTRY + len(entry.path.encode())
            if size > wire.MAX_FRAME_LENGTH:
                raise FsError(f"readdir: {too_large(len(entries))}")
    return entries


def too_large(count: int) -> str:
    """The error for a listing that does not fit a frame."""
    return f"the listing of {count} or more entries does not fit a frame; open the directory to read it in parts"
