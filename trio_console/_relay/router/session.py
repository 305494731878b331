"""What the relay knows of one session: its kind, its credit in both directions, and what it holds back.

Between an agent that counts credit and any client, the relay speaks credit on its own behalf: the agent may
send a *window* ahead, which is given back when the client's socket has taken the bytes. So what the relay must
hold for a client that does not read is bounded before it comes. A client that counts credit itself has,
on top of that, its own say about when its bytes may be sent to it.

Towards the agent the relay keeps to the agent's window, whether the client counts or not: a client that sends
more than it may is slowed down here, and the agent never sees it.

Pure bookkeeping.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, final

from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FRAME_COST", "Flow", "Outgoing", "RelaySession"]

#: Pieces of a stream that wait are joined up to this size. A program that writes single bytes makes frames that
#: are nearly all header; a window full of them would be fifty windows.
_JOINED: Final = 8 * 1024

#: What a piece that waits for the agent costs beside its data, about.
_PIECE_COST: Final = 128


#: What a frame that waits for a client costs beside itself, about: a guest can make frames of nine bytes.
FRAME_COST: Final = 128

#: Bytes beyond twice its window that an agent may be wrong about before it is taken for one that does not count.
_OVERRUN: Final = 64 * 1024


class Outgoing(NamedTuple):
    """A frame for a client.

    With data in it, the flow it is accounted to and how much; as the last one of a session, that session.
    """

    frame: bytes
    flow: Flow | None = None
    size: int = 0
    ends: RelaySession | None = None

    def joined(self, other: Outgoing) -> Outgoing | None:
        """One frame for two that are small, and data of one stream; else `None`."""
        flow, size = self.flow, self.size + other.size
        if flow is None or other.flow is not flow or not self.size or not other.size or size > _JOINED:
            return None
        # Data reaches to the end of its frame, or it would not be accounted to a flow.
        data = self.frame[-self.size :] + other.frame[-other.size :]
        return Outgoing(wire.encode_data(flow.cls, flow.session_id, data), flow, size)


@final
class Flow:
    """One stream from the agent to a client.

    Args:
        cls: the class of its messages.
        window: bytes the agent may send ahead of the client's socket.
        credit: bytes the client lets us send now, or `None` if it does not count.
    """

    __slots__ = (
        "closed",
        "cls",
        "credit",
        "held",
        "held_bytes",
        "held_size",
        "name",
        "outstanding",
        "owed",
        "session_id",
        "window",
    )

    def __init__(
        self,
        session_id: int,
        cls: type[wire.DataMessage],
        name: wire.StreamName,
        window: int,
        credit: int | None,
    ) -> None:
        self.session_id: Final = session_id
        self.cls: Final = cls
        self.name: Final = name
        self.window: Final = window
        self.credit = credit
        self.closed = False  # the session is over: nothing is granted any more
        self.outstanding = 0  # bytes the agent has sent and not been given back
        self.owed = 0  # of those, taken by the client's socket
        self.held: deque[Outgoing] = deque()  # waiting for the client's credit
        self.held_bytes = 0  # of data
        self.held_size = 0  # of whole frames, with what it costs to keep them

    def admit(self, item: Outgoing) -> bool:
        """Whether the item may go to the client now; if not, it is held. Without data: behind what is held."""
        if self.credit is None or (not self.held and (self.credit > 0 or not item.size)):
            # The agent sends at most the smaller of the two windows ahead, so a frame may exceed what is left of
            # the client's by less than a frame. It is not cut: the client's next grants make up for it.
            if self.credit is not None:
                self.credit -= item.size
            return True
        joined = self.held[-1].joined(item) if self.held else None
        if joined is None:
            self.held.append(item)
            self.held_size += len(item.frame) + FRAME_COST
        else:
            self.held_size += len(joined.frame) - len(self.held[-1].frame)
            self.held[-1] = joined
        self.held_bytes += item.size
        return False

    def grant(self, size: int) -> list[Outgoing]:
        """The client takes ``size`` bytes more: what may go to it now."""
        ready: list[Outgoing] = []
        if self.credit is not None:
            self.credit += size
            while self.held and (self.credit > 0 or not self.held[0].size):
                item = self.held.popleft()
                self.held_bytes -= item.size
                self.held_size -= len(item.frame) + FRAME_COST
                self.credit -= item.size
                ready.append(item)
        return ready

    def let_go(self) -> list[Outgoing]:
        """Everything held, whatever the credit."""
        ready = list(self.held)
        self.held.clear()
        self.held_bytes = self.held_size = 0
        self.credit = None
        return ready

    def overrun(self, size: int) -> bool:
        """Account ``size`` bytes from the agent; whether it has sent far more than it was granted."""
        self.outstanding += size
        return self.outstanding > 2 * self.window + _OVERRUN

    def taken(self, size: int) -> int:
        """The client's socket took ``size`` bytes; returns what is to be granted to the agent now."""
        self.owed += size
        if self.closed or self.owed * 2 < self.window:
            return 0
        owed, self.owed = self.owed, 0
        self.outstanding -= owed
        return owed


