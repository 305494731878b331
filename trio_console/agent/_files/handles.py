"""Open files and directories: the operations on a handle, which is a number that a client was given.

A handle belongs to the client that opened it, and not to a session. Operations on it take turns, in the order of
their requests. A handle is closed when its client closes it or leaves, but never while a call uses its descriptor:
the operation that has the turn keeps it open.

The blocking methods are called in threads beside trio. This module must not know sessions.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, final

import trio
from msgspec import UNSET, UnsetType

from trio_console import _wire as wire
from trio_console.agent._files.paths import (
    Directory,
    FsError,
    Shown,
    failing,
    open_file,
    set_attributes,
    stat_answer,
)
from trio_console.agent._process.spawn import os_error_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from trio_console.agent._inflow import Inflow
    from trio_console.agent._process.limits import FdHeadroom

__all__ = [
    "FIFO_POLL",
    "HANDLES_PER_CLIENT",
    "LARGEST_OFFSET",
    "SLICE",
    "Contents",
    "DirHandle",
    "FileHandle",
    "Handle",
    "HandleTable",
    "open_contents",
]

HANDLES_PER_CLIENT: Final = 1024

#: Descriptors of a directory; a file has one.
_FDS_OF_HANDLE: Final = 2

#: Entries that a `ReadDir` without a limit returns at most.
_DEFAULT_PAGE: Final = 128

#: Bytes read at once from the cache, and sent in one frame: control frames overtake at frame boundaries.
SLICE: Final = 64 * 1024

LARGEST_OFFSET: Final = 2**63 - 1

#: The flag with which a read fails instead of waiting for a disk. It is 0 if Python was built against a C library
#: that has no such reads.
_NO_WAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)

#: Seconds between two looks whether the other end of a FIFO was opened: the system does not tell it.
FIFO_POLL: Final = 0.02

#: Pieces that one system call takes.
_IOV_MAX: Final = 1024


@final
class Turns:
    """A queue for the use of a handle. An operation takes its place in it first, and waits for its turn later.

    A lock would not do. The places are taken in the order of the requests; but the tasks of the operations start
    in any order, and with a lock a close could overtake a write that was requested before it.
    """

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: deque[trio.Event] = deque()

    def join(self) -> trio.Event:
        """Take a place in the queue; the turn comes when the event is set. `leave` must follow."""
        ticket = trio.Event()
        self._queue.append(ticket)
        if self._queue[0] is ticket:
            ticket.set()
        return ticket

    def leave(self, ticket: trio.Event) -> bool:
        """Leave the queue from any place; returns whether it was this place's turn."""
        had_turn = self._queue[0] is ticket
        assert had_turn == ticket.is_set(), "the turn is that of the first in the queue, and of no other"
        self._queue.remove(ticket)
        if had_turn and self._queue:
            self._queue[0].set()
        return had_turn

    @property
    def idle(self) -> bool:
        """Whether the queue is empty."""
        return not self._queue


class Handle:
    """The base class of open files and open directories.

    Attributes:
        turns: the queue for its use.
        doomed: whether it was removed from the table; after the last operation in the queue it is closed.
        number: the number by which its client names it.
        slot: the slot of its client.
        opened: what it is, for its client.
        lonely: whether it is a FIFO to be read, which no process may have opened for writing yet.
    """

    __slots__ = ("doomed", "lonely", "number", "opened", "path", "slot", "turns")

    #: Its kind, for the error when an operation is for the other kind.
    is_a: str

    def __init__(self, path: str) -> None:
        self.path = path
        self.opened: wire.Opened | UnsetType = UNSET
        self.lonely = False
        self.turns = Turns()
        self.doomed = False
        self.number = 0
        self.slot = 0

    @property
    def closed(self) -> bool:
        """Whether it was closed or disowned, so that there is nothing left to close."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it. Blocks. A second call does nothing.

        Raises:
            OSError: bytes that were written before are lost.
        """
        raise NotImplementedError

    def disown(self) -> None:
        """Never close it, because a thread is in a call with its descriptor and may not return."""
        raise NotImplementedError

    async def wait_partner(self) -> None:
        """Wait until it is `lonely` no more. If cancelled, nothing changes."""


