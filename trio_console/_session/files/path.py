"""Paths of the guest: `trio.Path`, carried out in the guest. The parts that need no guest are in ``pure_path``."""

from __future__ import annotations

import errno
import math
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Literal, final, overload

import trio

from trio_console import _wire as wire
from trio_console._errors import UnsupportedByPeer
from trio_console._session.files.glob import matches, parse
from trio_console._session.files.names import checked_name
from trio_console._session.files.open import open_guest_file, read_guest_bytes, read_guest_text
from trio_console._session.files.operations import drop_handle
from trio_console._session.files.pure_path import PureGuestPath

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import OpenBinaryMode, OpenTextMode

    from trio_console._session.files.file import GuestFile
    from trio_console._session.files.pure_path import Segment

__all__ = ["GuestPath"]

#: Errors that mean "no such file" for `GuestPath.exists` and similar methods: the same as in pathlib.
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP})

#: The most symbolic links that are followed in one path; more are an error. The same number as in Linux.
_MAX_LINKS: Final = 40


#: Since Python 3.13 pathlib resolves a loop of links to itself, or raises ELOOP if it is strict.
_NEW_LOOPS: Final = sys.version_info >= (3, 13)


def path_text(path: GuestPath) -> str:
    """The path for a request.

    Raises:
        ValueError: it has a null character, or a surrogate that stands for no byte.
    """
    return checked_name(str(path), "path")


