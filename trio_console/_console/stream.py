"""A console's lanes as a trio stream.

The stream is one end of two lanes: it produces into one and consumes from the other, while a foreign thread
does the opposite. Tasks sleep with ``trio.lowlevel.wait_readable`` on the lanes' wakes.

After each sleep the flags are looked at before anything else: they say why it ended.

This module must not know what the bytes mean, nor who drives the other end.
"""

from __future__ import annotations

import operator
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._buffers import flat_view
from trio_console._trio.conflict import Conflict

if TYPE_CHECKING:
    from trio_console._console.backend import ConsoleSharedState, Lane, LaneStatistics
    from trio_console._console.ring import BytesLike
    from trio_console._console.wake import WakePipe

__all__ = ["ConsoleStatistics", "ConsoleStream", "LaneStream"]

#: Bytes up to which one `receive_some` joins chunks when the caller names no limit. A single larger one is handed
#: on as it came, so one turn of a task takes no more than the ring holds. Half a ring: the producer is woken then,
#: and fills it while the other half is taken. (With a quarter, a chunk of 4 or 64 KiB took 6 to 10 % more of the
#: processor.)
DEFAULT_RECEIVE_SIZE: Final = 512 * 1024

#: A `send_all` copies what it cannot queue as it is in pieces of at most this size, and of what the ring is filled
#: with while the other end takes from it.
_SLICE: Final = 64 * 1024

#: Such pieces that one turn of a task queues, so that a device that is always faster cannot keep a large
#: `send_all` from ever sleeping, and the other tasks from running.
_SLICES_PER_TURN: Final = 4


@dataclass(frozen=True, slots=True)
class ConsoleStatistics:
    """A console channel at one moment.

    Attributes:
        tx: guest to host: what is received here.
        rx: host to guest: what is sent here.
        tasks_waiting_send: tasks blocked in sending now.
        tasks_waiting_receive: tasks blocked in receiving now.
        closed: this end was closed.
    """

    tx: LaneStatistics
    rx: LaneStatistics
    tasks_waiting_send: int
    tasks_waiting_receive: int
    closed: bool


