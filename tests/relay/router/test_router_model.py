"""Any clients and any agent, in any order: invariants of the router whatever they send."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.relay.router._frames import SMALL
from tests.tools.peer import frame, said
from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._relay.router import Router
from trio_console._relay.router.states import SessionState
from trio_console._wire.ids import slot_ids

if TYPE_CHECKING:
    from trio_console._relay.router import Client, Orders

WINDOWS = st.sampled_from([wire.UNSET, 0, 1, 100, 5000, 1 << 30])

OPENING = st.one_of(
    st.builds(wire.ExecRequest, cmd=st.just("c"), window=WINDOWS),
    st.builds(wire.FsRequest, st.just(wire.OpRead(handle=1, offset=0)), window=WINDOWS),
    st.builds(wire.TcpConnect, host=st.just("h"), port=st.just(1), window=WINDOWS),
    st.sampled_from([wire.Ping(), wire.Touch()]),
)
DATA = st.sampled_from([b"", b"x", b"y" * 100, b"z" * 5000])
CREDIT = st.builds(
    wire.Credit, st.sampled_from(["stdin", "stdout", "stderr", "data"]), st.sampled_from([0, 1, 3000, 2**32 - 1])
)
WITHIN = st.one_of(
    st.builds(wire.ExecStdin, DATA),
    st.builds(wire.FsData, DATA),
    st.builds(wire.TcpData, DATA),
    CREDIT,
    st.sampled_from([wire.TcpEof(), wire.TcpClose(), wire.ExecSignal(2), wire.ExecResize(1, 1), wire.Cancel()]),
)
ANSWERS = st.one_of(
    st.builds(wire.ExecStdout, DATA),
    st.builds(wire.ExecStderr, DATA),
    st.builds(wire.FsData, DATA),
    st.builds(wire.TcpData, DATA),
    CREDIT,
    st.sampled_from(
        [
            wire.ExecStarted(1),
            wire.ExecStdinError(message="m"),
            wire.ExecExited(0),
            wire.FsResponse(ok=True),
            wire.TcpConnected(),
            wire.TcpEof(),
            wire.TcpClosed(),
            wire.Pong(),
            wire.Error("invalid_payload", "m"),
        ]
    ),
)
NONSENSE = st.builds(wire.Frame, st.just(0), st.integers(0, 15), st.binary(max_size=40))
OFFSETS = st.integers(0, 3)

#: Limits so small that a few answers reach them.
LIMITS = replace(SMALL, answers_budget=30_000, least_answers=500, total_answers=12_000)


class RouterModel(RuleBasedStateMachine):
    """Clients and an agent that do anything. The outcome of each step is read at once."""

    @initialize(credit=st.booleans())
    def begin(self, credit: bool) -> None:
        self.credit = credit
        self.router = Router(wire.Flow(4096) if credit else None, LIMITS)
        self.clients: list[Client] = []
        self.gone: set[int] = set()
        self.now = 0.0
        self.from_agent: dict[Client, int] = {}  # frames of data bytes accepted for each client
        self.delivered: dict[Client, int] = {}
        self.commanded: set[int] = set()  # commands the agent was asked for and has not ended

    # Carrying out

    def carry_out(self, orders: Orders) -> None:
        for id_, message in said([*orders.to_agent, *orders.behind]):
            if not self.credit:
                assert not isinstance(message, (wire.Credit, wire.Cancel))
            if isinstance(message, wire.ExecRequest):
                assert id_ not in self.commanded, "two commands under one id"
                self.commanded.add(id_)
        assert orders.busy is None or orders.busy in self.clients

    def keep_bounds(self) -> None:
        """Cut as the server does after each step."""
        for client in tuple(self.clients):
            while client in self.clients and (worst := self.router.gate.to_cut(client)) is not None:
                others = [other.account for other in self.clients if other.account.user is worst.account.user]
                assert worst.account.excess == max(account.excess for account in others), "another has more"
                self.disconnect(self.clients.index(worst))

    def pick(self, number: int) -> Client:
        return self.clients[number % len(self.clients)]

    # What may happen

    @rule(uid=st.integers(0, 1))
    def connect(self, uid: int) -> None:
        if len(self.clients) < 4:
            client = self.router.connect(uid)
            assert client is not None
            # The former client of this slot has no session left in the guest.
            assert not [id_ for id_ in self.commanded if id_ in client.ids]
            self.clients.append(client)
            self.delivered[client] = 0

    @precondition(lambda self: self.clients)
    @rule(who=st.integers(0, 3))
    def disconnect(self, who: int) -> None:
        client = self.pick(who)
        self.clients.remove(client)
        orders = self.router.disconnect(client, self.now)
        self.carry_out(orders)
        killed = {id_ for id_, message in said(orders.to_agent) if isinstance(message, wire.ExecSignal)}
        assert killed == {id_ for id_ in self.commanded if id_ in client.ids}, "left a command running"
        [(last_id, _)] = said(orders.behind)
        # This agent keeps to the protocol.
        for id_ in sorted(killed):
            self.router.from_agent(frame(wire.ExecExited(-1), id_))
            self.commanded.discard(id_)
        assert self.router.slots.quarantined == 1
        self.router.from_agent(frame(wire.FsResponse(ok=True), last_id))
        assert self.router.slots.quarantined == 0

    @precondition(lambda self: self.clients)
    @rule(who=st.integers(0, 3), message=st.one_of(OPENING, WITHIN, ANSWERS), offset=OFFSETS)
    def client_sends(self, who: int, message: wire.Message, offset: int) -> None:
        client = self.pick(who)
        self.carry_out(self.router.from_client(client, frame(message, client.ids[offset])))
        self.keep_bounds()

    @precondition(lambda self: self.clients)
    @rule(who=st.integers(0, 3), nonsense=NONSENSE, offset=OFFSETS)
    def client_sends_nonsense(self, who: int, nonsense: wire.Frame, offset: int) -> None:
        client = self.pick(who)
        try:
            self.carry_out(self.router.from_client(client, nonsense._replace(id=client.ids[offset])))
        except ProtocolError:
            self.disconnect(who)
        self.keep_bounds()

    @precondition(lambda self: self.clients)
    @rule(who=st.integers(0, 3), id_=st.sampled_from([0, 2**32 - 1, slot_ids(100)[0]]))
    def client_sends_under_an_id_of_others(self, who: int, id_: int) -> None:
        try:
            self.router.from_client(self.pick(who), frame(wire.Ping(), id_))
        except ProtocolError:
            self.disconnect(who)
        else:
            raise AssertionError("was not cut")

    @rule(slot=st.integers(0, 4), offset=OFFSETS, message=ANSWERS)
    def agent_sends(self, slot: int, offset: int, message: wire.Message) -> None:
        self.agent_frame(frame(message, slot_ids(slot)[offset]))

    @rule(slot=st.integers(0, 4), offset=OFFSETS, nonsense=NONSENSE)
    def agent_sends_nonsense(self, slot: int, offset: int, nonsense: wire.Frame) -> None:
        self.agent_frame(nonsense._replace(id=slot_ids(slot)[offset]))

    def agent_frame(self, one: wire.Frame) -> None:
        if one.flags & wire.FLAG_TERMINAL:
            self.commanded.discard(one.id)
        self.carry_out(self.router.from_agent(one))
        self.keep_bounds()

    @precondition(lambda self: self.clients)
    @rule(who=st.integers(0, 3), limit=st.sampled_from([1, 300, 10000]))
    def socket_takes(self, who: int, limit: int) -> None:
        client = self.pick(who)
        batch = client.take(limit)
        for item in batch:
            one = wire.Frame(int.from_bytes(item.frame[4:8], "big"), item.frame[8], item.frame[9:])
            assert one.id in client.ids, "a frame of somebody else"
        self.carry_out(self.router.sent_to_client(client, batch))
        self.keep_bounds()

    @precondition(lambda self: self.clients)
    @rule(who=st.integers(0, 3))
    def agent_takes(self, who: int) -> None:
        client = self.pick(who)
        raw = self.router.next_for_agent(client)
        if raw is not None:
            [(id_, message)] = said(raw)
            assert id_ in client.ids
            if isinstance(message, wire.DataMessage):
                assert len(message.data) <= SMALL.slice
        self.keep_bounds()

    @rule(seconds=st.sampled_from([1.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        assert self.router.tick(self.now) == []

    # What must hold

    @invariant()
    def accounts_agree(self) -> None:
        if not hasattr(self, "router"):
            return
        self.router.books.check()
        assert self.router.books.clients == {client.account for client in self.clients}
        for client in self.clients:
            queued = [*client.hurried, *client.outgoing]
            assert client.account.queued == sum(len(item.frame) for item in queued)
            leaving = [item.ends for item in queued if item.ends is not None]
            assert all(session.state is SessionState.LEAVING for session in leaving)
            open_ = [s for s in client.sessions.values() if s.state is not SessionState.ABANDONED]
            streams = [stream for session in (*open_, *leaving) for stream in session.streams.values()]
            assert client.account.reserved == sum(stream.window.size for stream in streams)

    @invariant()
    def budgets_hold(self) -> None:
        if not hasattr(self, "router"):
            return
        assert self.router.books.relay.excess <= LIMITS.total_answers
        for client in self.clients:
            if self.credit:
                budget = max(LIMITS.client_budget, client.account.reserved)
                assert client.account.kept <= budget + LIMITS.answers_budget
            # Beyond the budget, each stream has the least window at most.
            assert client.account.reserved <= SMALL.client_budget + 2 * SMALL.least_window * 8
            for session in client.sessions.values():
                for stream in session.streams.values():
                    assert stream.window.held == sum(item.size for item in stream.held)
                    assert not (stream.held and stream.credit is None)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if not hasattr(self, "router"):
            return
        for client in self.clients:
            for session in client.sessions.values():
                assert session in client.round or not session.can_send(), "has something to send and no turn"
                for stream in session.streams.values():
                    short = stream.credit is not None and stream.credit <= 0
                    assert not stream.held or (short and stream.held[0].size)
                assert (session.state is SessionState.ENDED) == (session.last is not None)
                assert session.last is None or session.held is not None


RouterModel.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestRouter: Any = RouterModel.TestCase
