"""A relay's router without its server, with clients and a guest that a fuzzer plays.

The world carries out the router's orders as the server does, one step at a time, so that the fuzzer can do
anything between two steps. Frames for the guest wait in two queues, as in an outbox: control frames overtake data.

Each thing that the router does is compared with the `Model` at once. After each step the router's sessions and
sums are compared with the model's as well.
"""

from __future__ import annotations

import operator
import zlib
from collections import Counter, defaultdict, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final, final

from tests.fuzz.targets.relay_model import Model
from tests.fuzz.targets.relay_parts import Party, parse
from tests.fuzz.targets.relay_users import RIGHTS, Users, numbers_of
from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._relay.router import Orders, Router, RouterLimits
from trio_console._relay.router.books import FRAME_COST
from trio_console._relay.router.limits import Numbers
from trio_console._relay.router.states import SessionState

if TYPE_CHECKING:
    from tests.fuzz.targets.relay_parts import Session
    from trio_console._relay.router import Client
    from trio_console._relay.router.books import UserAccount
    from trio_console._relay.router.session import Outgoing, RelaySession

__all__ = ["AGENT_WINDOW", "LARGE", "LIMITED", "MOST_CLIENTS", "SMALL", "Peer", "World", "data_size"]

#: Limits so small that an input of some hundred bytes reaches every one of them.
SMALL: Final = RouterLimits(
    largest_window=300,
    least_window=40,
    client_budget=1200,
    total_budget=1500,
    pending_budget=1500,
    answers_budget=2000,
    least_answers=150,
    total_answers=3000,
    slice=100,
    sessions=5,
    quarantine=60.0,
)

#: Limits so large that the relay joins pieces that wait.
LARGE: Final = RouterLimits(
    largest_window=128 * 1024,
    least_window=4 * 1024,
    client_budget=256 * 1024,
    total_budget=512 * 1024,
    pending_budget=256 * 1024,
    answers_budget=256 * 1024,
    least_answers=4 * 1024,
    total_answers=384 * 1024,
    slice=16 * 1024,
    sessions=20,
    quarantine=60.0,
)

#: With rights, and bounds that are reached as soon.
LIMITED: Final = replace(
    SMALL,
    client=Numbers(sessions=4, processes=2, handles=2),
    user=Numbers(sessions=5, processes=3, handles=3),
    user_budget=900,
    clients=3,
    clients_per_user=2,
)

#: The guest's window, in bytes: what the relay may send for one session before a grant.
AGENT_WINDOW: Final = 500

MOST_CLIENTS: Final = 3


class Life:
    """What a client has been told of a command: each end once, the end of a stream behind all of its data."""

    def __init__(self) -> None:
        self._got: Counter[str] = Counter()  # bytes
        self._ended: set[str] = set()
        self._left = False
        self._refused = False  # an error overtakes data, so what comes later may be of either life of the id

    def note(self, message: wire.Message, ended_after: deque[int]) -> None:
        """Check a message; ``ended_after``: the bytes of each stream that the guest has ended, in order."""
        match message:
            case wire.Error():
                self._refused = True
            case wire.ExecStreamEnded(name):
                sent = ended_after.popleft()
                assert self._refused or name not in self._ended, "a stream ends twice"
                assert self._refused or self._got[name] == sent, "the end of a stream without all of its data"
                self._ended.add(name)
            case wire.ExecLeft():
                assert self._refused or not self._left, "an exit is told twice"
                self._left = True
            case wire.ExecStdout(data) | wire.ExecStderr(data):
                name = "stdout" if isinstance(message, wire.ExecStdout) else "stderr"
                assert self._refused or name not in self._ended, "data behind the end of its stream"
                self._got[name] += len(data)
            case wire.ExecExited():
                self._got.clear()
                self._ended.clear()
                self._left = False


