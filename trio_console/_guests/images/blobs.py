"""What an image consists of, by name, in a directory or an archive; and copies of it that are what was promised.

A directory is a stranger's too: no symbolic link in it is followed, and nothing but files is read. What was
checked is the copy that is used after, so that nobody changes it in between.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
import zlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast, final

from trio_console._guests.images.bounds import BadImageError
from trio_console._guests.images.layer import members_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import IO, BinaryIO

    from trio_console._guests.images.bounds import Bounds

__all__ = ["ArchiveSource", "DirectorySource", "Source", "document", "layer_copy"]

#: Bytes that are copied at once.
_COPIED: Final = 1024**2

#: Links in one another in an archive. (`docker save` links a layer that it has twice.)
_MOST_LINKS: Final = 8

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: (A named pipe would be waited for.)
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4"}


class Blob(NamedTuple):
    """Bytes in a file."""

    file: BinaryIO
    offset: int
    size: int


class Source(Protocol):
    """Where the parts of an image are. Names have slashes, and mean nothing outside of it."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        ...

    def blob(self, name: str, into: ExitStack) -> Blob:
        """The bytes of a file, which stay readable until ``into`` is closed.

        Raises:
            BadImageError: there is none.
        """
        ...


@final
class DirectorySource:
    """The files of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def has(self, name: str) -> bool:
        with ExitStack() as stack:
            try:
                self.blob(name, stack)
            except BadImageError:
                return False
            return True

    def blob(self, name: str, into: ExitStack) -> Blob:
        *above, last = _parts(name)
        with ExitStack() as stack:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            try:
                for part in above:
                    fd = os.open(part, _DIRECTORY, dir_fd=fd)
                    stack.callback(os.close, fd)
                file = into.enter_context(open(os.open(last, _FILE, dir_fd=fd), "rb"))
            except (FileNotFoundError, NotADirectoryError, OSError) as exc:
                raise BadImageError(f"{self._directory} has no file {name!a}: {exc.strerror}") from exc
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise BadImageError(f"{name!a} in {self._directory} is no file")
        return Blob(file, 0, found.st_size)


@final
class ArchiveSource:
    """The files of an archive, which is read where it is."""

    def __init__(self, file: BinaryIO, name: str, bounds: Bounds) -> None:
        self._file = file
        self._name = name
        self._places: dict[tuple[str, ...], Blob] = {}
        self._links: dict[tuple[str, ...], tuple[str, ...]] = {}
        for number, member in enumerate(members_of(file, bounds)):
            if number >= bounds.entries:
                raise BadImageError(f"{name} has more than {bounds.entries} entries")
            path = tuple(part for part in member.name.split("/") if part not in ("", "."))
            if path in self._places or path in self._links:
                raise BadImageError(f"{name} has {member.name[:200]!a} twice")
            if member.isreg() and not member.issparse():
                self._places[path] = Blob(file, member.offset_data, member.size)
            elif member.issym():
                self._links[path] = _joined(path[:-1], member.linkname)
            elif member.islnk():
                self._links[path] = _joined((), member.linkname)

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def blob(self, name: str, into: ExitStack) -> Blob:
        found = self._find(name)
        if found is None:
            raise BadImageError(f"{self._name} has no file {name!a}")
        return found

    def _find(self, name: str) -> Blob | None:
        path = _joined((), name)
        for _ in range(_MOST_LINKS):
            if path not in self._links:
                break
            path = self._links[path]
        return self._places.get(path)


def _joined(above: tuple[str, ...], name: str) -> tuple[str, ...]:
    path = list(above)
    for part in name.split("/"):
        if part == "..":
            del path[-1:]
        elif part not in ("", "."):
            path.append(part)
    return tuple(path)


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(name.split("/"))
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise BadImageError(f"{name!a} is no name of a part of an image")
    return parts


def document(source: Source, name: str, digest: str | None, bounds: Bounds) -> bytes:
    """A small file of an image, as a whole.

    Args:
        digest: what it was promised to be; with `None` nothing was promised.

    Raises:
        BadImageError: it is not there, too large, or another one.
    """
    with ExitStack() as stack:
        blob = source.blob(name, stack)
        if blob.size > bounds.document_bytes:
            raise BadImageError(f"{name!a} has {blob.size} bytes, of {bounds.document_bytes} that it may have")
        found = os.pread(blob.file.fileno(), blob.size, blob.offset)
    if digest is not None:
        hasher = hasher_of(digest)
        hasher.update(found)
        _compare(hasher, digest, name)
    return found


def hasher_of(digest: str) -> hashlib._Hash:
    """What makes digests of the same kind.

    Raises:
        BadImageError: it is no digest, or one of another kind.
    """
    if not _DIGEST.fullmatch(digest):
        raise BadImageError(f"{digest[:200]!a} is no digest by SHA-256 or SHA-512")
    return hashlib.new(digest.partition(":")[0])


def _compare(hasher: hashlib._Hash, digest: str, name: str) -> None:
    found = f"{hasher.name}:{hasher.hexdigest()}"
    if found != digest:
        raise BadImageError(f"{name!a} is damaged, or not what the image says: it is {found}, not {digest}")


def layer_copy(
    source: Source,
    name: str,
    digest: str | None,
    diff_id: str,
    directory: Path,
    most: int,
    look: Callable[[], None],
) -> BinaryIO:
    """A layer, not compressed, in a file without a name; whoever closes that removes it.

    Args:
        digest: of the layer as it is in the image, which may be compressed; with `None` only ``diff_id`` is known.
        diff_id: of the layer when it is not compressed.
        directory: on the disk where the file is to be.
        most: bytes that it may have.
        look: called often; what it raises comes out.

    Raises:
        BadImageError: it is not there, damaged, too large, or compressed in an unknown way.
        FileNotFoundError: it is compressed with zstd, and nothing here can decompress that.
    """
    with ExitStack() as stack:
        blob = source.blob(name, stack)
        packed = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        _copy(_Section(blob), packed, digest, name, most, look)
        head = os.pread(packed.fileno(), 8, 0)
        for magic, what in _OTHERS.items():
            if head.startswith(magic):
                raise BadImageError(f"the layer {name!a} is compressed with {what}; gzip and zstd are known")
        plain = stack.enter_context(tempfile.TemporaryFile(dir=directory))
        packed.seek(0)
        try:
            if head.startswith(_GZIP):
                reader: _Readable = stack.enter_context(gzip.GzipFile(fileobj=packed))
            elif head.startswith(_ZSTD):
                reader = _zstd(packed, stack)
            else:
                reader = packed
            _copy(reader, plain, diff_id, name, most, look)
        except (gzip.BadGzipFile, zlib.error, EOFError) as exc:
            raise BadImageError(f"the layer {name!a} is damaged: {exc}") from exc
        return _kept(plain)


def _kept(file: BinaryIO) -> BinaryIO:
    """The same file, which stays when the first object is closed."""
    return open(os.dup(file.fileno()), "rb")


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


@final
class _Section:
    """A blob, read from its start."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._done = 0

    def read(self, size: int = -1, /) -> bytes:
        blob = self._blob
        chunk = os.pread(blob.file.fileno(), min(size, blob.size - self._done), blob.offset + self._done)
        self._done += len(chunk)
        return chunk


