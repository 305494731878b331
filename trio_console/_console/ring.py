"""A bounded queue of byte chunks between one producer thread and one consumer thread.

Chunks are handed over by reference. The ring is bounded in chunks *and* in bytes, because each bound alone would
let it grow: chunks can be large, and bytes can come in many tiny chunks. No lock is taken: the deque's ``append``
and ``popleft`` are atomic, and each counter has one writer. Only ``_granted`` has two, see `ChunkRing._grant`.

A `ChunkRing` is only this queue. A lane has a `LaneRing`, whose two ends can also sleep until the other end wakes
them, take many chunks at once, and leave.

The wake-up protocol lives here too, because it depends on the order in which each end sees the other's stores:

* The consumer takes all chunks; **arms** the data wake; checks the ring again; sleeps on the data wake; disarms it
  and drains it.
* The producer publishes a chunk; if the data wake is armed, it disarms it and rings it.

So a wake-up, which costs a system call and a hand-over of the interpreter lock, happens only when the consumer
sleeps or is about to sleep. The room wake does the same, in the other direction, for a producer that found the
ring full.

*Why no wake-up is lost.* The consumer sets the armed flag and then reads the deque; the producer appends to the
deque and then reads the flag. Under the interpreter lock all threads see these four steps in one order. In every
order either the producer reads the flag after it was set, and rings; or the chunk was appended before the consumer
read the deque, and the consumer does not sleep. An interpreter without that lock may let both reads happen before
both stores are seen; `FencedRing` says what puts them in order there.

*Why both sides may clear the flag.* The side that clears the flag for a sleeper always wakes that sleeper next. A
producer that acts on an old read of the flag can at most clear a newer arming, and then its ring ends the newer
sleep: the consumer wakes once without need, but no wake-up is lost.

This module must not know who the two sides are, nor import trio.
"""

from __future__ import annotations

import errno
from collections import deque
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Final, TypeAlias, final

from trio_console._console.build import FREE_THREADED

if TYPE_CHECKING:
    from trio_console._console.wake import WakePipe

__all__ = ["DEFAULT_CAPACITY", "DEFAULT_MAX_BYTES", "BytesLike", "ChunkRing", "LaneRing"]

#: The objects that can be pushed: all with the buffer protocol. Type checkers for Python 3.11 know only these
#: three.
BytesLike: TypeAlias = "bytes | bytearray | memoryview"

#: Chunks in a ring: the number in the console backend that this design comes from.
DEFAULT_CAPACITY: Final = 2048

#: Bytes in a ring. More bytes mean more latency: at 500 MB/s a control frame waits 2 ms for each MiB that is
#: queued before it. Fewer bytes mean more changes between the threads: the ring costs two of them (some 60
#: microseconds) each time it becomes empty or full, so it must hold the bytes that are moved in a few times that.
#: Measured with chunks of 64 KiB: 3.3 GiB/s through a ring of 256 KiB, 5 through 512 KiB, 6.3 through 1 MiB, and
#: less through 2 MiB.
DEFAULT_MAX_BYTES: Final = 1024 * 1024

#: The most bytes that a producer pushes at a time when it chooses the size of its chunks. Each chunk costs two
#: hand-overs of the interpreter lock, so it should be large; but with less than four chunks to a ring one side
#: would wait while the other works. (A block of more than 128 KiB is returned to the system by the C library's
#: allocator, and has to be requested again for the next chunk.)
_LARGEST_PIECE: Final = 128 * 1024


