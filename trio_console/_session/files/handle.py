"""An open file of the guest: bytes at offsets.

A cancelled read has no effect. A write of up to one `unit` is queued as a whole, without a checkpoint between its
frames: if it is cancelled before that, nothing is written; if it is cancelled after that, it will be written. In
both cases the write is settled (its answer has come) before the next operation is sent. Otherwise the agent could
do one handle's operations in another order, and the error of a cancelled write would be lost.

This module must not know of buffers or positions.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, final

import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._session.files.operations import FsCall, FsRead, FsWrite, drop_handle
from trio_console._session.receiving import WINDOW
from trio_console._session.sending import SLICE

if TYPE_CHECKING:
    import os

    from trio_console._session.connection import Connection
    from trio_console._session.files.operations import FileSystem

__all__ = ["FileHandle"]


@final
class FileHandle:
    """A handle in the guest, for one task at a time. Errors are those of `FileSystem.ask`.

    Args:
        number: the handle's number.
        path: the path for errors.
        positioned: whether the file has positions. For one that has none, such as a FIFO, offsets are ignored, and
            a read returns what there is.
    """

    def __init__(self, fs: FileSystem, number: int, path: str, *, positioned: bool = True) -> None:
        self._fs = fs
        self._number = number
        self._path = path
        self._along: Final = None if positioned else _ReadsAlong(fs.connection, number, path)
        self._unsettled: FsWrite | None = None
        self._unheard = False  # the answer of the unsettled write is ignored: its caller got an error already
        self._closing: FsCall | None = None
        flow = fs.connection.ready.flow
        #: Bytes that can be written as a whole: they may be sent without a grant, and fit one frame.
        self._at_once: Final = SLICE if flow is wire.UNSET else min(SLICE, flow.window - flow.held_back)
        self.unit: Final = max(1, self._at_once)

    async def read(self, offset: int, size: int | None = None) -> bytes:
        """Read ``size`` bytes, fewer only at the end of the file; with `None` the whole rest.

        (Of a file without positions: at least one byte, if it is not at its end.)
        """
        await self.settle()
        if self._along is not None:
            return await self._along.read(size)
        await self._fs.connection.wait_may_open()
        parts: list[bytes] = []
        call = FsRead(self._fs.connection, wire.OpRead(self._number, offset, size), self._path).begin()
        try:
            while data := await call.stream.receive_some(WINDOW):
                parts.append(data)
        except BaseException:
            call.abort()
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``. If cancelled, a `unit` is written or not, and of more an unknown part."""
        await self.settle()
        if len(data) <= self._at_once:
            await self._write_unit(offset, data)
        else:
            await self._write_long(offset, data)

    async def _write_unit(self, offset: int, data: memoryview) -> None:
        connection = self._fs.connection
        await connection.wait_may_open()
        key = "handle", self._number
        try:
            await connection.outbox.reserve(len(data), key)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            gone: Exception | None = exc
        else:
            gone = None
        if gone is not None:
            await connection.wait_ended()  # the connection finds out the reason within seconds
            connection.check_alive()
            raise gone
        # No checkpoint from here until the request and its data are queued: both, or neither.
        try:
            call = FsWrite(connection, wire.OpWrite(self._number, offset, len(data)), self._path).begin()
        except BaseException:
            connection.outbox.release(len(data), key)
            raise
        assert self._unsettled is None, "one write at a time waits for its answer"
        self._unsettled, self._unheard = call, False
        call.sender.put(data)
        call.end()
        await self.settle()

    async def _write_long(self, offset: int, data: memoryview) -> None:
        await self._fs.connection.wait_may_open()
        call = FsWrite(self._fs.connection, wire.OpWrite(self._number, offset, len(data)), self._path).begin()
        try:
            sent = await call.sender.send(data)
            if sent:
                call.end()
            await call.done.wait()
        except BaseException:
            call.abort()
            self._unsettled, self._unheard = call, True
            raise
        call.result()
        if not sent:
            raise ProtocolError("the guest's agent ended a write before its data", kind="invalid_session")

    @property
    def settled(self) -> bool:
        """Whether every write was answered."""
        return self._unsettled is None

    async def settle(self) -> None:
        """Wait for the answer of a queued write, and raise its error; a checkpoint in any case."""
        call = self._unsettled
        if call is None:
            await trio.lowlevel.checkpoint()
            return
        await call.done.wait()
        self._unsettled = None
        if not self._unheard:
            call.result()

    async def stat(self) -> os.stat_result:
        await self.settle()
        return await self._fs.stat_of(wire.OpFStat(self._number), self._path)

    async def seek(self, offset: int, whence: Literal["data", "hole"]) -> int:
        """The offset of the first data or hole from ``offset`` on.

        Raises:
            trio_console.UnsupportedByPeer: the agent finds none.
        """
        await self.settle()
        return await self._fs.seek(wire.OpSeek(self._number, offset, whence), self._path)

    async def truncate(self, size: int) -> None:
        await self.settle()
        await self._fs.do(wire.OpFSetStat(self._number, wire.SetAttrs(size=size)), self._path)

    def drop(self) -> None:
        """Close without waiting for the answer; does nothing if `close` has begun."""
        if self._closing is None:
            if self._along is not None:
                # The close waits for its turn; and what is under way may wait for another process, for ever.
                self._along.call_off()
                if self._unsettled is not None:
                    self._unsettled.call_off()
            drop_handle(self._fs.connection, self._number)

    async def close(self) -> None:
        """Close. If the guest is lost it has no handles, so that is not an error. May be repeated if cancelled."""
        if self._closing is None:
            if self._unsettled is not None:
                await self._unsettled.done.wait()  # the close must not overtake its data
                self._unsettled = None
            with suppress(trio.BrokenResourceError):
                closing = FsCall(self._fs.connection, wire.OpCloseHandle(self._number), self._path)
                self._closing = closing.begin()
        if self._closing is not None:
            with suppress(trio.BrokenResourceError):
                await self._closing.wait()


