"""The relay's router: it decides which client gets a frame, which frames are refused, and which are held.

There is no I/O, no clock and no event loop here. The server calls a method when something has happened, and
carries out the orders that it returns: frames for the agent (`Orders.to_agent`), and a client with new frames in
its queue (`Client.outgoing`). All methods are synchronous, so each call is one consistent step.

The agent may be of any make: it counts credit only if it has announced that, it may send frames after a terminal
frame, and it may send frames for ids that do not exist.

Each frame of a client is checked before it is forwarded; see `gate`. The `books` count every byte that waits here:
a session and a client enter each change of their queues there.
"""

from __future__ import annotations

import contextlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, final

import msgspec

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._relay.router.books import Books
from trio_console._relay.router.clients import Client, loss
from trio_console._relay.router.gate import Gate, may_end
from trio_console._relay.router.heard import class_of, held_before, note_end
from trio_console._relay.router.orders import Orders
from trio_console._relay.router.rights import RefusedError, Rights
from trio_console._relay.router.session import Outgoing
from trio_console._relay.router.slots import Slots
from trio_console._relay.router.states import ClientState, SessionState
from trio_console._wire.ids import slot_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from trio_console._relay.audit import AuditLog
    from trio_console._relay.log import SessionLog
    from trio_console._relay.router.gate import Way
    from trio_console._relay.router.limits import RouterLimits
    from trio_console._relay.router.session import RelaySession, RelayStream

__all__ = ["Router"]

_SIGKILL: Final = 9

#: The classes of messages that overtake data of their session on the way to a client.
_HURRIED: Final = frozenset(
    row.cls
    for row in wire.MESSAGE_TYPES.values()
    if row.overtakes and row.place is wire.Place.WITHIN and wire.Direction.AGENT_TO_HOST in row.direction
)

#: The row of the message with which the relay answers a frame that it refuses.
_ERROR: Final = wire.type_of(wire.Error)

