"""A bounded queue of byte chunks between one producer thread and one consumer thread.

Chunks are handed over by reference. The bound is in entries *and* in bytes, because either alone is no
bound. No lock is taken: the deque's ``append`` and ``popleft`` are atomic, and each counter has one writer;
what was granted has two, see `ChunkRing._grant`.

The wake-up protocol lives here too, since it is about what the ring's ends see of each other:

* The consumer: take all there is; **arm**; look again; sleep on the data wake; disarm and drain.
* The producer: publish the chunk; if the consumer is armed, disarm it and wake.

So a wake-up, which is a system call and a hand-over of the interpreter lock, happens only when somebody
sleeps or is about to. The mirror image with the room wake serves a producer that found the ring full.

*Why no wake-up is lost.* The consumer stores the armed flag and then looks at the deque; the producer
appends to the deque and then looks at the flag. Under the interpreter lock all threads see these four steps
in one order, and in every order either the producer's look comes after the arming (it wakes), or the
append came before the consumer's look (it does not sleep). An interpreter without that lock may
let both looks pass before both stores; what orders them there is told in `FencedRing`.

*Why clearing the flag from two sides is sound.* Whoever clears it on behalf of a sleeper wakes that sleeper
afterwards, without exception. A producer acting on an old look can at most clear a newer arming, and then
its wake-up ends the newer sleep: a needless turn, never a lost one.

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

__all__ = ["DEFAULT_CAPACITY", "DEFAULT_MAX_BYTES", "BytesLike", "ChunkRing"]

#: What can be pushed: any object with the buffer protocol, of which the type checkers of 3.11 know these.
BytesLike: TypeAlias = "bytes | bytearray | memoryview"

#: Chunks in a ring, as in the console backend this design comes from.
DEFAULT_CAPACITY: Final = 2048

#: Bytes in a ring. A ring's budget is also latency: at 500 MB/s each MiB queued is 2 ms that a control frame
#: waits. But each time it runs empty or full costs two changes of threads (some 60 microseconds), so it must hold
#: what is moved in a few times that. Chunks of 64 KiB went at 3.3 GiB/s through 256 KiB, 5 through 512 KiB, 6.3
#: through 1 MiB, and slower through 2.
DEFAULT_MAX_BYTES: Final = 1024 * 1024

#: Bytes that a producer pushes at a time, where the chunks are its own making. A piece costs two changes of hands
#: of the interpreter lock, so it should be large; but with less than four to a ring one side would wait while the
#: other works. (More than 128 KiB is beyond what the C library's allocator keeps for the next.)
_LARGEST_PIECE: Final = 128 * 1024


@final
class ChunkRing:
    """Bounded FIFO of immutable byte chunks, for one producer thread and one consumer thread.

    Args:
        capacity: the most chunks it holds, at least 1.
        max_bytes: the most bytes it holds, at least 1. A single larger chunk is admitted into an empty
            ring, or it could never pass.
        data_wake: woken when a chunk arrives for a consumer that armed itself.
        room_wake: woken when there is room for a producer that armed itself.

    Raises:
        ValueError: a bound is below 1.
    """

    __slots__ = (
        "_chunks",
        "_data_armed",
        "_data_wake",
        "_granted",
        "_least",
        "_low_entries",
        "_low_water",
        "_offset",
        "_popped",
        "_pushed",
        "_revoked",
        "_room_armed",
        "_room_wake",
        "_room_wanted",
        "capacity",
        "max_bytes",
        "piece",
        "wakes",
    )

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        max_bytes: int = DEFAULT_MAX_BYTES,
        *,
        data_wake: WakePipe | None = None,
        room_wake: WakePipe | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 chunk, not {capacity}")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        self.capacity: Final = capacity
        self.max_bytes: Final = max_bytes
        #: What a producer that makes its own chunks should push at a time.
        self.piece: Final = max(1, min(_LARGEST_PIECE, max_bytes // 4))
        self._low_entries: Final = capacity // 2
        self._low_water: Final = max_bytes // 2
        self._data_wake: Final = data_wake
        self._room_wake: Final = room_wake
        self._chunks: deque[bytes] = deque()
        self._offset = 0  # consumer's: bytes of the first chunk already taken
        self._pushed = 0  # producer's: bytes ever published
        self._granted = 0  # producer's: what `_pushed` may become without another look at the consumer
        self._least = 1  # producer's: the smallest chunk for which that holds
        self._revoked = False  # consumer's: it takes no more
        self._popped = 0  # consumer's: bytes ever taken
        # A consumer that has never looked may be asleep on the wake already: a device may poll it first.
        self._data_armed = True
        self._room_armed = False
        self._room_wanted = 0  # producer's: bytes that must fit before it is woken
        self.wakes = 0  # wake-ups sent, for statistics: racing threads may miss one

    def __len__(self) -> int:
        """Chunks in the ring."""
        return len(self._chunks)

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def __repr__(self) -> str:
        return f"<ChunkRing {len(self)}/{self.capacity} chunks, {self.nbytes}/{self.max_bytes} bytes>"

    @property
    def nbytes(self) -> int:
        """Bytes in the ring, counting what is left of a chunk taken in part."""
        popped = self._popped  # read first: a pair of (old, new) is never negative
        return self._pushed - popped

    @property
    def total_bytes(self) -> int:
        """Bytes ever pushed."""
        return self._pushed

    # The producer's side

    def push(self, chunk: BytesLike) -> None:
        """Append a chunk; an empty one is not stored, and always taken.

        A `bytes` object is kept by reference, anything else is copied once.

        Raises:
            BlockingIOError: the ring is full.
            TypeError: ``chunk`` is not a bytes-like object.
        """
        if not self.offer(chunk) and memoryview(chunk).nbytes:
            raise BlockingIOError(errno.EAGAIN, "the ring is full: wait until the other side has taken bytes")

    def offer(self, chunk: BytesLike) -> int:
        """`push` that tells how many bytes were taken: all, or 0 of a chunk that has no room, or is empty."""
        # Every chunk comes this way, and of a small one's cost these lines are the larger part. What can be looked
        # at once for many chunks is therefore looked at by `_grant`.
        if type(chunk) is memoryview:
            chunk = chunk.tobytes()  # may fail for want of memory, so before anything is counted
        elif type(chunk) is not bytes:
            chunk = bytes(memoryview(chunk))
        size = len(chunk)
        pushed = self._pushed + size
        if (pushed > self._granted or size < self._least) and not self._grant(size):
            return 0
        if size:
            # Counted before it is published: in the other order the consumer could take the chunk in between,
            # and the ring would hold a negative number of bytes.
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
        """Whether a chunk of ``size`` bytes fits; if so, what more fits behind it is noted, too.

        Noted is how far the bytes may go with chunks that are not smaller, so that no more entries follow than
        are free. An old look at the consumer errs on the safe side: what was found to fit keeps fitting.
        """
        if not self.fits(size):
            return False
        room = self.max_bytes - (self._pushed - self._popped)
        self._least = size
        self._granted = self._pushed + max(size, min(room, (self.capacity - len(self._chunks)) * size))
        # The consumer says that it is gone, then takes back what was granted; we grant, then look whether it is
        # gone. Whatever the order, one of the two sees the other.
        if self._revoked:
            self._granted = -1
            return False
        return True

    def revoke(self) -> None:
        """The consumer takes nothing any more: from now on every chunk is refused. From any thread.

        One that is being offered meanwhile may still be taken.
        """
        self._revoked = True
        self._granted = -1

    def fits(self, size: int) -> bool:
        """Whether a chunk of ``size`` bytes would be taken now. Only the producer can rely on a yes."""
        used = self._pushed - self._popped
        return not used or (used + size <= self.max_bytes and len(self._chunks) < self.capacity)

    def arm_room(self, size: int) -> bool:
        """The producer is about to sleep on the room wake until ``size`` bytes fit.

        Returns `False`, with nothing armed, if they fit already.
        """
        self._room_wanted = size
        self._room_armed = True
        if self.fits(size):
            self._room_armed = False
            return False
        return True

    def disarm_room(self) -> None:
        """The producer has woken up."""
        self._room_armed = False

    # The consumer's side

    def pop(self) -> bytes | None:
        """Take the oldest chunk (what is left of it), or `None` if the ring is empty."""
        if not self._chunks:
            return None
        chunk = self._first()
        self._popped += len(chunk)
        if self._room_armed:
            self._wake_producer(0)
        return chunk

    # For want of memory, what was to be taken stays where it is: each of the following removes a chunk only when
    # all that is to be returned exists.

    def _first(self) -> bytes:
        """What is left of the oldest chunk (there is one), not yet counted as taken."""
        chunk = self._chunks[0]
        if self._offset:
            chunk = chunk[self._offset :]
        self._chunks.popleft()
        self._offset = 0
        return chunk

    def take(self, limit: int, *, fill: bool = False) -> bytes:
        """Take up to ``limit`` bytes (at least 1), joining small chunks; ``b""`` if the ring is empty.

        A chunk that fits is passed on by reference when no other fits beside it. Unless ``fill`` asks for
        all the bytes there are, a chunk is split only if it alone is larger than ``limit``.
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
        """Like `take`, but a first chunk larger than ``limit`` is taken as it is, by reference."""
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
        """The first chunk and those that fit beside it, and with ``fill`` part of the next."""
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
        self._offset = part
        return data

    def _whole_ones(self, limit: int) -> tuple[deque[bytes] | list[bytes], int]:
        """The chunks from the first on that fit into ``limit``, and the room behind them if another is there."""
        chunks = self._chunks
        if self._pushed - self._popped <= limit:
            copy = chunks.copy()
            if self._pushed - self._popped + self._offset <= limit:
                # Everything published fits, so these chunks do: each was counted before it was appended, and
                # they were looked at before the count. What comes meanwhile is left for the next turn.
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
        """Fill ``view`` (bytes, writable) across chunks as far as there are bytes; the number copied."""
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
                break  # what was copied before is taken
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
        """The consumer is about to sleep on the data wake.

        Returns `False`, with nothing armed, if there is something to take already.
        """
        self._data_armed = True
        if self._chunks:
            self._data_armed = False
            return False
        return True

    def disarm_data(self) -> None:
        """The consumer has woken up."""
        self._data_armed = False

    # Waking the other side

    def _wake_consumer(self) -> None:
        self._data_armed = False
        if self._data_wake is not None:
            self.wakes += 1
            self._data_wake.wake()

    def _wake_producer(self, low_water: int) -> None:
        """Wake an armed producer if what it waits for fits.

        Args:
            low_water: wake it only once the ring is this empty (0: at once), so that it is woken to push many
                chunks and not one. An empty ring always wakes it: a consumer that goes to sleep has
                emptied the ring, so the two never sleep at the same time.
        """
        used = self._pushed - self._popped
        if used:
            if low_water and (used > low_water or len(self._chunks) > self._low_entries):
                return
            if not self.fits(self._room_wanted):
                return
        self._room_armed = False
        if self._room_wake is not None:
            self.wakes += 1
            self._room_wake.wake()


