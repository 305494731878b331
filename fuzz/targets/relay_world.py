"""A relay's router without its server: clients, a guest, and what must hold whatever they do.

The world does what the server does with the router's orders, one step at a time, so that a fuzzer can do anything
between two of them. What is for the guest waits in two lanes, as in an outbox: control frames overtake data.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final, final

from trio_console import _protocol as wire
from trio_console._errors import ProtocolError
from trio_console._relay._router import Orders, Router, RouterLimits
from trio_console._relay._session import FRAME_COST
from trio_console._relay._slots import slot_of

if TYPE_CHECKING:
    from trio_console._relay._router import Client
    from trio_console._relay._session import RelaySession

__all__ = ["AGENT_WINDOW", "LARGE", "MOST_CLIENTS", "SMALL", "Peer", "World", "data_size", "parse"]

#: So small that an input of some hundred bytes reaches every bound.
SMALL: Final = RouterLimits(
    window=300,
    least_window=40,
    client_budget=1200,
    total_budget=2400,
    pending_budget=1500,
    answers_budget=2000,
    slice=100,
    sessions=5,
    quarantine=60.0,
)

#: So large that pieces which wait are joined.
LARGE: Final = RouterLimits(
    window=128 * 1024,
    least_window=4 * 1024,
    client_budget=256 * 1024,
    total_budget=512 * 1024,
    pending_budget=256 * 1024,
    answers_budget=256 * 1024,
    slice=16 * 1024,
    sessions=20,
    quarantine=60.0,
)

#: What the guest lets the relay send ahead for one session.
AGENT_WINDOW: Final = 500

MOST_CLIENTS: Final = 3


@final
class Peer:
    """A client's process, at the other end of its socket."""

    def __init__(self, client: Client, mark: int) -> None:
        self.client = client
        self.mark = mark  # in every byte of data that is for it
        self.decoder = wire.FrameDecoder()
        self.connected = True
        self.received: list[tuple[int, wire.Message]] = []