@final
class RelaySession:
    """A session between a client and the agent.

    Args:
        kind: what it is.
        flows: streams from the agent; empty towards an agent without credit.
        credit: bytes the relay may send to the agent now for this session, or `None` if the agent does not
            count.
        counts: whether the client speaks credit.
    """

    __slots__ = (
        "closing",
        "counts",
        "credit",
        "flows",
        "id",
        "kind",
        "last",
        "over",
        "pending",
        "pending_bytes",
        "queued",
        "released",
        "unwanted",
    )

    def __init__(
        self,
        session_id: int,
        kind: wire.SessionKind,
        flows: Mapping[type[wire.DataMessage], Flow],
        credit: int | None,
        *,
        counts: bool,
    ) -> None:
        self.id: Final = session_id
        self.kind: Final = kind
        self.flows: Final = flows
        self.credit = credit
        self.counts: Final = counts
        # To the agent, in order: data of a class, or (with `None`) a whole frame that must stay behind data.
        self.pending: deque[tuple[type[wire.DataMessage] | None, memoryview]] = deque()
        self.pending_bytes = 0  # with what it costs to keep them
        self.queued = False  # whether it is in its client's round
        self.closing = False  # the client is done with it once what is pending has gone
        self.over = False  # the client was told that it is; the agent has not said so yet
        self.released = False  # its windows were given back
        self.unwanted = False  # its client takes no more data of it
        self.last: Outgoing | None = None  # the terminal frame, while data before it is held

    @property
    def held(self) -> bool:
        """Whether something is held back for the client."""
        return any(flow.held for flow in self.flows.values())

    def flow_named(self, name: wire.StreamName) -> Flow | None:
        """The stream from the agent that a client's credit is for."""
        return next((flow for flow in self.flows.values() if flow.name == name), None)

    def add_pending(self, cls: type[wire.DataMessage] | None, data: bytes) -> int:
        """Queue data of a class, or (with `None`) a whole frame that must stay behind it; returns the cost."""
        self.pending.append((cls, memoryview(data)))
        cost = len(data) + _PIECE_COST
        self.pending_bytes += cost
        return cost

    def drop_pending(self) -> tuple[int, int]:
        """Forget what waits for the agent; returns how many bytes that were, and what they cost."""
        dropped, cost = sum(len(data) for _, data in self.pending), self.pending_bytes
        self.pending.clear()
        self.pending_bytes = 0
        return dropped, cost

    def can_send(self) -> bool:
        """Whether the first thing pending may go to the agent now."""
        if not self.pending:
            return False
        cls, data = self.pending[0]
        return cls is None or not data or self.credit is None or self.credit > 0

    def next_frame(self, limit: int) -> bytes:
        """Take the next frame for the agent: a whole one, or a slice of data of at most ``limit`` bytes."""
        cls, data = self.pending[0]
        if cls is None:
            self.pending.popleft()
            self.pending_bytes -= len(data) + _PIECE_COST
            return bytes(data)
        size = min(len(data), limit if self.credit is None else min(limit, self.credit)) if data else 0
        if size == len(data):
            self.pending.popleft()
            self.pending_bytes -= _PIECE_COST
        else:
            rest = data[size:]
            # A view keeps all of what it is a view of. Copied whenever half of that has gone, no more is kept than
            # twice what is counted, and each byte is copied once more on the average.
            if 2 * len(rest) <= memoryview(rest.obj).nbytes:
                rest = memoryview(bytes(rest))
            self.pending[0] = (cls, rest)
            data = data[:size]
        self.pending_bytes -= size
        if self.credit is not None:
            self.credit -= size
        return wire.encode_data(cls, self.id, data)
