"""The one writer of a frame stream.

A cancelled ``send_all`` may leave half a frame on the wire, and then the stream is out of step for good. So only
the task that runs `Outbox.run` writes frames to a stream. All other tasks hand it whole frames, and a frame once
begun is finished.

There are two queues. *Control* frames (signals, answers, credit) overtake *bulk* frames (data) at frame
boundaries; inside a queue the order is kept. A frame that must not overtake its session's data, such as the
terminal frame, goes through the bulk queue behind the data.

The bulk queue has a budget in bytes. A task takes a reservation with `Outbox.reserve` *before* it reads the bytes
from their source, so a thousand sessions cannot hold a thousand chunks in memory. Reservations are given in the
order of the requests, so no session starves another.

A frame is bytes, or several pieces of bytes one after another. A `GatheringStream` gets the pieces of large frames
as they are; any other stream gets them joined.

If the peer counts all that comes to it (an `Admission`), no frame is written that it has not admitted. A
reservation then waits for that, too; all other frames wait in their queue. Data waits for control frames, because
the request of a session goes before its data, and control frames never wait for data.

This module knows frames only as bytes. Everything in it belongs to one trio thread.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, final

import outcome
import trio

from trio_console._trio.gathering import GatheringStream, Piece
from trio_console._wire.codec import is_bulk
from trio_console._wire.credit import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from trio_console._wire.credit import Admission, Admitted

__all__ = ["Outbox", "Pieces"]

#: A frame in one piece or in several. The pieces are kept until they are written, so they must not change.
Pieces: TypeAlias = "bytes | tuple[bytes, ...]"

#: Bytes of bulk frames that may be queued or reserved. A console carries 300 to 500 MB/s, so a control frame waits
#: less than a millisecond behind 256 KiB. They also keep the writer busy: they are two reads of a command's
#: output, or four slices of a file. The further 1024 bytes are for the headers of these frames: without them the
#: last of the slices would not fit.
BULK_BUDGET: Final = 256 * 1024 + 1024

#: Bytes of control frames in the queue from which on `Outbox.wait_control_room` waits.
CONTROL_BUDGET: Final = 1024 * 1024

#: Small frames are joined up to this size before they are sent: one wake-up carries them all.
_BATCH: Final = 64 * 1024

#: Bytes of a batch from which on joining the pieces costs more than a system call that gathers them.
_GATHERED: Final = 16 * 1024

#: Bytes that a frame is larger than its reservation, at most: its header, and that of its data.
_HEADERS: Final = 128


class _Queued(NamedTuple):
    """A bulk frame in the queue: its bytes, and whether the peer has admitted it."""

    size: int
    frame: Pieces
    is_admitted: bool


class _Request(NamedTuple):
    """A reservation that a task waits for: its bytes, and the session for which it is."""

    nbytes: int
    key: Hashable


@final
class Outbox:
    """Frames on their way to ``stream``.

    Args:
        stream: the stream that the frames are written to. The outbox never closes it.
        bulk_budget: the most bytes of bulk frames that are queued or reserved. A single larger frame is accepted
            when the queue is empty.
        control_budget: bytes, see `wait_control_room`.
        admission: what the peer admits, if it may count all that comes to it.

    Attributes:
        control_queued: bytes of control frames that were ever queued.
        control_written: of those, bytes that the stream has taken. They are written in order.
        bulk_queued, bulk_written: the same of bulk frames.
        written: bytes that the stream has taken.
        stalls, stalled: how often a reservation waited because the peer admitted no more, and for how many seconds
            in all, without a wait that goes on.
    """

    def __init__(
        self,
        stream: trio.abc.SendStream,
        *,
        bulk_budget: int = BULK_BUDGET,
        control_budget: int = CONTROL_BUDGET,
        admission: Admission | None = None,
    ) -> None:
        self._stream = stream
        self._admission = admission
        self._turns = Turns()
        self.stalls = 0
        self.stalled = 0.0
        self._bulk_budget = bulk_budget
        self._control_budget = control_budget
        self._gathers = stream if isinstance(stream, GatheringStream) else None
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._bulk: deque[_Queued] = deque()
        self.control_queued = 0
        self.control_written = 0
        self.bulk_queued = 0
        self.bulk_written = 0
        self.written = 0
        self._bulk_used = 0  # queued, being sent, and reserved
        self._waiting: dict[trio.lowlevel.Task, _Request] = {}  # in order of arrival
        self._work = trio.Event()
        self._control_room = trio.Event()
        self._progress = trio.Event()
        self._closed = False
        self._begun = False
        self._idle: GatheringStream | None = None  # the stream, if a frame may be written at once
        self._joins = False  # whether frames of the present turn are written together
        self._parked = False  # whether the writer sleeps, or was woken and has not gone on yet
        self._rest: tuple[list[Piece], int, int] | None = None  # of a frame that was begun at once, as a batch
        self._broken: BaseException | None = None

    # The writer

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Write frames until `close` was called and all queued frames are written.

        Returns, without an error, when the stream breaks or is closed: then the tasks that wait for room, and all
        later calls, get the error. If cancelled, the stream is left, perhaps in the middle of a frame, and nothing
        may be written to it afterwards.
        """
        assert not self._begun, "only one task writes to a frame stream"
        self._begun = True
        try:
            while True:
                batch, size, bulk_bytes = self._take_batch()
                if not batch:
                    if self._closed and not (self._control or self._bulk):
                        await trio.lowlevel.checkpoint()
                        return
                    await self._sleep()
                    continue
                await self._write(batch, size)
                self._count(size, bulk_bytes)
                if self._gathers is not None and (self._bulk or self._control):
                    await trio.lowlevel.checkpoint()  # a fast reader must not keep the other tasks from running
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._fail(exc.with_traceback(None))  # which leads to this frame, and so to this object
        except BaseException as exc:
            self._fail(trio.BrokenResourceError(f"its writer was ended by {exc!r}"))
            raise

    async def _sleep(self) -> None:
        """Wait for frames, or for the peer to admit those that are queued."""
        self._work = trio.Event()
        self._parked = True
        try:
            await self._wait_for_work()
        finally:
            self._parked = False
            self._idle = None

    async def _wait_for_work(self) -> None:
        if self._admission is None:
            assert not self._waiting or self._bulk_used > 0, "only used room keeps a task waiting"
            self._idle = self._gathers
            await self._work.wait()
            return
        if not self._control and not self._bulk:
            self._idle = self._gathers
        # Without a task that waits for its turn there is nothing to look at when a turn is over.
        change = self._turns.next_change(trio.current_time()) if self._waiting else math.inf
        with trio.move_on_at(change):
            await self._work.wait()
        self._admit()

    def _count(self, size: int, bulk_bytes: int) -> None:
        """Note that the stream has taken ``size`` bytes, of which ``bulk_bytes`` were bulk."""
        self.written += size
        self.control_written += size - bulk_bytes
        self.bulk_written += bulk_bytes
        self._progress.set()
        self._bulk_used -= bulk_bytes
        assert self._bulk_used >= 0, "room is given back once"
        assert self.control_written + self._control_bytes == self.control_queued, (
            "control bytes queued = written + waiting"
        )
        self._admit()

    def _write_at_once(self, stream: GatheringStream, pieces: list[Piece], size: int, bulk_bytes: int) -> None:
        """Write a frame while the writer sleeps, so that it need not wait for the writer's turn.

        It is the first frame of a turn.
        """
        assert (self._rest, self._control_bytes, len(self._bulk)) == (None, 0, 0), (
            "a frame is written at once when none is before it"
        )
        self._put(stream, pieces, size, bulk_bytes)

    @trio.lowlevel.enable_ki_protection
    def _put(self, stream: GatheringStream, pieces: list[Piece], size: int, bulk_bytes: int) -> None:
        """Write a batch in the place of the writer, which sleeps, or was woken and has not gone on yet.

        It is woken all the same: it writes the rest of this batch, if the stream has not taken all of it, and
        joins all frames that are handed over until then. (Protected, because after a Ctrl-C in here half of the
        batch could be lost.)
        """
        self._idle = None
        self._work.set()
        rest = stream.send_gathered_nowait(pieces)
        if rest:
            self._rest = rest, size, bulk_bytes
        else:
            self._count(size, bulk_bytes)

    def join_turn(self) -> None:
        """Write no frame at once until the writer has: more frames follow, and one write for all costs less."""
        self._idle = None
        self._joins = True

    def end_turn(self) -> None:
        """Write what was queued since `join_turn`, if it was called: no more frames follow before others run.

        Without it the writer does that when its turn comes, behind all tasks that are ready now.
        """
        if self._joins:
            self._joins = False
            self.write_now()

    @trio.lowlevel.enable_ki_protection
    def write_now(self) -> None:
        """Write what is queued, as much as the stream takes at once, if the writer has not begun to write it.

        For a task that keeps the loop for longer than its frames should wait.
        """
        stream = self._gathers
        if stream is None or not self._parked or self._rest is not None:
            return
        batch, size, bulk_bytes = self._take_batch()
        if batch:
            self._put(stream, _joined(batch, size), size, bulk_bytes)

    async def _write(self, batch: list[Piece], size: int) -> None:
        if self._gathers is None:
            await self._stream.send_all(b"".join(batch) if len(batch) > 1 else batch[0])
        else:
            await self._gathers.send_gathered(_joined(batch, size))

    def _take_batch(self) -> tuple[list[Piece], int, int]:
        """Take all control frames, and then bulk frames as long as the batch is small.

        It takes at least one bulk frame, so that a flood of control frames does not stop all data. If a frame was
        begun at once, it takes the rest of that one instead.

        Returns the pieces, their size in bytes, and how many of these bytes are bulk.
        """
        if self._rest is not None:
            rest, self._rest = self._rest, None
            return rest
        batch: list[Piece] = list(self._control) if self._admission is None else self._take_admitted()
        if len(batch) == len(self._control):
            size = self._control_bytes
            self._control.clear()
        else:
            size = sum(len(self._control.popleft()) for _ in batch)
        self._control_bytes -= size
        self._control_room.set()
        bulk_bytes = 0
        while self._bulk and (not bulk_bytes or size + self._bulk[0][0] <= _BATCH) and self._may_take_bulk():
            frame_size, frame, _ = self._bulk.popleft()
            if isinstance(frame, tuple):
                batch += frame
            else:
                batch.append(frame)
            size += frame_size
            bulk_bytes += frame_size
        return batch, size, bulk_bytes

    def _take_admitted(self) -> list[Piece]:
        """Return the control frames that the peer admits, which are then to be taken from the queue."""
        admitted: list[Piece] = []
        for frame in self._control:
            if not self._is_admitted(frame, len(frame)):
                break
            admitted.append(frame)
        return admitted

    def _may_take_bulk(self) -> bool:
        """Whether the first bulk frame may be written, as far as the peer is concerned; it then has to be."""
        if self._admission is None:
            return True
        size, frame, is_admitted = self._bulk[0]
        return not self._control and (is_admitted or self._is_admitted(frame, size))

    def _is_admitted(self, frame: Pieces, size: int) -> bool:
        """Whether a frame may be written, as far as the peer is concerned; it then has to be."""
        if self._admission is None:
            return True
        bulk = is_bulk(frame[0] if isinstance(frame, tuple) else frame)
        if not self._admission.admits(size, bulk=bulk):
            return False
        if bulk and self._admission.is_scarce:
            self._turns.passed()
        self._admission.take(size, bulk=bulk)
        return True

    def _fail(self, exc: BaseException) -> None:
        self._broken = exc
        self._control_room.set()
        self._progress.set()
        self._idle = self._rest = None
        self._control.clear()
        self._bulk.clear()
        self._turn_away()

    def _turn_away(self) -> None:
        for task in self._waiting:
            trio.lowlevel.reschedule(task, outcome.Value(False))
        self._waiting.clear()

    # Handing frames over

    @property
    def closed(self) -> bool:
        """Whether frames are refused: after `close`, and after the stream broke."""
        return self._closed or self._broken is not None

    def close(self) -> None:
        """Refuse further frames; `run` returns when the queued frames were written. A second call does nothing."""
        self._closed = True
        self._turn_away()
        self._work.set()

    def _check_open(self) -> None:
        if self._broken is not None:
            raise trio.BrokenResourceError("the frame stream broke") from self._broken
        if self._closed:
            raise trio.ClosedResourceError("the outbox was closed")

    def send_control(self, frame: bytes) -> None:
        """Queue a control frame, whole or not at all. Never blocks.

        A task that answers a peer frame by frame must call `wait_control_room` between the answers. Otherwise a
        peer that sends requests, and does not read the answers, makes this queue grow without bound.

        Raises:
            trio.BrokenResourceError: the stream broke.
            trio.ClosedResourceError: `close` was called.
        """
        self._check_open()
        self.control_queued += len(frame)
        if self._idle is not None and self._is_admitted(frame, len(frame)):
            self._write_at_once(self._idle, [frame], len(frame), 0)
            return
        self._control.append(frame)
        self._control_bytes += len(frame)
        self._work.set()

    @property
    def has_control_room(self) -> bool:
        """Whether fewer than ``control_budget`` bytes of control frames are queued."""
        return self._control_bytes < self._control_budget

    async def wait_control_room(self) -> None:
        """Wait until fewer than ``control_budget`` bytes of control frames are queued.

        Not a checkpoint when there is room. Also returns when the stream breaks. If cancelled, nothing changes.
        """
        while not self.has_control_room and self._broken is None:
            if self._control_room.is_set():  # all waiting tasks use one event: a second one would strand the first
                self._control_room = trio.Event()
            await self._control_room.wait()

    async def wait_written(self, mark: int) -> None:
        """Wait until the stream has taken ``mark`` of `bulk_queued` bytes, or breaks.

        Not a checkpoint when it has. If cancelled, nothing changes.
        """
        while self.bulk_written < mark and self._broken is None:
            if self._progress.is_set():  # see `wait_control_room`
                self._progress = trio.Event()
            await self._progress.wait()

    def announce(self, limits: Admitted) -> bool:
        """Note what the peer admits in all; returns false, and changes nothing, if it may not say that.

        It may if there is an `Admission`, and no limit is smaller than it was.
        """
        if self._admission is None:
            return False
        before = self._admission.bulk_frames
        if not self._admission.announce(limits):
            return False
        if not self._admission.is_scarce:
            self._turns.forget()
        elif self._admission.bulk_frames > before:
            self._turns.heard(self._admission.bulk_frames - before, trio.current_time())
        self._work.set()
        self._admit()
        return True

    def holds_back(self, nbytes: int, key: Hashable) -> bool:
        """Whether a reservation for a session would wait now because the peer admits no more."""
        if self._admission is None:
            return False
        if not self._admission.has_room(nbytes + _HEADERS):
            return True
        return self._admission.is_scarce and self._turns.holds_back(key, trio.current_time())

    async def reserve(self, nbytes: int, key: Hashable = None) -> None:
        """Reserve ``nbytes`` of the bulk budget, after the tasks that asked before.

        The reservation must be used with `commit` or given back with `release`. If cancelled, nothing is reserved.

        Args:
            nbytes: the bytes.
            key: names the session whose data it is. If the peer admits little, sessions take turns.

        Raises:
            trio.BrokenResourceError: the stream broke, also while waiting.
            trio.ClosedResourceError: `close` was called.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if self._try_reserve(nbytes, key):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        began = trio.current_time() if self.holds_back(nbytes, key) else None
        try:
            await self._wait_reserved(_Request(nbytes, key))
        finally:
            if began is not None:
                self.stalls += 1
                self.stalled += trio.current_time() - began

    async def _wait_reserved(self, request: _Request) -> None:
        task = trio.lowlevel.current_task()
        self._waiting[task] = request
        if self._admission is not None:
            self._work.set()  # the writer looks how long it may sleep

        def abort(_raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
            del self._waiting[task]
            self._admit()  # the next request may be smaller than the one that left, and fit
            return trio.lowlevel.Abort.SUCCEEDED

        if not await trio.lowlevel.wait_task_rescheduled(abort):
            self._check_open()

    def reserve_nowait(self, nbytes: int) -> bool:
        """Reserve bytes as `reserve` does, if that needs no waiting; returns whether they were reserved.

        A caller must make a checkpoint between two calls of this: otherwise the other tasks do not run.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: as in `reserve`.
        """
        self._check_open()
        return self._try_reserve(nbytes, None)

    def _try_reserve(self, nbytes: int, key: Hashable) -> bool:
        if self._first_in_line() is not None or self.holds_back(nbytes, key) or not self._fits(nbytes):
            return False
        self._reserve(nbytes, key)
        return True

    def _reserve(self, nbytes: int, key: Hashable) -> None:
        self._bulk_used += nbytes
        if self._admission is not None and nbytes:
            if self._admission.is_scarce:
                self._turns.took(key, trio.current_time())
            self._admission.take(nbytes + _HEADERS, bulk=True)

    def commit(self, frame: Pieces, reserved: int) -> None:
        """Queue a bulk frame, and use up a reservation of ``reserved`` bytes.

        The frame may be a little larger than the reservation (by its headers); all its bytes count until it is
        written. The reservation is used up also if this raises. Without a reservation (0) it is a small frame.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the frame was not queued.
        """
        self._bulk_used -= reserved
        self._check_open()
        assert self._bulk_used >= 0, "room is used or given back once"
        size = sum(map(len, frame)) if isinstance(frame, tuple) else len(frame)
        is_admitted = self._settle(frame, size, reserved)
        self._bulk_used += size
        self.bulk_queued += size
        if self._idle is not None and (is_admitted or self._is_admitted(frame, size)):
            pieces: list[Piece] = list(frame) if isinstance(frame, tuple) else [frame]
            self._write_at_once(self._idle, pieces, size, size)
            return
        self._bulk.append(_Queued(size, frame, is_admitted))
        self._work.set()
        self._admit()

    def _settle(self, frame: Pieces, size: int, reserved: int) -> bool:
        """Let a frame have what the peer has admitted for its reservation; returns whether that is for it."""
        if self._admission is None or not reserved:
            return False
        if not is_bulk(frame[0] if isinstance(frame, tuple) else frame):
            self._admission.give_back(reserved + _HEADERS)
            return False
        assert size <= reserved + _HEADERS, "a frame is not larger than what was admitted for it"
        self._admission.shrink(reserved + _HEADERS - size)
        return True

    def release(self, nbytes: int, key: Hashable = None) -> None:
        """Give back a reservation, made for ``key``, that is not needed."""
        self._bulk_used -= nbytes
        assert self._bulk_used >= 0, "room is given back once"
        if self._admission is not None and nbytes:
            self._admission.give_back(nbytes + _HEADERS)
            self._turns.gave_up(key)
        self._admit()

    async def send_bulk(self, frame: bytes, key: Hashable = None) -> None:
        """Queue a bulk frame, and wait for room where there is none. If cancelled, the frame was not queued.

        Args:
            frame: the frame.
            key: as in `reserve`.

        Raises:
            trio.BrokenResourceError: the stream broke.
            trio.ClosedResourceError: `close` was called.
        """
        await self.reserve(len(frame), key)
        self.commit(frame, len(frame))

    def _fits(self, nbytes: int) -> bool:
        return self._bulk_used <= 0 or self._bulk_used + nbytes <= self._bulk_budget

    def _admit(self) -> None:
        """Make the reservations of the waiting tasks, in order, as long as they fit."""
        while (task := self._first_in_line()) is not None:
            nbytes, key = self._waiting[task]
            if not self._fits(nbytes):
                return
            del self._waiting[task]
            self._reserve(nbytes, key)
            trio.lowlevel.reschedule(task, outcome.Value(True))

    def _first_in_line(self) -> trio.lowlevel.Task | None:
        """The first task that waits for a reservation, and not for the peer."""
        return next((task for task, request in self._waiting.items() if not self.holds_back(*request)), None)


def _joined(batch: list[Piece], size: int) -> list[Piece]:
    """The pieces of a batch, as one if that is cheaper."""
    return [b"".join(batch)] if len(batch) > 1 and size < _GATHERED else batch
