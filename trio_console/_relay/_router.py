"""The relay's mind: who gets which frame, what is refused, and what is held back.

Pure: no I/O, no clock, no event loop. The server calls a method when something happened and carries out
what comes back: frames for the agent (`Orders.to_agent`), and clients whose queue has got something
(`Client.outgoing`). Everything here is synchronous, so one call is one consistent step.

Nothing in here assumes an agent of our own: no credit unless it was announced, no frame after the terminal one
is surprising, no id it speaks of needs to exist.

What a client sends is looked at before it is forwarded. An agent of another make exits at a body it cannot
decode, and the guest with it; and a message that only a relay may send could end other clients' work.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

import msgspec

from trio_console import _protocol as wire
from trio_console._errors import ProtocolError
from trio_console._relay._session import Flow, Outgoing, RelaySession, stream_name
from trio_console._relay._slots import Slots, slot_ids, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_console._relay._log import SessionLog

__all__ = ["DEFAULT_CLIENT_BUDGET", "Client", "Orders", "Router", "RouterLimits"]

#: ``core.error`` was introduced with this generation; older peers do not know it.
_ERROR_GENERATION: Final = 5

_SIGKILL: Final = 9

_KINDS: Final = {wire.ExecRequest: "exec", wire.FsRequest: "fs", wire.TcpConnect: "tcp"}
_CALLS: Final = (wire.Ping, wire.Touch)

#: Must stay behind the data of their session.
_BEHIND_DATA: Final = (wire.TcpEof, wire.TcpClose)

#: May overtake data on their way to a client.
_HURRIED: Final = (wire.Pong, wire.Touched, wire.ExecStarted, wire.TcpConnected, wire.Credit)


DEFAULT_CLIENT_BUDGET: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """Bounds, in bytes unless said otherwise.

    Attributes:
        window: for each stream from the agent, sent ahead of the client's socket.
        least_window: the same for streams opened when the client's or the total budget is used up.
        client_budget: windows of one client together; and what may be queued for a client of an agent
            without credit before the slow-client policy applies.
        total_budget: the same for all clients together.
        pending_budget: what a client may have sent that the agent does not take yet.
        answers_budget: what may be queued for a client beyond its budget (at least two of the largest frames)
            before it is cut.
        slice: largest piece of data forwarded at once to the agent.
        sessions: a client's sessions at once (a number).
        quarantine: seconds the guest has to finish with a slot whose client has gone.
    """

    window: int = 256 * 1024
    least_window: int = 4 * 1024
    client_budget: int = DEFAULT_CLIENT_BUDGET
    total_budget: int = 64 * 1024 * 1024
    pending_budget: int = 1024 * 1024
    answers_budget: int = 16 * 1024 * 1024
    slice: int = 64 * 1024
    sessions: int = 4096
    quarantine: float = 60.0


@dataclass(slots=True)
class Orders:
    """What the server is to do now.

    Attributes:
        to_agent: control frames to send, in order.
        wake: clients that have got something to send, to the socket or to the agent.
        shutdown: a client has asked the guest to shut down, which it will.
    """

    to_agent: list[bytes] = field(default_factory=list)
    wake: set[Client] = field(default_factory=set)
    shutdown: bool = False


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
        self.pending_bytes = 0  # of its sessions, to the agent
        self.committed = 0  # windows of its streams
        self.round: deque[RelaySession] = deque()  # sessions with something sendable
        self.frames_in = 0
        self.frames_out = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.dropped_bytes = 0

    def queue(self, item: Outgoing, *, hurried: bool = False) -> None:
        (self.hurried if hurried else self.outgoing).append(item)
        self.outgoing_bytes += len(item.frame)


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
        self._slots = Slots()
        self._clients: dict[int, Client] = {}
        self._quarantines: dict[int, _Quarantine] = {}
        self._committed = 0
        self.observer: SessionLog | None = None  # is told of commands and what they say
        self.refused_clients = 0
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
    def queued_bytes(self) -> int:
        """Everything queued for clients' sockets."""
        return sum(client.outgoing_bytes for client in self._clients.values())

    def connect(self) -> Client | None:
        """A client came. `None`: there is no slot for it."""
        slot = self._slots.take()
        if slot is None:
            self.refused_clients += 1
            return None
        client = self._clients[slot] = Client(slot)
        return client

    def disconnect(self, client: Client, now: float) -> Orders:
        """A client has gone, for whatever reason: end its work in the guest, and hold its slot until then."""
        del self._clients[client.slot]
        self._committed -= client.committed
        self.dropped_bytes += client.dropped_bytes + client.outgoing_bytes + client.pending_bytes
        orders = Orders()
        execs = {session.id for session in client.sessions.values() if session.kind == "exec"}
        orders.to_agent += [wire.encode(wire.ExecSignal(_SIGKILL), id_) for id_ in sorted(execs)]
        if self.observer is not None:
            for id_ in execs:
                self.observer.ended(id_, "killed: its client has disconnected")
        orders.to_agent.append(wire.encode(wire.ClientDisconnected(client.ids.start, client.ids.stop)))
        # Execs end with a frame. The rest ends silently, so a request goes behind: whatever the guest had queued
        # for this slot before it read the two above comes before this answer, which is data's equal in its order.
        fence = next(id_ for id_ in reversed(client.ids) if id_ not in client.sessions)
        stat = wire.FsRequest(wire.OpStat(path="/", follow_symlink=True))
        orders.to_agent.append(wire.encode(stat, fence))
        self._quarantines[client.slot] = _Quarantine(execs, fence)
        self._slots.quarantine(client.slot, now + self._limits.quarantine)
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
                mistake of a peer too old to be told of it.
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
            self._check_allowed(message)
            self._accept(client, frame, message, orders)
        except ProtocolError as exc:
            self._refuse(client, frame, exc, orders)
        return orders

    def _check_allowed(self, message: wire.Message) -> None:
        row = wire.type_of(message)
        if not row.direction & wire.Direction.HOST_TO_AGENT or (
            row.control and not isinstance(message, wire.Shutdown)
        ):
            raise ProtocolError(
                f"{row.name} is not a client's to send", kind="unsupported_message_type", message_type=row.name
            )

    def _refuse(self, client: Client, frame: wire.Frame, exc: ProtocolError, orders: Orders) -> None:
        """Answer in the agent's place, so that the agent never sees it."""
        self.refused_frames += 1
        version = exc.version
        if version is None:
            try:
                version = wire.decode_envelope(frame.body).version
            except ProtocolError:
                version = wire.GENERATION  # unknown; every client since generation 5 can be told
        if version < _ERROR_GENERATION:
            exc.frame_id = frame.id
            raise exc
        error = wire.Error(exc.kind, str(exc), wire.UNSET if exc.message_type is None else exc.message_type)
        session = client.sessions.pop(frame.id, None)
        if session is not None and exc.kind != "invalid_session":
            # The frame that says so is terminal: the client forgets the id, so what runs there must end.
            self._abandon(client, session, orders)
        elif session is not None:
            client.sessions[frame.id] = session
        client.queue(Outgoing(wire.encode(error, frame.id)), hurried=True)
        orders.wake.add(client)

    def _abandon(self, client: Client, session: RelaySession, orders: Orders) -> None:
        """End a session in the guest whose client does not know of it any more."""
        self._release(client, session)
        if session.kind == "exec":
            orders.to_agent.append(wire.encode(wire.ExecSignal(_SIGKILL), session.id))
        elif session.kind == "tcp":
            orders.to_agent.append(wire.encode(wire.TcpClose(), session.id))
        elif self._flow is not None:
            orders.to_agent.append(wire.encode(wire.Cancel(), session.id))
        # Kept, under its id, until the guest's terminal frame comes: the id is taken until then.
        client.sessions[session.id] = RelaySession(session.id, session.kind, {}, None, counts=False)

    def _accept(self, client: Client, frame: wire.Frame, message: wire.Message, orders: Orders) -> None:
        raw = wire.encode_frame(frame.id, frame.flags, frame.body)
        if type(message) in _KINDS or isinstance(message, _CALLS):
            raw = self._open(client, frame, message, raw)
            orders.to_agent.append(raw)
            return
        session = client.sessions.get(frame.id)
        if isinstance(message, wire.Credit):
            self._client_grants(client, session, message, orders)
        elif session is not None and isinstance(message, wire.DataMessage):
            session.add_pending(type(message), message.data)
            client.pending_bytes += len(message.data)
            self._enter_round(client, session, orders)
        elif session is not None and isinstance(message, _BEHIND_DATA):
            session.add_pending(None, raw)
            session.closing = isinstance(message, wire.TcpClose)
            client.pending_bytes += len(raw)
            self._enter_round(client, session, orders)
        else:
            # Signals and the like overtake. Data for an id that is not open is the agent's to answer.
            orders.to_agent.append(raw)
            orders.shutdown = isinstance(message, wire.Shutdown)

    def _open(self, client: Client, frame: wire.Frame, message: wire.Message, raw: bytes) -> bytes:
        """Register a session; returns the request as the agent gets it."""
        if frame.id in client.sessions:
            raise ProtocolError(
                f"id {frame.id} is still in use", kind="invalid_session", message_type=wire.type_of(message).name
            )
        if len(client.sessions) >= self._limits.sessions:
            raise ProtocolError(
                f"this client has {self._limits.sessions} sessions already",
                kind="invalid_session",
                message_type=wire.type_of(message).name,
            )
        if not isinstance(message, (wire.ExecRequest, wire.FsRequest, wire.TcpConnect)):
            client.sessions[frame.id] = RelaySession(frame.id, "call", {}, None, counts=False)
            return raw
        kind = _KINDS[type(message)]
        if self.observer is not None and isinstance(message, wire.ExecRequest):
            self.observer.opened(frame.id, message)
        if self._flow is None:
            client.sessions[frame.id] = RelaySession(frame.id, kind, {}, None, counts=False)
            return raw
        counts = message.window is not wire.UNSET
        wanted = message.window if message.window is not wire.UNSET else None
        names: tuple[wire.StreamName, ...] = ("stdout", "stderr") if kind == "exec" else ("data",)
        window = self._commit_windows(client, len(names), wanted)
        flows = {name: Flow(frame.id, name, window, wanted) for name in names}
        credit = None if counts else self._flow.window
        client.sessions[frame.id] = RelaySession(frame.id, kind, flows, credit, counts=counts)
        version = wire.decode_envelope(frame.body).version
        return wire.encode(msgspec.structs.replace(message, window=window), frame.id, version=version)

    def _commit_windows(self, client: Client, count: int, wanted: int | None) -> int:
        """Bytes of window for each of ``count`` new streams, out of what is left of the budgets."""
        limits = self._limits
        left = min(limits.client_budget - client.committed, limits.total_budget - self._committed)
        window = max(limits.least_window, min(limits.window, left // count))
        if wanted is not None:
            window = max(1, min(window, wanted))
        client.committed += window * count
        self._committed += window * count
        return window

    def _release(self, client: Client, session: RelaySession) -> None:
        """A session is over: its windows are free, and what the agent has not taken yet is dropped."""
        freed = sum(flow.window for flow in session.flows.values())
        client.committed -= freed
        self._committed -= freed
        client.pending_bytes -= session.pending_bytes
        self.dropped_bytes += session.pending_bytes
        session.pending.clear()
        session.pending_bytes = 0

    def _client_grants(
        self, client: Client, session: RelaySession | None, message: wire.Credit, orders: Orders
    ) -> None:
        flow = None if session is None else session.flows.get(message.stream)
        if session is None or flow is None:
            return
        for item in flow.grant(message.bytes):
            client.queue(item)
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
        """Whether more is queued for a client than any client that reads its socket would ever have.

        Credit bounds data; this bounds the answers to what a client has asked without reading them.
        """
        return client.outgoing_bytes > self._limits.client_budget + self._limits.answers_budget

    # From the agent

    def from_agent(self, frame: wire.Frame) -> Orders:
        """The agent sent a frame: queue it for whom it belongs to. Never raises for what an agent sends."""
        orders = Orders()
        slot = slot_of(frame.id)
        client = None if slot is None else self._clients.get(slot)
        if client is None:
            if slot is None or not self._quarantined_frame(slot, frame):
                self.dropped_frames += 1
            return orders
        session = client.sessions.get(frame.id)
        data = wire.measure_data(frame)
        if data is None and session is not None and self._is_stdin_credit(client, session, frame, orders):
            return orders
        if self.observer is not None:
            self.observer.said(frame, data)
        raw = wire.encode_frame(frame.id, frame.flags, frame.body)
        if frame.flags & wire.FLAG_TERMINAL:
            self._finish(client, session, raw)
        elif data is not None:
            self._deliver_data(client, session, raw, *data)
        else:
            client.queue(Outgoing(raw), hurried=_may_hurry(frame))
        orders.wake.add(client)
        return orders

    def _deliver_data(
        self, client: Client, session: RelaySession | None, raw: bytes, cls: type[wire.DataMessage], size: int
    ) -> None:
        flow = None if session is None else session.flows.get(stream_name(cls))
        item = Outgoing(raw, flow, size)
        if flow is None or flow.admit(item):
            client.queue(item)

    def _finish(self, client: Client, session: RelaySession | None, raw: bytes) -> None:
        if session is None:
            client.queue(Outgoing(raw))  # for nobody we know; the client's to ignore
            return
        session.last = Outgoing(raw, ends=session)
        self._say_last(client, session)

    def _say_last(self, client: Client, session: RelaySession) -> None:
        """Pass the terminal frame on, once no data is held in front of it. The id is free then."""
        if session.last is not None and not session.held:
            client.queue(session.last)
            session.last = None
            self._forget(client, session)

    def _forget(self, client: Client, session: RelaySession) -> None:
        if client.sessions.get(session.id) is session:
            del client.sessions[session.id]

    def _is_stdin_credit(self, client: Client, session: RelaySession, frame: wire.Frame, orders: Orders) -> bool:
        """Take credit that the agent gives to the relay: its client does not know what that is."""
        if session.counts or session.credit is None or frame.flags:
            return False
        try:
            message = wire.decode(frame)
        except ProtocolError:
            return False
        if not isinstance(message, wire.Credit):
            return False
        session.credit += message.bytes
        self._enter_round(client, session, orders)
        return True

    def _quarantined_frame(self, slot: int, frame: wire.Frame) -> bool:
        """A frame for a slot whose client has gone. Whether it was expected."""
        quarantine = self._quarantines.get(slot)
        if quarantine is None or not frame.flags & wire.FLAG_TERMINAL:
            return False
        if frame.id == quarantine.fence:
            quarantine.fence = None
        elif frame.id in quarantine.execs:
            quarantine.execs.remove(frame.id)
        else:
            return False
        if quarantine.fence is None and not quarantine.execs:
            del self._quarantines[slot]
            self._slots.release(slot)
        return True

    # To a client

    def next_for_client(self, client: Client, limit: int) -> list[Outgoing]:
        """Take frames for a client's socket, at least one if there is any, together about ``limit`` bytes."""
        batch: list[Outgoing] = []
        size = 0
        for queue in (client.hurried, client.outgoing):
            while queue and (not batch or size + len(queue[0].frame) <= limit):
                item = queue.popleft()
                batch.append(item)
                size += len(item.frame)
        return batch

    def sent_to_client(self, client: Client, batch: list[Outgoing]) -> Orders:
        """The client's socket took these: give credit back to the agent."""
        orders = Orders()
        for item in batch:
            client.outgoing_bytes -= len(item.frame)
            client.frames_out += 1
            client.bytes_out += len(item.frame)
            flow = item.flow
            if flow is not None and flow.session_id in client.sessions:
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
        client.outgoing = deque(kept)
        client.outgoing_bytes -= dropped
        client.dropped_bytes += dropped
        return dropped


def _parse(raw: bytes) -> wire.Frame:
    return wire.Frame(int.from_bytes(raw[4:8], "big"), raw[8], raw[9:])


def _may_hurry(frame: wire.Frame) -> bool:
    try:
        row = wire.MESSAGE_TYPES.get(wire.peek_type(frame.body))
    except ProtocolError:
        return False  # a newer agent's, or nonsense: the client's to judge
    return row is not None and issubclass(row.cls, _HURRIED)
