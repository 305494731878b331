"""What the relay knows of one session: its kind, its credit in both directions, and what it holds back.

Between an agent that counts credit and any client, the relay speaks credit on its own behalf: the agent may
send a *window* ahead, which is given back when the client's socket has taken the bytes. So what the relay must
hold for a client that does not read is bounded before it comes. A client that counts credit itself has,
on top of that, its own say about when its bytes may be sent to it.

Pure bookkeeping.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, final

from trio_console import _protocol as wire

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Flow", "Outgoing", "RelaySession", "stream_name"]

_STREAMS: Final[Mapping[type[wire.Message], wire.StreamName]] = {
    wire.ExecStdin: "stdin",
    wire.ExecStdout: "stdout",
    wire.ExecStderr: "stderr",
    wire.FsData: "data",
    wire.TcpData: "data",
}


def stream_name(cls: type[wire.DataMessage]) -> wire.StreamName:
    """The stream that a data message belongs to."""
    return _STREAMS[cls]


class Outgoing(NamedTuple):
    """A frame for a client.

    With data in it, the flow it is accounted to and how much; as the last one of a session, that session.
    """

    frame: bytes
    flow: Flow | None = None
    size: int = 0
    ends: RelaySession | None = None


@final
class Flow:
    """One stream from the agent to a client.

    Args:
        window: bytes the agent may send ahead of the client's socket.
        credit: bytes the client lets us send now, or `None` if it does not count.
    """

    __slots__ = ("credit", "held", "held_bytes", "name", "owed", "session_id", "window")

    def __init__(self, session_id: int, name: wire.StreamName, window: int, credit: int | None) -> None:
        self.session_id = session_id
        self.name: Final = name
        self.window: Final = window
        self.credit = credit
        self.owed = 0  # taken by the client's socket, not given back to the agent yet
        self.held: deque[Outgoing] = deque()  # waiting for the client's credit
        self.held_bytes = 0

    def admit(self, item: Outgoing) -> bool:
        """Whether the item may go to the client now; if not, it is held."""
        if self.credit is None:
            return True
        if self.held or self.credit <= 0:
            self.held.append(item)
            self.held_bytes += item.size
            return False
        # The agent sends at most the smaller of the two windows ahead, so a frame may exceed what is left of the
        # client's by less than a frame. It is not cut: the client's next grants make up for it.
        self.credit -= item.size
        return True

    def grant(self, size: int) -> list[Outgoing]:
        """The client takes ``size`` bytes more: what may go to it now."""
        ready: list[Outgoing] = []
        if self.credit is not None:
            self.credit += size
            while self.held and self.credit > 0:
                item = self.held.popleft()
                self.held_bytes -= item.size
                self.credit -= item.size
                ready.append(item)
        return ready

    def taken(self, size: int) -> int:
        """The client's socket took ``size`` bytes; returns what is to be granted to the agent now."""
        self.owed += size
        if self.owed * 2 < self.window:
            return 0
        owed, self.owed = self.owed, 0
        return owed


@final
class RelaySession:
    """A session between a client and the agent.

    Args:
        kind: ``exec``, ``fs``, ``tcp`` or ``call``.
        flows: streams from the agent, by name; empty towards an agent without credit.
        credit: bytes the relay may send to the agent now for this session, or `None` if it does not count:
            the agent knows no credit, or the client counts itself.
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
        "pending",
        "pending_bytes",
        "queued",
    )

    def __init__(
        self,
        session_id: int,
        kind: str,
        flows: Mapping[wire.StreamName, Flow],
        credit: int | None,
        *,
        counts: bool,
    ) -> None:
        self.id: Final = session_id
        self.kind: Final = kind
        self.flows: Final = flows
        self.credit = credit
        self.counts: Final = counts
        self.pending: deque[tuple[type[wire.DataMessage] | None, memoryview]] = deque()  # to the agent, in order
        self.pending_bytes = 0
        self.queued = False  # whether it is in its client's round
        self.closing = False  # the client is done with it once what is pending has gone
        self.last: Outgoing | None = None  # the terminal frame, while data before it is held

    @property
    def held(self) -> bool:
        """Whether something is held back for the client."""
        return any(flow.held for flow in self.flows.values())

    def add_pending(self, cls: type[wire.DataMessage] | None, data: bytes) -> None:
        """Queue data of a class, or (with `None`) a whole frame that must stay behind it."""
        self.pending.append((cls, memoryview(data)))
        self.pending_bytes += len(data)

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
            self.pending_bytes -= len(data)
            return bytes(data)
        size = min(len(data), limit if self.credit is None else min(limit, self.credit))
        if size == len(data):
            self.pending.popleft()
        else:
            self.pending[0] = (cls, data[size:])
            data = data[:size]
        self.pending_bytes -= size
        if self.credit is not None:
            self.credit -= size
        return wire.encode_data(cls, self.id, data)
