"""What the relay knows of one session: its kind, its state, its credit in both directions, and what waits for it.

Between an agent that counts credit and any client, the relay speaks credit on its own behalf: the agent may
send a *window* ahead, which is given back when the client's socket has taken the bytes. So what the relay must
hold for a client that does not read is bounded before it comes. A client that counts credit itself has,
on top of that, its own say about when its bytes may be sent to it.

Towards the agent the relay keeps to the agent's window, whether the client counts or not: a client that sends
more than it may is slowed down here, and the agent never sees it.

What waits is here; how many bytes that are, the books say.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, final

from trio_console import _wire as wire
from trio_console._relay.router.books import FRAME_COST, PIECE_COST
from trio_console._relay.router.states import SESSION, SessionState
from trio_console._wire.credit import SendWindow

if TYPE_CHECKING:
    from trio_console._relay.router.books import SessionAccount, Window

__all__ = ["Outgoing", "Piece", "RelaySession", "RelayStream", "join_last"]

#: Pieces of a stream that wait are joined up to this size. A program that writes single bytes makes frames that
#: are nearly all header; a window full of them would be fifty windows.
_JOINED: Final = 8 * 1024

#: Bytes beyond twice its window that an agent may be wrong about before it is taken for one that does not count.
_OVERRUN: Final = 64 * 1024


#: What a client has sent and the agent has not got: data of a class, or (with `None`) a whole frame.
Piece: TypeAlias = "tuple[type[wire.DataMessage] | None, memoryview]"


class Outgoing(NamedTuple):
    """A frame for a client.

    Attributes:
        frame: all of it.
        stream: whose window the data in it is accounted to, if there is one.
        size: bytes of that data.
        ends: the session of which it is the last frame.
        is_data: whether it has data of the agent's in it, whether or not that is accounted to a window.
    """

    frame: bytes
    stream: RelayStream | None = None
    size: int = 0
    ends: RelaySession | None = None
    is_data: bool = False


def join_last(queue: deque[Outgoing], item: Outgoing) -> int | None:
    """Make one frame of the last in a queue and of ``item``, if both are small and have data of one stream.

    Returns how many bytes longer the queue is, or `None`: they are not joined.
    """
    last = queue[-1]
    stream, size = last.stream, last.size + item.size
    if stream is None or item.stream is not stream or not last.size or not item.size or size > _JOINED:
        return None
    # Data reaches to the end of its frame, or it would not be accounted to a stream.
    data = last.frame[-last.size :] + item.frame[-item.size :]
    frame = wire.encode_data(stream.cls, stream.session.id, data)
    queue[-1] = Outgoing(frame, stream, size, None, True)
    return len(frame) - len(last.frame)


@final
class RelayStream:
    """One stream from the agent to a client.

    Args:
        cls: the class of its messages.
        window: bytes the agent may send ahead of the client's socket.
        credit: bytes the client lets us send now, or `None` if it does not count.
    """

    __slots__ = ("cls", "credit", "held", "name", "session", "window")

    def __init__(
        self,
        session: RelaySession,
        cls: type[wire.DataMessage],
        name: wire.StreamName,
        window: Window,
        credit: int | None,
    ) -> None:
        self.session: Final = session
        self.cls: Final = cls
        self.name: Final = name
        self.window: Final = window
        self.credit = credit
        self.held: deque[Outgoing] = deque()  # waiting for the client's credit

    def is_overrun_by(self, size: int) -> bool:
        """Whether the agent, with ``size`` bytes more, has sent far more than it was granted."""
        return size - self.window.granted > self.window.size + _OVERRUN

    def lets_pass(self, size: int) -> bool:
        """Whether a frame with so much data may go to the client now; if so, that is taken off the credit."""
        if self.credit is None:
            return True
        if self.held or (self.credit <= 0 and size):
            return False
        # The agent sends at most the smaller of the two windows ahead, so a frame may exceed what is left of
        # the client's by less than a frame. It is not cut: the client's next grants make up for it.
        self.credit -= size
        return True

    def hold(self, item: Outgoing) -> int:
        """Keep a frame until the client gives credit; returns how many bytes more are kept."""
        added = join_last(self.held, item) if self.held else None
        if added is None:
            self.held.append(item)
            added = len(item.frame) + FRAME_COST
        return added

    def next_ready(self) -> Outgoing | None:
        """Take the next frame that is held, if the credit is enough by now."""
        if not self.held or (self.credit is not None and self.credit <= 0 and self.held[0].size):
            return None
        item = self.held.popleft()
        if self.credit is not None:
            self.credit -= item.size
        return item

    def forget_held(self) -> int:
        """Drop all that is held; returns how many bytes less are kept. Nothing waits for credit any more."""
        kept = sum(len(item.frame) + FRAME_COST for item in self.held)
        self.held.clear()
        self.credit = None
        return kept


@final
class RelaySession:
    """A session between a client and the agent.

    Args:
        kind: what it is.
        account: its sums in the books.
        window: bytes of its client's data that the agent may be sent ahead, or `None` if it does not count.
        counts: whether the client speaks credit.

    Attributes:
        input: the class of data that its client sends, if there is any; and the name of that stream.
        room: what is left of that window.
        streams: from the agent; none towards an agent without credit.
        pending: to the agent, in order.
        last: the terminal frame, which is held behind data while the session is `SessionState.ENDED`.
    """

    __slots__ = (
        "account",
        "counts",
        "id",
        "input",
        "input_name",
        "kind",
        "last",
        "pending",
        "room",
        "state",
        "streams",
    )

    def __init__(
        self, session_id: int, kind: wire.SessionKind, account: SessionAccount, window: int | None, *, counts: bool
    ) -> None:
        self.id: Final = session_id
        self.kind: Final = kind
        inputs = wire.streams_of(kind, wire.Direction.HOST_TO_AGENT)
        self.input: Final = next(iter(inputs), None)
        self.input_name: Final = next(iter(inputs.values()), None)
        self.account: Final = account
        self.room: Final = SendWindow(window)
        self.counts: Final = counts
        self.state = SESSION.first
        self.streams: dict[type[wire.DataMessage], RelayStream] = {}
        self.pending: deque[Piece] = deque()
        self.last: Outgoing | None = None

    def become(self, state: SessionState) -> None:
        """Go on to another state.

        Raises:
            IllegalStepError: that may not follow the one it is in.
        """
        self.state = SESSION.take(self.state, state)

    @property
    def held(self) -> RelayStream | None:
        """The first stream of which something is held back for the client."""
        return next((stream for stream in self.streams.values() if stream.held), None)

    def stream_named(self, name: wire.StreamName) -> RelayStream | None:
        """The stream from the agent that a client's credit is for."""
        return next((stream for stream in self.streams.values() if stream.name == name), None)

    def can_send(self) -> bool:
        """Whether the first piece pending may go to the agent now."""
        if not self.pending:
            return False
        cls, data = self.pending[0]
        return cls is None or not data or self.room.may_send(1) > 0

    def take(self, limit: int) -> tuple[bytes, int] | None:
        """Take the next frame for the agent: a whole one, or a slice of data of at most ``limit`` bytes.

        Returns it, and how many bytes less are kept; or `None`, if nothing may go now.
        """
        if not self.pending:
            return None
        cls, data = self.pending[0]
        if cls is None:
            self.pending.popleft()
            return bytes(data), len(data) + PIECE_COST
        size = self.room.may_send(min(len(data), limit))
        if data and not size:
            return None
        self.room.sent(size)
        cost = size
        if size == len(data):
            self.pending.popleft()
            cost += PIECE_COST
        else:
            rest = data[size:]
            # A view keeps all of what it is a view of. Copied whenever half of that has gone, no more is kept than
            # twice what is counted, and each byte is copied once more on the average.
            if 2 * len(rest) <= memoryview(rest.obj).nbytes:
                rest = memoryview(bytes(rest))
            self.pending[0] = cls, rest
            data = data[:size]
        return wire.encode_data(cls, self.id, data), cost

    def forget_pending(self) -> int:
        """Drop what waits for the agent; returns how many bytes that were."""
        size = sum(len(data) for _, data in self.pending)
        self.pending.clear()
        return size
