"""Paths of the guest: `trio.Path`, carried out in the guest. The parts that need no guest are in ``pure_path``."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final, final, overload

import trio

from trio_console import _wire as wire
from trio_console._session.files.open import open_guest_file
from trio_console._session.files.operations import drop_handle
from trio_console._session.files.pure_path import PureGuestPath

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import OpenBinaryMode, OpenTextMode

    from trio_console._session.files.file import GuestFile
    from trio_console._session.files.pure_path import Segment

__all__ = ["GuestPath", "path_text"]

#: Errors that mean "no such file" for `GuestPath.exists` and similar methods: the same as in pathlib.
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP})

#: The most symbolic links that are followed in one path; more are an error. The same number as in Linux.
_MAX_LINKS: Final = 40


def path_text(path: str | bytes | os.PathLike[str] | os.PathLike[bytes] | GuestPath) -> str:
    """The path as text for the wire, which carries only UTF-8.

    Raises:
        TypeError: ``path`` is not a path.
        ValueError: ``path`` has a null character, or is not UTF-8.
    """
    text = str(path) if isinstance(path, GuestPath) else os.fsdecode(path)
    if "\0" in text:
        raise ValueError("embedded null byte in path")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"path is not valid UTF-8, which is all the protocol carries: {text!r}") from None
    return text


@final
class GuestPath(PureGuestPath):
    """A path in the guest, used like `trio.Path`. `Guest.path` makes them.

    Methods that need no guest are those of `pathlib.PurePosixPath`; methods that ask the guest are ``async``.
    Paths of one guest can be compared and hashed; a path of another guest, or of this machine, is never equal.
    ``str(path)`` is the text; there is no ``os.fspath``. Relative paths are relative to the agent's working
    directory, which is mostly ``/``. All operations run as the agent's user, which is mostly root.

    Every coroutine may raise `OSError`, as the subclass for the guest's errno with ``.filename`` (and
    ``.filename2`` for operations on two paths), `GuestLostError`, `ProtocolError`, or `UnsupportedByPeer` if the
    agent is too old for file operations. If a coroutine is cancelled, its operation may have been done or not;
    nothing stays open in the guest.
    """

    __slots__ = ()

    # Contents

    @overload
    async def open(
        self,
        mode: OpenTextMode = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> GuestFile[str]: ...

    @overload
    async def open(
        self,
        mode: OpenBinaryMode,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
    ) -> GuestFile[bytes]: ...

    @overload
    async def open(
        self,
        mode: str,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> GuestFile[Any]: ...

    async def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> GuestFile[Any]:
        """Open the file. If cancelled, no file stays open, but one may have been created or truncated.

        Args:
            mode, buffering, encoding, errors, newline: as in `Guest.open_file`.
        """
        return await open_guest_file(self._fs, path_text(self), mode, buffering, encoding, errors, newline)

    async def read_bytes(self) -> bytes:
        """Read the whole file."""
        async with await self.open("rb") as file:
            return await file.read()

    async def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Read the whole file as text, by default UTF-8; every kind of line end becomes a newline."""
        async with await self.open("r", encoding=encoding, errors=errors) as file:
            return await file.read()

    async def write_bytes(self, data: bytes | bytearray | memoryview) -> int:
        """Replace the file's contents by ``data``; returns their size. If cancelled, any part may be written."""
        memoryview(data)  # raises TypeError before the old contents are gone
        async with await self.open("wb") as file:
            return await file.write(data)  # type: ignore[arg-type]

    async def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        """Replace the file's contents by text; returns the number of characters. If cancelled, as `write_bytes`.

        Args:
            data: the text.
            encoding: by default UTF-8.
            errors, newline: as in `Guest.open_file`.
        """
        if not isinstance(data, str):
            raise TypeError(f"data must be str, not {type(data).__name__}")
        async with await self.open("w", encoding=encoding, errors=errors, newline=newline) as file:
            return await file.write(data)

    # Information

    async def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The mode, the owner, the size, and the times in whole seconds; all other fields are 0."""
        return await self._fs.stat(path_text(self), follow=follow_symlinks)

    async def lstat(self) -> os.stat_result:
        """Like `stat`, but for a symbolic link itself."""
        return await self.stat(follow_symlinks=False)

    async def _mode(self, *, follow: bool = True) -> int:
        """The mode, or 0 if there is no file."""
        try:
            return (await self.stat(follow_symlinks=follow)).st_mode
        except OSError as exc:
            if exc.errno in _ABSENT:
                return 0
            raise

    async def exists(self) -> bool:
        """Whether the file exists; symbolic links are followed."""
        try:
            await self.stat()
        except OSError as exc:
            if exc.errno in _ABSENT:
                return False
            raise
        return True

    async def is_file(self) -> bool:
        """Whether it is a regular file, or a link to one."""
        return stat.S_ISREG(await self._mode())

    async def is_dir(self) -> bool:
        """Whether it is a directory, or a link to one."""
        return stat.S_ISDIR(await self._mode())

    async def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(await self._mode(follow=False))

    async def iterdir(self) -> Iterator[GuestPath]:
        """The paths in this directory, in no order: ``for path in await directory.iterdir()``.

        A name that is not UTF-8 has replacement characters, because the protocol carries only UTF-8. Such a path
        cannot be opened.
        """
        names = await self._fs.list_names(path_text(self))
        return iter([self / name for name in names])

    async def readlink(self) -> GuestPath:
        """The path to which the symbolic link points."""
        path = path_text(self)
        return self._make((await self._fs.ask(wire.OpReadLink(path), wire.ResultPath, path)).value)

    async def resolve(self, strict: bool = False) -> GuestPath:
        """The absolute path without symbolic links.

        Args:
            strict: raise `FileNotFoundError` if there is no such file; otherwise, which is the default, resolve
                the part of the path that exists, and keep the rest.

        Raises:
            OSError: also if the links form a loop.
        """
        path = path_text(self)
        try:
            # The agent's result may still end in a link whose target does not exist.
            real = (await self._fs.ask(wire.OpRealPath(path), wire.ResultPath, path)).value
            await self._fs.stat(real)
        except OSError as exc:
            if strict or exc.errno == errno.ELOOP:
                raise
        else:
            return self._make(real)
        start = ""
        if not self.is_absolute():
            start = (await self._fs.ask(wire.OpRealPath("."), wire.ResultPath, path)).value.rstrip("/")
        return self._make(await self._follow(start, path) or "/")

    async def _follow(self, real: str, path: str) -> str:
        """Resolve ``path`` from the directory ``real`` on, link by link; a missing file counts as not a link."""
        rest = path.split("/")[::-1]
        links = 0
        while rest:
            name = rest.pop()
            if name in ("", "."):
                continue
            if name == "..":
                real = real.rpartition("/")[0]
                continue
            here = f"{real}/{name}"
            try:
                target = (await self._fs.ask(wire.OpReadLink(here), wire.ResultPath, here)).value
            except OSError:
                real = here
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self))
            if target.startswith("/"):
                real = ""
            rest += target.split("/")[::-1]
        return real

    # Changes

    async def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory.

        The protocol has one operation for this. It makes parents, and accepts a directory that exists. So the
        other checks are made before it: if two callers make the same directory at the same moment, both may
        succeed.

        Args:
            mode: permissions of the directory; another value than the default 0o777 is set exactly, whatever the
                agent's umask is.
            parents: make missing parents, too; by default not.
            exist_ok: do not raise if the directory exists; by default raise.
        """
        path = path_text(self)
        try:
            await self._fs.stat(path, follow=False)
        except FileNotFoundError:
            pass
        else:
            if exist_ok and await self.is_dir():
                return
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if not parents:
            await self._check_parent(path)
        await self._fs.do(wire.OpMkdir(path, None if mode == 0o777 else mode & 0o7777), path)

    async def _check_parent(self, path: str) -> None:
        parent = await self.parent._mode()
        if not stat.S_ISDIR(parent):
            number = errno.ENOTDIR if parent else errno.ENOENT
            raise OSError(number, os.strerror(number), path)

    async def rmdir(self) -> None:
        """Remove this directory, which must be empty."""
        path = path_text(self)
        await self._fs.do(wire.OpRemoveDir(path, False), path)

    async def unlink(self, missing_ok: bool = False) -> None:
        """Remove this file or link."""
        path = path_text(self)
        try:
            await self._fs.do(wire.OpRemove(path), path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    async def rename(self, target: Segment) -> GuestPath:
        """Move this file to ``target``, and replace a file that is there; returns the new path."""
        path, new = path_text(self), path_text(self._make(self._segment(target)))
        await self._fs.do(wire.OpRename(path, new), path, new)
        return self._make(new)

    async def replace(self, target: Segment) -> GuestPath:
        """The same as `rename`."""
        return await self.rename(target)

    async def symlink_to(self, target: Segment, target_is_directory: bool = False) -> None:
        """Make this path a symbolic link to ``target``. (The second argument is for other systems.)"""
        path, points_to = path_text(self), path_text(str(self._segment(target)))
        await self._fs.do(wire.OpSymlink(points_to, path), points_to, path)

    async def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Change the permissions."""
        path = path_text(self)
        attrs = wire.SetAttrs(mode=mode & 0o7777)
        await self._fs.do(wire.OpSetStat(path, follow_symlinks, attrs), path)

    async def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Create the file; or set its times to the time of this machine's clock, in whole seconds.

        Args:
            mode: permissions of a new file, less the agent's umask; by default 0o666.
            exist_ok: if false, raise `FileExistsError` if the file exists; by default true.
        """
        path = path_text(self)
        if exist_ok:
            now = int(time.time())
            try:
                await self._fs.do(wire.OpSetStat(path, True, wire.SetAttrs(atime=now, mtime=now)), path)
            except OSError:
                pass  # the attempt to create it will raise the right error
            else:
                return
        options = wire.OpenOptions(
            read=False,
            write=True,
            append=False,
            create=True,
            truncate=False,
            create_new=not exist_ok,
            mode=None if mode == 0o666 else mode & 0o7777,
        )
        drop_handle(self._fs.connection, await self._fs.open(path, options))
        await trio.lowlevel.checkpoint_if_cancelled()
