"""The one writer of a frame stream.

A cancelled ``send_all`` may leave half a frame on the wire, and the stream is out of step for good.
So nobody writes frames to a stream but the task that runs `Outbox.run`: everybody else hands it whole
frames, all or nothing, and a frame once begun is finished.

Two lanes. *Control* frames (signals, answers, credit) overtake *bulk* frames (data) at frame
boundaries; inside a lane order is kept. What must not overtake a session's data, such as its terminal
frame, goes through the bulk lane after it.

The bulk lane has a budget in bytes. A task takes its share with `Outbox.reserve` *before* it reads the
bytes from where they come, so a thousand sessions cannot hold a thousand chunks in hand. Shares are
given in the order they were asked for: no session starves another.

A frame is bytes, or several pieces of them one after another. To a `GatheringStream` the pieces of large frames
go as they are, to any other stream joined.

This module knows frames only as bytes. Everything in it belongs to one trio thread.
"""

from __future__ import annotations

import abc
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias, final

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GatheringStream", "Outbox", "Pieces"]

#: A frame in one piece, or in several. They are kept until they are written, so nobody may change them.
Pieces: TypeAlias = "bytes | tuple[bytes, ...]"

#: Bytes of bulk frames that may be queued or promised. At the 300 to 500 MB/s a console carries, 256 KiB are
#: less than a millisecond for a control frame to wait behind, and keep the writer busy: two reads of a command's
#: output, or four slices of a file. The rest is for what frames have in front of their data, or a queued frame
#: would leave no room for the last of those.
BULK_BUDGET: Final = 256 * 1024 + 1024

#: Bytes of control frames above which `Outbox.wait_control_room` holds back whoever causes them.
CONTROL_BUDGET: Final = 1024 * 1024

#: Small frames are joined up to this size before they are sent: one wake-up carries them all.
_BATCH: Final = 64 * 1024

#: Bytes in a batch from which on copying them costs more than having a system call gather them.
_GATHERED: Final = 16 * 1024


class GatheringStream(trio.abc.SendStream):
    """A stream that takes bytes in several pieces."""

    @abc.abstractmethod
    async def send_pieces(self, pieces: list[bytes]) -> None:
        """As `send_all` of all of them joined, but a checkpoint only if they could not be written at once.

        The outbox has one of its own for each batch. The list is the callee's.
        """


