"""One session, as the relay knows it: its kind, its state, its credit in both directions, and its waiting frames.

With an agent that counts credit, the relay grants credit itself, for each client: the agent may send a *window*,
and the relay grants the bytes again when the client's socket has taken them. So the bytes that the relay must keep
for a client that does not read are bounded before they come. If the client counts credit too, its bytes also wait
for its own grants.

Towards the agent the relay keeps to the agent's window, whether the client counts credit or not. A client that
sends more is slowed down here, and the agent does not notice it.

The frames are here; the books count their bytes. Whatever is put into a queue here, or taken out or dropped, is
entered in the books by the same method.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, final

from trio_console import _wire as wire
from trio_console._relay.router.books import FRAME_COST, PIECE_COST
from trio_console._relay.router.limits import Numbers
from trio_console._relay.router.states import SESSION, SessionState
from trio_console._wire.credit import SendWindow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_console._relay.router.books import Books, ClientAccount, Window

__all__ = ["SHAPES", "Opening", "Outgoing", "Piece", "RelaySession", "RelayStream", "Shape", "join_last"]

#: Waiting frames of a stream, in each direction, are joined up to this size. A program that writes single bytes
#: makes frames that are nearly all header; with these a full window would need the memory of fifty windows.
_JOINED: Final = 8 * 1024

#: Bytes that an agent may send beyond twice its window, before it counts as an agent that does not keep to credit.
_OVERRUN: Final = 64 * 1024


#: A piece that a client has sent and the agent has not got: data of a class, or (with `None`) a whole frame.
Piece: TypeAlias = "tuple[type[wire.DataMessage] | None, bytes | memoryview]"


class Shape(NamedTuple):
    """The streams of the sessions of a kind.

    Attributes:
        kind: the kind in the catalogue.
        input: the class of the data that the client sends, if it sends any.
        input_name: the name of that stream.
        accepted: the classes of the messages that the client may send.
        outputs: the streams from the agent.
    """

    kind: wire.SessionKind
    input: type[wire.DataMessage] | None
    input_name: wire.StreamName | None
    accepted: frozenset[type[wire.Message]]
    outputs: Mapping[type[wire.DataMessage], wire.StreamName]


def _shape(kind: wire.SessionKind) -> Shape:
    inputs = wire.streams_of(kind, wire.Direction.HOST_TO_AGENT)
    cls, name = next(iter(inputs.items()), (None, None))
    return Shape(kind, cls, name, wire.accepted_in(kind), wire.streams_of(kind, wire.Direction.AGENT_TO_HOST))


#: The shapes of sessions, by the classes of the messages that open them.
SHAPES: Final[Mapping[type[wire.Message], Shape]] = {
    row.cls: _shape(wire.opened_by(row.cls))
    for row in wire.MESSAGE_TYPES.values()
    if row.place is wire.Place.OPENS
}


class Opening(NamedTuple):
    """All that has to be known of a session before it is opened.

    Attributes:
        shape: its streams.
        window: bytes of the window of each stream from the agent, or `None` if the agent counts no credit, or the
            session has no such stream.
        credit: bytes of each of these that the client accepts at first, or `None` if the client counts no credit.
        room: bytes of the client's data that may be outstanding to the agent, or `None` if it counts no credit.
        held_back: bytes of these that the agent accepts only after a grant.
        needs: what it takes of the numbers that are bounded.
        closes: the handle that it closes, if it is the close of one.
        drops: whether the client is told if output is dropped.
    """

    shape: Shape
    window: int | None = None
    credit: int | None = None
    room: int | None = None
    held_back: int = 0
    needs: Numbers = Numbers()
    closes: int | None = None
    drops: bool = False


class Outgoing(NamedTuple):
    """A frame for a client.

    Attributes:
        frame: the whole frame.
        stream: the stream whose window the data in it is counted in, if there is one.
        size: bytes of that data.
        ends: the session of which it is the terminal frame, if it is one.
        is_data: whether it carries data of the agent, also if no window counts it.
        session: the session that it belongs to, if that is known.
    """

    frame: bytes
    stream: RelayStream | None = None
    size: int = 0
    ends: RelaySession | None = None
    is_data: bool = False
    session: RelaySession | None = None


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
    queue[-1] = Outgoing(frame, stream, size, None, True, stream.session)
    return len(frame) - len(last.frame)


@final
class RelayStream:
    """One stream from the agent to a client.

    Args:
        cls: the class of its messages.
        name: its name in credit messages.
        window: the account of the bytes that the agent may send.
        credit: bytes that the client accepts now, or `None` if it counts no credit.
        books: the ledger.
    """

    __slots__ = ("_books", "cls", "credit", "held", "name", "session", "window")

    def __init__(
        self,
        session: RelaySession,
        cls: type[wire.DataMessage],
        name: wire.StreamName,
        window: Window,
        credit: int | None,
        books: Books,
    ) -> None:
        self._books: Final = books
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

    def hold(self, item: Outgoing) -> None:
        """Hold a frame until the client gives credit."""
        added = join_last(self.held, item) if self.held else None
        if added is None:
            self.held.append(item)
            added = len(item.frame) + FRAME_COST
        self._books.hold(self.window, added, item.size)

    def next_ready(self) -> Outgoing | None:
        """Take the next held frame, if there is credit for it. The books count it as held until it is queued."""
        if not self.held or (self.credit is not None and self.credit <= 0 and self.held[0].size):
            return None
        item = self.held.popleft()
        if self.credit is not None:
            self.credit -= item.size
        return item

    def drop_held(self) -> None:
        """Drop all held frames. Later frames do not wait for credit."""
        self.credit = None
        if self.held:
            kept = sum(len(item.frame) + FRAME_COST for item in self.held)
            self.held.clear()
            self._books.drop_held(self.window, kept)


@final
class RelaySession:
    """A session between a client and the agent, which opens its account in the books.

    Args:
        session_id: its correlation id.
        opening: what was decided about it.
        books: the ledger.
        client: the account of its client.

    Attributes:
        shape: the streams of its kind.
        kind: its kind in the catalogue.
        account: its sums in the books.
        closes: the handle that it closes, if it is the close of one.
        drops: whether the client is told if output is dropped.
        lossy: the streams of which output was dropped, so that no more is passed on.
        room: the window for the client's data.
        counts: whether the client counts credit.
        streams: the streams from the agent; none if the agent counts no credit.
        pending: the pieces for the agent, in order.
        last: the terminal frame, which is held behind data while the state is `SessionState.ENDED`.
    """

    __slots__ = (
        "_books",
        "account",
        "closes",
        "counts",
        "drops",
        "id",
        "kind",
        "last",
        "lossy",
        "pending",
        "room",
        "shape",
        "state",
        "streams",
    )

    def __init__(self, session_id: int, opening: Opening, books: Books, client: ClientAccount) -> None:
        shape, window, credit, room, held_back, needs, closes, drops = opening
        outputs = {} if window is None else shape.outputs
        self._books: Final = books
        self.id: Final = session_id
        self.shape: Final = shape
        self.kind: Final = shape.kind
        self.account: Final = books.open_session(client, len(outputs), window or 0, needs)
        self.closes: Final = closes
        self.drops: Final = drops
        self.lossy: frozenset[wire.StreamName] = frozenset()
        self.room: Final = SendWindow(room, held_back)
        self.counts: Final = credit is not None
        self.state = SESSION.first
        self.streams: Final = {
            cls: RelayStream(self, cls, name, account, credit, books)
            for (cls, name), account in zip(outputs.items(), self.account.windows, strict=True)
        }
        self.pending: Final[deque[Piece]] = deque()
        self.last: Outgoing | None = None

    def become(self, state: SessionState) -> None:
        """Change the state.

        Raises:
            IllegalStepError: the table of states does not allow this step.
        """
        self.state = SESSION.take(self.state, state)
        if state is SessionState.OVER:
            self.streams.clear()  # they refer to this session

    # From the client to the agent

    def pend(self, cls: type[wire.DataMessage] | None, data: bytes) -> bool:
        """Keep a piece until the agent takes it; small ones are joined.

        A frame costs this program, the agent and the console the same, whether it has two bytes or thousands. So
        what a client sends faster than it can be passed on is passed on in fewer frames.

        Returns whether that gives the session a turn to send: behind other pieces it has one already, or waits for
        credit.
        """
        pending = self.pending
        if not pending:
            pending.append((cls, data))
            self._books.pend(self.account, len(data) + PIECE_COST)
            return self.can_send()
        last_cls, last = pending[-1]
        # (Data without bytes is the end of the stream.)
        if cls is not None and cls is last_cls and data and last and len(last) + len(data) <= _JOINED:
            pending[-1] = cls, b"".join((last, data))
            self._books.pend(self.account, len(data))
        else:
            pending.append((cls, data))
            self._books.pend(self.account, len(data) + PIECE_COST)
        return False

    def can_send(self) -> bool:
        """Whether the first pending piece may go to the agent now."""
        if not self.pending:
            return False
        cls, data = self.pending[0]
        room = self.room
        return cls is None or not data or room.window is None or room.outstanding < room.window

    def take(self, limit: int) -> bytes | None:
        """Take the next frame for the agent: a whole one, or a slice of data of at most ``limit`` bytes.

        Returns `None` if no frame may go now.
        """
        if not self.pending:
            return None
        cls, data = self.pending[0]
        if cls is None:
            self.pending.popleft()
            self._books.take(self.account, len(data) + PIECE_COST)
            return bytes(data)
        size = self.room.may_send(min(len(data), limit))
        if data and not size:
            return None
        self.room.sent(size)
        cost = size
        if size == len(data):
            self.pending.popleft()
            cost += PIECE_COST
        else:
            data = memoryview(data)
            rest: bytes | memoryview = data[size:]
            # A view keeps its whole object in memory. The rest is copied whenever half of the object was sent: so
            # at most twice the counted bytes are kept, and each byte is copied once more on average.
            if 2 * len(rest) <= memoryview(data.obj).nbytes:
                rest = bytes(rest)
            self.pending[0] = cls, rest
            data = data[:size]
        self._books.take(self.account, cost)
        return wire.encode_data(cls, self.id, data)

    def drop_pending(self) -> None:
        """Drop all pending pieces."""
        if self.pending:
            size = sum(len(data) for _, data in self.pending)
            self.pending.clear()
            self._books.drop_pending(self.account, size)

    # From the agent to the client

    @property
    def held(self) -> RelayStream | None:
        """The first stream that has held frames."""
        return next((stream for stream in self.streams.values() if stream.held), None)

    def held_of(self, name: wire.StreamName) -> RelayStream | None:
        """The stream with this name, if it has held frames."""
        return next((stream for stream in self.streams.values() if stream.name == name and stream.held), None)

    def grant(self, credit: wire.Credit) -> list[tuple[Outgoing, RelayStream | None]]:
        """Add credit that the client gives; returns the frames that it lets go, as `let_go` does."""
        for stream in self.streams.values():
            if stream.name == credit.stream:
                if stream.credit is not None:
                    stream.credit += credit.bytes
                return self.let_go()
        return []

    def let_go(self) -> list[tuple[Outgoing, RelayStream | None]]:
        """Take the held frames for which there is credit, and behind the data the terminal frame, if it has come.

        Returns the frames with the streams that they were held in; the terminal frame was held in none.
        """
        ready: list[tuple[Outgoing, RelayStream | None]] = []
        for stream in self.streams.values():
            while (item := stream.next_ready()) is not None:
                ready.append((item, stream))
        if self.last is not None and self.held is None:
            self.leave()
            ready.append((self.last, None))
        return ready

    def drop_held(self) -> None:
        """Drop all held frames. Later frames do not wait for credit."""
        for stream in self.streams.values():
            stream.drop_held()

    # Its end

    def give_up(self, state: SessionState) -> None:
        """Note that the client needs only the terminal frame, and drop the held data.

        The client grants no more credit, so the held data, and the terminal frame behind it, would be held for
        ever.
        """
        if self.kind == "exec":  # a command cannot be given up: the client still gets its output
            return
        if self.state is not state and self.state is not SessionState.CLOSING:
            self.become(state)
        self.drop_held()

    def cancel(self) -> None:
        """Note that the client has cancelled it: what waits in both directions is dropped."""
        self.drop_pending()
        self.give_up(SessionState.GIVEN_UP)

    def close(self, last: bytes) -> bool:
        """Note that the client has closed it, with a frame for the agent; returns the same as `pend`."""
        self.give_up(SessionState.CLOSING)
        return self.pend(None, last)

    def leave(self) -> None:
        """Note that its terminal frame is the next that the client gets."""
        assert self.held is None, "a terminal frame is behind all data of its session"
        self.become(SessionState.LEAVING)

    def abandon(self) -> None:
        """Keep only the id, because the client was told that the session is over, and the agent was not yet."""
        self.become(SessionState.ABANDONED)
        self._release()

    def end(self) -> None:
        """Keep nothing, because no more frames come."""
        if self.state is not SessionState.ABANDONED:
            self._release()
        self.become(SessionState.OVER)

    def _release(self) -> None:
        """Drop the waiting frames, and free the windows."""
        self.drop_pending()
        self.drop_held()
        self._books.release(self.account)
