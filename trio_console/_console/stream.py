"""A console's lanes as a trio stream.

The stream is one end of two lanes: it produces into one lane and consumes from the other, while another thread
does the opposite. Its tasks sleep with ``trio.lowlevel.wait_readable`` on the lanes' wakes. After each sleep a
task first checks the lane's flags, because they say why the sleep ended.

This module must not know what the bytes mean, nor what drives the other end.
"""

from __future__ import annotations

import operator
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._buffers import flat_view, joined
from trio_console._trio.conflict import Conflict
from trio_console._trio.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_console._console.backend import ConsoleSharedState, Lane, LaneStatistics
    from trio_console._console.ring import BytesLike
    from trio_console._console.wake import WakePipe

__all__ = ["ConsoleStatistics", "ConsoleStream", "LaneStream"]

#: Bytes up to which one `receive_some` joins chunks when the caller gives no limit. A single larger chunk is
#: returned whole. It is half a ring: when that half is taken the producer is woken, and fills it while the other
#: half is taken. (With a quarter of a ring, a chunk of 4 or 64 KiB took 6 to 10 % more processor time.)
DEFAULT_RECEIVE_SIZE: Final = 512 * 1024

#: The most bytes of a piece, when `send_all` has to copy data that cannot be queued by reference. The other end
#: takes the first pieces while the next ones are copied.
_SLICE: Final = 64 * 1024

#: The most pieces that a task queues before a checkpoint. Without it, a device that is always faster than the task
#: would keep a large `send_all` from ever sleeping, and so the other tasks from running.
_SLICES_PER_TURN: Final = 4


@dataclass(frozen=True, slots=True)
class ConsoleStatistics:
    """A console channel at one moment.

    Attributes:
        tx: guest to host: the bytes received here.
        rx: host to guest: the bytes sent here.
        tasks_waiting_send: tasks blocked in sending now.
        tasks_waiting_receive: tasks blocked in receiving now.
        closed: whether this end was closed.
    """

    tx: LaneStatistics
    rx: LaneStatistics
    tasks_waiting_send: int
    tasks_waiting_receive: int
    closed: bool