@final
class FileHandle(Handle):
    """An open file. Its operations raise `FsError`.

    A file without positions (a FIFO, a terminal) has operations of its own, which ignore offsets. Its descriptor
    does not block, so they need no thread.
    """

    __slots__ = ("_cached", "_fd", "_first", "_mode", "positioned", "readable", "writable")

    is_a = "file"

    def __init__(self, op: wire.OpOpenFile) -> None:
        super().__init__(op.path)
        self._fd = open_file(op)
        self._cached = _NO_WAIT != 0
        self._first = b""  # what was read in the look for a writer
        self.readable = op.options.read
        self.writable = op.options.write or op.options.append
        self._mode = os.fstat(self._fd).st_mode
        self.positioned = _has_positions(self._fd)
        self.lonely = stat.S_ISFIFO(self._mode) and not self.writable
        self.opened = wire.Opened(
            mode=self._mode, seekable=self.positioned, terminal=not self.positioned and os.isatty(self._fd)
        )

    # Without positions

    async def wait_partner(self) -> None:
        """See `Handle.wait_partner`."""
        while not self._has_writer():
            with trio.move_on_after(FIFO_POLL):
                await self._wait_ready(trio.lowlevel.wait_readable)

    def _has_writer(self) -> bool:
        """Whether a process has opened the FIFO for writing, and perhaps closed it again."""
        look = select.poll()
        look.register(self._fd, select.POLLIN)
        if look.poll(0):
            return True  # there are bytes, or the last writer has gone
        # With a writer the read fails, because there are no bytes; without one it is at the end of the file.
        data = self.read_now(1)
        if data is None:
            return True
        self._first = bytes(data)  # written between the two calls
        return bool(data)

    def read_now(self, size: int) -> bytes | None:
        """Read up to ``size`` bytes; ``None`` if there are none yet, ``b""`` at the end."""
        if self._first:
            first, self._first = self._first, b""
            return first
        with failing("read"):
            try:
                return os.read(self._fd, size)
            except BlockingIOError:
                return None

    async def wait_readable(self) -> None:
        """Wait until `read_now` may have bytes. The caller has the turn."""
        await self._wait_ready(trio.lowlevel.wait_readable)

    async def _wait_ready(self, wait: Callable[[int], Awaitable[None]]) -> None:
        try:
            await wait(self._fd)
        except OSError as exc:
            if exc.errno != errno.EPERM:
                raise
            await trio.sleep(FIFO_POLL)  # a device whose readiness cannot be waited for

    async def write_first(self, queue: Inflow) -> None:
        """Write the first chunk of a queue. The caller has the turn."""
        with failing("write"):
            await queue.write_first(self._fd)

    # With positions

    def read_cached(self, buffer: memoryview, offset: int) -> memoryview | None:
        """Read bytes that the system has in memory. Does not block: only this method may run in trio's thread.

        Returns:
            The part of ``buffer`` that was filled, which is empty at the end of the file. ``None`` if a thread has
            to read; also after an error, which the thread's read will raise.
        """
        if not self._cached:
            return None
        try:
            return buffer[: os.preadv(self._fd, [buffer], offset, _NO_WAIT)]
        except BlockingIOError:
            return None
        except (OSError, OverflowError, NotImplementedError):
            self._cached = False  # this file system or C library has no such reads, or the read failed
            return None

    def read_into(self, buffer: memoryview, offset: int) -> tuple[int, bool]:
        """Read bytes from ``offset`` on; returns their number, and whether the file ended there."""
        done = 0
        while done < len(buffer):
            try:
                count = _read_at(self._fd, buffer[done:], offset + done)
            except (OSError, OverflowError) as exc:
                if done:
                    break  # these bytes are sent first, and the next read fails with the same error
                raise _position_error("read", exc) from exc
            if not count:
                return done, True
            done += count
        return done, False

    def read_whole(self, most: int) -> bytes | None:
        """All bytes of a regular file; `None` if they are more than ``most``, or cannot be read.

        (Then the file is read as any other: in parts, with the error of the part that cannot be read.)
        """
        if not (self.positioned and stat.S_ISREG(self._mode)):
            return None
        parts: list[bytes] = []
        size = 0
        try:
            if os.fstat(self._fd).st_size > most:
                return None
            # (The size is no more than a hint: the file may grow, and those of /proc say 0.)
            while size <= most and (part := os.pread(self._fd, most + 1 - size, size)):
                parts.append(part)
                size += len(part)
        except OSError:
            return None
        return b"".join(parts) if size <= most else None

    def write(self, chunks: Sequence[bytes], offset: int) -> None:
        """Write all chunks from ``offset`` on, or at the end of a file that was opened to append."""
        for start in range(0, len(chunks), _IOV_MAX):
            views = [memoryview(chunk) for chunk in chunks[start : start + _IOV_MAX]]
            offset += self._write_some(views, offset)

    def _write_some(self, views: list[memoryview], offset: int) -> int:
        done = 0
        while views:
            try:
                count = _write_at(self._fd, views, offset + done)
                if not count:
                    raise OSError(errno.EIO, "nothing was written")
            except (OSError, OverflowError) as exc:
                raise _position_error("write", exc) from exc
            done += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if count:
                views[0] = views[0][count:]
        return done

    def stat(self, shown: Shown) -> wire.FsResponse:
        with failing("fstat"):
            return stat_answer(wire.name_bytes(self.path), os.fstat(self._fd), shown)

    def seek(self, op: wire.OpSeek) -> wire.FsResponse:
        """Find data or a hole. (Reads and writes name their offsets, so the descriptor's own is free to move.)"""
        with failing("seek"):
            position = os.lseek(self._fd, op.offset, os.SEEK_DATA if op.whence == "data" else os.SEEK_HOLE)
        return wire.FsResponse(ok=True, position=position)

    def set_attributes(self, attrs: wire.SetAttrs) -> wire.FsResponse:
        with failing("fsetstat"):
            set_attributes(self._fd, attrs)
        return wire.FsResponse(ok=True)

    @property
    def closed(self) -> bool:
        return self._fd == -1

    def close(self) -> None:
        if self._fd != -1:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def disown(self) -> None:
        self._fd = -1


