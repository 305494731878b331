"""A console device as a trio stream whose bytes are moved by tasks, and not by threads.

trio itself can wait for a descriptor. Then no thread has to move the bytes, and no ring has to hold them on their
way from one thread to another:

* **Sending** writes to the descriptor at once. The bytes that the descriptor does not take are queued, and a
  writer task writes them when there is room. The queue has the bounds of a ring. While bytes are queued, all
  further ones go behind them, so the order is kept.
* **Receiving** reads from the descriptor when it is called. Nothing is read ahead: bytes that are not received
  stay in the kernel's buffer, and a full buffer stops the guest.

For its user such a stream is like that of `open_console`: the same bounds, statistics, errors and ending. It is
for the guests of this package, which make their descriptors themselves. A device that a user gives may block a
thread for any time, so it always gets threads.

All of it belongs to one trio thread. Between two checkpoints no other task runs, and a descriptor's number is used
only there. Before a descriptor is closed, the tasks that sleep on it are woken; a woken task looks at the flags
before it uses the number again. So no number is used after it was closed.

This module must not know what the bytes mean.
"""

from __future__ import annotations

import operator
import select
from collections import deque
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._buffers import flat_view
from trio_console._console.backend import LaneStatistics
from trio_console._console.channel import DEFAULT_GRACE, SHORT_GRACE
from trio_console._console.devices import full_for_nobody
from trio_console._console.ring import DEFAULT_CAPACITY, DEFAULT_MAX_BYTES
from trio_console._console.stream import ConsoleStatistics
from trio_console._trio.conflict import Conflict
from trio_console._trio.ending import see_through
from trio_console._trio.gathering import MOST_PIECES, GatheringStream, Piece, drop_first
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_console._console.devices import FdDevice
    from trio_console._console.ring import BytesLike

__all__ = ["PolledStream", "open_polled"]

#: Bytes of one read, when the caller names no number.
_READ: Final = 128 * 1024

#: Bytes of a piece of data that is larger than the queue or has to be copied, and the most pieces before a
#: checkpoint: a device that is always faster would keep the other tasks from running.
_SLICE: Final = 64 * 1024
_SLICES_PER_TURN: Final = 4

#: Bytes that `send_gathered` queues at most. The frames of a session have queues of their own, in which control
#: frames overtake data; in this queue none overtakes another. (More bytes made an upload no faster.)
_AHEAD: Final = 128 * 1024

#: How often in a row a descriptor may be found hung up and not ready; see `FdDevice._sleep`.
_HANG_UPS: Final = 2


@interrupt_safe
@asynccontextmanager
async def open_polled(
    device: FdDevice,
    *,
    capacity: int = DEFAULT_CAPACITY,
    max_bytes: int = DEFAULT_MAX_BYTES,
    grace: float = DEFAULT_GRACE,
) -> AsyncIterator[PolledStream]:
    """Move a device's bytes with tasks, and yield the host's end as a stream; otherwise as `open_console`.

    Args:
        device: has descriptors; it is owned from the call on.
        capacity, max_bytes: bounds of what is queued to be sent.
        grace: seconds that leaving may take while the device still takes the bytes sent.
    """
    async with hidden_nursery() as nursery:
        stream = PolledStream(device, nursery, capacity, max_bytes)
        try:
            nursery.start_soon(stream._write_queued)
            yield stream
        finally:
            await _leave(stream, grace)  # noqa: ASYNC102  (shields itself, for the grace)


async def _leave(stream: PolledStream, grace: float) -> None:
    async def leave(patience: trio.CancelScope) -> None:
        with patience:
            await stream.aclose()
            await stream._wait_delivered()
        stream._drop()  # this also closes the device, which ends all tasks

    await see_through(leave, grace=grace, hurried=min(grace, SHORT_GRACE))