class LaneStream(trio.abc.HalfCloseableStream):
    """One end of two lanes, as a `trio.abc.HalfCloseableStream`; see `ConsoleStream`."""

    def __init__(self, send: Lane, receive: Lane) -> None:
        self._send = send
        self._receive = receive
        self._closed = False
        self._send_conflict = Conflict("another task is already sending on this console stream")
        self._receive_conflict = Conflict("another task is already receiving on this console stream")
        self._waiting_send = 0
        self._waiting_receive = 0

    # Sending

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: BytesLike) -> None:
        """Queue all of ``data`` for the other end, and wait for room where there is none.

        A `bytes` object that fits the ring is queued by reference; other data is copied once. Returns when all
        bytes are queued, which may be before the other end has taken them.

        If cancelled, nothing of a `bytes` object that fits the ring was queued. Of other data an unknown part may
        have been queued, as with every trio stream.

        Raises:
            trio.ClosedResourceError: this end was closed, or `send_eof` was called.
            trio.BrokenResourceError: the other end has gone.
            trio.BusyResourceError: another task is sending.
        """
        with self._send_conflict:
            self._check_may_send()
            await trio.lowlevel.checkpoint_if_cancelled()
            ring = self._send.ring
            # Queued before the checkpoint, so that the other end takes the bytes while other tasks run.
            if type(data) is bytes and len(data) <= ring.max_bytes:
                while not ring.offer(data) and data:
                    await self._wait_room(len(data))
            else:
                with flat_view(data) as view:
                    await self._send_slices(view)
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _send_slices(self, view: memoryview) -> None:
        ring = self._send.ring
        size = min(_SLICE, ring.piece)
        for start in range(0, len(view), size):
            if start and not start % (size * _SLICES_PER_TURN):
                await trio.lowlevel.checkpoint()
                self._check_may_send()
            piece = view[start : start + size]  # the ring copies it: once, and a piece at a time
            while not ring.offer(piece):
                await self._wait_room(len(piece))

    @trio.lowlevel.enable_ki_protection
    def send_nowait(self, chunk: BytesLike) -> None:
        """Queue all of ``chunk`` for the other end at once, or nothing. Not a checkpoint.

        A `bytes` object is queued by reference; other data is copied once. A chunk that is larger than the ring is
        taken when the ring is empty. A program that calls this in a loop must make checkpoints of its own.

        Args:
            chunk: bytes-like.

        Raises:
            trio.WouldBlock: it does not fit now; see `wait_send_all_might_not_block`.
            trio.BusyResourceError: another task is sending, and waits for room.
            trio.ClosedResourceError, trio.BrokenResourceError: as in `send_all`.
            TypeError: ``chunk`` is not bytes-like.
        """
        with self._send_conflict:
            self._check_may_send()
            if not self._send.ring.offer(chunk) and memoryview(chunk).nbytes:
                self._check_may_send()  # the ring also refuses when the other end goes in this moment
                raise trio.WouldBlock

    @trio.lowlevel.enable_ki_protection
    async def send_pieces(self, pieces: Iterable[BytesLike]) -> None:
        """Queue many chunks for the other end, as `send_all` for each, and much faster where they are small.

        Small chunks are joined, up to 64 KiB, and a large `bytes` object is queued by reference. There is a
        checkpoint for every half of a millisecond or so, and not for each chunk. No more chunks are taken from
        ``pieces`` than are joined.

        If cancelled, the first of the chunks were queued, each of them whole, and the others were not.

        Args:
            pieces: an iterable of bytes-like chunks. A list or a tuple is the fastest.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError: as in `send_all`; some of
                the chunks may have been queued.
            TypeError: a chunk is not bytes-like; some of those before it may have been queued.
        """
        with self._send_conflict:
            self._check_may_send()
            await trio.lowlevel.checkpoint_if_cancelled()
            ring = self._send.ring
            # (The time counts, and not the bytes: joining costs by the chunk. The other end's thread needs the
            # interpreter to take what was queued, so each checkpoint may also cost a change of threads.)
            turn = Turn()
            for data in joined(pieces, _SLICE):
                if turn.is_over:
                    await turn.pause()
                    self._check_may_send()
                while not ring.offer(data):
                    await self._wait_room(len(data))
                    turn.begin()
            await trio.lowlevel.cancel_shielded_checkpoint()

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is some room, or until sending would fail at once.

        If cancelled, nothing changes.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError: as in `send_all`.
        """
        with self._send_conflict:
            self._check_may_send()
            await trio.lowlevel.checkpoint()
            self._check_may_send()
            while not self._send.ring.fits(1):
                await self._wait_room(1)

    @trio.lowlevel.enable_ki_protection
    async def send_eof(self) -> None:
        """Tell the other end that no more bytes come; receiving goes on. A second call does nothing.

        The other end is at end of file after the bytes sent before. Never blocks. If cancelled, the other end was
        not told.

        Raises:
            trio.ClosedResourceError: this end was closed.
            trio.BusyResourceError: another task is sending.
        """
        with self._send_conflict:
            if self._closed:
                raise trio.ClosedResourceError("this console stream was closed")
            await trio.lowlevel.checkpoint_if_cancelled()
            self._send.finish()
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _check_may_send(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this console stream was closed")
        if self._send.finished:
            raise trio.ClosedResourceError("end of file was already sent on this console stream")
        if self._send.abandoned:
            raise trio.BrokenResourceError("the other end of the console is gone") from self._send.cause

    async def _wait_room(self, size: int) -> None:
        """Sleep until ``size`` bytes may fit; raises if sending has become impossible."""
        lane = self._send
        assert not self._waiting_send, "one task sleeps on a wake: another would disarm it"
        self._waiting_send += 1
        try:
            # No end is missed: the flags are read after the wake was armed, and a lane rings after it has set one.
            if lane.ring.arm_room(size):
                self._check_may_send()
                await self._sleep_on(lane.room_wake)
        finally:
            self._waiting_send -= 1
            lane.ring.disarm_room()
        lane.room_wake.drain()
        self._check_may_send()

    # Receiving

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Take the bytes that have arrived, and wait for them if there are none.

        Small chunks are joined; a single chunk that fits is returned by reference.

        If cancelled, nothing was taken.

        Args:
            max_bytes: the most bytes to return. With `None`, the default, small chunks are joined up to 512 KiB,
                and a larger chunk is returned whole.

        Returns:
            At least one byte; ``b""`` once the other end has finished and all its bytes were read.

        Raises:
            trio.ClosedResourceError: this end was closed.
            trio.BrokenResourceError: the other end failed, and all bytes that came before were returned.
            trio.BusyResourceError: another task is receiving.
            ValueError: ``max_bytes`` is below 1.
            TypeError: ``max_bytes`` is not an integer.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes!r}")
        with self._receive_conflict:
            self._check_may_receive()
            await trio.lowlevel.checkpoint_if_cancelled()
            lane = self._receive
            slept = False
            while True:
                finished = lane.finished  # read before the ring, see `Lane`
                data = self._take(max_bytes)
                if data or finished:
                    if not slept:  # a sleep was a checkpoint already
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    return data or self._at_end()
                slept |= await self._wait_data()
                self._check_may_receive()

    def _take(self, max_bytes: int | None) -> bytes:
        if self._receive.discarded:
            return b""
        ring = self._receive.ring
        return ring.take_whole(DEFAULT_RECEIVE_SIZE) if max_bytes is None else ring.take(max_bytes)

    def _check_may_receive(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this console stream was closed")

    def _at_end(self) -> bytes:
        if self._receive.cause is not None:
            raise trio.BrokenResourceError("the other end of the console failed") from self._receive.cause
        return b""

    async def _wait_data(self) -> bool:
        """Sleep until there may be bytes to take; returns whether it slept."""
        lane = self._receive
        assert not self._waiting_receive, "one task sleeps on a wake: another would disarm it"
        self._waiting_receive += 1
        try:
            if sleepy := lane.ring.arm_data() and not lane.finished:
                await self._sleep_on(lane.data_wake)
        finally:
            self._waiting_receive -= 1
            lane.ring.disarm_data()
        lane.data_wake.drain()
        return sleepy

    # Both

    async def _sleep_on(self, wake: WakePipe) -> None:
        # Another thread may close the wake at any moment. If we read the bell before that, the other thread rings
        # it after it has set the flags, and its descriptor is not closed during our sleep, because we hold the
        # bell. If we read it after that, the flags were set before: the caller checks them next and leaves its
        # loop. The checkpoint makes sure that other tasks run even then.
        held = [wake._bell]
        if held[0].read_fd < 0:
            await trio.lowlevel.checkpoint()
            return
        try:
            await trio.lowlevel.wait_readable(held[0].read_fd)
        except trio.ClosedResourceError:
            return  # another thread called notify_closing: the flags say why
        finally:
            # The traceback of an exception that ends this sleep refers to this frame. If it is kept, or is part of
            # a reference cycle, it must not keep the descriptor open. (The bell is held by a list, and not by a
            # variable: a look at the frame's `f_locals`, as by the handler for Ctrl-C of trio 0.27, makes a
            # copy of the variables, which the frame keeps.)
            held.clear()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close both directions.

        The bytes sent before still reach the other end, which is then at end of file. The bytes that the other end
        sends from now on are dropped and counted. If cancelled (as by `trio.aclose_forcefully`), the stream is
        closed all the same, and the bytes still queued are dropped and counted too. Only the first call decides
        that: a later call changes nothing, cancelled or not. Tasks blocked on this stream get
        `trio.ClosedResourceError`.
        """
        first = not self._closed
        if first:
            self._closed = True
            self._send.finish()
            self._receive.abandon()
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            if first:
                self._drop()
            raise

    def _drop(self) -> None:
        """Drop and count the bytes that are still queued after `aclose`, and wait for the other end no longer."""
        assert self._closed, "bytes are dropped only when no more can come"
        self._send.discard()