class Contents(NamedTuple):
    """A small file that was opened, read to its end, and closed.

    Attributes:
        data: all its bytes.
        opened: what it is, for its client.
    """

    data: bytes
    opened: wire.Opened | UnsetType


def open_contents(op: wire.OpOpenFile, most: int) -> Contents | FileHandle:
    """Open a file, and if it is a regular one with at most ``most`` bytes, read and close it at once. Blocks.

    Raises:
        FsError: it cannot be opened, or its close fails.
    """
    file = FileHandle(op)
    try:
        data = file.read_whole(most)
    except BaseException:
        file.close()
        raise
    if data is None:
        return file
    with failing("close"):
        file.close()
    return Contents(data, file.opened)


# A sandbox that forbids calls which it does not know may know only the older of two that do the same.


def _read_at(fd: int, buffer: memoryview, offset: int) -> int:
    try:
        return os.preadv(fd, [buffer], offset)
    except PermissionError:
        data = os.pread(fd, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)


def _write_at(fd: int, views: list[memoryview], offset: int) -> int:
    try:
        return os.pwritev(fd, views, offset)
    except PermissionError:
        return os.pwrite(fd, views[0], offset)


def _has_positions(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return False
    return True


def _position_error(what: str, exc: OSError | OverflowError) -> FsError:
    code = (exc.errno or errno.EIO) if isinstance(exc, OSError) else errno.EINVAL
    # A file without positions, such as a pipe, cannot be read at one: the error is one of a seek.
    return FsError(f"{'seek' if code == errno.ESPIPE else what}: {os_error_text(code)}")


@final
class DirHandle(Handle):
    """An open directory that is read page by page. Its operations raise `FsError`."""

    __slots__ = ("_directory",)

    is_a = "directory"

    def __init__(self, op: wire.OpOpenDir) -> None:
        super().__init__(op.path)
        with failing("opendir"):
            self._directory: Directory | None = Directory(op.path)

    def read_page(self, limit: int | None, shown: Shown) -> wire.FsResponse:
        assert self._directory is not None, "a handle is not used after its close"
        with failing("readdir"):
            page = self._directory.read_page(_DEFAULT_PAGE if limit is None else max(1, limit), shown)
        return wire.FsResponse(ok=True, data=wire.ResultList(page))

    @property
    def closed(self) -> bool:
        return self._directory is None

    def close(self) -> None:
        directory, self._directory = self._directory, None
        if directory is not None:
            directory.close()

    def disown(self) -> None:
        self._directory = None


_H = TypeVar("_H", bound=Handle)


@final
class HandleTable:
    """All handles by their numbers, and how many each client has.

    Args:
        limit: the most handles of one client, including handles that are being opened.
        has_room: returns whether there are descriptors for as many handles as it is given.
        headroom: the descriptors of all clients.
    """

    __slots__ = ("_counts", "_handles", "_has_room", "_headroom", "_last", "_limit")

    def __init__(self, limit: int, has_room: Callable[[int], bool], headroom: FdHeadroom) -> None:
        self._headroom = headroom
        self._handles: dict[int, Handle] = {}
        self._counts: dict[int, int] = {}
        self._last = 0
        self._limit = limit
        self._has_room = has_room

    @property
    def count(self) -> int:
        """The number of all handles, including handles that are being opened."""
        return sum(self._counts.values())

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._handles.values())

    def claim(self, slot: int, what: str) -> None:
        """Count a handle that is about to be opened; `add` or `unclaim` follows.

        Raises:
            FsError: there are too many handles.
        """
        count = self._counts.get(slot, 0)
        has_room = count < self._limit and self._has_room(self.count + 1)
        if not has_room or not self._headroom.claim(slot, _FDS_OF_HANDLE):
            raise FsError(f"{what}: {os_error_text(errno.EMFILE)}")
        self._counts[slot] = count + 1

    def unclaim(self, slot: int) -> None:
        """Count a handle no more: it was not opened, or it is closed."""
        self._counts[slot] -= 1
        self._headroom.release(slot, _FDS_OF_HANDLE)
        if not self._counts[slot]:
            del self._counts[slot]

    def add(self, slot: int, handle: Handle) -> int:
        """Give an open handle a number, which is never used again."""
        self._last += 1
        handle.number, handle.slot = self._last, slot
        self._handles[self._last] = handle
        return self._last

    def find(self, number: int, slot: int, cls: type[_H]) -> _H:
        """The handle with this number.

        Raises:
            FsError: there is no such handle, or it is another client's, or of another kind.
        """
        handle = self._handles.get(number)
        if handle is None:
            raise FsError(f"invalid handle: {number}")
        if handle.slot != slot:
            raise FsError(f"handle {number} is owned by a different relay client")
        if not isinstance(handle, cls):
            raise FsError(f"handle {number} is a {handle.is_a}")
        return handle

    def doom(self, handle: Handle) -> None:
        """Take a handle out of the table. The operation that has the turn, or else the caller, closes it."""
        handle.doomed = True
        del self._handles[handle.number]
        self.unclaim(handle.slot)