class LaneStream(trio.abc.HalfCloseableStream):
    """One end of two lanes; see `ConsoleStream` for the contract."""

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
        """Queue all of ``data`` for the other end, waiting for room.

        `bytes` that fit the ring are queued by reference; anything else is copied once. Returns when
        everything is queued, not when the other end has taken it.

        If cancelled, nothing of `bytes` that fit the ring was queued; of anything else an unknown part may have
        been, as with every trio stream.

        Raises:
            trio.ClosedResourceError: this end was closed, or `send_eof` was called.
            trio.BrokenResourceError: the other end is gone.
            trio.BusyResourceError: another task is sending.
        """
        with self._send_conflict:
            self._check_may_send()
            await trio.lowlevel.checkpoint_if_cancelled()
            ring = self._send.ring
            # Queued before the checkpoint: the other end works on it while the other tasks have their turn.
            if type(data) is bytes and len(data) <= ring.max_bytes:
                while not ring.offer(data) and data:
                    await self._wait_room(len(data))
            else:
                with flat_view(data) as view:
                    await self._send_pieces(view)
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _send_pieces(self, view: memoryview) -> None:
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
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is some room, or sending would fail at once. Errors as in `send_all`."""
        with self._send_conflict:
            self._check_may_send()
            await trio.lowlevel.checkpoint()
            self._check_may_send()
            while not self._send.ring.fits(1):
                await self._wait_room(1)

    @trio.lowlevel.enable_ki_protection
    async def send_eof(self) -> None:
        """Tell the other end that nothing more comes; receiving goes on. Repeating it does nothing.

        The other end sees end of file after what was sent before. Never blocks. If cancelled, it was not told.

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
        self._waiting_send += 1
        try:
            # The flags are looked at after arming: whoever sets one rings the wake after setting it.
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
        """Take what has arrived, at least one byte, waiting for it.

        Small chunks are joined; a chunk that fits is handed on by reference.

        If cancelled, nothing was taken.

        Args:
            max_bytes: the most bytes to return. With `None` small chunks are joined up to 512 KiB, and a larger
                one is returned whole.

        Returns:
            ``b""`` once the other end has finished and everything was read.

        Raises:
            trio.ClosedResourceError: this end was closed.
            trio.BrokenResourceError: the other end failed; everything that came before was returned.
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
                finished = lane.finished  # before the look at the ring, see `Lane`
                data = self._take(max_bytes)
                if data or finished:
                    if not slept:  # otherwise the others have had their turn
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
        """Sleep until there may be something to take; whether it slept."""
        lane = self._receive
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
        # Another thread may close the wake at any moment. If we get its bell before that, it is rung then, after
        # the flags that say why; and its descriptor is not closed under us, since we hold the bell until we are
        # awake. If we do not, the flags were set before we looked: the caller's next look at them ends its loop,
        # and a checkpoint keeps that honest.
        bell = wake.bell
        if bell.read_fd < 0:
            await trio.lowlevel.checkpoint()
            return
        try:
            await trio.lowlevel.wait_readable(bell.read_fd)
        except trio.ClosedResourceError:
            return  # told by somebody's notify_closing: the flags say why
        finally:
            # The traceback of what ends this sleep refers to this frame, and may be kept, or in a cycle. The
            # descriptor must not depend on that.
            del bell

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close both directions.

        What was sent before still reaches the other end, which then sees end of file; what it sends from now
        on is dropped and counted. If cancelled (as by `trio.aclose_forcefully`), what is queued is
        dropped and counted too. Only the first call counts: a later one, cancelled or not, takes nothing back.
        Tasks blocked on this stream get `trio.ClosedResourceError`.
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
                self.drop()
            raise

    def drop(self) -> None:
        """Drop and count what is still queued after `aclose`: the other end has had its time."""
        self._send.discard()


@final
class ConsoleStream(LaneStream):
    """The host's end of a console, as a `trio.abc.HalfCloseableStream`.

    Its guest end is driven by somebody else's threads, through an `AgentConsoleBackend` over the same state.
    `open_console` gives one whose device is driven for you.

    Like every trio stream it belongs to one trio run; two tasks may use it at once only in opposite
    directions. The bytes go by reference between the threads; a system call is made only when one of
    them sleeps. Collected unclosed it warns (`ResourceWarning`), and the device sees the host's end gone.
    """

    def __init__(self, shared: ConsoleSharedState) -> None:
        super().__init__(send=shared.rx, receive=shared.tx)
        self._shared = shared  # keeps the wakes open
        self._was_closed = trio.Event()
        self._was_dropped = trio.Event()

    @trio.lowlevel.enable_ki_protection
    def __del__(self) -> None:
        # The device's threads know the state, and nobody else can tell them: they would wait for ever. (May run in
        # any thread, in the middle of anything: setting flags and ringing bells may, too.)
        if not getattr(self, "_closed", True):
            self._closed = True
            self._shared.host_gone()
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    async def aclose(self) -> None:
        self._was_closed.set()
        await super().aclose()

    aclose.__doc__ = LaneStream.aclose.__doc__

    def drop(self) -> None:
        super().drop()
        self._was_dropped.set()

    drop.__doc__ = LaneStream.drop.__doc__

    async def wait_closed(self) -> None:
        """Wait until `aclose` was called."""
        await self._was_closed.wait()

    async def wait_dropped(self) -> None:
        """Wait until what was queued was dropped, as by a forceful `aclose`: nothing more is to be delivered."""
        await self._was_dropped.wait()

    def statistics(self) -> ConsoleStatistics:
        """What went through, what is queued, and what was dropped."""
        return ConsoleStatistics(
            tx=self._receive.statistics(),
            rx=self._send.statistics(),
            tasks_waiting_send=self._waiting_send,
            tasks_waiting_receive=self._waiting_receive,
            closed=self._closed,
        )
