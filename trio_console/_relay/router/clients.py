"""What the router knows of one client: its ids, its sessions, and what is queued for it.

Pure bookkeeping.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, final

from trio_console._relay.router.session import FRAME_COST
from trio_console._wire.ids import slot_ids

if TYPE_CHECKING:
    from trio_console._relay.router.session import Flow, Outgoing, RelaySession

__all__ = ["Client"]

#: Bytes queued for a client from which on pieces of one stream are joined. Below, frames pass as they came.
_BACKLOG: Final = 128 * 1024


@final
class Client:
    """One client: its ids, its sessions, and what is queued for it."""

    def __init__(self, slot: int) -> None:
        self.slot: Final = slot
        self.ids: Final = slot_ids(slot)
        self.sessions: dict[int, RelaySession] = {}
        self.hurried: deque[Outgoing] = deque()
        self.outgoing: deque[Outgoing] = deque()
        self.outgoing_bytes = 0
        self.held_size = 0  # of frames held back until it gives credit, with what it costs to keep them
        self.pending_bytes = 0  # of its sessions, to the agent
        self.committed = 0  # windows of its streams
        self._recent: dict[int, None] = {}  # ids at the end of its range that it has opened, the last ones last
        self.round: deque[RelaySession] = deque()  # sessions with something sendable
        self.frames_in = 0
        self.frames_out = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.dropped_bytes = 0

    @property
    def kept_size(self) -> int:
        """All that is kept for it, with what it costs to do so."""
        return self.outgoing_bytes + FRAME_COST * (len(self.hurried) + len(self.outgoing)) + self.held_size

    def note_opened(self, id_: int, tail: int) -> None:
        """A session was opened. ``tail`` is how many ids at the end of the range are remembered."""
        if id_ >= self.ids.stop - tail:
            self._recent.pop(id_, None)
            self._recent[id_] = None

    def quiet_id(self, tail: int) -> int:
        """An id of which the guest has nothing to say any more: one that was never opened, or long ago.

        That its session is over is not enough. What the client has sent may still be on its way to it, and an
        agent answers data for an id that it does not know with a terminal frame.
        """
        unused = (id_ for id_ in reversed(self.ids[-tail:]) if id_ not in self._recent)
        id_ = next(unused, None)
        return next(id_ for id_ in self._recent if id_ not in self.sessions) if id_ is None else id_

    def queue(self, item: Outgoing, *, hurried: bool = False) -> None:
        """Queue a frame for its socket; a hurried one overtakes those that are not."""
        queue = self.hurried if hurried else self.outgoing
        if queue and self.outgoing_bytes > _BACKLOG:
            joined = queue[-1].joined(item)
            if joined is not None:
                self.outgoing_bytes += len(joined.frame) - len(queue[-1].frame)
                queue[-1] = joined
                return
        queue.append(item)
        self.outgoing_bytes += len(item.frame)

    def take(self, limit: int) -> list[Outgoing]:
        """Take frames for its socket, at least one if there is any, together at most about ``limit`` bytes."""
        batch: list[Outgoing] = []
        size = 0
        for queue in (self.hurried, self.outgoing):
            while queue and (not batch or size + len(queue[0].frame) <= limit):
                item = queue.popleft()
                batch.append(item)
                size += len(item.frame)
        return batch

    def admit(self, flow: Flow, item: Outgoing) -> None:
        """Queue a frame behind those of its stream: now, or when the client gives credit for it."""
        before = flow.held_size
        if flow.admit(item):
            self.queue(item)
        self.held_size += flow.held_size - before

    def grant(self, flow: Flow, size: int) -> None:
        """The client takes ``size`` bytes more of a stream."""
        before = flow.held_size
        for item in flow.grant(size):
            self.queue(item)
        self.held_size += flow.held_size - before

    def let_go(self, flow: Flow) -> list[Outgoing]:
        """Take everything that is held back of a stream, whatever the client's credit."""
        self.held_size -= flow.held_size
        return flow.let_go()

    def release_held(self) -> None:
        """Queue everything held back: nobody will be there to give credit for it later."""
        for session in list(self.sessions.values()):
            for flow in session.flows.values():
                for item in self.let_go(flow):
                    self.queue(item)