#: The places of messages that are for a session that is open.
_WITHIN: Final = (wire.Place.WITHIN, wire.Place.ENDS)

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
        features: the agent's words for the other additions to the protocol that it knows.
        rights: what the clients of a user may do. Users that are not in it may do everything: the server does not
            let them connect.

    Attributes:
        books: all sums.
        gate: the rules for the clients, which compare these sums with the limits.
        observer: the session log, which is called with each command and its output.
        auditor: the audit log, which is called with each request, and with signals and ends of commands.
        refused_frames: frames of clients that were refused, and answered here.
        dropped_frames: frames of the agent that were dropped.
    """

    def __init__(
        self,
        flow: wire.Flow | None,
        limits: RouterLimits,
        features: Collection[str] = (),
        rights: Mapping[int, Rights] = MappingProxyType({}),
    ) -> None:
        self._flow = flow
        self._rights = rights
        self._confirms = wire.FORGETS in features
        self._limits = limits
        self._slots = Slots()
        self._clients: dict[int, Client] = {}
        self._leaving: dict[int, Client] = {}  # quarantined or retired
        self.books: Final = Books(limits.least_answers, limits.client_budget if flow is None else None)
        self.gate: Final = Gate(flow, limits, features, self.books, self._clients)
        self.observer: SessionLog | None = None
        self.auditor: AuditLog | None = None
        self.refused_frames = 0
        self.dropped_frames = 0

    # Clients come and go

    @property
    def clients(self) -> Iterable[Client]:
        return self._clients.values()

    @property
    def slots(self) -> Slots:
        return self._slots

    def connect(self, uid: int | None) -> Client | None:
        """Give a new client of a user a slot; `None` if no slot is free, or the user has enough of them.

        Without a user it is this program's own client, which may do everything.
        """
        slot = self._slots.take() if self.gate.lets_in(uid) else None
        if slot is None:
            return None
        assert slot not in self._leaving, "a slot is one client's at a time"
        tail = 2 * self._limits.sessions + 1  # more ids than can be in use
        rights = Rights() if uid is None else self._rights.get(uid, Rights())
        client = self._clients[slot] = Client(slot, uid, rights, self.books, tail)
        return client

    def may_get_slot(self, uid: int) -> bool:
        """Whether a client of a user may get a slot when the guest has ended the sessions of those that left."""
        return self._slots.quarantined > 0 and self.gate.lets_in(uid, after_quarantine=True)

    def disconnect(self, client: Client, now: float) -> Orders:
        """End the work of a client that has gone: have its commands killed, and quarantine its slot."""
        del self._clients[client.slot]
        orders = Orders()
        # (A session whose terminal frame is held here has ended in the guest already.)
        execs = {s.id for s in client.sessions.values() if s.kind == "exec" and s.state is not _ENDED}
        if not self._confirms:  # (our agent kills them when it hears that the client has gone)
            orders.to_agent += [wire.encode(wire.ExecSignal(_SIGKILL), id_) for id_ in sorted(execs)]
        if self.observer is not None:
            for session_id in execs:
                self.observer.ended(session_id, "killed: its client has disconnected")
        if self.auditor is not None:
            for session_id in sorted(execs):
                self.auditor.ended(session_id, "killed: its client has disconnected")
        # A command ends with a frame. Other sessions end without one, so the agent is asked for an answer that
        # keeps the order of data: frames that it had queued for this slot before come before the answer. The
        # answer must not wait for what a user of the guest can block, such as a disk. Our agent confirms that the
        # client has gone. Any other answers data for a write that does not exist. That data goes behind the data
        # of this client that still waits for the console, which would otherwise reach the slot's next client.
        last_id = client.quiet_id()
        gone = wire.ClientDisconnected(client.ids.start, client.ids.stop)
        if self._confirms:
            gone = msgspec.structs.replace(gone, confirm=last_id)
        else:
            orders.behind = (wire.encode(wire.FsData(b""), last_id),)
        orders.to_agent.append(wire.encode(gone))
        client.become(ClientState.QUARANTINED)
        client.last_words = {**dict.fromkeys(execs, "exec"), last_id: "call" if self._confirms else "fs"}
        self._leaving[client.slot] = client
        self._slots.quarantine(client.slot, now + self._limits.quarantine)
        client.close()
        return orders

    def write_off(self, client: Client) -> None:
        """Note that a client is being cut, and will disconnect as soon as its tasks have ended.

        Until then its frames are still kept. They are not counted as excess, so that no other client is cut for
        them.
        """
        self.books.write_off(client.account)

    def owes(self, client: Client) -> bool:
        """Whether bytes wait here that a client sent before it closed their connection: it relies on them."""
        return any(session.state is _CLOSING and session.pending for session in client.sessions.values())

    def kill_commands(self, client: Client) -> Orders:
        """Kill the commands of a client that has gone, while something that it has sent is still delivered."""
        orders = Orders()
        execs = [s.id for s in client.sessions.values() if s.kind == "exec" and s.state is not _ENDED]
        orders.to_agent += [wire.encode(wire.ExecSignal(_SIGKILL), session_id) for session_id in execs]
        return orders

    def tick(self, now: float) -> list[int]:
        """Retire the slots whose quarantine was too long by ``now``; returns them."""
        late = self._slots.retire_late(now)
        for slot in late:
            self._leaving[slot].become(ClientState.RETIRED)
        return late

    # From a client

    def from_client(self, client: Client, frame: wire.Frame) -> Orders:
        """Handle a frame of a client.

        All go the same way: the frame is decoded once; the gate decides once; the frame for the agent is encoded;
        the session changes, and enters that in the books. There is more to do only if a frame is refused, or if it
        lets other frames go.

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
        version = None
        try:
            message, row, version = wire.receive(frame)
            session = client.sessions.get(frame.id)
            if session is None or row.place not in _WITHIN:
                self._pass_by(client, frame, (message, row, version), orders)
            elif (way := self.gate.way(row, session)) != "pend":
                self._pass_on(client, session, way, frame, message, orders)
                if way == "send" and self.auditor is not None:
                    self.auditor.said(frame.id, message)
            else:
                assert isinstance(message, wire.DataMessage), "input is data"
                if session.pend(type(message), message.data):
                    self._take_turn(client, session, orders)
        except ProtocolError as exc:
            exc.frame_id = frame.id
            if version is not None:
                exc.version = version
            self._refuse(client, frame, exc, orders)
        return orders

    def _pass_on(
        self,
        client: Client,
        session: RelaySession,
        way: Way,
        frame: wire.Frame,
        message: wire.Message,
        orders: Orders,
    ) -> None:
        """Handle a message without data for an open session, in the way that the gate has chosen."""
        has_turn = False
        match way:
            case "send":
                orders.to_agent.append(wire.encode_again(frame))
            case "queue":
                has_turn = session.pend(None, wire.encode_again(frame))
            case "close":
                has_turn = session.close(wire.encode_again(frame))
            case "cancel":
                orders.to_agent.append(wire.encode_again(frame))
                session.cancel()
            case "grant":
                assert isinstance(message, wire.Credit), "credit is granted"
                self._let_go(client, session, session.grant(message), orders)
            case "drop":
                self.books.drop(len(frame.body))
            case "late close":  # the client forgets the session, and grants no more credit
                self.books.drop(len(frame.body))
                client.end(session)
            case "late cancel":
                self.books.drop(len(frame.body))
                session.give_up(_ENDED)
                self._let_go(client, session, session.let_go(), orders)
        if has_turn:
            self._take_turn(client, session, orders)

    def _open(self, client: Client, frame: wire.Frame, received: wire.Received, orders: Orders) -> None:
        """Open a session, and order the request for the agent.

        Raises:
            RefusedError: the client lacks the right, or has enough already.
        """
        message, row, version = received
        opening = self.gate.admit(client, frame.id, message, row)
        # Encoded before anything is noted, because the request may be too large with the window in it.
        if opening.window is None:
            raw = wire.encode_again(frame)
        else:
            assert isinstance(message, wire.StreamRequest), "only requests with streams get windows"
            raw = wire.encode_with_window(message, opening.window, frame.id, version=version)
        client.open(frame.id, opening)
        orders.to_agent.append(raw)
        if self.auditor is not None:
            self.auditor.asked(client.slot, frame.id, message)
        if self.observer is not None and isinstance(message, wire.ExecRequest):
            self.observer.opened(frame.id, message)

    def _pass_by(self, client: Client, frame: wire.Frame, received: wire.Received, orders: Orders) -> None:
        """Handle a message that opens a session, belongs to none, or to one that has ended."""
        message, row, _ = received
        if row.place is wire.Place.OPENS or isinstance(message, wire.Shutdown):
            try:
                self._ask(client, frame, received, orders)
            except RefusedError as exc:
                self._turn_down(client, frame, message, exc, orders)
            return
        self.gate.check(row)
        if row.orphan is not None:
            self._answer(client, wire.encode_orphan(row.orphan, frame.id), orders)
        # All other messages for a session that has ended are ignored.

    def _ask(self, client: Client, frame: wire.Frame, received: wire.Received, orders: Orders) -> None:
        """Handle a request that a client may lack the right for."""
        if isinstance(received[0], wire.Shutdown):
            self.gate.check_shutdown(client)
            if self.auditor is not None:
                self.auditor.asked(client.slot, 0, received[0])
            orders.to_agent.append(wire.encode(received[0]))
            orders.shutdown = True
        else:
            self._open(client, frame, received, orders)

    def _turn_down(
        self, client: Client, frame: wire.Frame, request: wire.Message, exc: RefusedError, orders: Orders
    ) -> None:
        """Answer a request that is refused, in its own terms.

        A client that asks with id 0 to shut the guest down is not told: clients of other makes close the
        connection at a frame with this id, and take the end of the connection for that of the guest.
        """
        self.refused_frames += 1
        if self.auditor is not None:
            self.auditor.refused(client.slot, request, exc.why)
        if isinstance(request, wire.Shutdown) and not client.was_refused_shutdown:
            client.was_refused_shutdown = True
            orders.refused = f"the client in slot {client.slot} has tried to shut the guest down: {exc.why}"
        if frame.id:
            self._answer(client, wire.encode(exc.answer(request), frame.id), orders)

    def _refuse(self, client: Client, frame: wire.Frame, exc: ProtocolError, orders: Orders) -> None:
        """Refuse a frame: the relay answers it, and does not forward it.

        Raises:
            ProtocolError: ``exc``, if the client cannot be answered: clients close the connection at an error with
                id 0, and older clients do not know the message.
        """
        self.refused_frames += 1
        # (If the version is not known: nearly every client knows the message.)
        if frame.id == 0 or (exc.version is not None and exc.version < _ERROR.generation):
            raise exc
        session = client.sessions.get(frame.id)
        if session is not None and session.state is not _ABANDONED:
            # The answer is a terminal frame, so the client forgets the session, and it must end in the guest too.
            self._abandon(client, session, orders)
        self._answer(client, wire.encode_error(exc, frame.id), orders)

    def _answer(self, client: Client, answer: bytes, orders: Orders) -> None:
        """Answer a client in the agent's place."""
        client.queue(Outgoing(answer), hurried=True)
        orders.busy = client

    def _abandon(self, client: Client, session: RelaySession, orders: Orders) -> None:
        """End a session in the guest that its client has forgotten."""
        if session.state is _ENDED:  # it has ended in the guest already
            client.end(session)
        elif session.kind == "tcp":
            orders.to_agent.append(wire.encode(wire.TcpClose(), session.id))
            client.end(session)  # the agent does not answer a close
        else:
            # The session is kept until the guest's terminal frame comes, because its id is in use until then.
            session.abandon()
            if session.kind == "exec":
                orders.to_agent.append(wire.encode(wire.ExecSignal(_SIGKILL), session.id))
            elif session.kind == "fs" and self._flow is not None:
                orders.to_agent.append(wire.encode(wire.Cancel(), session.id))

    def _take_turn(self, client: Client, session: RelaySession, orders: Orders) -> None:
        """Let a session take its turn to send to the agent, if it does not wait for its turn already."""
        if session not in client.round:
            client.round[session] = None
            orders.busy = client

    def _let_go(
        self,
        client: Client,
        session: RelaySession,
        ready: list[tuple[Outgoing, RelayStream | None]],
        orders: Orders,
    ) -> None:
        """Queue the frames of a session that are not held any more."""
        for item, stream in ready:
            client.queue(item, held_in=stream)
            orders.busy = client
        if session.state is _LEAVING:
            del client.sessions[session.id]
            self.books.forget(session.account)

    # To the agent

    def next_for_agent(self, client: Client) -> bytes | None:
        """The next bulk frame of a client for the agent; the client's sessions take turns."""
        while client.round:
            session, _ = client.round.popitem(last=False)
            frame = session.take(self._limits.slice)
            if frame is None:
                continue
            if session.pending:
                if session.can_send():
                    client.round[session] = None
            elif session.state is _CLOSING:
                # The agent does not answer the close of a connection, so no more frames come for this id.
                client.end(session)
            return frame
        return None

    # From the agent

    def from_agent(self, frame: wire.Frame) -> Orders:
        """Handle a frame of the agent: queue it for its client. Never raises, whatever the agent sends."""
        orders = Orders()
        slot = slot_of(frame.id)
        client = None if slot is None else self._clients.get(slot)
        if client is None:
            self._hear_last_word(None if slot is None else self._leaving.get(slot), frame, orders)
            return orders
        session = client.sessions.get(frame.id)
        if session in client.starting:
            client.starting.discard(session)
            orders.busy = client
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
        if session is not None and session.lossy and session.shape.outputs.get(cls) in session.lossy:
            self._drop_frame(len(frame.body))
            return
        item = Outgoing(wire.encode_again(frame), stream, size, None, True, session)
        if session is None or stream is None:
            # Data of an unknown session is passed on; the client ignores it.
            client.queue(item)
        elif session.state is not _OPEN:
            self._drop_frame(size)
        elif stream.is_overrun_by(size):
            self.dropped_frames += 1
            self.books.refuse(stream.window, size)
            self._abandon(client, session, orders)
            why = f"the guest sent far more of {stream.name} than its window of {stream.window.size} bytes"
            self._answer(client, wire.encode(wire.Error("invalid_session", why), session.id), orders)
        elif stream.lets_pass(size):
            client.queue(item)
        else:
            stream.hold(item)
        orders.busy = client

    def _deliver(self, client: Client, session: RelaySession | None, frame: wire.Frame, orders: Orders) -> None:
        """Handle a frame without data, or with data in an unusual form, which the client must judge."""
        cls, is_last = class_of(frame), bool(frame.flags & wire.FLAG_TERMINAL)
        if session is not None:
            if cls is wire.Credit and self._is_credit_for_us(client, session, frame, orders):
                return
            if is_last and not may_end(cls, session.kind):
                self._drop_frame(len(frame.body))
                return
        if self.observer is not None:
            self.observer.said(frame, None)
        if session is None:
            client.queue(Outgoing(wire.encode_again(frame)))
            orders.busy = client
            return
        if is_last:
            note_end(self.books, session, frame)
            if self.auditor is not None and session.kind == "exec":
                with contextlib.suppress(ProtocolError):  # then its end is that of its client
                    self.auditor.said(frame.id, wire.decode(frame))
        if session.state is not _ABANDONED:
            self._deliver_within(client, session, cls, frame, orders)
        elif is_last:
            client.end(session)
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
            self._finish(client, session, Outgoing(raw, ends=session, session=session))
        elif cls in _HURRIED:
            client.queue(Outgoing(raw), hurried=True)
        elif (stream := held_before(session, cls, frame)) is not None:
            stream.hold(Outgoing(raw, session=session))
        else:
            client.queue(Outgoing(raw, session=session))
        orders.busy = client

    def _finish(self, client: Client, session: RelaySession, last: Outgoing) -> None:
        """Handle the terminal frame of a session. When it is queued for the client the id is free."""
        session.drop_pending()
        if session.state is _ENDED:
            self.dropped_frames += 1  # a second terminal frame, while the first is held behind data
        elif session.held is None:
            session.leave()
            client.queue(last, hurried=session.kind == "call")
            del client.sessions[session.id]
            self.books.forget(session.account)
        else:
            session.become(_ENDED)
            session.last = last

    def _is_credit_for_us(self, client: Client, session: RelaySession, frame: wire.Frame, orders: Orders) -> bool:
        """Take credit that the agent grants; returns whether it ends here, because the client counts no credit."""
        if self._flow is None or session.shape.input is None or frame.flags:
            return False
        try:
            message = wire.decode(frame)
        except ProtocolError:
            return False
        if not isinstance(message, wire.Credit):
            return False
        if message.stream == session.shape.input_name:
            session.room.granted(message.bytes)
            if session.can_send():
                self._take_turn(client, session, orders)
        return not session.counts

    def _hear_last_word(self, client: Client | None, frame: wire.Frame, orders: Orders) -> None:
        """Handle a frame for a slot without a client, or for no slot; free the slot after its last words."""
        kind = None if client is None else client.last_words.get(frame.id)
        if (
            client is None
            or kind is None
            or not frame.flags & wire.FLAG_TERMINAL
            or not may_end(class_of(frame), kind)
        ):
            self.dropped_frames += 1
            return
        if client.hear_last_word(frame.id):
            client.become(ClientState.GONE)
            del self._leaving[client.slot]
            self._slots.release(client.slot)
            orders.slot_freed = True

    def lose_agent(self) -> None:
        """Queue all held frames for their clients, without waiting for credit, because the guest is gone."""
        for client in self._clients.values():
            for session in tuple(client.sessions.values()):
                for stream in session.streams.values():
                    stream.credit = None
                self._let_go(client, session, session.let_go(), Orders())

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

    def drop_data(self, client: Client) -> Orders | None:
        """Drop and count data for a client that does not read: a policy for an agent without credit.

        Output of commands is dropped, and the client is told so. If that is not enough, the file operations and
        connections that data is queued for end with an error: without the data they would seem to be whole.

        Returns `None` if the client would not be told, so that it must be cut.
        """
        orders = Orders(busy=client)
        if not client.drop_output():
            return None
        if client.account.queued > self._limits.client_budget:
            for session, has_ended in client.drop_rest().items():
                if not has_ended and session.state is _OPEN:
                    self._abandon(client, session, orders)
                    client.queue(Outgoing(loss(session)))
        return orders