@final
class ConsoleStream(LaneStream):
    """The host's end of a console, as a `trio.abc.HalfCloseableStream`.

    The guest's end is driven by the threads of another program part, through an `AgentConsoleBackend` over the
    same state. `open_console` gives a stream whose device is driven by threads of this package.

    Like every trio stream it belongs to one trio run and its thread; two tasks may use it at the same time only in
    opposite directions. The bytes pass between the threads by reference; a system call is made only when a thread
    sleeps. If the stream is garbage-collected without having been closed, it warns (`ResourceWarning`), and the
    device is told that the host has gone.

    Args:
        shared: the state whose host end this is.
    """

    def __init__(self, shared: ConsoleSharedState) -> None:
        super().__init__(send=shared._rx, receive=shared._tx)
        self._shared = shared  # keeps the wakes open
        self._was_closed = trio.Event()
        self._was_dropped = trio.Event()

    @trio.lowlevel.enable_ki_protection
    def __del__(self) -> None:
        # The device's threads know only the state. If they were not told here that the host has gone, they would
        # wait for ever. (This may run in any thread and at any moment; setting flags and ringing bells may, too.)
        if not getattr(self, "_closed", True):
            self._closed = True
            self._shared.host_gone()
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    async def aclose(self) -> None:
        self._was_closed.set()
        await super().aclose()

    aclose.__doc__ = LaneStream.aclose.__doc__

    def _drop(self) -> None:
        super()._drop()
        self._was_dropped.set()

    _drop.__doc__ = LaneStream._drop.__doc__

    async def _wait_closed(self) -> None:
        """Wait until `aclose` was called. If cancelled, nothing changes."""
        await self._was_closed.wait()

    async def _wait_dropped(self) -> None:
        """Wait until the queued bytes were dropped, as by a forceful `aclose`. If cancelled, nothing changes."""
        await self._was_dropped.wait()

    def statistics(self) -> ConsoleStatistics:
        """The bytes that passed, that are queued and that were dropped, in each direction; the tasks that wait."""
        return ConsoleStatistics(
            tx=self._receive.statistics(),
            rx=self._send.statistics(),
            tasks_waiting_send=self._waiting_send,
            tasks_waiting_receive=self._waiting_receive,
            closed=self._closed,
        )
