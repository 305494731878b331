"""An agent that counts all that comes over its console, as a stream for an outbox: it notes each violation."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import trio

from trio_console import _wire as wire
from trio_console._trio.gathering import GatheringStream
from trio_console._wire.credit import Admitted

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._trio.gathering import Piece

__all__ = ["CountingAgent", "GatheringAgent"]


class CountingAgent(trio.abc.SendStream):
    """Takes every frame at once, and keeps the frames of a session until they are consumed.

    Args:
        window: what it admits at a time.
        consumes: whether data of a session is consumed as it comes. Control frames always are.
    """

    def __init__(self, window: Admitted, *, consumes: Callable[[int], bool] = lambda _: True) -> None:
        self.limits = window
        self.used = Admitted(0, 0, 0, 0)
        self.violations: list[str] = []
        self.frames: list[tuple[int, wire.Message]] = []
        self.kept: Final[dict[int, list[int]]] = defaultdict(list)  # sizes of frames, by their sessions
        self.consumes = consumes
        self.announce: Callable[[Admitted], object] = lambda _: None
        self.answers_control = True
        self._decoder = wire.FrameDecoder()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._decoder.feed(bytes(data))
        for frame in self._decoder:
            self._take(frame)
        self.say()

    def _take(self, frame: wire.Frame) -> None:
        message, size = wire.decode(frame), wire.HEADER_SIZE + len(frame.body)
        self.frames.append((frame.id, message))
        is_data = isinstance(message, wire.DataMessage | wire.TcpEof)
        self.used = self._add(self.used, size, bulk=is_data)
        if any(used > limit for used, limit in zip(self.used, self.limits, strict=True)):
            self.violations.append(f"{message!r:.60} of {frame.id}: {self.used} of {self.limits}")
        if not is_data:
            if self.answers_control:
                self.limits = self._add(self.limits, size, bulk=False)
        elif self.consumes(frame.id):
            self.limits = self._add(self.limits, size, bulk=True)
        else:
            self.kept[frame.id].append(size)

    @staticmethod
    def _add(sums: Admitted, size: int, *, bulk: bool) -> Admitted:
        if bulk:
            return sums._replace(bulk_bytes=sums.bulk_bytes + size, bulk_frames=sums.bulk_frames + 1)
        return sums._replace(control_bytes=sums.control_bytes + size, control_frames=sums.control_frames + 1)

    def consume(self, session: int) -> None:
        """Consume what is kept of a session, and from now on all that comes."""
        before, stuck = self.consumes, session
        self.consumes = lambda one: one == stuck or before(one)
        for size in self.kept.pop(session, []):
            self.limits = self._add(self.limits, size, bulk=True)
        self.say()

    def say(self) -> None:
        """Announce the limits."""
        self.announce(self.limits)

    def data_of(self, session: int) -> bytes:
        """The data that has come for a session."""
        return b"".join(m.data for id_, m in self.frames if id_ == session and isinstance(m, wire.DataMessage))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class GatheringAgent(CountingAgent, GatheringStream):
    """The same behind a stream that takes bytes at once. What it announces comes a moment later."""

    async def send_gathered(self, pieces: list[Piece]) -> None:
        await self.send_all(b"".join(pieces))

    def send_gathered_nowait(self, pieces: list[Piece]) -> list[Piece]:
        self._decoder.feed(b"".join(pieces))
        for frame in self._decoder:
            self._take(frame)
        trio.lowlevel.spawn_system_task(self._say_later)
        return []

    async def _say_later(self) -> None:
        self.say()
