"""The state that a console device and its host share, and the backend that the device's threads call.

Directions are named as the **guest** sees them: in *tx* the guest transmits (guest to host), in *rx* it receives
(host to guest). Each direction is a `Lane`: a ring, the two wakes that belong to it, and its ending.

The device's threads belong to the VMM. Such a thread may retry a failed call for ever without checking its stop
flag, while the VMM waits for the thread before it can exit. So after the host has gone, every call succeeds at
once: a read is at end of file, and the bytes of a write are dropped and counted.

This module must not know what the bytes mean, who starts the threads, nor import trio.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, final

from trio_console._buffers import flat_view
from trio_console._console.ring import DEFAULT_CAPACITY, DEFAULT_MAX_BYTES, LaneRing
from trio_console._console.wake import WakePipe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_console._console.ring import BytesLike, ChunkRing

__all__ = ["AgentConsoleBackend", "ConsoleSharedState", "Lane", "LaneStatistics"]


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """One direction of a console at one moment.

    Bytes in are bytes out, plus bytes queued, plus bytes dropped:
    ``bytes_in == bytes_out + current_buffer_bytes + bytes_dropped``.

    Attributes:
        bytes_in: bytes accepted from the producer.
        bytes_out: bytes taken by the consumer.
        bytes_dropped: bytes accepted, and then not delivered because an end was closed.
        current_buffer_used: chunks queued now.
        max_buffer_size: the most chunks that can be queued.
        current_buffer_bytes: bytes queued now.
        max_buffer_bytes: the most bytes that can be queued.
        wakes: rings between the two threads, each of which is a system call.
        finished: whether the producer has finished: it sends no more bytes.
        abandoned: whether the consumer has gone.
    """

    bytes_in: int
    bytes_out: int
    bytes_dropped: int
    current_buffer_used: int
    max_buffer_size: int
    current_buffer_bytes: int
    max_buffer_bytes: int
    wakes: int
    finished: bool
    abandoned: bool


@final
class Lane:
    """One direction of a console: a ring, its two wakes, and its ending.

    A flag only ever changes from false to true. It is set first, and then both wakes are rung, unconditionally: a
    sleeping thread checks the flags after every wake-up, and a thread that is about to sleep finds the wake
    readable. Code that reads a flag and the ring reads the flag *first*: the producer pushes and then finishes, so
    a reader that sees "finished" and then an empty ring is at the end.

    All this also holds without the interpreter lock. It needs only two things: that a thread's stores are seen in
    their order, and that a store made before a ring is seen after the sleep that the ring ends; two system calls
    on one descriptor give that. No thread reads something to decide whether to ring for a flag, so no store has to
    be seen before a read (as in `_console.ring`, which needs fences for it).
    """

    __slots__ = (
        "abandoned",
        "cause",
        "data_wake",
        "discarded",
        "finished",
        "ring",
        "room_wake",
        "swallowed",
        "undelivered",
    )

    def __init__(self, capacity: int, max_bytes: int) -> None:
        self.data_wake: Final = WakePipe()
        self.room_wake: Final = WakePipe()
        self.ring: Final = LaneRing(capacity, max_bytes, data_wake=self.data_wake, room_wake=self.room_wake)
        self.finished = False  # set by the producer: it sends no more bytes
        self.discarded = False  # set by the producer: the bytes still queued are dropped
        self.abandoned = False  # set by the consumer: it takes no more bytes
        self.cause: BaseException | None = None  # the error that ended the lane, if one did
        self.swallowed = 0  # written by the producer: bytes dropped after `abandoned`
        self.undelivered = 0  # written by the consumer: bytes it took and could not pass on

    def finish(self, cause: BaseException | None = None) -> None:
        """End the producer's side: the consumer gets the queued bytes, and then end of file or the cause."""
        if not self.finished:
            self.cause = self.cause or cause
            self.finished = True
        self._wake_all()

    def discard(self) -> None:
        """End the producer's side by force: the queued bytes count as dropped."""
        self.discarded = True
        self.finish()

    def abandon(self, cause: BaseException | None = None) -> None:
        """End the consumer's side: it takes no more bytes."""
        if not self.abandoned:
            self.cause = self.cause or cause
            self.abandoned = True
            self.ring.revoke()  # after the flag, because a producer whose chunk is refused checks the flag
        self._wake_all()

    def _wake_all(self) -> None:
        assert self.finished or self.abandoned, "a flag is set first, and then both wakes are rung"
        self.data_wake.wake()
        self.room_wake.wake()

    def close_wakes(self) -> None:
        """Close the descriptors. Only when neither end will use them again."""
        # The close rings: a thread that still sleeps looks at the flags, and must find that the lane has ended.
        assert self.finished or self.abandoned, "a lane has ended before its wakes are closed"
        self.data_wake.close()
        self.room_wake.close()

    def swallow(self, size: int) -> int:
        """Drop and count bytes that were pushed into an abandoned lane; returns their number."""
        self.swallowed += size
        return size

    def statistics(self) -> LaneStatistics:
        # Each number is read once, and a number that grows after another is read after it: otherwise the bytes out
        # of a busy lane could seem to be negative.
        ring, swallowed, undelivered = self.ring, self.swallowed, self.undelivered
        queued = ring.nbytes
        assert queued >= 0, "bytes in = bytes out + bytes queued: no more are taken than were pushed"
        total = ring.total_bytes + swallowed
        lost = self.abandoned or self.discarded
        bytes_out = total - swallowed - undelivered - queued
        assert bytes_out >= 0, "bytes in = bytes out + bytes queued + bytes dropped: no more are lost than came"
        return LaneStatistics(
            bytes_in=total,
            bytes_out=bytes_out,
            bytes_dropped=swallowed + undelivered + (queued if lost else 0),
            current_buffer_used=0 if lost else len(ring),
            max_buffer_size=ring.capacity,
            current_buffer_bytes=0 if lost else queued,
            max_buffer_bytes=ring.max_bytes,
            wakes=ring.wakes,
            finished=self.finished,
            abandoned=self.abandoned,
        )