class World:
    """See the module.

    Args:
        credit: whether the guest counts credit.
        limits: the router's.
    """

    def __init__(self, credit: bool, limits: RouterLimits) -> None:
        self.credit = credit
        self.limits = limits
        self.router = Router(wire.Flow(AGENT_WINDOW) if credit else None, limits)
        self.now = 0.0
        self.peers: list[Peer] = []
        self.control: deque[bytes] = deque()  # frames for the guest, as the outbox has them
        self.bulk: deque[bytes] = deque()
        self.wire: deque[bytes] = deque()  # written, and not read
        self.largest = 0  # frame that anybody has sent
        self.sent: Counter[int] = Counter()  # bytes of data that clients have sent, by id
        self.said = 0  # bytes of data that the guest has said to clients that are there
        self.received = 0  # and that these have got
        self._marks = 0
        self._last_words: dict[int, dict[int, str]] = {}  # of slots whose client has gone: what the guest must end
        self._retired: set[int] = set()

    # Clients

    def connect(self) -> Peer | None:
        if len(self.peers) >= MOST_CLIENTS:
            return None
        client = self.router.connect()
        assert client is not None, "no slot, with so few clients"
        assert client.slot not in self._last_words, "a slot of which the guest may still speak"
        assert client.slot not in self._retired
        self._marks = self._marks % 255 + 1
        peer = Peer(client, self._marks)
        self.peers.append(peer)
        return peer

    def disconnect(self, peer: Peer) -> None:
        peer.connected = False
        self.peers.remove(peer)
        slot, ids = peer.client.slot, peer.client.ids
        orders = self.router.disconnect(peer.client, self.now)
        self._carry_out(orders, ids)
        control = map(parse, orders.to_agent)
        ends = {frame.id for frame in control if isinstance(wire.decode(frame), wire.ExecSignal)}
        [fence] = map(parse, orders.behind)
        assert fence.id not in ends
        assert isinstance(wire.decode(fence), wire.FsRequest)
        self._last_words[slot] = {**dict.fromkeys(ends, "exec"), fence.id: "fs"}

    def client_writes(self, peer: Peer, data: bytes) -> None:
        """As far as the server would read: it leaves in the socket what the router has no room for."""
        if not self.router.may_read(peer.client):
            return
        try:
            peer.decoder.feed(data)
            for frame in peer.decoder:
                self.largest = max(self.largest, wire.HEADER_SIZE + len(frame.body))
                self.sent[frame.id] += data_size(frame)
                orders = self.router.from_client(peer.client, frame)
                self._carry_out(orders, peer.client.ids)
        except ProtocolError:
            self.disconnect(peer)

    def client_sends(self, peer: Peer, message: wire.Message, offset: int) -> None:
        self.client_writes(peer, wire.encode(message, peer.client.ids[offset]))

    def client_reads(self, peer: Peer, limit: int) -> bool:
        """The client's socket takes about so much; whether there was anything."""
        batch = self.router.next_for_client(peer.client, limit)
        for frame in (parse(item.frame) for item in batch):
            assert frame.id in peer.client.ids, "a frame of somebody else"
            self.received += data_size(frame)
            self.on_received(peer, frame)
        self._carry_out(self.router.sent_to_client(peer.client, batch), peer.client.ids)
        return bool(batch)

    def on_received(self, peer: Peer, frame: wire.Frame) -> None:
        """A client got a frame."""

    def feed(self, peer: Peer) -> bool:
        """Some of a client's data goes to the guest; whether there was any."""
        raw = self.router.next_for_agent(peer.client)
        if raw is None:
            return False
        frame = parse(raw)
        assert frame.id in peer.client.ids
        message = wire.decode(frame)
        assert not isinstance(message, wire.DataMessage) or len(message.data) <= self.limits.slice
        self.bulk.append(raw)
        return True

    # The guest

    def agent_says(self, frame: wire.Frame) -> None:
        self.largest = max(self.largest, wire.HEADER_SIZE + len(frame.body))
        if any(frame.id in peer.client.ids for peer in self.peers):
            self.said += data_size(frame)
        orders = self.router.from_agent(frame)
        self._note_last_word(frame, orders)
        self._carry_out(orders, None)
        for client in orders.wake:
            peer = next(peer for peer in self.peers if peer.client is client)
            self._mind_queue(peer)

    def _note_last_word(self, frame: wire.Frame, orders: Orders) -> None:
        slot = slot_of(frame.id)
        freed = False
        if slot in self._last_words and frame.flags & wire.FLAG_TERMINAL:
            words = self._last_words[slot]
            if frame.id in words and _kind_of_last(bytes(frame.body)) in (words[frame.id], ""):
                del words[frame.id]
            if not words:
                del self._last_words[slot]
                freed = True
        assert orders.slot_freed == freed

    def _mind_queue(self, peer: Peer) -> None:
        """As the server does."""
        client = peer.client
        if not self.credit and client.outgoing_bytes > self.limits.client_budget:
            self.router.drop_data(client)
            if client.outgoing_bytes > self.limits.client_budget:
                self.disconnect(peer)
        elif self.router.overflows(client):
            self.disconnect(peer)

    def lose_agent(self) -> None:
        """The guest is gone; clients still get what there is for them."""
        self.router.lose_agent()
        for peer in self.peers:
            while self.client_reads(peer, 1000):
                pass
            assert not peer.client.held_size

    def write_batch(self, bulk: int) -> None:
        """The outbox writes: all control frames, and behind them some others."""
        self.wire.extend(self.control)
        self.control.clear()
        for _ in range(min(bulk, len(self.bulk))):
            self.wire.append(self.bulk.popleft())

    # Time

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for slot in self.router.tick(self.now):
            del self._last_words[slot]
            self._retired.add(slot)

    # What must hold

    def _carry_out(self, orders: Orders, ids: range | None) -> None:
        for raw in (*orders.to_agent, *orders.behind):
            frame = parse(raw)
            message = wire.decode(frame)  # raises at what an agent could not take
            row = wire.type_of(message)
            assert row.direction & wire.Direction.HOST_TO_AGENT
            assert self.credit or not isinstance(message, (wire.Credit, wire.Cancel))
            if row.control:
                assert isinstance(message, (wire.Shutdown, wire.ClientDisconnected))
                assert not isinstance(message, wire.ClientDisconnected) or message.id_start == (ids or [0])[0]
            elif ids is not None:
                assert frame.id in ids, "sent in somebody else's name"
        self.control.extend(orders.to_agent)
        self.bulk.extend(orders.behind)
        assert orders.wake <= set(self.router.clients)

    def check(self) -> None:
        """After every step."""
        assert {peer.client for peer in self.peers} == set(self.router.clients)
        assert self.router.committed == sum(peer.client.committed for peer in self.peers)
        assert len(self._last_words) == self.router.slots.quarantined
        assert len(self._retired) == self.router.slots.retired
        for peer in self.peers:
            self._check_client(peer.client)

    def check_end(self) -> None:
        """When all clients have gone."""
        assert not self.router.committed
        assert not self.router.queued_bytes
        # (What is dropped is counted with its frame, in some places.)
        assert 0 <= self.said - self.received <= self.router.dropped_bytes, "lost, and not counted"

    def _check_client(self, client: Client) -> None:
        limits = self.limits
        assert len(client.sessions) <= limits.sessions
        queued = [*client.hurried, *client.outgoing]
        assert client.outgoing_bytes == sum(len(item.frame) for item in queued)
        assert client.pending_bytes == sum(s.pending_bytes for s in client.sessions.values())
        open_ = [session for session in client.sessions.values() if not session.released]
        windows = {id(flow): flow.window for session in open_ for flow in session.flows.values()}
        for item in queued:
            if item.ends is not None and not item.ends.released:
                windows |= {id(flow): flow.window for flow in item.ends.flows.values()}
        assert client.committed == sum(windows.values())
        # What is really kept, and not what is counted, is within the bounds.
        held = [item for s in client.sessions.values() for flow in s.flows.values() for item in flow.held]
        kept = sum(len(item.frame) for item in (*queued, *held))
        assert client.kept_size == kept + FRAME_COST * (len(queued) + len(held))
        budget = max(limits.client_budget, client.committed) + limits.answers_budget
        assert kept <= budget + self.largest, "more than a client's budgets"
        for session in client.sessions.values():
            self._check_session(session)

    def _check_session(self, session: RelaySession) -> None:
        assert session.queued or not session.can_send(), "has something to send and no turn"
        assert session.last is None or session.held
        for flow in session.flows.values():
            assert flow.held_bytes == sum(item.size for item in flow.held) <= flow.outstanding
            assert not flow.held or (flow.credit is not None and flow.credit <= 0 and flow.held[0].size)
        kept = sum(
            memoryview(view.obj).nbytes for _, view in session.pending
        )  # a view keeps all of what it is a view of
        assert kept <= 2 * session.pending_bytes + 64, "far more is kept than is counted"


def data_size(frame: wire.Frame) -> int:
    """Bytes of data in it."""
    try:
        message = wire.decode(frame)
    except ProtocolError:
        return 0
    return len(message.data) if isinstance(message, wire.DataMessage) else 0


def _kind_of_last(body: bytes) -> str:
    """The kind of session that a terminal frame ends; empty if it may end any."""
    try:
        row = wire.MESSAGE_TYPES.get(wire.peek_type(body))
    except ProtocolError:
        return ""
    if row is None or not row.flags & wire.FLAG_TERMINAL or row.cls is wire.Error:
        return ""
    part = row.name.split(".")[1]
    return part if part in ("exec", "fs", "tcp") else "call"


def parse(raw: bytes) -> wire.Frame:
    """One whole frame."""
    assert int.from_bytes(raw[:4], "big") + 4 == len(raw)
    return wire.Frame(int.from_bytes(raw[4:8], "big"), raw[8], raw[9:])
