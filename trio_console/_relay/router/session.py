"""One session, as the relay knows it: its kind, its state, its credit in both directions, and its waiting frames.

With an agent that counts credit, the relay grants credit itself, for each client: the agent may send a *window*,
and the relay grants the bytes again when the client's socket has taken them. So the bytes that the relay must keep
for a client that does not read are bounded before they come. If the client counts credit too, its bytes also wait
for its own grants.

Towards the agent the relay keeps to the agent's window, whether the client counts credit or not. A client that
sends more is slowed down here, and the agent does not notice it.

The frames are here; the books count their bytes.
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

#: Waiting frames of a stream are joined up to this size. A program that writes single bytes makes frames that are
#: nearly all header; with these a full window would need the memory of fifty windows.
_JOINED: Final = 8 * 1024

#: Bytes that an agent may send beyond twice its window, before it counts as an agent that does not keep to credit.
_OVERRUN: Final = 64 * 1024


#: A piece that a client has sent and the agent has not got: data of a class, or (with `None`) a whole frame.
Piece: TypeAlias = "tuple[type[wire.DataMessage] | None, memoryview]"


class Outgoing(NamedTuple):
    """A frame for a client.

    Attributes:
        frame: the whole frame.
        stream: the stream whose window the data in it is counted in, if there is one.
        size: bytes of that data.
        ends: the session of which it is the terminal frame, if it is one.
        is_data: whether it carries data of the agent, also if no window counts it.
    """

    frame: bytes
    stream: RelayStream | None = None
    size: int = 0
    ends: RelaySession | None = None
    is_data: bool = False


def join_last(queue: deque[Outgoing], item: Outgoing) -> int | None:
    """Join ``item`` to the last frame in a queue, if both are small and carry data of the same stream.

    Returns how many bytes longer the queue is, or `None` if they were not joined.
    """
    last = queue[-1]
    stream, size = last.stream, last.size + item.size
    if stream is None or item.stream is not stream or not last.size or not item.size or size > _JOINED:
        return None
    # The data reaches to the end of its frame; otherwise it would not be counted for a stream.
    data = last.frame[-last.size :] + item.frame[-item.size :]
    frame = wire.encode_data(stream.cls, stream.session.id, data)
    queue[-1] = Outgoing(frame, stream, size, None, True)
    return len(frame) - len(last.frame)


@final
class RelayStream:
    """One stream from the agent to a client.

    Args:
        cls: the class of its messages.
        name: its name in credit messages.
        window: the account of the bytes that the agent may send.
        credit: bytes that the client accepts now, or `None` if it counts no credit.
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
        """Whether the agent, with these ``size`` bytes, has sent far more than it was granted."""
        return size - self.window.granted > self.window.size + _OVERRUN

    def lets_pass(self, size: int) -> bool:
        """Whether a frame with ``size`` bytes of data may go to the client now; if so, the credit is reduced."""
        if self.credit is None:
            return True
        if self.held or (self.credit <= 0 and size):
            return False
        # The agent sends at most the smaller of the two windows, so a frame exceeds the client's credit by less
        # than a frame. The frame is not cut: the credit becomes negative, and the client's next grants make up for
        # it.
        self.credit -= size
        return True

    def hold(self, item: Outgoing) -> int:
        """Hold a frame until the client gives credit; returns how many more bytes are kept."""
        added = join_last(self.held, item) if self.held else None
        if added is None:
            self.held.append(item)
            added = len(item.frame) + FRAME_COST
        return added

    def next_ready(self) -> Outgoing | None:
        """Take the next held frame, if there is credit for it."""
        if not self.held or (self.credit is not None and self.credit <= 0 and self.held[0].size):
            return None
        item = self.held.popleft()
        if self.credit is not None:
            self.credit -= item.size
        return item

    def forget_held(self) -> int:
        """Drop all held frames; returns how many fewer bytes are kept. Later frames do not wait for credit."""
        kept = sum(len(item.frame) + FRAME_COST for item in self.held)
        self.held.clear()
        self.credit = None
        return kept


@final
class RelaySession:
    """A session between a client and the agent.

    Args:
        session_id: its correlation id.
        kind: its kind in the catalogue.
        account: its sums in the books.
        window: bytes of the client's data that the relay may send before a grant, or `None` if the agent counts no
            credit.
        counts: whether the client counts credit.

    Attributes:
        input: the class of data that its client sends, and the name of that stream, if there is one.
        room: the rest of that window.
        streams: the streams from the agent; none if the agent counts no credit.
        pending: the pieces for the agent, in order.
        last: the terminal frame, which is held behind data while the state is `SessionState.ENDED`.
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
        """Change the state.

        Raises:
            IllegalStepError: the table of states does not allow this step.
        """
        self.state = SESSION.take(self.state, state)

    @property
    def held(self) -> RelayStream | None:
        """The first stream that has held frames."""
        return next((stream for stream in self.streams.values() if stream.held), None)

    def stream_named(self, name: wire.StreamName) -> RelayStream | None:
        """The stream from the agent with a name, which a client's credit is for."""
        return next((stream for stream in self.streams.values() if stream.name == name), None)

    def can_send(self) -> bool:
        """Whether the first pending piece may go to the agent now."""
        if not self.pending:
            return False
        cls, data = self.pending[0]
        return cls is None or not data or self.room.may_send(1) > 0

    def take(self, limit: int) -> tuple[bytes, int] | None:
        """Take the next frame for the agent: a whole one, or a slice of data of at most ``limit`` bytes.

        Returns the frame, and how many fewer bytes are kept; or `None` if no frame may go now.
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
            # A view keeps its whole object in memory. The rest is copied whenever half of the object was sent: so
            # at most twice the counted bytes are kept, and each byte is copied once more on average.
            if 2 * len(rest) <= memoryview(rest.obj).nbytes:
                rest = memoryview(bytes(rest))
            self.pending[0] = cls, rest
            data = data[:size]
        return wire.encode_data(cls, self.id, data), cost

    def forget_pending(self) -> int:
        """Drop all pending pieces; returns how many bytes they were."""
        size = sum(len(data) for _, data in self.pending)
        self.pending.clear()
        return size