@final
class _ReadsAlong:
    """The reads of a file without positions, one after the other. A byte that was read cannot be read again.

    So if a read is cancelled, the agent is asked to stop; but the bytes that it has sent by then are kept for the
    next read, which first waits for the end of the old one.
    """

    def __init__(self, connection: Connection, number: int, path: str) -> None:
        self._connection = connection
        self._number = number
        self._path = path
        self._call: FsRead | None = None  # a read whose end has not come
        self._to_end = False  # whether that read is for all up to the end
        self._had_bytes = False  # whether it has returned any
        self._called_off = False  # whether the agent was asked to end it
        self._kept = b""  # bytes of a read of all that was cancelled

    async def read(self, size: int | None) -> bytes:
        """Read at least one byte and at most ``size``, or ``b""`` at the end; with `None` all up to the end."""
        if size is not None:
            return await self._read_some(size)
        parts: list[bytes] = []
        try:
            while data := await self._read_some(None):
                parts.append(data)
        except BaseException:
            self._kept = b"".join([*parts, self._kept])
            raise
        return b"".join(parts)

    async def _read_some(self, size: int | None) -> bytes:
        most = WINDOW if size is None else min(size, WINDOW)
        if self._kept:
            await trio.lowlevel.checkpoint()
            data, self._kept = self._kept[:most], self._kept[most:]
            return data
        if most == 0:
            await trio.lowlevel.checkpoint()
            return b""
        while True:
            if self._call is None:
                await self._connection.wait_may_open()
                op = wire.OpRead(self._number, 0, size)
                self._call = FsRead(self._connection, op, self._path).begin()
                self._had_bytes = self._called_off = False
                self._to_end = size is None
            data = await self._next(self._call, most)
            if data:
                self._had_bytes = True
                return data
            self._call = None
            if not self._called_off and (self._to_end or not self._had_bytes):
                return b""  # the end of the file

    async def _next(self, call: FsRead, most: int) -> bytes:
        """The next bytes of a read; ``b""`` at its end."""
        try:
            return await call.stream.receive_some(most)
        except trio.Cancelled:
            self.call_off()
            raise
        except OSError:
            self._call = None
            if not self._called_off:
                raise
            return b""  # it was ended because we have asked for that

    def call_off(self) -> None:
        """Ask the agent to end a read that is under way."""
        if self._call is not None and not self._called_off:
            self._called_off = True
            self._call.call_off()