@final
class Outbox:
    """Frames on their way to ``stream``.

    Args:
        stream: where the frames go. The outbox never closes it.
        bulk_budget: bytes of bulk frames queued or reserved at once. A single larger frame is admitted
            when the lane is empty.
        control_budget: see `wait_control_room`.

    Attributes:
        control_queued: bytes of control frames handed over since the beginning.
        control_written: of those, bytes that the stream has taken. They leave in order.
        written: bytes that the stream has taken.
    """

    def __init__(
        self,
        stream: trio.abc.SendStream,
        *,
        bulk_budget: int = BULK_BUDGET,
        control_budget: int = CONTROL_BUDGET,
    ) -> None:
        self._stream = stream
        self._bulk_budget = bulk_budget
        self._control_budget = control_budget
        self._gathers = stream if isinstance(stream, GatheringStream) else None
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._bulk: deque[tuple[int, Pieces]] = deque()  # with their sizes
        self.control_queued = 0
        self.control_written = 0
        self.written = 0
        self._bulk_used = 0  # queued, being sent, and reserved
        self._waiting: dict[trio.lowlevel.Task, int] = {}  # in order of arrival
        self._work = trio.Event()
        self._control_room = trio.Event()
        self._closed = False
        self._broken: BaseException | None = None

    # The writer

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Write until `close` was called and everything handed over is on the stream.

        Returns quietly when the stream breaks or is closed: whoever waits for room is told, and so is
        every later call. Cancelling this abandons the stream, perhaps in the middle of a frame; nothing
        may be written to it afterwards.
        """
        try:
            while True:
                batch, size, bulk_bytes = self._take_batch()
                if not batch:
                    if self._closed:
                        await trio.lowlevel.checkpoint()
                        return
                    self._work = trio.Event()
                    await self._work.wait()
                    continue
                await self._write(batch, size)
                self.written += size
                self.control_written += size - bulk_bytes
                self._bulk_used -= bulk_bytes
                self._admit()
                if self._gathers is not None and (self._bulk or self._control):
                    await trio.lowlevel.checkpoint()  # who is faster than we are must not keep us to himself
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._fail(exc)
        except BaseException as exc:
            self._fail(exc)
            raise

    async def _write(self, batch: list[bytes], size: int) -> None:
        if len(batch) > 1 and (self._gathers is None or size < _GATHERED):
            batch = [b"".join(batch)]
        if self._gathers is None:
            await self._stream.send_all(batch[0])
        else:
            await self._gathers.send_pieces(batch)

    def _take_batch(self) -> tuple[list[bytes], int, int]:
        """All control frames there are, then bulk frames while the batch stays small.

        One bulk frame at least: somebody who floods the control lane must not starve everybody's data.

        Returns the pieces, the bytes they are, and those of them that are bulk.
        """
        batch = list(self._control)
        self._control.clear()
        size = self._control_bytes
        self._control_bytes = 0
        self._control_room.set()
        bulk_bytes = 0
        while self._bulk and (not bulk_bytes or size + self._bulk[0][0] <= _BATCH):
            frame_size, frame = self._bulk.popleft()
            if isinstance(frame, tuple):
                batch += frame
            else:
                batch.append(frame)
            size += frame_size
            bulk_bytes += frame_size
        return batch, size, bulk_bytes

    def _fail(self, exc: BaseException) -> None:
        self._broken = exc
        self._control_room.set()
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
        """Whether frames are refused: after `close`, or because the stream broke."""
        return self._closed or self._broken is not None

    def close(self) -> None:
        """Refuse further frames; `run` returns once what is queued has been written. Idempotent."""
        self._closed = True
        self._turn_away()
        self._work.set()

    def _check_open(self) -> None:
        if self._broken is not None:
            raise trio.BrokenResourceError("the frame stream is gone") from self._broken
        if self._closed:
            raise trio.ClosedResourceError("the outbox was closed")

    def send_control(self, frame: bytes) -> None:
        """Queue a control frame. Never blocks, whole or not at all.

        Who answers a peer frame by frame calls `wait_control_room` between them, or a peer that asks
        and does not read grows this queue.

        Raises:
            trio.BrokenResourceError: the stream broke.
            trio.ClosedResourceError: `close` was called.
        """
        self._check_open()
        self._control.append(frame)
        self._control_bytes += len(frame)
        self.control_queued += len(frame)
        self._work.set()

    async def wait_control_room(self) -> None:
        """Wait until fewer than ``control_budget`` bytes of control frames are queued.

        Not a checkpoint when there is room. Returns when the stream breaks.
        """
        while self._control_bytes >= self._control_budget and self._broken is None:
            if self._control_room.is_set():  # one event for all who wait: a new one would strand the others
                self._control_room = trio.Event()
            await self._control_room.wait()

    async def reserve(self, nbytes: int) -> None:
        """Take ``nbytes`` of the bulk budget, waiting for one's turn.

        The share must be given back with `commit` or `release`. If cancelled, nothing was taken.

        Raises:
            trio.BrokenResourceError: the stream broke, also while waiting.
            trio.ClosedResourceError: `close` was called.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if self._take_share(nbytes):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        task = trio.lowlevel.current_task()
        self._waiting[task] = nbytes

        def abort(_raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
            del self._waiting[task]
            self._admit()  # the next in line may be smaller than the one that left
            return trio.lowlevel.Abort.SUCCEEDED

        if not await trio.lowlevel.wait_task_rescheduled(abort):
            self._check_open()

    def reserve_nowait(self, nbytes: int) -> bool:
        """Take a share as `reserve` does if that takes no waiting; whether it was taken.

        For those who have passed a checkpoint since they last did this: nothing else lets others have their turn.

        Raises: as `reserve`.
        """
        self._check_open()
        return self._take_share(nbytes)

    def _take_share(self, nbytes: int) -> bool:
        if self._waiting or not self._fits(nbytes):
            return False
        self._bulk_used += nbytes
        return True

    def commit(self, frame: Pieces, reserved: int) -> None:
        """Queue a bulk frame against a share of ``reserved`` bytes taken before.

        A frame may be a little larger than its share (headers); the difference counts until it is sent.
        The share is gone afterwards, whether or not this raises.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the frame was not taken.
        """
        self._bulk_used -= reserved
        self._check_open()
        size = sum(map(len, frame)) if isinstance(frame, tuple) else len(frame)
        self._bulk_used += size
        self._bulk.append((size, frame))
        self._work.set()
        self._admit()

    def release(self, nbytes: int) -> None:
        """Give back a share that is not needed."""
        self._bulk_used -= nbytes
        self._admit()

    async def send_bulk(self, frame: bytes) -> None:
        """Queue a bulk frame, waiting for room. Whole, or (if cancelled or failed) not at all.

        Raises:
            trio.BrokenResourceError: the stream broke.
            trio.ClosedResourceError: `close` was called.
        """
        await self.reserve(len(frame))
        self.commit(frame, len(frame))

    def _fits(self, nbytes: int) -> bool:
        return self._bulk_used <= 0 or self._bulk_used + nbytes <= self._bulk_budget

    def _admit(self) -> None:
        """Give shares to those who wait, in order, while they fit."""
        while self._waiting:
            task, nbytes = next(iter(self._waiting.items()))
            if not self._fits(nbytes):
                return
            del self._waiting[task]
            self._bulk_used += nbytes
            trio.lowlevel.reschedule(task, outcome.Value(True))
