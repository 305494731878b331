"""Open files and directories: the operations on a handle, which is a number that a client was given.

A handle belongs to the client that opened it, and not to a session. Operations on it take turns, in the order of
their requests. It is closed when the client closes it or leaves, but never while a call uses its descriptor: the
operation that has the turn keeps it open.

The blocking methods are for worker threads. This module must not know sessions.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

from trio_console import _wire as wire
from trio_console.agent._files.paths import (
    Directory,
    FsError,
    entry_info,
    failing,
    open_file,
    set_attributes,
)
from trio_console.agent._process.spawn import os_error_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "HANDLES_PER_CLIENT",
    "LARGEST_OFFSET",
    "SLICE",
    "DirHandle",
    "FileHandle",
    "Handle",
    "HandleTable",
]

HANDLES_PER_CLIENT: Final = 1024

#: `ReadDir` without a limit.
_DEFAULT_PAGE: Final = 128

#: Bytes read at once from the cache, and sent in one frame: control frames overtake at frame boundaries.
SLICE: Final = 64 * 1024

LARGEST_OFFSET: Final = 2**63 - 1

#: Has a read fail instead of wait for a disk; 0 where Python was built against a C library that has no such reads.
_NO_WAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)

#: Pieces one system call takes.
_IOV_MAX: Final = 1024


@final
class Turns:
    """A queue in which an operation takes a place at one moment, and waits later, perhaps in another task.

    Not a lock: tasks start in any order, and a close must not overtake the write that was asked for before it.
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
        self._queue.remove(ticket)
        if had_turn and self._queue:
            self._queue[0].set()
        return had_turn

    @property
    def idle(self) -> bool:
        """Whether the queue is empty."""
        return not self._queue


class Handle:
    """What files and directories have in common.

    Attributes:
        turns: to be had for every use.
        doomed: whether it was removed from the table; the operation with the last turn closes it.
        number: what the client calls it.
        slot: the client it belongs to.
    """

    __slots__ = ("doomed", "number", "path", "slot", "turns")

    #: What it is not, for the error.
    is_a: str

    def __init__(self, path: str) -> None:
        self.path = path
        self.turns = Turns()
        self.doomed = False
        self.number = 0
        self.slot = 0

    @property
    def closed(self) -> bool:
        """Whether there is nothing left to close."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it; idempotent. Blocking.

        Raises:
            OSError: something that was written before is lost.
        """
        raise NotImplementedError

    def disown(self) -> None:
        """A thread is inside a call with it and will not come back: never close it."""
        raise NotImplementedError


@final
class FileHandle(Handle):
    """An open file. Raises `FsError`."""

    __slots__ = ("_cached", "_fd", "readable", "writable")

    is_a = "file"

    def __init__(self, op: wire.OpOpenFile) -> None:
        super().__init__(op.path)
        self._fd = open_file(op)
        self._cached = _NO_WAIT != 0
        self.readable = op.options.read
        self.writable = op.options.write or op.options.append

    def read_cached(self, buffer: memoryview, offset: int) -> memoryview | None:
        """Read what is in memory, without blocking: the one method for the event loop's own thread.

        Returns:
            The part of ``buffer`` that was filled, empty at the end of the file; or ``None`` if that takes a
            thread, and also if it failed: the thread will say why.
        """
        if not self._cached:
            return None
        try:
            return buffer[: os.preadv(self._fd, [buffer], offset, _NO_WAIT)]
        except BlockingIOError:
            return None
        except (OSError, OverflowError, NotImplementedError):
            self._cached = False  # not on this file system or with this C library, or an error
            return None

    def read_into(self, buffer: memoryview, offset: int) -> tuple[int, bool]:
        """Fill the buffer from ``offset`` on; how many bytes it was, and whether the file ended there."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except (OSError, OverflowError) as exc:
                if done:
                    break  # the next read will fail, too; what there is comes first
                raise _position_error("read", exc) from exc
            if not count:
                return done, True
            done += count
        return done, False

    def write(self, chunks: Sequence[bytes], offset: int) -> None:
        """Write all of it from ``offset`` on, or at the end if the file was opened for that."""
        for start in range(0, len(chunks), _IOV_MAX):
            views = [memoryview(chunk) for chunk in chunks[start : start + _IOV_MAX]]
            offset += self._write_some(views, offset)

    def _write_some(self, views: list[memoryview], offset: int) -> int:
        done = 0
        while views:
            try:
                count = os.pwritev(self._fd, views, offset + done)
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

    def stat(self) -> wire.FsResult:
        with failing("fstat"):
            return wire.ResultStat(entry_info(self.path, os.fstat(self._fd)))

    def set_attributes(self, attrs: wire.SetAttrs) -> None:
        with failing("fsetstat"):
            set_attributes(self._fd, attrs)

    @property
    def closed(self) -> bool:
        return self._fd == -1

    def close(self) -> None:
        if self._fd != -1:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def disown(self) -> None:
        self._fd = -1


def _position_error(what: str, exc: OSError | OverflowError) -> FsError:
    code = (exc.errno or errno.EIO) if isinstance(exc, OSError) else errno.EINVAL
    # What has no positions, such as a pipe, cannot be read from one.
    return FsError(f"{'seek' if code == errno.ESPIPE else what}: {os_error_text(code)}")


@final
class DirHandle(Handle):
    """An open directory, read page by page. Raises `FsError`."""

    __slots__ = ("_directory",)

    is_a = "directory"

    def __init__(self, op: wire.OpOpenDir) -> None:
        super().__init__(op.path)
        with failing("opendir"):
            self._directory: Directory | None = Directory(op.path)

    def read_page(self, limit: int | None) -> wire.FsResult:
        assert self._directory is not None
        with failing("readdir"):
            return wire.ResultList(self._directory.read_page(_DEFAULT_PAGE if limit is None else max(1, limit)))

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
    """All handles by number, and how many each client has.

    Args:
        limit: handles of one client, those included that are being opened.
        has_room: asked with the number of all handles whether there are descriptors for one more.
    """

    __slots__ = ("_counts", "_handles", "_has_room", "_last", "_limit")

    def __init__(self, limit: int, has_room: Callable[[int], bool]) -> None:
        self._handles: dict[int, Handle] = {}
        self._counts: dict[int, int] = {}
        self._last = 0
        self._limit = limit
        self._has_room = has_room

    @property
    def count(self) -> int:
        """All there are, those included that are being opened."""
        return sum(self._counts.values())

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._handles.values())

    def claim(self, slot: int, what: str) -> None:
        """Count one that is about to be opened; `add` or `unclaim` follows.

        Raises:
            FsError: there are too many.
        """
        count = self._counts.get(slot, 0)
        if count >= self._limit or not self._has_room(self.count + 1):
            raise FsError(f"{what}: {os_error_text(errno.EMFILE)}")
        self._counts[slot] = count + 1

    def unclaim(self, slot: int) -> None:
        """It was not opened, or it is closed."""
        self._counts[slot] -= 1
        if not self._counts[slot]:
            del self._counts[slot]

    def add(self, slot: int, handle: Handle) -> int:
        """Give an open handle a number, which is never used again."""
        self._last += 1
        handle.number, handle.slot = self._last, slot
        self._handles[self._last] = handle
        return self._last

    def find(self, number: int, slot: int, cls: type[_H]) -> _H:
        """The handle with a number.

        Raises:
            FsError: there is none, or it is not this client's, or of another kind.
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
        """Take it out of the table. Whoever has the turn, or else the caller, is to have it closed."""
        handle.doomed = True
        del self._handles[handle.number]
        self.unclaim(handle.slot)
