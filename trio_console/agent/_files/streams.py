"""File operations that move bytes: data frames, and an answer behind them.

A read waits for credit first. Bytes that the system has in memory are read at once, after room in the outbox was
reserved for them. For other bytes it takes a permit and a thread (see `disk`), and reserves room after the call. A
write queues the data that comes, and writes it in batches.

This module must not know other kinds of sessions.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console.agent._files.calls import FsHandleSession
from trio_console.agent._files.disk import CHUNK
from trio_console.agent._files.handles import SLICE
from trio_console.agent._files.paths import FsError
from trio_console.agent._inflow import Inflow, Put
from trio_console.agent._session import SendCredit, Sender

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console.agent._files.handles import FileHandle
    from trio_console.agent._files.shared import Files

__all__ = ["FsRead", "FsWrite"]

#: Bytes written by one call.
_BATCH: Final = 1024 * 1024

#: Checkpoints before a call, in which more data may arrive, so that one call writes more. A change of threads
#: costs as much as twenty checkpoints. With these the calls are half as many, which saved a fifth of the CPU time.
_CHANCES: Final = 6


@final
class FsRead(FsHandleSession):
    """A read: data frames, and then the answer, which is also the end of file."""

    __slots__ = ("_complete", "_credit", "_file", "_offset", "_op")

    kind = "fs"

    def __init__(
        self,
        sender: Sender,
        session_id: int,
        files: Files,
        handle: FileHandle,
        op: wire.OpRead,
        window: int | None,
    ) -> None:
        super().__init__(sender, session_id, files, handle)
        self._file = handle
        self._op = op
        self._offset = op.offset
        self._complete = False  # whether the end of the file was reached
        self._credit = SendCredit(window)

    async def receive(self, message: wire.Message) -> None:
        """See `Session.receive`."""
        if isinstance(message, wire.Credit):
            if message.stream == "data":
                self._credit.grant(message.bytes)
        else:
            await super().receive(message)

    async def _use(self) -> None:
        await (self._stream() if self._file.positioned else self._stream_along())
        await self._answer(wire.encode(wire.FsResponse(ok=True), self.id))

    async def _stream_along(self) -> None:
        """Read a file without positions: what one read(2) gives; or, without a length, all up to the end.

        The wait for bytes needs neither a thread nor a permit. If cancelled, each byte is still in the file, or
        was sent.
        """
        left = SLICE if self._op.len is None else min(SLICE, self._op.len)
        while left > 0 and not self._complete:
            await trio.lowlevel.checkpoint()
            data = await self._pass_on(wire.FsData, await self._credit.wait(left), self._file.read_now)
            if data is None:
                await self._file.wait_readable()
                continue
            self._credit.note_sent(len(data))
            self._sender.activity.fs_bytes += len(data)
            self._complete = not data or self._op.len is not None

    async def _stream(self) -> None:
        left = math.inf if self._op.len is None else self._op.len
        while left > 0 and not self._complete:
            await trio.lowlevel.checkpoint()
            allowed = await self._credit.wait(int(min(CHUNK, left)))
            # A cached read is tried first, even if it may get few bytes: a change of threads costs more than the
            # copying. (It reserves room in the outbox, which the other read must not do: its disk may hang.)
            size = await self._send_cached(min(allowed, SLICE)) or await self._send_read(allowed)
            left -= size
            self._sender.activity.fs_bytes += size

    async def _send_cached(self, allowed: int) -> int:
        scratch = self._files.scratch
        data = await self._pass_on(
            wire.FsData, allowed, lambda size: self._file.read_cached(scratch[:size], self._offset)
        )
        if data is None:
            return 0
        self._complete = not data
        self._credit.note_sent(len(data))
        self._offset += len(data)
        return len(data)

    async def _send_read(self, allowed: int) -> int:
        if self._complete:
            return 0
        disk, handle = self._files.disk, self._file
        async with disk.buffer(self._share) as buffer:
            call = partial(handle.read_into, buffer[:allowed], self._offset)
            size, self._complete = await disk.run(call, handle.disown)
            await self._send(buffer[:size])
        self._offset += size
        return size

    async def _send(self, data: memoryview) -> None:
        outbox = self._sender.outbox
        for start in range(0, len(data), SLICE):
            piece = data[start : start + SLICE]
            await outbox.reserve(len(piece))
            if self.ended:
                outbox.release(len(piece))
                return
            self._sender.commit_data(wire.FsData, self.id, piece, len(piece))
            self._credit.note_sent(len(piece))


@final
class FsWrite(FsHandleSession):
    """A write: it writes all data up to an empty chunk, and then sends the answer."""

    __slots__ = ("_file", "_op", "_queue")

    kind = "fs"
    accepts = wire.accepted_in("fs")

    def __init__(
        self,
        sender: Sender,
        session_id: int,
        files: Files,
        handle: FileHandle,
        op: wire.OpWrite,
        queue: Callable[[Callable[[int], None]], Inflow],
    ) -> None:
        super().__init__(sender, session_id, files, handle)
        self._file = handle
        self._op = op
        self._queue = queue(self._grant)

    async def receive(self, message: wire.Message) -> None:
        """See `Session.receive`."""
        if not isinstance(message, wire.FsData):
            await super().receive(message)
            return
        match await self._queue.put(message.data):
            case Put.OVER_WINDOW:
                self.end(wire.Error("invalid_session", "more data than the window allows", "core.fs.data"))
            case Put.FULL:
                self.end(wire.FsResponse(ok=False, error="write: the queue is full, and the file takes no data"))

    def end(self, ending: wire.Message | None = None) -> None:
        """See `Session.end`."""
        self._queue.close()
        super().end(ending)

    async def run(self) -> None:
        """See `Session.run`."""
        try:
            await super().run()
        finally:
            self._queue.close()

    async def _use(self) -> None:
        disk, file, op = self._files.disk, self._file, self._op
        self._queue.start()
        total = 0
        while not file.positioned and (chunk := await self._queue.first()):
            # (Another thread or permit is not needed, because the descriptor does not block.)
            try:
                await file.write_first(self._queue)
            finally:
                self._queue.pop()
            total += len(chunk)
            self._sender.activity.fs_bytes += len(chunk)
        while batch := await self._queue.batch(_BATCH, _CHANCES):
            async with disk.permit(self._share):
                await disk.run(partial(file.write, batch, op.offset + total), file.disown)
            for chunk in batch:
                total += len(chunk)
                self._sender.activity.fs_bytes += len(chunk)
                self._queue.pop()
        if op.len is not None and op.len != total:
            raise FsError(f"write length mismatch: expected {op.len}, wrote {total}")
        await self._answer(wire.encode(wire.FsResponse(ok=True), self.id))

    def _grant(self, nbytes: int) -> None:
        self._send_now(wire.Credit("data", nbytes))