@final
class ChunkRing:
    """Bounded FIFO of immutable byte chunks, for one producer thread and one consumer thread.

    No method blocks. `push` and `pop` may each be called from one thread at a time; ``len()`` and the properties
    from any thread.

    Args:
        capacity: the most chunks it holds, at least 1; by default 2048.
        max_bytes: the most bytes it holds, at least 1; by default 1 MiB. A single larger chunk is accepted into an
            empty ring, because otherwise it could never pass.

    Raises:
        ValueError: a bound is below 1.
    """

    __slots__ = (
        "_chunks",
        "_data_armed",
        "_granted",
        "_least",
        "_offset",
        "_popped",
        "_pushed",
        "_revoked",
        "_room_armed",
        "capacity",
        "max_bytes",
    )

    def __init__(self, capacity: int = DEFAULT_CAPACITY, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 chunk, not {capacity}")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        self.capacity: Final = capacity
        self.max_bytes: Final = max_bytes
        self._chunks: deque[bytes] = deque()
        self._offset = 0  # written by the consumer: bytes of the first chunk already taken
        self._pushed = 0  # written by the producer: bytes ever published
        self._granted = 0  # written by the producer: `_pushed` may grow to this without reading `_popped` again
        self._least = 1  # written by the producer: the smallest chunk for which `_granted` holds
        self._revoked = False  # written by the consumer: it takes no more chunks
        self._popped = 0  # written by the consumer: bytes ever taken
        self._data_armed = False  # whether the consumer sleeps or is about to; only on a `LaneRing`
        self._room_armed = False  # the same of the producer

    def __len__(self) -> int:
        """Chunks in the ring."""
        return len(self._chunks)

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def __repr__(self) -> str:
        return f"<ChunkRing {len(self)}/{self.capacity} chunks, {self.nbytes}/{self.max_bytes} bytes>"

    @property
    def nbytes(self) -> int:
        """Bytes in the ring, without those already taken of the first chunk."""
        popped = self._popped  # read first: an older `_popped` with a newer `_pushed` is never negative
        return self._pushed - popped

    # The producer's side

    def push(self, chunk: BytesLike) -> None:
        """Append a chunk. An empty chunk is always accepted, and not stored.

        A `bytes` object is kept by reference; any other object is copied once.

        Raises:
            BlockingIOError: the ring is full.
            TypeError: ``chunk`` is not a bytes-like object.
        """
        if not self._offer(chunk) and memoryview(chunk).nbytes:
            raise BlockingIOError(errno.EAGAIN, "the ring is full: wait until the other side has taken bytes")

    def _offer(self, chunk: BytesLike) -> int:
        """Append a chunk if it fits, like `push`, and return the bytes accepted.

        That is the size of the chunk, or 0 if it does not fit, is empty, or was revoked.
        """
        # Every chunk passes these lines, and they are the larger part of a small chunk's cost. So the checks that
        # can be made once for many chunks are made by `_grant`.
        if type(chunk) is memoryview:
            chunk = chunk.tobytes()  # may raise MemoryError, so it comes before anything is counted
        elif type(chunk) is not bytes:
            chunk = bytes(memoryview(chunk))
        size = len(chunk)
        pushed = self._pushed + size
        if (pushed > self._granted or size < self._least) and not self._grant(size):
            return 0
        if size:
            # The chunk is counted before it is published: in the other order the consumer could take it in
            # between, and the ring would hold a negative number of bytes.
            self._pushed = pushed
            try:
                self._chunks.append(chunk)
            except MemoryError:
                self._pushed -= size
                raise
            if self._data_armed:
                self._wake_consumer()
        return size

    def _grant(self, size: int) -> bool:
        """Whether a chunk of ``size`` bytes fits. If it does, store how many more bytes will fit after it.

        ``_granted`` is the number up to which ``_pushed`` may grow with chunks of at least this size, so that
        neither the bytes nor the chunks exceed their bound. An old value of the consumer's counter is safe: the
        consumer only makes more room.
        """
        if not self._fits(size):
            return False
        room = self.max_bytes - (self._pushed - self._popped)
        self._least = size
        self._granted = self._pushed + max(size, min(room, (self.capacity - len(self._chunks)) * size))
        assert self._pushed + size <= self._granted, "a chunk that fits is granted"
        # `LaneRing.revoke` sets its flag, then takes the grant back; we grant, then read the flag. In every order
        # either `revoke` takes back our grant, or we see its flag.
        if self._revoked:
            self._granted = -1
            return False
        return True

    def _fits(self, size: int) -> bool:
        """Whether a chunk of ``size`` bytes fits now. `True` stays true only for the producer's own thread."""
        used = self._pushed - self._popped
        return not used or (used + size <= self.max_bytes and len(self._chunks) < self.capacity)

    # The consumer's side. If there is not enough memory, no byte is lost: each method, here and in `LaneRing`,
    # removes a chunk only after the bytes to be returned have been made.

    def pop(self) -> bytes | None:
        """Take the oldest chunk, or its rest if a part was taken before; `None` if the ring is empty."""
        if not self._chunks:
            return None
        chunk = self._first()
        self._popped += len(chunk)
        if self._room_armed:
            self._wake_producer(0)
        return chunk

    def _first(self) -> bytes:
        """Remove the oldest chunk and return its rest. The ring must not be empty. The caller counts the bytes."""
        chunk = self._chunks[0]
        if self._offset:
            chunk = chunk[self._offset :]
        self._chunks.popleft()
        self._offset = 0
        return chunk

    # Waking the other side: `LaneRing` does it

    def _wake_consumer(self) -> None:
        """Wake the consumer, which has armed the data wake."""

    def _wake_producer(self, low_water: int) -> None:
        """Wake the producer, which has armed the room wake, if the bytes that it waits for fit."""


class LaneRing(ChunkRing):  # type: ignore[misc]  # final for everybody else
    """The ring of a lane: its ends can also sleep until the other end wakes them, take many chunks, and leave.

    The methods of each side may be called from one thread at a time; `revoke` and the properties from any thread.

    Args:
        capacity, max_bytes: as for `ChunkRing`.
        data_wake: rung when a chunk arrives for a consumer that has armed it; `None` for none.
        room_wake: rung when there is room for a producer that has armed it; `None` for none.
    """

    __slots__ = ("_data_wake", "_low_entries", "_low_water", "_room_wake", "_room_wanted", "piece", "wakes")

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        max_bytes: int = DEFAULT_MAX_BYTES,
        *,
        data_wake: WakePipe | None = None,
        room_wake: WakePipe | None = None,
    ) -> None:
        super().__init__(capacity, max_bytes)
        #: Bytes that a producer should push at a time when it chooses the size of its chunks.
        self.piece: Final = max(1, min(_LARGEST_PIECE, max_bytes // 4))
        self._low_entries: Final = capacity // 2
        self._low_water: Final = max_bytes // 2
        self._data_wake: Final = data_wake
        self._room_wake: Final = room_wake
        # Armed from the start, because a device may sleep on the wake before it has read for the first time.
        self._data_armed = True
        self._room_wanted = 0  # written by the producer: bytes that must fit before it is woken
        self.wakes = 0  # rings, for statistics: when both threads count at once, one may be missed

    @property
    def total_bytes(self) -> int:
        """Bytes ever pushed."""
        return self._pushed

    # The producer's side

    offer = ChunkRing._offer
    fits = ChunkRing._fits

    def arm_room(self, size: int) -> bool:
        """Arm the room wake, before the producer sleeps on it until ``size`` bytes fit.

        Returns `False`, with nothing armed, if they fit already.
        """
        assert size > 0, "no bytes always fit: the producer waits for room only with some"
        self._room_wanted = size
        self._room_armed = True
        if self.fits(size):
            self._room_armed = False
            return False
        return True

    def disarm_room(self) -> None:
        """Disarm the room wake, after the producer has woken up."""
        self._room_armed = False

    # The consumer's side

    def revoke(self) -> None:
        """Refuse every chunk from now on, because the consumer takes no more. May be called from any thread.

        A chunk that is being offered at the same time may still be accepted.
        """
        self._revoked = True
        self._granted = -1

    def take(self, limit: int, *, fill: bool = False) -> bytes:
        """Take up to ``limit`` bytes (at least 1), joining small chunks; ``b""`` if the ring is empty.

        A chunk that fits is returned by reference when no second chunk fits beside it. A chunk is split only if it
        alone is larger than ``limit``, or with ``fill``, which returns as many bytes as there are up to ``limit``.
        """
        chunks = self._chunks
        if not chunks:
            return b""
        head = chunks[0]
        if len(head) - self._offset > limit:
            data = head[self._offset : self._offset + limit]
            self._offset += limit
        else:
            data = self._join(limit, fill)
        self._note_taken(len(data))
        return data

    def take_whole(self, limit: int) -> bytes:
        """Like `take`, but a first chunk larger than ``limit`` is returned whole, by reference."""
        if not self._chunks:
            return b""
        data = self._join(limit, fill=False)
        self._note_taken(len(data))
        return data

    def _note_taken(self, size: int) -> None:
        self._popped += size
        if self._room_armed:
            self._wake_producer(self._low_water)

    def _join(self, limit: int, fill: bool) -> bytes:
        """Remove and join the first chunk and those that fit beside it; with ``fill`` also part of the next."""
        chunks = self._chunks
        offset = self._offset
        size = len(chunks[0]) - offset
        if len(chunks) == 1 or size >= limit or (not fill and size + len(chunks[1]) > limit):
            return self._first()
        parts, room = self._whole_ones(limit + offset)
        count = len(parts)
        part = room if fill else 0
        if offset:
            parts[0] = parts[0][offset:]
        if part:
            parts.append(chunks[count][:part])
        data = b"".join(parts)
        deque(starmap(chunks.popleft, repeat((), count)), 0)
        assert not part or part < len(chunks[0]), "a chunk that was taken in part is still in the ring"
        self._offset = part
        return data

    def _whole_ones(self, limit: int) -> tuple[deque[bytes] | list[bytes], int]:
        """The first chunks that fit into ``limit`` together; and the room left, or 0 if no chunk is left."""
        chunks = self._chunks
        if self._pushed - self._popped <= limit:
            copy = chunks.copy()
            if self._pushed - self._popped + self._offset <= limit:
                # All bytes counted fit, so the copied chunks fit: each chunk is counted before it is appended, and
                # the copy was made before the count was read. Chunks that arrive now are taken the next time.
                return copy, 0
        parts: list[bytes] = []
        for index in range(len(chunks)):
            chunk = chunks[index]
            if len(chunk) > limit:
                return parts, limit
            limit -= len(chunk)
            parts.append(chunk)
        return parts, 0

    def readinto(self, view: memoryview) -> int:
        """Copy bytes into ``view`` (writable, of bytes) until it is full or the ring empty; return the number."""
        chunks = self._chunks
        room = len(view)
        filled = 0
        while chunks and filled < room:
            head = chunks[0]
            offset = self._offset
            size = min(len(head) - offset, room - filled)
            try:
                if offset or size < len(head):
                    view[filled : filled + size] = memoryview(head)[offset : offset + size]
                else:
                    view[filled : filled + size] = head
            except MemoryError:
                if not filled:
                    raise
                break  # the chunks copied before count as taken
            filled += size
            if offset + size == len(head):
                chunks.popleft()
                self._offset = 0
            else:
                self._offset = offset + size
        self._popped += filled
        if filled and self._room_armed:
            self._wake_producer(self._low_water)
        return filled

    def arm_data(self) -> bool:
        """Arm the data wake, before the consumer sleeps on it.

        Returns `False`, with nothing armed, if the ring has a chunk already.
        """
        self._data_armed = True
        if self._chunks:
            self._data_armed = False
            return False
        assert not self._offset, "a chunk that was taken in part is still in the ring"
        return True

    def disarm_data(self) -> None:
        """Disarm the data wake, after the consumer has woken up."""
        self._data_armed = False

    # Waking the other side

    def _wake_consumer(self) -> None:
        self._data_armed = False
        if self._data_wake is not None:
            self.wakes += 1
            self._data_wake.wake()

    def _wake_producer(self, low_water: int) -> None:
        """Wake a producer that has armed the room wake, if the bytes that it waits for fit.

        Args:
            low_water: wake it only when the ring holds at most this many bytes, so that it is woken to push many
                chunks and not one; 0 wakes it at once. When the ring is empty it is always woken: a consumer
                empties the ring before it sleeps, so the two sides never sleep at the same time.
        """
        used = self._pushed - self._popped
        assert used >= 0, "bytes in = bytes out + bytes queued: no more are taken than were pushed"
        if used:
            if low_water and (used > low_water or len(self._chunks) > self._low_entries):
                return
            if not self.fits(self._room_wanted):
                return
        self._room_armed = False
        if self._room_wake is not None:
            self.wakes += 1
            self._room_wake.wake()


class FencedRing(LaneRing):  # type: ignore[misc]  # final for everybody else
    """`LaneRing` for an interpreter without the interpreter lock: the same steps, with a fence between them.

    There are three places where each side stores one thing and then reads the thing that the other side stores:

    * The producer appends a chunk and reads the data flag; the consumer sets the data flag and reads the chunks.
    * The consumer counts bytes as taken and reads the room flag; the producer sets the room flag and reads the
      count.
    * The producer grants bytes and reads ``_revoked``; the consumer sets ``_revoked`` and takes the grant back.

    In each place both sides pass one mutex between their store and their read (that is the fence), and one of them
    passes it first. The side that passes second reads after the other's store, and so sees it. That is enough: the
    side that sees the flag wakes the other, and the side that sees the chunk or the room does not sleep.

    So the three flags are properties here: a read passes the mutex before it, and setting a flag passes the mutex
    after it. Clearing a flag passes no mutex. A side that clears the flag for a sleeper rings the sleeper's wake
    next, which is a system call, so the sleeper sees the cleared flag after the ring. A side that clears its own
    flag arms again, and reads again, before it sleeps. (Nobody sleeps on a `ChunkRing`, so it has no fence.)

    The mutex is the one that such an interpreter keeps in every list, and locks to assign an element. A
    `threading.Lock` would be correct as well. But it costs ten times as much, and if a signal handler raised
    between its acquire and its release it would stay locked for ever; an assignment is one step.
    """

    __slots__ = ("_data_flag", "_fence", "_revoked_flag", "_room_flag")

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        max_bytes: int = DEFAULT_MAX_BYTES,
        *,
        data_wake: WakePipe | None = None,
        room_wake: WakePipe | None = None,
    ) -> None:
        self._fence: Final[list[None]] = [None]
        super().__init__(capacity, max_bytes, data_wake=data_wake, room_wake=room_wake)

    @property
    def _data_armed(self) -> bool:
        self._fence[0] = None
        return self._data_flag

    @_data_armed.setter
    def _data_armed(self, value: bool) -> None:
        self._data_flag = value
        if value:
            self._fence[0] = None

    @property
    def _room_armed(self) -> bool:
        self._fence[0] = None
        return self._room_flag

    @_room_armed.setter
    def _room_armed(self, value: bool) -> None:
        self._room_flag = value
        if value:
            self._fence[0] = None

    @property
    def _revoked(self) -> bool:
        self._fence[0] = None
        return self._revoked_flag

    @_revoked.setter
    def _revoked(self, value: bool) -> None:
        self._revoked_flag = value
        if value:
            self._fence[0] = None


if FREE_THREADED and not TYPE_CHECKING:
    # Chosen once, at import, and not at each push: with the interpreter lock the hot path pays nothing for the
    # fence.
    LaneRing = FencedRing