@final
class ConsoleSharedState:
    """The state that the two ends of a console share. Give it to an `AgentConsoleBackend` and a `ConsoleStream`.

    It holds four descriptors on Linux. They are closed by `close_wakes`, or when the last end that refers to this
    state has been garbage-collected; never while a device thread could still write to one. All methods may be
    called from any thread.

    Args:
        capacity: chunks that can be queued in each direction; by default 2048.
        max_bytes: bytes that can be queued in each direction; by default 1 MiB.

    Raises:
        OSError: no descriptor could be made.
        ValueError: a bound is below 1.
    """

    __slots__ = ("__weakref__", "_rx", "_tx")

    def __init__(self, capacity: int = DEFAULT_CAPACITY, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._tx: Final = Lane(capacity, max_bytes)
        self._rx: Final = Lane(capacity, max_bytes)

    @property
    def tx_ring(self) -> ChunkRing:
        """Guest to host: the device's thread pushes, the host pops."""
        return self._tx.ring

    @property
    def rx_ring(self) -> ChunkRing:
        """Host to guest: the host pushes, the device's thread pops."""
        return self._rx.ring

    @property
    def tx_wake(self) -> WakePipe:
        """Rung when the host can take chunks from `tx_ring`."""
        return self._tx.data_wake

    @property
    def rx_wake(self) -> WakePipe:
        """Rung when the device can take chunks from `rx_ring`; see `AgentConsoleBackend.read_wake_fd`."""
        return self._rx.data_wake

    def guest_gone(self, cause: BaseException | None = None) -> None:
        """End the guest's side of both directions. May be called from any thread.

        The host reads the queued bytes, then end of file, or `trio.BrokenResourceError` if there is a ``cause``.
        Its sending raises `trio.BrokenResourceError`.
        """
        self._tx.finish(cause)
        self._rx.abandon(cause)

    def host_gone(self) -> None:
        """End the host's side of both directions. May be called from any thread.

        The device reads the queued bytes, then end of file. The bytes that it writes are dropped and counted.
        """
        self._rx.finish()
        self._tx.abandon()

    def close_wakes(self) -> None:
        """Close the descriptors now. Only when no device thread will call the backend again. From any thread.

        This also ends the guest's side. If neither `guest_gone` nor the device has ended it before, the host's
        tasks read the queued bytes and then get `trio.BrokenResourceError`.
        """
        self.guest_gone(ConnectionAbortedError(errno.ECONNABORTED, "the console's wakes were closed"))
        self._tx.close_wakes()
        self._rx.close_wakes()


@final
class AgentConsoleBackend:
    """A console as a VMM's device threads see it: non-blocking calls, and a descriptor to wait on.

    For exactly one thread that reads and one that writes; they may be the same thread. A call that would block
    always raises `BlockingIOError`.

    Args:
        shared: the state whose guest end the device drives.
    """

    __slots__ = ("_failed", "_offer", "_refused", "_rx", "_shared", "_tx")

    def __init__(self, shared: ConsoleSharedState) -> None:
        self._shared = shared
        self._rx = shared._rx
        self._tx = shared._tx
        self._offer = shared._tx.ring.offer
        self._refused = (
            1  # bytes of the last write that was refused: `wait_until_writable` waits for this much room
        )
        self._failed = False  # a write was lost for want of memory, so all later bytes are dropped

    # Host to guest: the reading thread

    def read(self, max_bytes: int) -> bytes:
        """Take as many bytes as the host has sent, up to ``max_bytes``.

        Returns:
            At least one byte; ``b""`` only when the host has finished and all its bytes were read.

        Raises:
            BlockingIOError: the host has sent no bytes yet. Read again when the descriptor of `read_wake_fd` is
                readable. Also raised if ``max_bytes`` is 0, because a device would take an empty result for end of
                file.
        """
        if max_bytes < 1:
            self._refuse_empty_read()
        if not self._ready():
            return b""
        try:
            return self._rx.ring.take(max_bytes, fill=True)
        except MemoryError as exc:
            self._fail_reading(exc)
            return b""

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Like `read`, but copy the bytes into the device's ``buffer``.

        Returns:
            The number of bytes copied; 0 is end of file.

        Raises:
            BlockingIOError: as in `read`, also if ``buffer`` is empty.
        """
        with memoryview(buffer).cast("B") as view:
            if not view:
                self._refuse_empty_read()
            if not self._ready():
                return 0
            try:
                return self._rx.ring.readinto(view)
            except MemoryError as exc:
                self._fail_reading(exc)
                return 0

    def readv(self, buffers: Iterable[bytearray | memoryview]) -> int:
        """Like `readinto`, for a chain of buffers: fills each of them before the next one.

        Returns:
            The number of bytes copied into all of them; 0 is end of file.

        Raises:
            BlockingIOError: as in `read`, also if all buffers are empty.
        """
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        if not any(map(len, views)):
            self._refuse_empty_read()
        if not self._ready():
            return 0
        filled = 0
        try:
            for view in views:
                filled += (size := self._rx.ring.readinto(view))
                if size < len(view):
                    break
        except MemoryError as exc:
            if not filled:
                self._fail_reading(exc)
        return filled

    def _fail_reading(self, cause: MemoryError) -> None:
        """End both directions: there was not enough memory for a read, and a device cannot handle that error."""
        self._shared.guest_gone(cause)
        self._rx.discard()  # the device is at end of file from now on; the queued bytes count as dropped

    def _refuse_empty_read(self) -> NoReturn:
        self._ready()  # silences the descriptor if there is nothing, because the device polls it next
        raise BlockingIOError(errno.EAGAIN, "a read of 0 bytes: only a larger one can have a result")

    def _ready(self) -> bool:
        """`True` if the ring has bytes, `False` at end of file; otherwise it raises `BlockingIOError`.

        After `True` or `False` the descriptor is readable, or the host is about to ring it. After
        `BlockingIOError` it is not readable, and the wake is armed, so it becomes readable with the next chunk or
        the end. This holds because the wake starts armed and unrung; only the lines below drain it; and after that
        they arm it, check the ring again, and ring it themselves if they find a chunk. So a read that has a result
        makes no system call, and a device that reads until it would block drains once for each wake-up.
        """
        rx = self._rx
        ring = rx.ring
        while True:
            finished = rx.finished  # read before the ring, see `Lane`
            if rx.discarded:
                return False
            if ring:
                return True
            if finished:
                return False
            # The ring is empty. The wake is drained before it is armed and before the ring is checked again: so a
            # chunk whose ring was drained is found. A host that finishes from here on sets its flag and then
            # rings.
            rx.data_wake.drain()
            if ring.arm_data() and not rx.finished:
                raise BlockingIOError(errno.EAGAIN, "nothing to read: wait for read_wake_fd()")
            rx.data_wake.wake()

    def read_wake_fd(self) -> int:
        """The descriptor to poll for reading. Its number never changes.

        It is level-triggered: it is readable while a read would return bytes or end of file. So a device may poll
        after each read, and need not read until a read would block. It may also be readable when there are no
        bytes: the next read then raises `BlockingIOError`, and the descriptor is not readable until bytes arrive.
        Edge-triggered polling gets an edge for the first bytes after each `BlockingIOError`.
        """
        return self._rx.data_wake.fileno()

    # Guest to host: the writing thread

    def write(self, data: BytesLike) -> int:
        """Queue all of ``data`` for the host. After the host has gone, the bytes are dropped and counted.

        Returns:
            The number of bytes in ``data``.

        Raises:
            BlockingIOError: the bytes do not fit now; none was taken. Call `wait_until_writable`, then write
                again.
            TypeError: ``data`` is not bytes-like.
        """
        try:
            return self._offer(data) or self._refuse(data)
        except MemoryError as exc:
            self._fail_writing(exc)
            return self._refuse(data)

    def writev(self, buffers: Iterable[BytesLike]) -> int:
        """Like `write`, for a chain of buffers: all their bytes are taken, as one chunk, or none.

        Returns:
            The number of bytes in all of them.

        Raises:
            BlockingIOError, TypeError: as in `write`.
        """
        chain = [memoryview(buffer) for buffer in buffers]
        try:
            data = b"".join(map(flat_view, chain))
        except MemoryError as exc:
            self._fail_writing(exc)
            return self._tx.swallow(sum(view.nbytes for view in chain))
        return self.write(data)

    def _fail_writing(self, cause: MemoryError) -> None:
        """End the channel: there was not enough memory for a copy, and a device would retry for ever.

        The bytes already queued are still delivered; later ones are dropped and counted.
        """
        self._failed = True
        self._tx.ring.revoke()
        self._shared.guest_gone(cause)

    def _refuse(self, data: BytesLike) -> int:
        """Handle ``data`` that the ring did not take: it is empty, the ring is full, or the lane has ended."""
        size = memoryview(data).nbytes
        if self._failed or self._tx.abandoned:
            return self._tx.swallow(size)
        if not size:
            return 0
        self._refused = size
        raise BlockingIOError(errno.EAGAIN, "the ring is full: call wait_until_writable(), then write again")

    def wait_until_writable(self, timeout: float | None = None) -> bool:
        """Block the writing thread until the bytes that `write` refused last would fit, or the host has gone.

        Args:
            timeout: seconds; `None`, the default, waits for ever.

        Returns:
            `False` if the time ran out.
        """
        tx = self._tx
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (self._failed or tx.abandoned or tx.ring.fits(self._refused)):
            if not wait_for_room(tx, self._refused, deadline):
                return False
        return True


def wait_for_room(lane: Lane, size: int, deadline: float | None = None) -> bool:
    """Block the producer's thread until ``size`` bytes may fit or the lane has ended.

    It may return early, so the caller checks again. Returns `False` at the deadline (on the monotonic clock).
    """
    ring = lane.ring
    try:
        # No end is missed: the flag is read after the wake was armed, and `abandon` rings after it has set the
        # flag.
        if not ring.arm_room(size) or lane.abandoned:
            return True
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not lane.room_wake.wait(left):
            return False
    finally:
        ring.disarm_room()
    lane.room_wake.drain()
    return True
