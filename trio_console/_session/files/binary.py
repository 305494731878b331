"""Files of the guest as bytes, buffered like local files in `io.BufferedRandom`.

At most one of the two buffers is in use. The position is the user's: bytes that were read ahead lie after it, and
bytes that are not written yet lie before it.

    read ahead:  file offset _position   = first unread byte of _ahead
    to write:    file offset _position   = end of _behind

In append mode the guest decides where bytes go, so the position after a write is not known here. It is then
`None`, which means the end of the file; the guest is asked when the number is needed.

A file without positions, such as a FIFO, has a position that only counts; the guest ignores it.
"""

from __future__ import annotations

import errno
import io
import logging
import operator
import os
import warnings
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, final

import trio

from trio_console._buffers import flat_view
from trio_console._errors import ProtocolError, UnsupportedByPeer, again
from trio_console._session.files.file import GuestFile, raise_closed, size_of
from trio_console._session.owner import Owner, checks_owner, owned
from trio_console._trio.conflict import Conflict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_console._session.confirmations import Confirmations
    from trio_console._session.files.handle import FileHandle

__all__ = ["BinaryFile"]

_log: Final = logging.getLogger("trio_console.client")

_LARGEST_OFFSET: Final = 2**63 - 1

#: One more than the largest ``whence``.
_LARGE_INT: Final = 2**31

#: What is looked for with these values of ``whence``. (Their numbers are Linux's, whatever system this is.)
_SPARSE: Final[Mapping[int, Literal["data", "hole"]]] = {3: "data", 4: "hole"}