@final
class GuestPath(PureGuestPath):
    """A path in the guest, used like `trio.Path`. `Guest.path` makes them.

    Methods that need no guest are those of `pathlib.PurePosixPath`; methods that ask the guest are ``async``.
    Paths of one guest can be compared and hashed; a path of another guest, or of this machine, is never equal.
    ``str(path)`` is the text, in which a byte that is not UTF-8 is a surrogate, as in `os.fsdecode`;
    ``bytes(path)`` are the bytes; there is no ``os.fspath``. Relative paths are relative to the agent's working
    directory, which is mostly ``/``. All operations run as the agent's user, which is mostly root.

    Every coroutine may raise `OSError`, as the subclass for the guest's errno with ``.filename`` (and
    ``.filename2`` for operations on two paths), `GuestLostError`, `ProtocolError`, or `UnsupportedByPeer` if the
    agent is too old for file operations, or for this one, or takes only names in UTF-8 and this is not one. If a
    coroutine is cancelled, its operation may have been done or not; nothing stays open in the guest.
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
        return await read_guest_bytes(self._fs, path_text(self))

    async def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Read the whole file as text, by default UTF-8; every kind of line end becomes a newline."""
        return await read_guest_text(self._fs, path_text(self), encoding, errors)

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
        """The file's information.

        (An agent that is not of this package tells only the mode, the owner, the size, and the times in whole
        seconds; all other fields are then 0.)
        """
        return await self._fs.stat(path_text(self), follow=follow_symlinks)

    async def lstat(self) -> os.stat_result:
        """Like `stat`, but for a symbolic link itself."""
        return await self.stat(follow_symlinks=False)

    async def _mode(self, *, follow: bool = True) -> int:
        """The mode, or 0 if there is no file, or can be none of such a name."""
        try:
            return (await self.stat(follow_symlinks=follow)).st_mode
        except ValueError:
            return 0
        except OSError as exc:
            if exc.errno in _ABSENT:
                return 0
            raise

    async def exists(self) -> bool:
        """Whether the file exists; symbolic links are followed."""
        try:
            await self.stat()
        except ValueError:
            return False
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

    async def is_block_device(self) -> bool:
        """Whether it is a block device, or a link to one."""
        return stat.S_ISBLK(await self._mode())

    async def is_char_device(self) -> bool:
        """Whether it is a character device, such as a terminal, or a link to one."""
        return stat.S_ISCHR(await self._mode())

    async def is_fifo(self) -> bool:
        """Whether it is a FIFO (a named pipe), or a link to one."""
        return stat.S_ISFIFO(await self._mode())

    async def is_socket(self) -> bool:
        """Whether it is a Unix socket, or a link to one."""
        return stat.S_ISSOCK(await self._mode())

    async def is_mount(self) -> bool:
        """Whether another file system is mounted here, or it is the root."""
        self._need_identities()
        try:
            here = await self.lstat()
            above = await self._fs.stat(f"{path_text(self)}/..")
        except (OSError, ValueError):
            return False
        if stat.S_ISLNK(here.st_mode):
            return False
        return here.st_dev != above.st_dev or here.st_ino == above.st_ino

    async def samefile(self, other_path: Segment) -> bool:
        """Whether both paths are of the same file, perhaps by links."""
        self._need_identities()
        here, there = await self.stat(), await self._make(self._segment(other_path)).stat()
        return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)

    def _need_identities(self) -> None:
        if not self._fs.knows_files():
            raise UnsupportedByPeer("the guest's agent does not tell which paths are of the same file")

    async def owner(self) -> str:
        """The name of the user who owns it; `KeyError` if the guest has none for the number."""
        number = (await self.stat()).st_uid
        return await self._account("user", number, f"getpwuid(): uid not found: {number}")

    async def group(self) -> str:
        """The name of its group; `KeyError` if the guest has none for the number."""
        number = (await self.stat()).st_gid
        return await self._account("group", number, f"getgrgid(): gid not found: {number}")

    async def _account(self, kind: Literal["user", "group"], number: int, unknown: str) -> str:
        try:
            return (await self._fs.ask(wire.OpAccount(kind, str(number)), wire.ResultPath)).value
        except ProcessLookupError:
            raise KeyError(unknown) from None

    async def iterdir(self) -> Iterator[GuestPath]:
        """The paths in this directory, in no order: ``for path in await directory.iterdir()``.

        (From an agent that knows only names in UTF-8, another name comes with replacement characters, and cannot
        be opened.)
        """
        entries = await self._fs.list_entries(path_text(self))
        return iter([self / name for name, _ in entries])

    async def glob(self, pattern: str) -> Iterator[GuestPath]:
        """The paths below this directory that match a pattern, as in pathlib, in no order.

        Raises:
            ValueError: the pattern is not valid.
            NotImplementedError: the pattern is absolute.
        """
        return await self._matching(parse(pattern, anywhere=False))

    async def rglob(self, pattern: str) -> Iterator[GuestPath]:
        """`glob` with ``**/`` in front of the pattern."""
        return await self._matching(parse(pattern, anywhere=True))

    async def _matching(self, parts: list[str]) -> Iterator[GuestPath]:
        await self._fs.connection.check_in()
        return iter(await matches(self, parts))

    # Places

    async def cwd(self) -> GuestPath:
        """The directory to which relative paths are relative: the agent's."""
        return self._make((await self._fs.ask(wire.OpRealPath("."), wire.ResultPath, ".")).value)

    async def home(self) -> GuestPath:
        """The home directory as the agent's environment has it (``HOME``), or else that of the agent's user."""
        return self._make(await self._home_of(""))

    async def expanduser(self) -> GuestPath:
        """The path with a first ``~`` or ``~user`` replaced by the user's home directory in the guest.

        Raises:
            RuntimeError: the guest does not know the user.
        """
        parts = self.parts
        if self.is_absolute() or not parts or not parts[0].startswith("~"):
            await self._fs.connection.check_in()
            return self
        return self._make(await self._home_of(parts[0][1:])).joinpath(*parts[1:])

    async def _home_of(self, user: str) -> str:
        try:
            return (await self._fs.ask(wire.OpAccount("home", user), wire.ResultPath)).value
        except ProcessLookupError:
            raise RuntimeError("Could not determine home directory.") from None

    async def absolute(self) -> GuestPath:
        """The path from the root; links and ``..`` stay as they are."""
        if self.is_absolute():
            await self._fs.connection.check_in()
            return self
        return (await self.cwd()) / self

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
            RuntimeError: the links form a loop. (Since Python 3.13, as in pathlib, `OSError` if strict, and no
                error otherwise.)
        """
        path = path_text(self)
        try:
            # The agent's result may still end in a link whose target does not exist.
            real = (await self._fs.ask(wire.OpRealPath(path), wire.ResultPath, path)).value
            await self._fs.stat(real)
        except OSError as exc:
            if exc.errno == errno.ELOOP and not _NEW_LOOPS:
                raise RuntimeError(f"Symlink loop from {path!r}") from None
        else:
            return self._make(real)
        start = ""
        if not self.is_absolute():
            start = (await self._fs.ask(wire.OpRealPath("."), wire.ResultPath, path)).value.rstrip("/")
        return self._make(await self._follow(start, path, strict=strict) or "/")

    async def _follow(self, real: str, path: str, *, strict: bool) -> str:
        """Resolve ``path`` from the directory ``real`` on, link by link.

        A missing file counts as not a link, and a loop ends at the link that leads to itself; or, if ``strict``,
        they are the files of an error, as in pathlib.
        """
        #: The names that are left, from the end. After a link's target come `None` and the link.
        rest: list[str | None] = [*path.split("/")[::-1]]
        found: dict[str, str | None] = {}  # what links lead to; `None` while that is being found out
        while rest:
            name = rest.pop()
            if name is None:
                found[str(rest.pop())] = real
            elif name == "..":
                real = real.rpartition("/")[0]
            elif name not in ("", "."):
                here = f"{real}/{name}"
                target = None if here in found else await self._target(here, strict=strict)
                if here in found:
                    known = found[here]
                    real = self._end_of_loop(here, strict=strict) if known is None else known
                elif target is None:
                    real = here
                else:
                    self._check_links(len(found))
                    found[here] = None
                    rest += [here, None, *target.split("/")[::-1]]
                    real = "" if target.startswith("/") else real
        return real

    async def _target(self, link: str, *, strict: bool) -> str | None:
        """The target of a link; `None` if it is none."""
        try:
            return (await self._fs.ask(wire.OpReadLink(link), wire.ResultPath, link)).value
        except OSError as exc:
            if strict and exc.errno != errno.EINVAL:  # (that is a file that is not a link)
                raise
            return None

    def _end_of_loop(self, link: str, *, strict: bool) -> str:
        if strict:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), link)
        return link

    def _check_links(self, count: int) -> None:
        """Bound the links, which the guest could make up without an end."""
        if count == _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self))

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
        path, points_to = path_text(self), checked_name(str(self._segment(target)), "target")
        await self._fs.do(wire.OpSymlink(points_to, path), points_to, path)

    async def hardlink_to(self, target: Segment) -> None:
        """Make this path a further name of the file ``target``."""
        path, other = path_text(self), path_text(self._make(self._segment(target)))
        await self._fs.do(wire.OpHardLink(other, path), other, path)

    async def lchmod(self, mode: int) -> None:
        """Change the permissions; for a symbolic link `NotImplementedError`, instead of following it."""
        await self.chmod(mode, follow_symlinks=False)

    async def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Change the permissions. Without ``follow_symlinks`` a symbolic link is a `NotImplementedError`."""
        path = path_text(self)
        attrs = wire.SetAttrs(mode=mode & 0o7777)
        try:
            await self._fs.do(wire.OpSetStat(path, follow_symlinks, attrs), path)
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP and not follow_symlinks:
                # As in pathlib on such a system, where even other files cannot be changed so.
                raise NotImplementedError("a symbolic link has no permissions on this system") from exc
            raise

    async def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Create the file; or set its times to now, by the guest's clock.

        (With an agent that cannot do that: to this machine's time in whole seconds, rounded up, so that the file
        gets no older.)

        Args:
            mode: permissions of a new file, less the agent's umask; by default 0o666.
            exist_ok: if false, raise `FileExistsError` if the file exists; by default true.
        """
        path = path_text(self)
        if self._fs.knows_files():
            await self._fs.do(wire.OpTouch(path, mode & 0o7777, exist_ok), path)
            return
        if exist_ok:
            try:
                # (The agent tells whole seconds, rounded down.)
                now = max(math.ceil(time.time()), int((await self.stat()).st_mtime) + 1)
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
        handle, _ = await self._fs.open(path, options)
        drop_handle(self._fs.connection, handle)
        await trio.lowlevel.checkpoint_if_cancelled()