class FencedRing(ChunkRing):  # type: ignore[misc]  # final for everybody else
    """`ChunkRing` for an interpreter without the interpreter lock: the same steps, with a fence between them.

    Three times one side stores something and then looks at what the other stores before *it* looks: a chunk is
    appended and the consumer's flag looked at, against arming and looking for chunks; bytes are counted
    as taken and the producer's flag looked at, against arming and looking for room; bytes are granted and
    `_revoked` looked at, against revoking and taking the grant back. Each time both sides pass one mutex between
    their store and their look, and the passages are in one order. The side that is second looks after the
    other's passage, and so sees what the other stored before it. That is all that is needed: who sees the flag
    wakes, and who sees the chunk or the room does not sleep.

    So the three flags are properties here: to look at one is to pass the mutex first, and to set one is to pass it
    afterwards. To clear one takes no passage. Who clears it for a sleeper rings the sleeper's wake next, a system
    call, so the clearing is seen before the ring; and who clears its own looks again at what it waited
    for before it sleeps, arming once more.

    The mutex is the one that such an interpreter has in every list and takes to assign an element. A
    `threading.Lock` would do as well. But it costs ten times as much, and an exception that a signal's handler
    raises between taking it and giving it back would leave it taken for ever; an assignment is one step.
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
    # Chosen once, and not asked for at each push: with the interpreter lock the hot path is the one above.
    ChunkRing = FencedRing
