"""Who gets which frame, what is refused, and what is held back.

Pure: no I/O, no clock, no event loop. The server calls a method when something happened and carries out
what comes back: frames for the agent (`Orders.to_agent`), and clients whose queue has got something
(`Client.outgoing`). Everything here is synchronous, so one call is one consistent step.

Nothing in here assumes an agent of our own: no credit unless it was announced, no frame after the terminal one
is surprising, no id it speaks of needs to exist.

What a client sends is looked at before it is forwarded; see `_gate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

import msgspec

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._relay.router.clients import Client
from trio_console._relay.router.gate import answer_to, check_allowed, may_end, refusal
from trio_console._relay.router.limits import DEFAULT_CLIENT_BUDGET, RouterLimits
from trio_console._relay.router.session import Flow, Outgoing, RelaySession
from trio_console._relay.router.slots import Slots
from trio_console._wire.ids import slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_console._relay.log import SessionLog

__all__ = ["DEFAULT_CLIENT_BUDGET", "Client", "Orders", "Router", "RouterLimits"]

_SIGKILL: Final = 9


@dataclass(slots=True)
class Orders:
    """What the server is to do now.

    Attributes:
        to_agent: control frames to send, in order.
        behind: frames to send behind all data that was handed over for the agent before.
        wake: clients that have got something to send, to the socket or to the agent.
        shutdown: a client has asked the guest to shut down, which it will.
        slot_freed: a client that found no slot may try again.
    """

    to_agent: list[bytes] = field(default_factory=list)
    behind: list[bytes] = field(default_factory=list)
    wake: set[Client] = field(default_factory=set)
    shutdown: bool = False
    slot_freed: bool = False


@final
class _Quarantine:
    """A slot whose client has gone: what the guest has yet to say of it."""

    __slots__ = ("execs", "fence")

    def __init__(self, execs: set[int], fence: int) -> None:
        self.execs = execs
        self.fence: int | None = fence


@final
class Router:
    """See the module.

    Args:
        flow: what the agent announced of its credit, or `None`.
        limits: bounds.
    """

    def __init__(self, flow: wire.Flow | None, limits: RouterLimits) -> None:
        self._flow = flow
        self._limits = limits
        self._tail = 2 * limits.sessions + 1  # more ids than can be in use
        self._slots = Slots()
        self._clients: dict[int, Client] = {}
        self._quarantines: dict[int, _Quarantine] = {}
        self._committed = 0
        self.observer: SessionLog | None = None  # is told of commands and what they say
        self.refused_frames = 0
        self.dropped_frames = 0
        self.dropped_bytes = 0

    # Clients come and go

    @property
    def clients(self) -> Iterable[Client]:
        return self._clients.values()

    @property
    def slots(self) -> Slots:
        return self._slots

    @property
    def committed(self) -> int:
        """Windows of all streams together."""
        return self._committed

    @property
    def queued_bytes(self) -> int:
        """Everything queued for clients' sockets."""
        return sum(client.outgoing_bytes for client in self._clients.values())

    def connect(self) -> Client | None:
        """A client came. `None`: there is no slot for it."""
        slot = self._slots.take()
        if slot is None:
            return None
        client = self._clients[slot] = Client(slot)
        return client

    def disconnect(self, client: Client, now: float) -> Orders:
        """A client has gone, for whatever reason: end its work in the guest, and hold its slot until then."""
        del self._clients[client.slot]
        orders = Orders()
        # (Those that wait here with their terminal frame have ended in the guest.)
        execs = {s.id for s in client.sessions.values() if s.kind == "exec" and s.last is None}
        orders.to_agent += [wire.encode(wire.ExecSignal(_SIGKILL), id_) for id_ in sorted(execs)]
        if self.observer is not None:
            for id_ in execs:
                self.observer.ended(id_, "killed: its client has disconnected")
        orders.to_agent.append(wire.encode(wire.ClientDisconnected(client.ids.start, client.ids.stop)))
        # Execs end with a frame. The rest ends silently, so a request goes behind: whatever the guest had queued
        # for this slot before it read the two above comes before this answer, which is data's equal in its order.
        # And it goes behind the data that this client has sent and that may still wait for the console: that
        # would reach the sessions of the next one otherwise.
        fence = client.quiet_id(self._tail)
        stat = wire.FsRequest(wire.OpStat(path="/", follow_symlink=True))
        orders.behind.append(wire.encode(stat, fence))
        self._quarantines[client.slot] = _Quarantine(execs, fence)
        self._slots.quarantine(client.slot, now + self._limits.quarantine)
        for session in client.sessions.values():
            self._release(client, session)
        self._committed -= client.committed  # of sessions that are over, with the last of it still queued
        client.committed = 0
        self.dropped_bytes += client.dropped_bytes + client.outgoing_bytes
        return orders

    def tick(self, now: float) -> list[int]:
        """Time has passed: returns the slots that were retired because the guest has not finished with them."""
        late = self._slots.retire_late(now)
        for slot in late:
            del self._quarantines[slot]
        return late

    # From a client

    def from_client(self, client: Client, frame: wire.Frame) -> Orders:
        """A client sent a frame.

        Raises:
            ProtocolError: one for which the connection must be cut: an id that is not the client's, or a
                mistake of a peer that cannot be told of it.
        """
        client.frames_in += 1
        client.bytes_in += wire.HEADER_SIZE + len(frame.body)
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
            self._accept(client, frame, message, orders)
        except ProtocolError as exc:
            exc.frame_id = frame.id
            self._refuse(client, frame, exc, orders)
        return orders

    def _refuse(self, client: Client, frame: wire.Frame, exc: ProtocolError, orders: Orders) -> None:
        """Answer in the agent's place, so that the agent never sees it."""
        self.refused_frames += 1
        error = answer_to(frame, exc)
        session = client.sessions.get(frame.id)
        if session is not None:
            # The frame that says so is terminal: the client forgets the id, so what runs there must end.
            self._abandon(client, session, orders)
        self._answer(client, error, frame.id, orders)

    def _answer(self, client: Client, message: wire.Message, id_: int, orders: Orders) -> None:
        client.queue(Outgoing(wire.encode(message, id_)), hurried=True)
        orders.wake.add(client)

    def _abandon(self, client: Client, session: RelaySession, orders: Orders) -> None:
        """End a session in the guest whose client does not know of it any more."""
        self._release(client, session)
        if session.over:
            return
        session.over = True
        if session.last is not None:  # it has ended in the guest
            self._forget(client, session)
        elif session.kind == "exec":
            orders.to_agent.append(wire.encode(wire.ExecSignal(_SIGKILL), session.id))
        elif session.kind == "tcp":
            orders.to_agent.append(wire.encode(wire.TcpClose(), session.id))
            self._forget(client, session)  # that is not answered
        elif session.kind == "fs" and self._flow is not None:
            orders.to_agent.append(wire.encode(wire.Cancel(), session.id))
        # Else it is kept, under its id, until the guest's terminal frame comes: the id is taken until then.

    def _accept(self, client: Client, frame: wire.Frame, message: wire.Message, orders: Orders) -> None:
        row = wire.type_of(message)
        if row.place is wire.Place.OPENS:
            orders.to_agent.append(self._open(client, frame, message))
        elif isinstance(message, wire.Shutdown):
            orders.to_agent.append(wire.encode(message))
            orders.shutdown = True
        else:
            session = client.sessions.get(frame.id)
            if session is None:
                if row.orphan is not None:
                    self._answer(client, row.orphan(frame.id), frame.id, orders)
                # Everything else that comes for a session that has ended is ignored.
            elif session.over:
                self.dropped_bytes += len(frame.body)
            else:
                self._accept_within(client, session, frame, message, orders)

    def _accept_within(
        self, client: Client, session: RelaySession, frame: wire.Frame, message: wire.Message, orders: Orders
    ) -> None:
        row = wire.type_of(message)
        if not row.fits(session.kind):
            raise refusal(message, "invalid_session", f"came for id {frame.id}, which is no {row.kind} session")
        if isinstance(message, wire.Credit):
            self._client_grants(client, session, message, orders)
        elif session.last is not None:
            self._accept_late(client, session, frame, message, orders)
        elif isinstance(message, wire.DataMessage):
            client.pending_bytes += session.add_pending(type(message), message.data)
            self._enter_round(client, session, orders)
        elif not row.overtakes:
            raw = wire.encode_again(frame)
            client.pending_bytes += session.add_pending(None, raw)
            if isinstance(message, wire.TcpClose):
                session.closing = True
                self._give_up(client, session)
            self._enter_round(client, session, orders)
        else:
            # Signals and the like overtake it.
            if isinstance(message, wire.Cancel):
                self._drop_pending(client, session)
                self._give_up(client, session)
            orders.to_agent.append(wire.encode_again(frame))

    def _accept_late(
        self, client: Client, session: RelaySession, frame: wire.Frame, message: wire.Message, orders: Orders
    ) -> None:
        """A message for a session that has ended in the guest, which its client does not know yet.

        The guest must not get it: it answers data for an id that it does not know with a terminal frame, which
        would end the next session under this id.
        """
        self.dropped_bytes += len(frame.body)
        if isinstance(message, wire.TcpClose):  # the client forgets the id, and grants nothing any more
            self._release(client, session)
            self._forget(client, session)
        elif isinstance(message, wire.Cancel):
            self._give_up(client, session)
            self._say_last(client, session)
            orders.wake.add(client)

    def _give_up(self, client: Client, session: RelaySession) -> None:
        """The client wants nothing more of a session but its terminal frame.

        It grants nothing any more, so what is held, and the terminal frame behind it, would be held for ever.
        """
        if session.kind != "exec":  # a command cannot be given up; a client that says so has its output
            session.unwanted = True
            self._drop_held(client, session)

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
        kind = wire.opened_by(message)
        if self._flow is None or not isinstance(message, wire.StreamRequest):
            raw = wire.encode_again(frame)
            session = RelaySession(frame.id, kind, {}, None, counts=False)
        else:
            wanted = None if message.window is wire.UNSET else message.window
            streams = wire.streams_of(kind, wire.Direction.AGENT_TO_HOST)
            window = self._window(client, len(streams), wanted)
            version = wire.decode_envelope(frame.body).version
            # First of all: with the window in it the request may have become too large.
            raw = wire.encode(msgspec.structs.replace(message, window=window), frame.id, version=version)
            flows = {cls: Flow(frame.id, cls, name, window, wanted) for cls, name in streams.items()}
            session = RelaySession(frame.id, kind, flows, self._flow.window, counts=wanted is not None)
            client.committed += window * len(flows)
            self._committed += window * len(flows)
        client.sessions[frame.id] = session
        client.note_opened(frame.id, self._tail)
        if self.observer is not None and isinstance(message, wire.ExecRequest):
            self.observer.opened(frame.id, message)
        return raw

    def _window(self, client: Client, count: int, wanted: int | None) -> int:
        """Bytes of window for each of ``count`` new streams, out of what is left of the budgets."""
        limits = self._limits
        left = min(limits.client_budget - client.committed, limits.total_budget - self._committed)
        window = max(limits.least_window, min(limits.window, left // (limits.share * count)))
        return window if wanted is None else max(1, min(window, wanted))

    def _release(self, client: Client, session: RelaySession) -> None:
        """A session is over: its windows are free, and what was not passed on is dropped. Idempotent."""
        self._drop_pending(client, session)
        if session.released:
            return
        session.released = True
        self._drop_held(client, session)
        for flow in session.flows.values():
            flow.closed = True
            client.committed -= flow.window
            self._committed -= flow.window

    def _drop_held(self, client: Client, session: RelaySession) -> None:
        for flow in session.flows.values():
            self.dropped_bytes += flow.held_bytes
            client.let_go(flow)

    def _drop_pending(self, client: Client, session: RelaySession) -> None:
        dropped, cost = session.drop_pending()
        client.pending_bytes -= cost
        self.dropped_bytes += dropped

    def _client_grants(self, client: Client, session: RelaySession, message: wire.Credit, orders: Orders) -> None:
        flow = session.flow_named(message.stream)
        if flow is None:
            return
        client.grant(flow, message.bytes)
        self._say_last(client, session)
        orders.wake.add(client)

    def _enter_round(self, client: Client, session: RelaySession, orders: Orders) -> None:
        if not session.queued and session.can_send():
            session.queued = True
            client.round.append(session)
            orders.wake.add(client)

    def next_for_agent(self, client: Client) -> bytes | None:
        """The next bulk frame of a client for the agent: its sessions take turns."""
        while client.round:
            session = client.round.popleft()
            session.queued = False
            if session.can_send():
                before = session.pending_bytes
                frame = session.next_frame(self._limits.slice)
                client.pending_bytes -= before - session.pending_bytes
                if session.can_send():
                    session.queued = True
                    client.round.append(session)
                elif session.closing and not session.pending:
                    # A closed connection is not answered: nothing more will be said of this id.
                    self._forget(client, session)
                    self._release(client, session)
                return frame
        return None

    def may_read(self, client: Client) -> bool:
        """Whether more should be read from a client's socket: not while too much of it waits for the agent."""
        limits = self._limits
        return client.pending_bytes < limits.pending_budget and client.outgoing_bytes < limits.client_budget

    def overflows(self, client: Client) -> bool:
        """Whether more is kept for a client than for any client that reads its socket and gives credit.

        Windows bound data; this bounds the answers to what a client has asked without reading them, and what an
        agent says that nobody has asked for.
        """
        limits = self._limits
        kept = client.kept_size
        budget = max(limits.client_budget, client.committed)
        if kept <= budget:
            return False
        return kept > budget + limits.answers_budget or (
            sum(client.kept_size for client in self._clients.values())
            > max(limits.total_budget, self._committed) + limits.answers_budget
        )

    # From the agent

    def from_agent(self, frame: wire.Frame) -> Orders:
        """The agent sent a frame: queue it for whom it belongs to. Never raises for what an agent sends."""
        orders = Orders()
        slot = slot_of(frame.id)
        client = None if slot is None else self._clients.get(slot)
        if client is None:
            if slot is None or not self._quarantined_frame(slot, frame, orders):
                self.dropped_frames += 1
            return orders
        session = client.sessions.get(frame.id)
        data = wire.measure_data(frame)
        cls = None if data is not None else _class_of(frame)
        if cls is wire.Credit and session is not None and self._is_credit_for_us(client, session, frame, orders):
            return orders
        if session is not None and frame.flags & wire.FLAG_TERMINAL and not may_end(cls, session.kind):
            self.dropped_frames += 1
            self.dropped_bytes += len(frame.body)
            return orders
        if self.observer is not None:
            self.observer.said(frame, data)
        if session is not None and session.over:
            self._let_end(client, session, frame)
            return orders
        raw = wire.encode_again(frame)
        if session is None:
            client.queue(Outgoing(raw))  # for nobody we know; the client's to ignore
        elif frame.flags & wire.FLAG_TERMINAL:
            self._finish(client, session, raw)
        elif data is not None:
            self._deliver_data(client, session, raw, data, orders)
        else:
            self._deliver(client, session, cls, raw)
        orders.wake.add(client)
        return orders

    def _let_end(self, client: Client, session: RelaySession, frame: wire.Frame) -> None:
        """A frame of a session of which the client was told that it is over."""
        if frame.flags & wire.FLAG_TERMINAL:
            self._forget(client, session)
        else:
            self.dropped_frames += 1
            self.dropped_bytes += len(frame.body)

    def _deliver_data(
        self,
        client: Client,
        session: RelaySession,
        raw: bytes,
        data: tuple[type[wire.DataMessage], int],
        orders: Orders,
    ) -> None:
        cls, size = data
        flow = session.flows.get(cls)
        item = Outgoing(raw, flow, size)
        if flow is None:
            client.queue(item)
        elif session.unwanted:
            self.dropped_frames += 1
            self.dropped_bytes += size
        elif flow.overrun(size):
            self.dropped_frames += 1
            self.dropped_bytes += size
            self._abandon(client, session, orders)
            why = f"the guest sent far more of {flow.name} than its window of {flow.window} bytes"
            self._answer(client, wire.Error("invalid_session", why), session.id, orders)
        else:
            client.admit(flow, item)

    def _deliver(self, client: Client, session: RelaySession, cls: type[wire.Message] | None, raw: bytes) -> None:
        """What carries no data: some of it overtakes, the rest stays behind what is held of its session."""
        item = Outgoing(raw)
        if cls is not None and _overtakes(cls):
            client.queue(item, hurried=True)
            return
        for flow in session.flows.values():
            if flow.held:
                client.admit(flow, item)
                return
        client.queue(item)

    def _finish(self, client: Client, session: RelaySession, raw: bytes) -> None:
        self._drop_pending(client, session)
        if session.last is not None:
            self.dropped_frames += 1  # it has had its last word, and data in front of that is held
            return
        for flow in session.flows.values():
            flow.closed = True  # credit that came later would be for the next session under this id
        session.unwanted = True  # what comes behind the terminal frame
        session.last = Outgoing(raw, ends=session)
        self._say_last(client, session)

    def _say_last(self, client: Client, session: RelaySession) -> None:
        """Pass the terminal frame on, once no data is held in front of it. The id is free then."""
        if session.last is not None and not session.held:
            client.queue(session.last, hurried=session.kind == "call")
            self._forget(client, session)

    def _forget(self, client: Client, session: RelaySession) -> None:
        if client.sessions.get(session.id) is session:
            del client.sessions[session.id]

    def _is_credit_for_us(self, client: Client, session: RelaySession, frame: wire.Frame, orders: Orders) -> bool:
        """Take credit that the agent gives. Whether its client is not to see it, because it does not count."""
        if session.credit is None or frame.flags:
            return False
        try:
            message = wire.decode(frame)
        except ProtocolError:
            return False
        if not isinstance(message, wire.Credit):
            return False
        session.credit += message.bytes
        self._enter_round(client, session, orders)
        return not session.counts

    def _quarantined_frame(self, slot: int, frame: wire.Frame, orders: Orders) -> bool:
        """A frame for a slot whose client has gone. Whether it was expected."""
        quarantine = self._quarantines.get(slot)
        if quarantine is None or not frame.flags & wire.FLAG_TERMINAL:
            return False
        cls = _class_of(frame)
        if frame.id == quarantine.fence and may_end(cls, "fs"):
            quarantine.fence = None
        elif frame.id in quarantine.execs and may_end(cls, "exec"):
            quarantine.execs.remove(frame.id)
        else:
            return False
        if quarantine.fence is None and not quarantine.execs:
            del self._quarantines[slot]
            self._slots.release(slot)
            orders.slot_freed = True
        return True

    def lose_agent(self) -> None:
        """The guest is gone: nobody will be asked for credit any more, so everything held goes out."""
        for client in self._clients.values():
            client.release_held()
            for session in list(client.sessions.values()):
                self._say_last(client, session)

    # To a client

    def next_for_client(self, client: Client, limit: int) -> list[Outgoing]:
        """Take frames for a client's socket, at least one if there is any, together about ``limit`` bytes."""
        return client.take(limit)

    def sent_to_client(self, client: Client, batch: list[Outgoing]) -> Orders:
        """The client's socket took these: give credit back to the agent."""
        orders = Orders()
        for item in batch:
            client.outgoing_bytes -= len(item.frame)
            client.frames_out += 1
            client.bytes_out += len(item.frame)
            flow = item.flow
            if flow is not None:
                grant = flow.taken(item.size)
                if grant:
                    orders.to_agent.append(wire.encode(wire.Credit(flow.name, grant), flow.session_id))
            if item.ends is not None:
                # Not before: what is queued for a client that does not read must stay within its budget.
                self._release(client, item.ends)
        return orders

    def drop_data(self, client: Client) -> int:
        """Drop what is queued of data for a client, and count it; the policy of an agent without credit."""
        kept = [item for item in client.outgoing if wire.measure_data(_parse(item.frame)) is None]
        dropped = sum(len(item.frame) for item in client.outgoing) - sum(len(item.frame) for item in kept)
        client.outgoing.clear()
        client.outgoing.extend(kept)
        client.outgoing_bytes -= dropped
        client.dropped_bytes += dropped
        return dropped


def _overtakes(cls: type[wire.Message]) -> bool:
    """Whether a message within a session may overtake data on its way to a client."""
    row = wire.type_of(cls)
    return row.overtakes and row.place is wire.Place.WITHIN and wire.Direction.AGENT_TO_HOST in row.direction


def _parse(raw: bytes) -> wire.Frame:
    return wire.Frame(int.from_bytes(raw[4:8], "big"), raw[8], raw[9:])


def _class_of(frame: wire.Frame) -> type[wire.Message] | None:
    """What a frame from the agent says it is, without looking any further."""
    try:
        row = wire.MESSAGE_TYPES.get(wire.peek_type(frame.body))
    except ProtocolError:
        return None  # a newer agent's, or nonsense: the client's to judge
    return None if row is None else row.cls
