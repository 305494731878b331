"""An open file of the guest: bytes at offsets.

A cancelled read has no effect. A write of up to one `unit` is queued as a whole, without a checkpoint between its
frames: if it is cancelled before that, nothing is written; if it is cancelled after that, it will be written. In
both cases the write is settled (its answer has come) before the next operation is sent. Otherwise the agent could
do one handle's operations in another order, and the error of a cancelled write would be lost.

This module must not know of buffers or positions.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._session.files.operations import FsCall, FsRead, FsWrite, drop_handle, stat_result
from trio_console._session.receiving import WINDOW
from trio_console._session.sending import SLICE

if TYPE_CHECKING:
    import os

    from trio_console._session.files.operations import FileSystem

__all__ = ["FileHandle"]


@final
class FileHandle:
    """A handle in the guest, for one task at a time. Errors are those of `FileSystem.ask`.

    Args:
        number: the handle's number.
        path: the path for errors.
    """

    def __init__(self, fs: FileSystem, number: int, path: str) -> None:
        self._fs = fs
        self._number = number
        self._path = path
        self._unsettled: FsWrite | None = None
        self._unheard = False  # the answer of the unsettled write is ignored: its caller got an error already
        self._closing: FsCall | None = None
        flow = fs.connection.ready.flow
        #: Bytes that can be written as a whole: a window holds them, and they fit one frame.
        self._at_once: Final = SLICE if flow is wire.UNSET else min(SLICE, flow.window)
        self.unit: Final = max(1, self._at_once)

    async def read(self, offset: int, size: int | None = None) -> bytes:
        """Read ``size`` bytes, fewer only at the end of the file; with `None` the whole rest."""
        await self.settle()
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
        try:
            await connection.outbox.reserve(len(data))
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
            connection.outbox.release(len(data))
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
        answer = await self._fs.ask(wire.OpFStat(self._number), wire.ResultStat, self._path)
        return stat_result(answer.value)

    async def truncate(self, size: int) -> None:
        await self.settle()
        await self._fs.do(wire.OpFSetStat(self._number, wire.SetAttrs(size=size)), self._path)

    def drop(self) -> None:
        """Close without waiting for the answer; does nothing if `close` has begun."""
        if self._closing is None:
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