@final
class PolledStream(trio.abc.HalfCloseableStream, GatheringStream):
    """The host's end of a console whose device has descriptors; see `open_polled`."""

    def __init__(self, device: FdDevice, nursery: trio.Nursery, capacity: int, max_bytes: int) -> None:
        self._device: Final = device
        self._nursery: Final = nursery
        self._capacity: Final = capacity
        self._max_bytes: Final = max_bytes
        self._closed = False
        self._was_closed = trio.Event()
        self._send_conflict = Conflict("another task is already sending on this console stream")
        self._receive_conflict = Conflict("another task is already receiving on this console stream")
        # Host to guest. The flags have the meaning of a `Lane`'s.
        self._queue: deque[Piece] = deque()
        self._queued = 0
        self._accepted = 0
        self._written = 0
        self._lost = 0
        self._finished = False
        self._abandoned = False
        self._send_error: BaseException | None = None
        self._work = trio.Event()  # wakes the writer task
        self._room = trio.Event()  # wakes the sending task
        self._delivered = trio.Event()
        self._waiting_send = 0
        self._full_hang_ups = 0  # in a row
        # Guest to host.
        self._received = 0
        self._swallowed = 0
        self._at_end = False
        self._receive_error: BaseException | None = None
        self._hang_ups = 0  # in a row
        self._waiting_receive = 0

    # Sending

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: BytesLike) -> None:
        """Write or queue all of ``data``, and wait for room where there is none; see `ConsoleStream.send_all`."""
        with self._send_conflict:
            self._check_may_send()
            await trio.lowlevel.checkpoint_if_cancelled()
            if type(data) is bytes and len(data) <= self._max_bytes:
                if data:
                    await self._put([data], len(data), self._max_bytes)
            else:
                with flat_view(data) as view:
                    await self._send_slices(view)
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _send_slices(self, view: memoryview) -> None:
        size = min(_SLICE, self._max_bytes)
        for start in range(0, len(view), size):
            if start and not start % (size * _SLICES_PER_TURN):
                await trio.lowlevel.checkpoint()
                self._check_may_send()
            piece = bytes(view[start : start + size])
            await self._put([piece], len(piece), self._max_bytes)

    @trio.lowlevel.enable_ki_protection
    async def send_gathered(self, pieces: list[Piece]) -> None:
        """See `GatheringStream.send_gathered`. If cancelled, nothing was sent."""
        with self._send_conflict:
            self._check_may_send()
            if size := sum(map(len, pieces)):
                await self._put([piece for piece in pieces if piece], size, min(_AHEAD, self._max_bytes))

    @trio.lowlevel.enable_ki_protection
    def send_gathered_nowait(self, pieces: list[Piece]) -> list[Piece]:
        """See `GatheringStream.send_gathered_nowait`. All is left, or, if nothing was queued before, nothing."""
        with self._send_conflict:
            if self._queue or self._abandoned or self._finished:
                return pieces
            return [] if self._start(pieces, sum(map(len, pieces))) else pieces

    async def _put(self, pieces: list[Piece], size: int, bound: int) -> None:
        """Write pieces, or queue them, or write the first of their bytes and queue the others."""
        while self._queue and not self._fits(len(pieces), size, bound):
            await self._wait_room()
        if self._queue:
            self._accepted += size
            self._push(pieces, size)
        elif not self._start(pieces, size):
            self._check_may_send()

    def _start(self, pieces: list[Piece], size: int) -> bool:
        """Write what the descriptor takes, and queue the rest; `False` if the descriptor has failed."""
        written = self._write(pieces)
        if self._abandoned:
            return False
        self._accepted += size
        if written < size:
            drop_first(pieces, written)
            self._push(pieces, size - written)
        return True

    def _fits(self, count: int, size: int, bound: int) -> bool:
        return len(self._queue) + count <= self._capacity and self._queued + size <= bound

    def _push(self, pieces: list[Piece], size: int) -> None:
        if len(self._queue) + len(pieces) > self._capacity:
            assert not self._queue, "more than the bounds is taken only when nothing is queued"
            pieces = [b"".join(pieces)]
        self._queue.extend(pieces)
        self._queued += size
        self._work.set()

    def _write(self, pieces: list[Piece]) -> int:
        """Write as much as the descriptor takes now; returns the number of bytes."""
        try:
            written = self._device.write_now(pieces[:MOST_PIECES])
        except BlockingIOError:
            return 0
        except OSError as exc:
            self._abandon(exc)
            return 0
        self._written += written
        return written

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is some room, or until sending would fail at once. If cancelled, nothing changes."""
        with self._send_conflict:
            self._check_may_send()
            await trio.lowlevel.checkpoint()
            self._check_may_send()
            while not self._fits(1, 1, self._max_bytes):
                await self._wait_room()

    @trio.lowlevel.enable_ki_protection
    async def send_eof(self) -> None:
        """Tell the guest that no more bytes come, behind those queued; see `ConsoleStream.send_eof`."""
        with self._send_conflict:
            if self._closed:
                raise trio.ClosedResourceError("this console stream was closed")
            await trio.lowlevel.checkpoint_if_cancelled()
            self._finish()
            if not self._queue and not self._abandoned:
                self._half_close()
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _check_may_send(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this console stream was closed")
        if self._finished:
            raise trio.ClosedResourceError("end of file was already sent on this console stream")
        if self._abandoned:
            raise trio.BrokenResourceError("the other end of the console is gone") from self._send_error

    async def _wait_room(self) -> None:
        """Sleep until something of the queue was written; raises if sending has become impossible."""
        # No room is missed: there is no checkpoint between the look at the queue and this.
        self._room = trio.Event()
        self._waiting_send += 1
        try:
            await self._room.wait()
        finally:
            self._waiting_send -= 1
        self._check_may_send()

    # The writer task, which lives as long as the device

    @trio.lowlevel.enable_ki_protection
    async def _write_queued(self) -> None:
        # Shielded, as the workers of `open_console` are: it ends when the device is closed.
        with trio.CancelScope(shield=True):
            await self._deliver()
            self._delivered.set()
            await self._was_closed.wait()
            self._close_device()

    async def _deliver(self) -> None:
        """Write what is queued, until sending is over: all was written, or nothing more can be."""
        while not self._abandoned:
            if self._queue:
                await self._write_when_ready()
            elif self._finished:
                self._half_close()
            else:
                # Nothing is missed: there is no checkpoint between the looks above and this.
                self._work = trio.Event()
                await self._work.wait()

    async def _write_when_ready(self) -> None:
        await self._sleep(trio.lowlevel.wait_writable, self._device.write_fd, self._abandon)
        if not self._queue:
            return  # dropped meanwhile
        if written := self._write(list(islice(self._queue, MOST_PIECES))):
            self._shift(written)
            self._full_hang_ups = 0
        elif self._queue and self._device.has_hung_up(self._device.write_fd, select.POLLOUT):
            self._full_hang_ups += 1
            if self._full_hang_ups == _HANG_UPS:
                self._abandon(full_for_nobody())
        else:
            self._full_hang_ups = 0

    def _shift(self, size: int) -> None:
        """Remove the first bytes of the queue, which were written."""
        self._queued -= size
        assert self._queued >= 0, "no more bytes are written than were queued"
        while size:
            first = self._queue[0]
            if size < len(first):
                self._queue[0] = memoryview(first)[size:]
                break
            size -= len(first)
            self._queue.popleft()
        self._room.set()

    def _half_close(self) -> None:
        try:
            if self._device.write_fd != self._device.read_fd:
                trio.lowlevel.notify_closing(self._device.write_fd)
            self._device.close_write()
        except OSError as exc:  # the number was closed by other code
            self._abandon(exc)
        else:
            self._abandon(None)

    def _finish(self) -> None:
        """Send no more bytes than are queued."""
        self._finished = True
        self._work.set()

    def _abandon(self, cause: BaseException | None) -> None:
        """Deliver nothing more: all that is queued is lost."""
        if not self._abandoned:
            self._abandoned = True
            self._send_error = cause
            self._lost += self._queued
            self._queued = 0
            self._queue.clear()
        self._work.set()
        self._room.set()

    # Receiving

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Take bytes that have come, and wait for them if there are none; see `ConsoleStream.receive_some`.

        Args:
            max_bytes: the most bytes to return; with `None`, the default, 128 KiB.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes!r}")
        size = min(_READ if max_bytes is None else max_bytes, self._max_bytes)
        with self._receive_conflict:
            self._check_may_receive()
            await trio.lowlevel.checkpoint_if_cancelled()
            slept = False
            while (data := self._read(size, again=slept)) is None:
                slept = True
                await self._wait_data()
                self._check_may_receive()
            self._received += len(data)
            if not slept:  # a sleep was a checkpoint already
                await trio.lowlevel.cancel_shielded_checkpoint()
            if not data and self._receive_error is not None:
                raise trio.BrokenResourceError("the other end of the console failed") from self._receive_error
            return data

    def _check_may_receive(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this console stream was closed")

    def _read(self, size: int, *, again: bool) -> bytes | None:
        """Read what there is; ``b""`` at the end, `None` if there is nothing yet.

        Args:
            again: whether the descriptor was said to be ready just now.
        """
        if self._at_end:
            return b""
        try:
            data = self._device.read_now(size)
        except BlockingIOError:
            if again and self._device.has_hung_up(self._device.read_fd, select.POLLIN):
                self._hang_ups += 1
                if self._hang_ups == _HANG_UPS:
                    self._at_end = True
                    return b""
            else:
                self._hang_ups = 0
            return None
        except OSError as exc:
            self._end_receiving(exc)
            return b""
        if not data:
            self._at_end = True
        return data

    def _end_receiving(self, cause: BaseException) -> None:
        self._at_end = True
        self._receive_error = cause

    async def _wait_data(self) -> None:
        assert not self._waiting_receive, "one task reads from a console"
        self._waiting_receive += 1
        try:
            await self._sleep(trio.lowlevel.wait_readable, self._device.read_fd, self._end_receiving)
        finally:
            self._waiting_receive -= 1

    @trio.lowlevel.enable_ki_protection
    async def _drain(self) -> None:
        """Drop and count what the guest still sends, while bytes for it are under way.

        Otherwise those bytes would never be delivered to a guest that has to write before it reads. This ends when
        the device is closed.
        """
        with trio.CancelScope(shield=True):
            slept = False
            while self._device.read_fd >= 0 and (data := self._read(_READ, again=slept)) != b"":
                if slept := data is None:
                    # (The task that received until now may not have run yet since it was woken.)
                    await self._sleep(trio.lowlevel.wait_readable, self._device.read_fd, self._end_receiving)
                else:
                    self._swallowed += len(data)
                    await trio.lowlevel.checkpoint()

    # Both

    @staticmethod
    async def _sleep(
        wait: Callable[[int], Awaitable[None]], fd: int, failed: Callable[[BaseException], None]
    ) -> None:
        try:
            # (`aclose`, or the end of the device, may have woken this task: the flags say so.)
            with suppress(trio.ClosedResourceError):
                await wait(fd)
        except OSError as exc:  # the number was closed by other code of this program
            failed(exc)

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close both directions; see `ConsoleStream.aclose`."""
        first = not self._closed
        if first:
            self._closed = True
            self._finish()
            self._room.set()
            if self._waiting_receive:
                trio.lowlevel.notify_closing(self._device.read_fd)
            if self._queue:
                self._nursery.start_soon(self._drain)
            self._was_closed.set()
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            if first:
                self._drop()
            raise

    def _drop(self) -> None:
        """Drop and count the bytes that are still queued after `aclose`, and close the device."""
        assert self._closed, "bytes are dropped only when no more can come"
        self._abandon(None)
        self._close_device()

    def _close_device(self) -> None:
        # First the sleeping tasks are woken, then the numbers are closed. No task runs in between.
        for fd in {self._device.read_fd, self._device.write_fd} - {-1}:
            trio.lowlevel.notify_closing(fd)
        self._device.close()

    async def _wait_closed(self) -> None:
        """Wait until `aclose` was called. If cancelled, nothing changes."""
        await self._was_closed.wait()

    async def _wait_delivered(self) -> None:
        """Wait until all bytes were written that could be. If cancelled, nothing changes."""
        await self._delivered.wait()

    def statistics(self) -> ConsoleStatistics:
        """As of a `ConsoleStream`. Nothing is queued on the way to the host, and there are no wakes."""
        assert self._accepted == self._written + self._queued + self._lost, (
            "bytes in = bytes out + bytes queued + bytes dropped"
        )
        rx = LaneStatistics(
            bytes_in=self._accepted,
            bytes_out=self._written,
            bytes_dropped=self._lost,
            current_buffer_used=len(self._queue),
            max_buffer_size=self._capacity,
            current_buffer_bytes=self._queued,
            max_buffer_bytes=self._max_bytes,
            wakes=0,
            finished=self._finished,
            abandoned=self._abandoned,
        )
        tx = LaneStatistics(
            bytes_in=self._received + self._swallowed,
            bytes_out=self._received,
            bytes_dropped=self._swallowed,
            current_buffer_used=0,
            max_buffer_size=self._capacity,
            current_buffer_bytes=0,
            max_buffer_bytes=self._max_bytes,
            wakes=0,
            finished=self._at_end,
            abandoned=self._closed,
        )
        return ConsoleStatistics(
            tx=tx,
            rx=rx,
            tasks_waiting_send=self._waiting_send,
            tasks_waiting_receive=self._waiting_receive,
            closed=self._closed,
        )
