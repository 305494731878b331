"""The relay's router: it decides which client gets a frame, which frames are refused, and which are held.

There is no I/O, no clock and no event loop here. The server calls a method when something has happened, and
carries out the orders that it returns: frames for the agent (`Orders.to_agent`), and a client with new frames in
its queue (`Client.outgoing`). All methods are synchronous, so each call is one consistent step.

The agent may be of any make: it counts credit only if it has announced that, it may send frames after a terminal
frame, and it may send frames for ids that do not exist.

Each frame of a client is checked before it is forwarded; see `gate`. The `books` count every byte that waits here;
each change of a queue is noted there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import msgspec

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._relay.router.books import FRAME_COST, PIECE_COST, Books
from trio_console._relay.router.budgets import Budgets
from trio_console._relay.router.clients import Client
from trio_console._relay.router.gate import answer_to, check_allowed, may_end, refusal
from trio_console._relay.router.orders import Orders
from trio_console._relay.router.session import Outgoing, RelaySession, RelayStream
from trio_console._relay.router.slots import Slots
from trio_console._relay.router.states import ClientState, SessionState
from trio_console._wire.ids import slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_console._relay.log import SessionLog
    from trio_console._relay.router.limits import RouterLimits
    from trio_console._relay.router.session import Piece

__all__ = ["Router"]

_SIGKILL: Final = 9

#: The classes of messages that overtake data of their session on the way to a client.
_HURRIED: Final = frozenset(
    row.cls
    for row in wire.MESSAGE_TYPES.values()
    if row.overtakes and row.place is wire.Place.WITHIN and wire.Direction.AGENT_TO_HOST in row.direction
)

# (Short names, because in Python 3.11 each access to an enum's member is a call, and these are used for every
# frame.)
_OPEN: Final = SessionState.OPEN
_CLOSING: Final = SessionState.CLOSING
_ABANDONED: Final = SessionState.ABANDONED
_ENDED: Final = SessionState.ENDED
_LEAVING: Final = SessionState.LEAVING

#: In these states both the client and the agent know a session. In others, data or credit for it would be taken
#: for that of the next session with its id.
_KNOWN: Final = (_OPEN, _CLOSING, SessionState.GIVEN_UP)


@final
class Router:
    """The decisions and the state behind them; see the module.

    Args:
        flow: the agent's announcement that it counts credit, or `None`.
        limits: the bounds.

    Attributes:
        books: all sums of bytes.
        budgets: the bounds of these sums.
        observer: the session log, which is called with each command and its output.
        refused_frames: frames of clients that were refused, and answered here.
        dropped_frames: frames of the agent that were dropped.
    """

    def __init__(self, flow: wire.Flow | None, limits: RouterLimits) -> None:
        self._flow = flow
        self._limits = limits
        self._tail = 2 * limits.sessions + 1  # more ids than can be in use
        self._slots = Slots()
        self._clients: dict[int, Client] = {}
        self._quarantined: dict[int, Client] = {}
        self.books: Final = Books()
        self.budgets: Final = Budgets(limits, self.books, self._clients)
        self.observer: SessionLog | None = None
        self.refused_frames = 0
        self.dropped_frames = 0

    # Clients come and go

    @property
    def clients(self) -> Iterable[Client]:
        return self._clients.values()

    @property
    def slots(self) -> Slots:
        return self._slots

    def connect(self, uid: int) -> Client | None:
        """Give a new client of a user a slot; `None` if no slot is free."""
        slot = self._slots.take()
        if slot is None:
            return None
        assert slot not in self._quarantined, "a slot is one client's at a time"
        client = self._clients[slot] = Client(slot, self.books.open_client(uid))
        return client

    def disconnect(self, client: Client, now: float) -> Orders:
        """End the work of a client that has gone: kill its commands, and quarantine its slot."""
        del self._clients[client.slot]
        orders = Orders()
        # (A session whose terminal frame is held here has ended in the guest already.)
        execs = {s.id for s in client.sessions.values() if s.kind == "exec" and s.state is not _ENDED}
        orders.to_agent += [wire.encode(wire.ExecSignal(_SIGKILL), session_id) for session_id in sorted(execs)]
        if self.observer is not None:
            for session_id in execs:
                self.observer.ended(session_id, "killed: its client has disconnected")
        orders.to_agent.append(wire.encode(wire.ClientDisconnected(client.ids.start, client.ids.stop)))
        # A command ends with a frame. Other sessions end without one, so a request goes behind the two messages
        # above. Its answer keeps the order of data: what the guest had queued for this slot before it read those
        # messages comes before the answer. The request also goes behind the data of this client that still waits
        # for the console, which would otherwise reach the sessions of the slot's next client.
        last_id = client.quiet_id(self._tail)
        stat = wire.FsRequest(wire.OpStat(path="/", follow_symlink=True))
        orders.behind = (wire.encode(stat, last_id),)
        client.become(ClientState.QUARANTINED)
        client.last_words = {**dict.fromkeys(execs, "exec"), last_id: "fs"}
        self._quarantined[client.slot] = client
        self._slots.quarantine(client.slot, now + self._limits.quarantine)
        for session in tuple(client.sessions.values()):
            self._end(client, session)
        client.hurried.clear()
        client.outgoing.clear()
        self.books.close_client(client.account)
        return orders

    def tick(self, now: float) -> list[int]:
        """Retire the slots whose quarantine was too long by ``now``; returns them."""
        late = self._slots.retire_late(now)
        for slot in late:
            self._quarantined.pop(slot).become(ClientState.RETIRED)
        return late

    # From a client

    def from_client(self, client: Client, frame: wire.Frame) -> Orders:
        """Handle a frame of a client.

        Raises:
            ProtocolError: the client must be cut: the id is not one of its own, or it made a mistake of which it
                cannot be told.
        """
        orders = Orders()
        if frame.id not in client.ids and not (frame.id == 0 and frame.flags & wire.FLAG_SHUTDOWN):
            raise ProtocolError(
                f"id {frame.id} is not one of this client's ({client.ids.start} to {client.ids.stop - 1})",
                kind="bad_frame",
                frame_id=frame.id,
            )
        try:
            message = wire.decode(frame)
            check_allowed(message, credit=self._flow is not None)
            session = client.sessions.get(frame.id)
            if (
                isinstance(message, wire.DataMessage)
                and session is not None
                and session.input is type(message)
                and session.state in _KNOWN
            ):
                self._pend(client, session, (session.input, memoryview(message.data)), orders)
            else:
                self._accept(client, session, frame, message, orders)
        except ProtocolError as exc:
            exc.frame_id = frame.id
            self._refuse(client, frame, exc, orders)
        return orders

    def _refuse(self, client: Client, frame: wire.Frame, exc: ProtocolError, orders: Orders) -> None:
        """Refuse a frame: the relay answers it, and does not forward it."""
        self.refused_frames += 1
        error = answer_to(frame, exc)
        session = client.sessions.get(frame.id)
        if session is not None and session.state is not _ABANDONED:
            # The answer is a terminal frame, so the client forgets the session, and it must end in the guest too.
            self._abandon(client, session, orders)
        self._answer(client, error, frame.id, orders)

    def _answer(self, client: Client, message: wire.Message, session_id: int, orders: Orders) -> None:
        self._queue(client, Outgoing(wire.encode(message, session_id)), orders, hurried=True)

    def _queue(self, client: Client, item: Outgoing, orders: Orders, *, hurried: bool = False) -> None:
        """Queue a frame whose bytes are in no window."""
        self.books.queue(client.account, client.put(item, hurried=hurried))
        orders.busy = client

    def _abandon(self, client: Client, session: RelaySession, orders: Orders) -> None:
        """End a session in the guest that its client has forgotten."""
        if session.state is _ENDED:  # it has ended in the guest already
            self._end(client, session)
        elif session.kind == "tcp":
            orders.to_agent.append(wire.encode(wire.TcpClose(), session.id))
            self._end(client, session)  # the agent does not answer a close
        else:
            # The session is kept until the guest's terminal frame comes, because its id is in use until then.
            session.become(_ABANDONED)
            self._release(session)
            if session.kind == "exec":
                orders.to_agent.append(wire.encode(wire.ExecSignal(_SIGKILL), session.id))
            elif session.kind == "fs" and self._flow is not None:
                orders.to_agent.append(wire.encode(wire.Cancel(), session.id))

    def _accept(
        self,
        client: Client,
        session: RelaySession | None,
        frame: wire.Frame,
        message: wire.Message,
        orders: Orders,
    ) -> None:
        """Handle a frame of a client that is not data for an open session."""
        row = wire.type_of(message)
        if row.place is wire.Place.OPENS:
            orders.to_agent.append(self._open(client, frame, message))
        elif isinstance(message, wire.Shutdown):
            orders.to_agent.append(wire.encode(message))
            orders.shutdown = True
        elif session is None:
            if row.orphan is not None:
                self._answer(client, row.orphan(frame.id), frame.id, orders)
            # All other messages for a session that has ended are ignored.
        elif session.state is _ABANDONED:
            self.books.drop(len(frame.body))
        elif not row.fits(session.kind):
            raise refusal(message, "invalid_session", f"came for id {frame.id}, which is no {row.kind} session")
        else:
            self._accept_within(client, session, frame, message, orders)

    def _pend(self, client: Client, session: RelaySession, piece: Piece, orders: Orders) -> None:
        """Keep a piece that a client has sent until the agent takes it."""
        session.pending.append(piece)
        self.books.pend(session.account, len(piece[1]) + PIECE_COST)
        if session not in client.round and session.can_send():
            client.round[session] = None
            orders.busy = client

    def _accept_within(
        self, client: Client, session: RelaySession, frame: wire.Frame, message: wire.Message, orders: Orders
    ) -> None:
        """Handle a message for a session that the client still has open."""
        if isinstance(message, wire.Credit):
            self._client_grants(client, session, message, orders)
        elif session.state is _ENDED:
            self._accept_late(client, session, frame, message, orders)
        elif not wire.type_of(message).overtakes:
            if isinstance(message, wire.TcpClose):
                self._give_up(session, _CLOSING)
            # The message is sent behind the data of its session.
            self._pend(client, session, (None, memoryview(wire.encode_again(frame))), orders)
        else:
            if isinstance(message, wire.Cancel):
                self._drop_pending(session)
                self._give_up(session, SessionState.GIVEN_UP)
            orders.to_agent.append(wire.encode_again(frame))

    def _accept_late(
        self, client: Client, session: RelaySession, frame: wire.Frame, message: wire.Message, orders: Orders
    ) -> None:
        """Handle a message for a session that has ended in the guest, of which the client does not know yet.

        The guest must not get it: it answers data for an unknown id with a terminal frame, which would end the
        next session with this id.
        """
        self.books.drop(len(frame.body))
        if isinstance(message, wire.TcpClose):  # the client forgets the session, and grants no more credit
            self._end(client, session)
        elif isinstance(message, wire.Cancel):
            self._give_up(session, _ENDED)
            self._say_held_last(client, session)
            orders.busy = client

    def _give_up(self, session: RelaySession, state: SessionState) -> None:
        """Note that the client needs only the terminal frame of a session, and drop the held data.

        The client grants no more credit, so the held data, and the terminal frame behind it, would be held for
        ever.
        """
        if session.kind == "exec":  # a command cannot be given up: the client still gets its output
            return
        if session.state is not state and session.state is not _CLOSING:
            session.become(state)
        self._drop_held(session)

    def _open(self, client: Client, frame: wire.Frame, message: wire.Message) -> bytes:
        """Register a session; returns the request as the agent gets it."""
        if frame.id in client.sessions:
            raise refusal(message, "invalid_session", f"came for id {frame.id}, which is still in use")
        if len(client.sessions) >= self._limits.sessions:
            raise refusal(
                message,
                "invalid_session",
                f"would be more than the {self._limits.sessions} sessions a client may have",
            )
        kind, books = wire.opened_by(message), self.books
        if self._flow is None or not isinstance(message, wire.StreamRequest):
            raw = wire.encode_again(frame)
            session = RelaySession(frame.id, kind, books.open_session(client.account), None, counts=False)
        else:
            wanted = None if message.window is wire.UNSET else message.window
            streams = wire.streams_of(kind, wire.Direction.AGENT_TO_HOST)
            window = self.budgets.window(client, len(streams), wanted)
            version = wire.decode_envelope(frame.body).version
            # Encoded before anything is noted, because the request may be too large with the window in it.
            raw = wire.encode(msgspec.structs.replace(message, window=window), frame.id, version=version)
            account = books.open_session(client.account)
            session = RelaySession(frame.id, kind, account, self._flow.window, counts=wanted is not None)
            for cls, name in streams.items():
                reserved = books.reserve(account, window)
                session.streams[cls] = RelayStream(session, cls, name, reserved, wanted)
        assert frame.id in client.ids, "a session has an id of its client's"
        client.sessions[frame.id] = session
        client.note_opened(frame.id, self._tail)
        if self.observer is not None and isinstance(message, wire.ExecRequest):
            self.observer.opened(frame.id, message)
        return raw

    # Sessions end

    def _end(self, client: Client, session: RelaySession) -> None:
        """Forget a session for which no more frames come: its id is free."""
        if session.state is not _ABANDONED:
            self._release(session)
        session.become(SessionState.OVER)
        del client.sessions[session.id]

    def _release(self, session: RelaySession) -> None:
        """Drop the waiting frames of a session, and free its windows."""
        self._drop_pending(session)
        self._drop_held(session)
        self.books.release(session.account)

    def _drop_held(self, session: RelaySession) -> None:
        for stream in session.streams.values():
            if kept := stream.forget_held():
                self.books.drop_held(stream.window, kept)

    def _drop_pending(self, session: RelaySession) -> None:
        if session.pending:
            self.books.drop_pending(session.account, session.forget_pending())

    def _client_grants(self, client: Client, session: RelaySession, message: wire.Credit, orders: Orders) -> None:
        stream = session.stream_named(message.stream)
        if stream is None:
            return
        if stream.credit is not None:
            stream.credit += message.bytes
        self._let_go(client, stream)
        self._say_held_last(client, session)
        orders.busy = client

    def _let_go(self, client: Client, stream: RelayStream) -> None:
        """Queue the held frames of a stream, as far as the client's credit allows."""
        while (item := stream.next_ready()) is not None:
            self.books.let_go(stream.window, len(item.frame) + FRAME_COST, client.put(item), item.size)

    # To the agent

    def next_for_agent(self, client: Client) -> bytes | None:
        """The next bulk frame of a client for the agent; the client's sessions take turns."""
        while client.round:
            session, _ = client.round.popitem(last=False)
            taken = session.take(self._limits.slice)
            if taken is None:
                continue
            frame, size = taken
            self.books.take(session.account, size)
            if session.pending:
                if session.can_send():
                    client.round[session] = None
            elif session.state is _CLOSING:
                # The agent does not answer the close of a connection, so no more frames come for this id.
                self._end(client, session)
            return frame
        return None

    # From the agent

    def from_agent(self, frame: wire.Frame) -> Orders:
        """Handle a frame of the agent: queue it for its client. Never raises, whatever the agent sends."""
        orders = Orders()
        slot = slot_of(frame.id)
        client = None if slot is None else self._clients.get(slot)
        if client is None:
            self._hear_last_word(None if slot is None else self._quarantined.get(slot), frame, orders)
            return orders
        session = client.sessions.get(frame.id)
        data = wire.measure_data(frame)
        if data is None:
            self._deliver(client, session, frame, orders)
        else:
            if self.observer is not None:
                self.observer.said(frame, data)
            self._deliver_data(client, session, frame, data, orders)
        return orders

    def _drop_frame(self, size: int) -> None:
        self.dropped_frames += 1
        self.books.drop(size)

    def _deliver_data(
        self,
        client: Client,
        session: RelaySession | None,
        frame: wire.Frame,
        data: tuple[type[wire.DataMessage], int],
        orders: Orders,
    ) -> None:
        cls, size = data
        if session is not None and session.state is _ABANDONED:
            self._drop_frame(len(frame.body))
            return
        stream = None if session is None else session.streams.get(cls)
        item = Outgoing(wire.encode_again(frame), stream, size, None, True)
        if session is None or stream is None:
            # Data of an unknown session is passed on; the client ignores it.
            self.books.queue(client.account, client.put(item))
        elif session.state is not _OPEN:
            self._drop_frame(size)
        elif stream.is_overrun_by(size):
            self.dropped_frames += 1
            self.books.refuse(stream.window, size)
            self._abandon(client, session, orders)
            why = f"the guest sent far more of {stream.name} than its window of {stream.window.size} bytes"
            self._answer(client, wire.Error("invalid_session", why), session.id, orders)
        elif stream.lets_pass(size):
            self.books.queue(client.account, client.put(item), stream.window, size)
        else:
            self.books.hold(stream.window, stream.hold(item), size)
        orders.busy = client

    def _deliver(self, client: Client, session: RelaySession | None, frame: wire.Frame, orders: Orders) -> None:
        """Handle a frame without data, or with data in an unusual form, which the client must judge."""
        cls, is_last = _class_of(frame), bool(frame.flags & wire.FLAG_TERMINAL)
        if session is not None:
            if cls is wire.Credit and self._is_credit_for_us(client, session, frame, orders):
                return
            if is_last and not may_end(cls, session.kind):
                self._drop_frame(len(frame.body))
                return
        if self.observer is not None:
            self.observer.said(frame, None)
        if session is None:
            self._queue(client, Outgoing(wire.encode_again(frame)), orders)
        elif session.state is not _ABANDONED:
            self._deliver_within(client, session, cls, frame, orders)
        elif is_last:
            self._end(client, session)
        else:
            self._drop_frame(len(frame.body))

    def _deliver_within(
        self,
        client: Client,
        session: RelaySession,
        cls: type[wire.Message] | None,
        frame: wire.Frame,
        orders: Orders,
    ) -> None:
        """Queue a frame without data, or hold it behind the held data of its session if it may not overtake."""
        raw = wire.encode_again(frame)
        if frame.flags & wire.FLAG_TERMINAL:
            self._finish(client, session, Outgoing(raw, None, 0, session))
        elif cls in _HURRIED:
            self._queue(client, Outgoing(raw), orders, hurried=True)
        elif (stream := session.held) is not None:
            self.books.hold(stream.window, stream.hold(Outgoing(raw)), 0)
        else:
            self._queue(client, Outgoing(raw), orders)
        orders.busy = client

    def _finish(self, client: Client, session: RelaySession, last: Outgoing) -> None:
        """Handle the terminal frame of a session."""
        self._drop_pending(session)
        if session.state is _ENDED:
            self.dropped_frames += 1  # a second terminal frame, while the first is held behind data
        elif session.held is None:
            self._say_last(client, session, last)
        else:
            session.become(_ENDED)
            session.last = last

    def _say_last(self, client: Client, session: RelaySession, last: Outgoing) -> None:
        """Queue the terminal frame for the client. Then the id is free."""
        assert session.held is None, "a terminal frame is behind all data of its session"
        session.become(_LEAVING)
        self.books.queue(client.account, client.put(last, hurried=session.kind == "call"))
        del client.sessions[session.id]

    def _say_held_last(self, client: Client, session: RelaySession) -> None:
        """Queue the terminal frame for the client, if there is one and no more data is held in front of it."""
        if session.last is not None and session.held is None:
            self._say_last(client, session, session.last)

    def _is_credit_for_us(self, client: Client, session: RelaySession, frame: wire.Frame, orders: Orders) -> bool:
        """Take credit that the agent grants; returns whether it ends here, because the client counts no credit."""
        if self._flow is None or session.input is None or frame.flags:
            return False
        try:
            message = wire.decode(frame)
        except ProtocolError:
            return False
        if not isinstance(message, wire.Credit):
            return False
        if message.stream == session.input_name:
            session.room.granted(message.bytes)
            if session not in client.round and session.can_send():
                client.round[session] = None
                orders.busy = client
        return not session.counts

    def _hear_last_word(self, client: Client | None, frame: wire.Frame, orders: Orders) -> None:
        """Handle a frame for a slot in quarantine, or for no slot; free the slot after its last terminal frame."""
        kind = None if client is None else client.last_words.get(frame.id)
        if (
            client is None
            or kind is None
            or not frame.flags & wire.FLAG_TERMINAL
            or not may_end(_class_of(frame), kind)
        ):
            self.dropped_frames += 1
            return
        del client.last_words[frame.id]
        if not client.last_words:
            client.become(ClientState.GONE)
            del self._quarantined[client.slot]
            self._slots.release(client.slot)
            orders.slot_freed = True

    def lose_agent(self) -> None:
        """Queue all held frames for their clients, without waiting for credit, because the guest is gone."""
        for client in self._clients.values():
            for session in tuple(client.sessions.values()):
                for stream in session.streams.values():
                    stream.credit = None
                    self._let_go(client, stream)
            for session in tuple(client.sessions.values()):
                self._say_held_last(client, session)

    # To a client

    def sent_to_client(self, client: Client, batch: list[Outgoing]) -> Orders:
        """Note that the client's socket has taken frames, and grant the agent credit for them."""
        orders, books = Orders(), self.books
        for item in batch:
            stream = item.stream
            if stream is None:
                books.sent(client.account, len(item.frame))
            elif (
                due := books.sent(client.account, len(item.frame), stream.window, item.size)
            ) and stream.session.state in _KNOWN:
                books.grant(stream.window, due)
                orders.to_agent.append(wire.encode(wire.Credit(stream.name, due), stream.session.id))
            if item.ends is not None:
                # Not before, so that the frames queued for a client that does not read stay within its budget.
                item.ends.become(SessionState.OVER)
                books.release(item.ends.account)
        return orders

    def drop_data(self, client: Client) -> int:
        """Drop and count the data that is queued for a client: a policy for an agent without credit."""
        dropped = sum(len(item.frame) for item in client.outgoing if item.is_data)
        kept = [item for item in client.outgoing if not item.is_data]
        client.outgoing.clear()
        client.outgoing.extend(kept)
        self.books.drop_queued(client.account, dropped)
        return dropped


def _class_of(frame: wire.Frame) -> type[wire.Message] | None:
    """The class of an agent's frame, by its type alone; `None` if it is unknown."""
    try:
        row = wire.MESSAGE_TYPES.get(wire.peek_type(frame.body))
    except ProtocolError:
        return None  # a frame of a newer agent, or a bad one: the client must judge it
    return None if row is None else row.cls