@final
@owned()
class BinaryFile(GuestFile[bytes]):
    """See `GuestFile`.

    Args:
        mode: the mode as `io` writes it.
        buffer_size: bytes of each buffer; with 0 each call reads and writes exactly its own bytes.
        confirmations: how long a cancelled close may take.
        seekable: whether the file has positions.
        terminal: whether it is a terminal.
    """

    def __init__(
        self,
        handle: FileHandle,
        *,
        name: str,
        mode: str,
        readable: bool,
        writable: bool,
        append: bool,
        buffer_size: int,
        confirmations: Confirmations,
        seekable: bool = True,
        terminal: bool = False,
    ) -> None:
        self._owner: Final = Owner()
        self._closed = False
        self._detached = False
        self._handle = handle
        self._name = name
        self._mode = mode
        self._readable = readable
        self._writable = writable
        self._append = append
        #: Whether an unknown part of the buffer is written if its write fails, so that it cannot be written again.
        self._written_once = append or not seekable
        self._limit = min(buffer_size, handle.unit)
        self._confirmations = confirmations
        self._seekable = seekable
        self._terminal = terminal
        self._position: int | None = None if append and seekable else 0
        self._ahead = b""
        self._taken = 0  # bytes of _ahead that were read
        self._behind = bytearray()
        self._failure: OSError | None = None  # the error of appended bytes, which cannot be written again
        self._conflict = Conflict("another task is using this file")

    def __repr__(self) -> str:
        return f"<trio_console.GuestFile name={self._name!r} mode={self._mode!r}>"

    def __del__(self) -> None:
        # As in io, the buffer is written out and the file is closed. (This may run in any thread. The run's own
        # does it, with the handle and the bytes, and without this object. Nothing else uses them any more.)
        if getattr(self, "_closed", True) or self._detached:
            return
        start = 0 if self._append else (self._position or 0) - len(self._behind)
        burial = partial(_bury, self._handle, bytes(self._behind), start, self._confirmations)
        self._owner.call(trio.lowlevel.spawn_system_task, burial)
        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    # State

    @property
    def name(self) -> str:
        return self._name

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def closed(self) -> bool:
        return self._closed

    def readable(self) -> bool:
        self._check()
        return self._readable

    def writable(self) -> bool:
        self._check()
        return self._writable

    def seekable(self) -> bool:
        self._check()
        return self._seekable

    def isatty(self) -> bool:
        self._check()
        return self._terminal

    def _check(self) -> None:
        if self._detached:
            raise ValueError("raw stream has been detached")
        if self._closed:
            raise_closed()

    def check_seekable(self) -> None:
        self._check()
        if not self._seekable:
            raise io.UnsupportedOperation("File or stream is not seekable.")

    def check_readable(self) -> None:
        self._check()
        if not self._readable:
            raise io.UnsupportedOperation("not readable")

    def check_writable(self) -> None:
        self._check()
        if not self._writable:
            raise io.UnsupportedOperation("not writable")

    async def _where(self) -> int:
        if self._position is None:
            self._position = (await self._handle.stat()).st_size
        return self._position

    # Reading

    @property
    def _available(self) -> int:
        return len(self._ahead) - self._taken

    @checks_owner
    async def read(self, size: int | None = -1, /) -> bytes:
        self._owner.check()
        self.check_readable()
        size = -1 if size is None else size_of(size)
        if size < -1 and self._limit:
            raise ValueError("read length must be non-negative or -1")
        with self._conflict:
            await self._flush()
            if 0 <= size <= self._available:
                return self._take(size)
            if not self._seekable:
                return await self._read_along(size)
            if 0 <= size < self._limit:
                await self._fill()
                return self._take(size)
            # More than the buffer holds: the bytes are not buffered.
            start = await self._where()
            have = self._available
            rest = await self._handle.read(start + have, None if size < 0 else size - have)
            data = self._take(have) + rest if have else rest
            self._position = start + len(data)
            return data

    async def _read_along(self, size: int) -> bytes:
        """Read from a file without positions. Each byte comes once, so all are kept until there are enough."""
        if size < 0:
            rest = await self._handle.read(0)
            return self._take(self._available) + rest
        if self._limit == 0:  # unbuffered: one read, which may get fewer
            return self._take(size) if self._available else await self._handle.read(0, size)
        while self._available < size and await self._fill(size - self._available):
            pass
        return self._take(size)

    def _take(self, size: int) -> bytes:
        size = min(size, self._available)
        data = self._ahead[self._taken : self._taken + size]
        self._taken += size
        if size:
            assert self._position is not None, "what was read ahead begins at a known position"
            self._position += size
        return data

    async def _fill(self, size: int = 0) -> bool:
        """Read ahead one more buffer, or ``size`` bytes if that is more; returns whether there were bytes."""
        assert not self._behind, "bytes are read only after those that were written before"
        start = await self._where()
        data = await self._handle.read(start + self._available, max(self._limit, size, 1))
        self._ahead = self._ahead[self._taken :] + data
        self._taken = 0
        return bool(data)

    def _forget_ahead(self) -> None:
        """Read again what lies ahead. (Of a file without positions it cannot be read again.)"""
        if self._seekable:
            self._ahead = b""
            self._taken = 0

    @checks_owner
    async def read1(self, size: int = -1, /) -> bytes:
        self._owner.check()
        self.check_readable()
        size = size_of(size)
        with self._conflict:
            await self._flush()
            if size < 0:
                size = max(self._limit, self._available, 1)
            if size and not self._available:
                await self._fill(size)
            return self._take(size)

    async def readall(self) -> bytes:
        return await self.read()

    async def readinto1(self, buffer: bytearray | memoryview, /) -> int:
        with _writable_view(buffer) as view:
            data = await self.read1(len(view))
            view[: len(data)] = data
            return len(data)

    async def peek(self, size: int = 0, /) -> bytes:
        self.check_readable()
        size_of(size)
        with self._conflict:
            await self._flush()
            if not self._available:
                await self._fill()
            return self._ahead[self._taken :]

    async def readinto(self, buffer: bytearray | memoryview, /) -> int:
        with _writable_view(buffer) as view:
            data = await self.read(len(view))
            view[: len(data)] = data
            return len(data)

    @checks_owner
    async def readline(self, size: int | None = -1, /) -> bytes:
        self._owner.check()
        self.check_readable()
        limit = -1 if size is None else size_of(size)
        with self._conflict:
            await self._flush()
            searched = 0
            while True:
                end = self._ahead.find(b"\n", self._taken + searched)
                found = self._available if end < 0 else end + 1 - self._taken
                if 0 <= limit <= found:
                    return self._take(limit)
                if end >= 0:
                    return self._take(found)
                searched = self._available
                # A line longer than the buffer is read in pieces of doubling size, so that the cost of joining
                # them stays proportional to the line.
                if not await self._fill(self._wanted_of_line(searched, limit)):
                    return self._take(searched)

    def _wanted_of_line(self, have: int, limit: int) -> int:
        if self._limit == 0 and have == 0:
            return io.DEFAULT_BUFFER_SIZE  # unbuffered: bytes after the line are kept all the same
        return have if limit < 0 else min(have, limit)

    # Writing

    @checks_owner
    async def write(self, data: bytes | bytearray | memoryview, /) -> int:
        self._owner.check()
        self.check_writable()
        with self._conflict, flat_view(data) as view:
            size = len(view)
            if len(self._behind) + size > self._limit:
                await self._flush()
            else:
                await trio.lowlevel.checkpoint()
            start = self._position
            # First: if the write is cancelled, or fails, the file may have other bytes all the same.
            self._forget_ahead()
            if size > self._limit:
                await self._handle.write(start or 0, view)
            else:
                self._behind += view
            self._position = None if start is None or (self._append and self._seekable) else start + size
            return size

    async def flush(self) -> None:
        self._check()
        with self._conflict:
            await self._flush()

    async def _flush(self) -> None:
        """Write the buffer out; a checkpoint in any case. It may be repeated after any outcome.

        Once bytes were handed to the handle, the handle waits for their answer (`settle`), also if this was
        cancelled before the answer came. So no byte is ever appended twice.
        """
        await self._handle.settle()
        if not self._behind:
            return
        start = 0 if self._append else (self._position or 0) - len(self._behind)
        data = bytes(self._behind)
        try:
            await self._handle.write(start, memoryview(data))
        except OSError as exc:
            # As in io, the bytes are kept for another try, which may find more room on the disk. But of appended
            # bytes, and without positions, an unknown part may have been written. So these are dropped, and the
            # error is kept.
            if self._written_once:
                self._failure = exc
                self._behind.clear()
            raise
        except BaseException:
            if not self._handle.settled:
                self._behind.clear()
            raise
        self._behind.clear()

    async def truncate(self, size: int | None = None, /) -> int:
        self.check_writable()
        with self._conflict:
            await self._flush()
            if size is None:
                self._check_position()
                size = await self._where()
            size = size_of(size)
            if size < 0:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            self._forget_ahead()  # first, as in `write`
            await self._handle.truncate(size)
            return size

    def _check_position(self) -> None:
        if not self._seekable:
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    # Positions

    async def seek(self, target: int, whence: int = 0, /) -> int:
        if self._limit:
            self.check_seekable()
        self._check()
        self._check_position()
        self._check_whence(whence)
        target = self._offset_of(target)
        with self._conflict:
            await self._flush()
            if whence == os.SEEK_CUR:
                target += await self._where()
            elif whence == os.SEEK_END:
                target += (await self._handle.stat()).st_size
            elif whence in _SPARSE:
                target = await self._found(target, _SPARSE[whence])
            if not 0 <= target <= _LARGEST_OFFSET:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            self._go(target)
            return target

    def _check_whence(self, whence: int) -> None:
        whence = operator.index(whence)
        if not -_LARGE_INT <= whence < _LARGE_INT:
            raise OverflowError("whence is too large")
        if whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, *_SPARSE):
            return
        if self._limit:
            raise ValueError(f"whence value {whence} unsupported")
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    async def _found(self, offset: int, wanted: Literal["data", "hole"]) -> int:
        if offset < 0:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        try:
            return await self._handle.seek(offset, wanted)
        except UnsupportedByPeer as exc:
            raise io.UnsupportedOperation(str(exc)) from None

    def _offset_of(self, target: object) -> int:
        try:
            return size_of(target)
        except OverflowError as exc:
            if self._limit == 0:
                raise
            raise ValueError(str(exc)) from None  # as the buffers of io

    def _go(self, target: int) -> None:
        """Move the position; the bytes read ahead are kept if the new position is among them."""
        if self._available and self._position is not None:
            moved = self._taken + target - self._position
            if 0 <= moved <= len(self._ahead):
                self._taken = moved
            else:
                self._forget_ahead()
        else:
            self._forget_ahead()
        self._position = target

    async def tell(self) -> int:
        self._check()
        self._check_position()
        with self._conflict:
            if self._position is None:
                await self._flush()
            else:
                await trio.lowlevel.checkpoint()
            return await self._where()

    # The end

    async def detach(self) -> BinaryFile:
        self._check()
        if self._limit == 0:
            raise io.UnsupportedOperation("detach")
        with self._conflict:
            await self._flush()
            raw = BinaryFile(
                self._handle,
                name=self._name,
                mode=self._mode,
                readable=self._readable,
                writable=self._writable,
                append=self._append,
                buffer_size=0,
                confirmations=self._confirmations,
                seekable=self._seekable,
                terminal=self._terminal,
            )
            # (The raw file of io stands behind the bytes that were read ahead.)
            raw._position = None if self._position is None else self._position + self._available
            self._detached = True
        return raw

    def abandon(self) -> None:
        """Close without writing the buffer out, and without waiting."""
        self._closed = True
        self._handle.drop()

    async def aclose(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._check()
        try:
            self._conflict.__enter__()
        except trio.BusyResourceError:
            self.abandon()
            raise
        self._closed = True
        try:
            await self._finish()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._confirmations.wait(self._finish)
            raise
        finally:
            self._handle.drop()  # does nothing if the handle was closed in order

    async def _finish(self) -> None:
        """Write the buffer out and close the handle. It may be repeated if it was cancelled."""
        error: Exception | None = None
        try:
            await self._flush()
            if self._failure is not None:
                error = again(self._failure)
        except (OSError, trio.BrokenResourceError, ProtocolError) as exc:
            error = exc
        if error is None:
            await self._handle.close()
        else:
            with suppress(OSError, ProtocolError):  # the first error is raised
                await self._handle.close()
            raise error


def _writable_view(buffer: bytearray | memoryview) -> memoryview:
    """A view to read into. It is looked at before anything is read, which would be lost."""
    view = memoryview(buffer).cast("B")
    if view.readonly:
        view.release()
        raise TypeError(f"a read-write bytes-like object is required, not {type(buffer).__name__!r}")
    return view


async def _bury(handle: FileHandle, data: bytes, start: int, confirmations: Confirmations) -> None:
    """Write out the buffer of a file that was dropped, and close it. An exception would end the whole run."""

    async def finish() -> None:
        if data:
            await handle.write(start, memoryview(data))
        await handle.close()

    try:
        await confirmations.wait(finish)
    except Exception:  # noqa: BLE001  (logged)
        _log.exception("a file that was dropped could not be closed; %d bytes were to be written", len(data))
    finally:
        handle.drop()
