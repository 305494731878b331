"""The state a console device and its host share, and the backend the device's threads call.

Directions are named as the **guest** sees them: *tx* is what it transmits (guest to host), *rx* what it
receives (host to guest). Each direction is a `Lane`: a ring, the two wakes that belong to it, and how it
ended.

A device thread is not ours. It may retry for ever whatever is not a success, never look at its own stop flag,
and be joined by its VMM before that can exit. So after the host has gone, every call succeeds at once:
reads are at end of file, writes are swallowed and counted.

This module must not know what the bytes mean, who starts the threads, nor import trio.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, final

from trio_console._console.ring import DEFAULT_CAPACITY, DEFAULT_MAX_BYTES, ChunkRing
from trio_console._console.wake import WakePipe

if TYPE_CHECKING:
    from trio_console._console.ring import BytesLike

__all__ = ["AgentConsoleBackend", "ConsoleSharedState", "Lane", "LaneStatistics"]


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """One direction of a console at one moment; bytes unless it says otherwise.

    What came in is what went out, plus what is queued, plus what was dropped:
    ``bytes_in == bytes_out + current_buffer_bytes + bytes_dropped``.

    Attributes:
        bytes_in: accepted from the producer.
        bytes_out: taken by the consumer.
        bytes_dropped: accepted, and then not delivered because an end was closed.
        current_buffer_used: chunks queued now.
        max_buffer_size: chunks that may be queued.
        current_buffer_bytes: queued now.
        max_buffer_bytes: may be queued.
        wakes: wake-ups sent between the two threads, each a system call.
        finished: the producer has said that nothing more comes.
        abandoned: the consumer has gone.
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
    """One direction: a ring, its wakes, and its ending.

    The flags only ever go from false to true. Each is published first and then both wakes are rung,
    unconditionally: a sleeper looks at the flags after every wake-up, and one that was about to sleep
    finds the wake readable. Whoever reads a flag together with the ring reads the flag *first*: the
    producer pushes and then finishes, so "finished, and then found empty" is the end.

    All this holds without the interpreter lock, too. It asks only that a thread's stores are seen in their order,
    and that what was stored before a ring is seen after the sleep which that ring ends, as it is around two
    system calls on one descriptor. Nobody decides by a look whether to ring for a flag, so no store has to
    be seen before a look (as those of `_console.ring` have).
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
        self.ring: Final = ChunkRing(capacity, max_bytes, data_wake=self.data_wake, room_wake=self.room_wake)
        self.finished = False  # the producer: nothing more comes
        self.discarded = False  # the producer: and forget what is queued
        self.abandoned = False  # the consumer: nobody takes any more
        self.cause: BaseException | None = None  # why, where it was not orderly
        self.swallowed = 0  # producer's: bytes it gave away after `abandoned`
        self.undelivered = 0  # consumer's: bytes it took and could not pass on

    def finish(self, cause: BaseException | None = None) -> None:
        """The producer's end: the consumer gets what is queued, then end of file, or the cause."""
        if not self.finished:
            self.cause = self.cause or cause
            self.finished = True
        self._wake_all()

    def discard(self) -> None:
        """The producer's forceful end: what is queued counts as dropped."""
        self.discarded = True
        self.finish()

    def abandon(self, cause: BaseException | None = None) -> None:
        """The consumer's end: nothing is taken any more."""
        if not self.abandoned:
            self.cause = self.cause or cause
            self.abandoned = True
            self.ring.revoke()  # afterwards: a producer that is refused looks at the flag
        self._wake_all()

    def _wake_all(self) -> None:
        self.data_wake.wake()
        self.room_wake.wake()

    def close_wakes(self) -> None:
        """Give the descriptors back. Only when both ends have let go of them for good."""
        self.data_wake.close()
        self.room_wake.close()

    def swallow(self, size: int) -> int:
        """Drop and count bytes given to an abandoned lane."""
        self.swallowed += size
        return size

    def statistics(self) -> LaneStatistics:
        # Each is read once, and what follows from another after it, or a busy lane would seem to have put out less
        # than nothing.
        ring, swallowed, undelivered = self.ring, self.swallowed, self.undelivered
        queued = ring.nbytes
        total = ring.total_bytes + swallowed
        lost = self.abandoned or self.discarded
        return LaneStatistics(
            bytes_in=total,
            bytes_out=total - swallowed - undelivered - queued,
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
    """Everything a console's two ends share. Give it to an `AgentConsoleBackend` and a `ConsoleStream`.

    Holds four descriptors on Linux. They are closed when the last end that refers to this state has been
    collected, or by `close_wakes`; never while a device thread could still write to one.

    Args:
        capacity: chunks that may be queued in each direction.
        max_bytes: bytes that may be queued in each direction.

    Raises:
        OSError: no descriptor could be made.
        ValueError: a bound is below 1.
    """

    __slots__ = ("__weakref__", "rx", "tx")

    def __init__(self, capacity: int = DEFAULT_CAPACITY, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.tx: Final = Lane(capacity, max_bytes)
        self.rx: Final = Lane(capacity, max_bytes)

    @property
    def tx_ring(self) -> ChunkRing:
        """Guest to host: the device's thread pushes, the host pops."""
        return self.tx.ring

    @property
    def rx_ring(self) -> ChunkRing:
        """Host to guest: the host pushes, the device's thread pops."""
        return self.rx.ring

    @property
    def tx_wake(self) -> WakePipe:
        """Tells the host that there is something in `tx_ring`."""
        return self.tx.data_wake

    @property
    def rx_wake(self) -> WakePipe:
        """Tells the device that there is something in `rx_ring`; see `AgentConsoleBackend.read_wake_fd`."""
        return self.rx.data_wake

    def guest_gone(self, cause: BaseException | None = None) -> None:
        """The guest's end is gone. From any thread.

        The host reads what is queued, then end of file, or `trio.BrokenResourceError` if there is a
        ``cause``; sending raises `trio.BrokenResourceError`.
        """
        self.tx.finish(cause)
        self.rx.abandon(cause)

    def host_gone(self) -> None:
        """The host's end is gone. From any thread.

        The device reads what is queued, then end of file; what it writes is swallowed and counted.
        """
        self.rx.finish()
        self.tx.abandon()

    def close_wakes(self) -> None:
        """Give the descriptors back now. Only once no device thread will call the backend again. From any thread.

        The guest's end is then gone. A host that has not been told so by `guest_gone`, or by the device's own end,
        is told now: its tasks get `trio.BrokenResourceError` after what is queued.
        """
        self.guest_gone(ConnectionAbortedError(errno.ECONNABORTED, "the console's wakes were closed"))
        self.tx.close_wakes()
        self.rx.close_wakes()


@final
class AgentConsoleBackend:
    """A console as a VMM's device threads see it: non-blocking calls and a descriptor to wait on.

    For exactly one thread that reads and one that writes (they may be the same). Would-block is
    `BlockingIOError`, always.
    """

    __slots__ = ("_failed", "_offer", "_refused", "_rx", "_shared", "_tx")

    def __init__(self, shared: ConsoleSharedState) -> None:
        self._shared = shared
        self._rx = shared.rx
        self._tx = shared.tx
        self._offer = shared.tx.ring.offer
        self._refused = 1  # bytes of the write that was refused last: what room must be waited for
        self._failed = False  # the writing thread's: a write could not be queued, and what comes after it is not

    # Host to guest: the reading thread

    def read(self, max_bytes: int) -> bytes:
        """Up to ``max_bytes`` of what the host sent, filled across chunks.

        Returns:
            At least one byte; ``b""`` only when the host has finished and everything was read.

        Raises:
            BlockingIOError: there is nothing yet, or ``max_bytes`` is 0: a device takes no bytes for end of
                file, for good. The descriptor of `read_wake_fd` tells when to come back.
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
        """Like `read`, into the device's own buffer; 0 is end of file."""
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

    def _fail_reading(self, cause: MemoryError) -> None:
        """There was no memory for what was to be read. A device could do nothing about it: the channel fails."""
        self._shared.guest_gone(cause)
        self._rx.discard()  # end of file from now on; what is queued counts as dropped

    def _refuse_empty_read(self) -> NoReturn:
        self._ready()  # the device polls after this as after any other would-block
        raise BlockingIOError(errno.EAGAIN, "a read of 0 bytes: only a larger one can have a result")

    def _ready(self) -> bool:
        """Whether there is something in the ring; `False` at end of file, would-block otherwise.

        After `True` or `False` the descriptor is readable, or somebody is about to ring it. After would-block it
        is silent and the wake armed, so it becomes readable as soon as there is something. Why: it starts silent
        and armed; nothing but the lines below drains it; and they arm it, look at the ring again, and ring it
        themselves for what they find. So a read that has a result makes no system call, and a device that reads
        until it would block drains once for each wake-up.
        """
        rx = self._rx
        ring = rx.ring
        while True:
            finished = rx.finished  # before the look at the ring, see `Lane`
            if rx.discarded:
                return False
            if ring:
                return True
            if finished:
                return False
            # Nothing. Drained before the wake is armed and the ring looked at again: a chunk whose wake-up this
            # swallows is found. A host that finishes from here on rings, since it sets the flag before.
            rx.data_wake.drain()
            if ring.arm_data() and not rx.finished:
                raise BlockingIOError(errno.EAGAIN, "nothing to read: wait for read_wake_fd()")
            rx.data_wake.wake()

    def read_wake_fd(self) -> int:
        """The descriptor to poll for reading; the same one for ever.

        Level-triggered: it is readable while a read would have a result, bytes or end of file. So a device may
        poll after each read, and need not read until one would block. It may also be readable when there is
        nothing: the read that then would block makes it silent until there is something. Edge-triggered polling
        gets an edge for the first bytes after each would-block.
        """
        return self._rx.data_wake.fileno()

    # Guest to host: the writing thread

    def write(self, data: BytesLike) -> int:
        """Queue all of ``data`` for the host.

        When the host has gone, the bytes are dropped, and counted as such.

        Returns:
            The number of bytes in ``data``.

        Raises:
            BlockingIOError: they do not fit now; nothing was taken. See `wait_until_writable`.
            TypeError: ``data`` is not bytes-like.
        """
        try:
            return self._offer(data) or self._refuse(data)
        except MemoryError as exc:
            # There was no memory for the copy. A device would retry for ever; the channel fails instead. What is
            # queued is delivered still; this, and all that is written after it, is dropped.
            self._failed = True
            self._tx.ring.revoke()
            self._shared.guest_gone(exc)
            return self._refuse(data)

    def _refuse(self, data: BytesLike) -> int:
        """The ring did not take ``data``: it was empty, or the ring is full, the host gone, or we have failed."""
        size = memoryview(data).nbytes
        if self._failed or self._tx.abandoned:
            return self._tx.swallow(size)
        if not size:
            return 0
        self._refused = size
        raise BlockingIOError(errno.EAGAIN, "the ring is full: wait_until_writable()")

    def wait_until_writable(self, timeout: float | None = None) -> bool:
        """Block the writing thread until what `write` refused last would be taken, or the host has gone.

        Args:
            timeout: seconds; `None` waits for ever.

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

    May return early: look again. `False` at the deadline (on the monotonic clock).
    """
    ring = lane.ring
    try:
        # The look at the flag comes after the arming, and its setter rings after setting it.
        if not ring.arm_room(size) or lane.abandoned:
            return True
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not lane.room_wake.wait(left):
            return False
    finally:
        ring.disarm_room()
    lane.room_wake.drain()
    return True