@final
class Peer:
    """The program of a client, at the other end of the relay's socket."""

    def __init__(self, client: Client, party: Party, mark: int) -> None:
        self.client = client
        self.party = party
        self.mark = mark  # in every byte of data that is for it
        self.decoder = wire.FrameDecoder()
        self.connected = True
        self.batch: list[Outgoing] = []  # on its way into the socket
        self.received: list[tuple[int, wire.Message]] = []
        self._lives: defaultdict[int, Life] = defaultdict(Life)

    def life(self, id_: int) -> Life:
        """What it has been told of the command that has this id now."""
        return self._lives[id_]


class World:
    """See the module.

    Args:
        credit: whether the guest counts credit.
        limits: the router's.
        ends: whether the guest has announced that it tells the ends of commands, and confirms that a client has
            gone.
    """

    def __init__(self, credit: bool, limits: RouterLimits, ends: bool = False) -> None:
        self.credit = credit
        self.ends = ends
        self.limits = limits
        features = ["other", wire.EXEC_ENDS, wire.FORGETS] if ends else ["other"]
        self.users = Users(limits) if limits is LIMITED else None
        flow = wire.Flow(AGENT_WINDOW) if credit else None
        self.router = Router(flow, limits, features, {} if self.users is None else RIGHTS)
        self.model = Model(credit, ends, AGENT_WINDOW, limits, self.users)
        self.now = 0.0
        self.trace = 0  # of everything that anybody got
        self.peers: list[Peer] = []
        self.control: deque[bytes] = deque()  # frames for the guest, as the outbox has them
        self.bulk: deque[bytes] = deque()
        self.wire: deque[bytes] = deque()  # written, and not read
        self.sent: Counter[int] = Counter()  # bytes of data that clients have sent, by id
        self._marks = 0

    # Clients

    def connect(self, uid: int = 0) -> Peer | None:
        if len(self.peers) >= MOST_CLIENTS and self.users is None:
            return None
        client, party = self.router.connect(uid), self.model.connect(uid)
        if client is None or party is None:
            assert client is None and party is None, "a client gets in, or not"  # noqa: PT018
            return None
        assert client.slot == party.slot, "another slot than the first that is free"
        assert client.ids == party.ids
        self._marks = self._marks % 255 + 1
        peer = Peer(client, party, self._marks)
        self.peers.append(peer)
        return peer

    def disconnect(self, peer: Peer) -> None:
        peer.connected = False
        self.peers.remove(peer)
        orders = self.router.disconnect(peer.client, self.now)
        gone = wire.decode(parse(orders.to_agent[-1]))
        assert isinstance(gone, wire.ClientDisconnected)
        last_id = parse(orders.behind[0]).id if gone.confirm is wire.UNSET else gone.confirm
        told = self.model.disconnect(peer.party, last_id)
        assert (orders.to_agent, [*orders.behind]) == told, "the guest is told something else"
        self.model.await_last_words(peer.party, last_id, self.now)
        self._carry_out(orders)

    def client_writes(self, peer: Peer, data: bytes) -> None:
        """Read as the server does: bytes for which the router has no room stay in the socket."""
        if not self.router.gate.may_read(peer.client):
            return
        try:
            peer.decoder.feed(data)
            for frame in peer.decoder:
                if not peer.connected:
                    break  # it was cut, with the rest of what it has sent
                self.sent[frame.id] += data_size(frame)
                self._client_frame(peer, frame)
        except ProtocolError:
            self.disconnect(peer)

    def _client_frame(self, peer: Peer, frame: wire.Frame) -> None:
        busy = _busy(peer.party)
        verdict = self.model.client_frame(peer.party, frame)
        try:
            orders = self.router.from_client(peer.client, frame)
        except ProtocolError:
            assert verdict.cut, "cut for nothing"
            raise
        assert not verdict.cut, "not cut"
        assert orders.to_agent == verdict.to_agent, "the guest gets something else"
        assert not orders.behind
        assert orders.shutdown == verdict.shutdown
        self._check_woken(peer, busy, orders)
        self._carry_out(orders)
        self._keep_bounds(peer)

    def client_sends(self, peer: Peer, message: wire.Message, offset: int) -> None:
        self.client_writes(peer, wire.encode(message, peer.client.ids[offset]))

    def client_takes(self, peer: Peer, limit: int) -> None:
        """The server begins to write about this many bytes to a client's socket."""
        if not peer.batch:
            peer.batch = peer.client.take(limit)
            self.model.take(peer.party, [item.frame for item in peer.batch])
            assert peer.batch or not _busy(peer.party)[0], "there is something to send"

    def client_took(self, peer: Peer) -> bool:
        """The socket has taken the write; returns whether one was under way."""
        batch, peer.batch = peer.batch, []
        for item in batch:
            self.trace = zlib.crc32(item.frame, self.trace)
            self.on_received(peer, parse(item.frame))
        orders = self.router.sent_to_client(peer.client, batch)
        self.model.took(peer.party, orders.to_agent)
        assert not orders.behind
        self._carry_out(orders)
        if peer.connected:
            self._keep_bounds(peer)
        return bool(batch)

    def client_reads(self, peer: Peer, limit: int) -> bool:
        """Both of that; not if it was cut, for what was kept for another client."""
        if not peer.connected:
            return False
        self.client_takes(peer, limit)
        return self.client_took(peer)

    def on_received(self, peer: Peer, frame: wire.Frame) -> None:
        """A client got a frame."""

    def feed(self, peer: Peer) -> bool:
        """Send some data of a client to the guest; returns whether there was any."""
        if not peer.connected:
            return False
        raw = self.router.next_for_agent(peer.client)
        assert raw == self.model.feed(peer.party), "something else is next for the guest"
        if raw is None:
            return False
        frame = parse(raw)
        assert frame.id in peer.client.ids
        message = wire.decode(frame)
        assert not isinstance(message, wire.DataMessage) or len(message.data) <= self.limits.slice
        self.bulk.append(raw)
        self._keep_bounds(peer)
        return True

    # The guest

    def agent_says(self, frame: wire.Frame) -> None:
        peer = next((peer for peer in self.peers if frame.id in peer.party.ids), None)
        busy = None if peer is None else _busy(peer.party)
        blocked = peer is not None and not self.router.gate.may_read(peer.client)
        expected: list[bytes] = []
        freed = self.model.guest_frame(frame, expected)
        orders = self.router.from_agent(frame)
        assert orders.slot_freed == freed, "a slot is free too early, or not at all"
        assert orders.to_agent == expected, "the guest gets something else"
        assert not orders.behind
        if peer is not None and busy is not None:
            self._check_woken(peer, busy, orders)
            assert not blocked or not self.router.gate.may_read(peer.client) or orders.busy is peer.client, (
                "sleeps on"
            )
        assert orders.busy is None or frame.id in orders.busy.ids, "somebody else is woken"
        self._carry_out(orders)
        if peer is not None:
            self._mind_queue(peer)

    def _mind_queue(self, peer: Peer) -> None:
        """Drop data of a client that does not read, or cut the client, as the server does."""
        client = peer.client
        if not self.credit and client.account.queued > self.limits.client_budget:
            expected: list[bytes] = []
            told = self.model.drop_data(peer.party, client.account.queued, expected)
            orders = self.router.drop_data(client)
            assert (orders is not None) == told, "a client would not be told of what it has lost"
            if orders is not None:
                assert orders.to_agent == expected, "the guest gets something else"
                self._carry_out(orders)
            if not told or client.account.queued > self.limits.client_budget:
                self.disconnect(peer)
        else:
            self._keep_bounds(peer)

    def _keep_bounds(self, peer: Peer) -> None:
        """Cut the clients for which too much is kept, as the server does."""
        while (worst := self.router.gate.to_cut(peer.client)) is not None:
            excess = {other.client: self._excess(other) for other in self.peers}
            if worst is not peer.client or not self._is_too_much(peer):
                assert sum(excess.values()) > self.limits.total_answers, "cut for others that keep little"
                of_users: Counter[UserAccount] = Counter()
                for client, size in excess.items():
                    of_users[client.account.user] += size
                assert of_users[worst.account.user] == max(of_users.values()), "another user has more"
                assert excess[worst] == max(
                    size for client, size in excess.items() if client.account.user is worst.account.user
                ), "another client of the user has more"
            self.disconnect(next(other for other in self.peers if other.client is worst))
            if worst is peer.client:
                break

    def _kept(self, peer: Peer) -> int:
        """What is really kept for a client, with the costs of the frames."""
        client = peer.client
        items = [*client.hurried, *client.outgoing, *peer.batch]
        items += [item for s in client.sessions.values() for stream in s.streams.values() for item in stream.held]
        return sum(len(item.frame) + FRAME_COST for item in items)

    def _covered(self, peer: Peer) -> int:
        if self.credit:
            return peer.party.committed
        client, kept = peer.client, self._kept(peer)
        return client.account.queued if client.account.queued <= self.limits.client_budget else kept

    def _excess(self, peer: Peer) -> int:
        return max(0, self._kept(peer) - self._covered(peer) - self.limits.least_answers)

    def _is_too_much(self, peer: Peer) -> bool:
        """Whether more is kept for a client than any client may have."""
        budget = max(self.limits.client_budget, self._covered(peer))
        return self._kept(peer) > budget + self.limits.answers_budget

    def lose_agent(self) -> None:
        """The guest is gone. Clients still get the frames that are kept for them."""
        self.router.lose_agent()
        self.model.guest_lost()
        for peer in tuple(self.peers):
            self.drain(peer)
            assert not peer.client.account.held

    def drain(self, peer: Peer) -> None:
        """A client reads all frames that are kept for it."""
        while self.client_reads(peer, 1000):
            pass

    def write_batch(self, bulk: int) -> None:
        """The outbox writes: all control frames, and behind them some others."""
        self.wire.extend(self.control)
        self.control.clear()
        for _ in range(min(bulk, len(self.bulk))):
            self.wire.append(self.bulk.popleft())

    # Time

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        assert self.router.tick(self.now) == self.model.tick(self.now), "other slots are given up"

    # What must hold

    def _check_woken(self, peer: Peer, busy: tuple[bool, bool], orders: Orders) -> None:
        """A client with frames to send is named in the orders; otherwise its frames would wait for ever."""
        more = any(now > before for now, before in zip(_busy(peer.party), busy, strict=True))
        assert not more or orders.busy is peer.client, "has something to send, and sleeps on"

    def _carry_out(self, orders: Orders) -> None:
        for raw in (*orders.to_agent, *orders.behind):
            self.trace = zlib.crc32(raw, self.trace)
            wire.decode(parse(raw))  # raises if an agent could not decode it
        self.control.extend(orders.to_agent)
        self.bulk.extend(orders.behind)
        assert orders.busy is None or orders.busy in self.router.clients

    def check(self) -> None:
        """After every step: compare the sessions, the windows and the dropped bytes with the model."""
        router, model = self.router, self.model
        assert {peer.client.slot for peer in self.peers} == {client.slot for client in router.clients}
        router.books.check()
        assert router.books.relay.reserved == model.committed, "windows are nobody's, or not counted"
        assert router.slots.quarantined == len(model.awaited)
        assert router.slots.retired == len(model.late)
        assert router.refused_frames == model.refused_frames
        if self.users is not None:
            self._check_users(self.users)
        assert router.dropped_frames == model.dropped_frames
        dropped = router.books.dropped_bytes
        assert model.lost <= dropped <= model.lost_with_frames, "lost and not counted, or counted and not lost"
        for peer in self.peers:
            self._check_client(peer.client, peer.party)
            assert peer.client.account.excess == self._excess(peer), "another excess"
            assert not self._is_too_much(peer), "more than a client's budgets"
        assert sum(map(self._excess, self.peers)) <= self.limits.total_answers, "more than all may have"

    def _check_users(self, users: Users) -> None:
        """Each sum in the books is what the model counts, and no bound is exceeded."""
        books, parties = self.router.books, self.model.parties.values()
        assert set(books.users) == set(users.owners.values()), "another user has an account"
        for uid, account in books.users.items():
            assert uid is not None
            assert tuple(account.numbers) == users.numbers_of(uid, parties), "another number is counted"
            assert all(map(operator.le, account.numbers, self.limits.user)), "more than a user's bounds"
            assert len(account.clients) <= self.limits.clients_per_user
        for peer in self.peers:
            assert tuple(peer.client.account.numbers) == numbers_of(peer.party), "another number is counted"
            assert all(map(operator.le, peer.client.account.numbers, self.limits.client)), "more than the bounds"
        assert len(self.peers) <= self.limits.clients

    def check_end(self) -> None:
        """The sums when all clients have gone."""
        assert not self.router.books.relay.reserved
        assert not self.router.books.relay.queued
        assert not list(self.router.clients)
        self.check()

    def _check_client(self, client: Client, party: Party) -> None:
        limits = self.limits
        assert {id_: s.kind for id_, s in client.sessions.items()} == {
            id_: s.kind for id_, s in party.sessions.items()
        }, "other sessions live"
        assert len(client.sessions) <= limits.sessions
        queued = [*client.hurried, *client.outgoing]
        unsent = [item for peer in self.peers if peer.client is client for item in peer.batch]
        assert client.account.queued == sum(len(item.frame) for item in (*queued, *unsent))
        said = [item for item in (*party.quick, *party.slow) if item.stream is not None]
        assert sum(item.size for item in queued if item.stream is not None) == sum(len(item.data) for item in said)
        assert client.account.reserved == party.committed
        # The objects that are really kept, and not only the counts, are within the bounds.
        held = [item for s in client.sessions.values() for stream in s.streams.values() for item in stream.held]
        frames = [*queued, *held, *unsent]
        assert client.account.kept == sum(len(item.frame) + FRAME_COST for item in frames)
        for id_, session in client.sessions.items():
            self._check_session(client, session, party.sessions[id_])

    def _check_session(self, client: Client, session: RelaySession, other: Session) -> None:
        assert session in client.round or not session.can_send(), "has something to send and no turn"
        assert session.state is _state_of(other)
        assert session.last is None or session.held is not None
        room = AGENT_WINDOW + 1 if other.room is None else other.room
        assert session.room.may_send(AGENT_WINDOW + 1) == room, "another idea of what the guest takes"
        waiting = sum(len(data) for _, data in session.pending)
        assert waiting == sum(len(data) for _, data in other.pending)
        assert waiting <= session.account.pending
        assert bool(session.account.pending) == bool(session.pending)
        in_queue = [item for item in (*client.hurried, *client.outgoing) if item.stream is not None]
        for peer in self.peers:
            in_queue += [item for item in peer.batch if item.stream is not None]
        for cls, own in session.streams.items():
            stream, window = other.streams[cls], own.window
            assert window.size == stream.window
            assert window.granted == stream.window - stream.said + stream.granted
            assert (
                window.held == sum(item.size for item in own.held) == sum(len(item.data) for item in stream.held)
            )
            assert window.queued == sum(item.size for item in in_queue if item.stream is own)
            assert len(own.held) == len(stream.held), "pieces are joined that are not to be, or not joined"
            if session.state is not SessionState.ABANDONED:
                assert own.credit == stream.credit, "another idea of what the client takes"
            assert not own.held or (own.credit is not None and own.credit <= 0 and own.held[0].size)
        kept = sum(
            len(piece) if isinstance(piece, bytes) else memoryview(piece.obj).nbytes
            for _, piece in session.pending
        )  # a view keeps its whole object alive
        assert kept <= 2 * session.account.pending + 64, "far more is kept than is counted"


def _state_of(session: Session) -> SessionState:
    if session.over:
        return SessionState.ABANDONED
    if session.last is not None:
        return SessionState.ENDED
    if session.closing:
        return SessionState.CLOSING
    return SessionState.GIVEN_UP if session.unwanted else SessionState.OPEN


def _busy(party: Party) -> tuple[bool, bool]:
    """Whether a client has frames for its socket, and data for the guest."""
    return bool(party.quick or party.slow), bool(party.round)


def data_size(frame: wire.Frame) -> int:
    """Bytes of data in it."""
    try:
        message = wire.decode(frame)
    except ProtocolError:
        return 0
    return len(message.data) if isinstance(message, wire.DataMessage) else 0