def _copy(
    reader: _Readable, file: BinaryIO, digest: str | None, name: str, most: int, look: Callable[[], None]
) -> None:
    hasher = None if digest is None else hasher_of(digest)
    size = 0
    while chunk := reader.read(_COPIED):
        look()
        size += len(chunk)
        if size > most:
            raise BadImageError(f"the image is larger than the bound: its layers have more than {most} bytes left")
        if hasher is not None:
            hasher.update(chunk)
        file.write(chunk)
    file.flush()
    if hasher is not None and digest is not None:
        _compare(hasher, digest, name)


def _zstd(packed: BinaryIO, stack: ExitStack) -> _Readable:
    """What decompresses, and is ended with the stack. (It takes no windows of more than 128 MiB.)"""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
    except ImportError:
        pass
    else:
        reader: _Readable = stack.enter_context(zstd.open(packed))
        return reader
    program = shutil.which("zstd")
    if program is None:
        raise FileNotFoundError(
            "a layer of the image is compressed with zstd: that needs Python 3.14, or the program zstd (install "
            "the package zstd)"
        )
    process = subprocess.Popen(
        [program, "-q", "-d", "-c"], stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return _Output(stack.enter_context(cast("IO[bytes]", process.stdout)), process)


@final
class _Output:
    """What a program writes; an error in place of the end if it has failed."""

    def __init__(self, pipe: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        self._pipe = pipe
        self._process = process

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._pipe.read(size)
        if not chunk and self._process.wait():
            raise EOFError("zstd cannot decompress it")
        return chunk
