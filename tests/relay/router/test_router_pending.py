"""Frames that wait for the agent's credit: their sum for the client is the sum of its sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.relay.router._frames import Table
from trio_console import _wire as wire

if TYPE_CHECKING:
    from trio_console._relay.router import Client

STDIN_WINDOW = 5
READ = wire.FsRequest(wire.OpRead(handle=1, offset=0), window=1)
EXEC = wire.ExecRequest("c", window=1)
TCP = wire.TcpConnect("h", 1, window=1)


def ended_with_data_held(
    request: wire.Message, data: wire.Message, last: wire.Message
) -> tuple[Table, Client, int]:
    """A session that has ended in the guest, but not for its client, which gives no credit for the data before."""
    table = Table(window=STDIN_WINDOW)
    client = table.connect()
    id_ = table.open(client, request)
    table.agent_says(data, id_)
    table.agent_says(data, id_)
    table.agent_says(last, id_)
    return table, client, id_


ENDED = {
    "exec": (EXEC, wire.ExecStdout(b"o"), wire.ExecExited(0), wire.ExecStdin(b"i" * 9)),
    "fs": (READ, wire.FsData(b"o"), wire.FsResponse(ok=True), wire.FsData(b"i" * 9)),
    "tcp": (TCP, wire.TcpData(b"o"), wire.TcpClosed(), wire.TcpData(b"i" * 9)),
}


@pytest.mark.parametrize("kind", ENDED)
def test_data_for_a_session_that_the_guest_has_ended_is_dropped_and_counted(kind: str) -> None:
    request, data, last, late = ENDED[kind]
    table, client, id_ = ended_with_data_held(request, data, last)
    dropped = table.router.books.dropped_bytes
    orders = table.client_says(client, late, id_)
    assert client.account.pending == 0
    assert table.to_agent(client, orders) == []
    assert table.router.books.dropped_bytes >= dropped + 9


@pytest.mark.parametrize("kind", ENDED)
def test_nothing_of_an_ended_session_is_left_pending_when_its_id_is_free(kind: str) -> None:
    request, data, last, late = ENDED[kind]
    table, client, id_ = ended_with_data_held(request, data, last)
    table.client_says(client, late, id_)
    name: wire.StreamName = "stdout" if kind == "exec" else "data"
    table.client_says(client, wire.Credit(name, 100), id_)
    assert not client.sessions
    assert client.account.pending == 0


def test_a_connection_closed_behind_its_end_in_the_guest_is_over_at_once() -> None:
    table, client, id_ = ended_with_data_held(*ENDED["tcp"][:3])
    orders = table.client_says(client, wire.TcpClose(), id_)
    assert table.to_agent(client, orders) == []
    assert not client.sessions
    assert client.account.reserved == client.account.held == 0


@pytest.mark.parametrize("size", [16, 17, 23, 24, 247, 248, 255, 256])
def test_output_of_every_size_is_granted_again_when_it_was_read(size: int) -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest("c", window=1000))
    granted = 0
    for _ in range(40):
        table.agent_says(wire.ExecStdout(b"o" * size), id_)
        _, orders = table.client_reads(client)
        granted += sum(message.bytes for _, message in orders if isinstance(message, wire.Credit))
        table.client_says(client, wire.Credit("stdout", size), id_)
    assert 40 * size - granted < 500


class PendingModel(RuleBasedStateMachine):
    """One session at a time of a client that gives little credit, and an agent that gives little as well."""

    @initialize(kind=st.sampled_from(list(ENDED)))
    def begin(self, kind: str) -> None:
        self.table = Table(window=STDIN_WINDOW)
        self.client = self.table.connect()
        self.id = self.client.ids[0]
        self.kind = kind
        self.request, self.output, self.last, self.input = ENDED[kind]

    @precondition(lambda self: not self.client.sessions)
    @rule()
    def open(self) -> None:
        self.table.client_says(self.client, self.request, self.id)

    @rule()
    def client_sends_data(self) -> None:
        self.table.client_says(self.client, self.input, self.id)

    @rule()
    def client_sends_something_else(self) -> None:
        others = {"exec": wire.ExecSignal(2), "fs": wire.Cancel(), "tcp": wire.TcpEof()}
        self.table.client_says(self.client, others[self.kind], self.id)

    @precondition(lambda self: self.kind == "tcp")
    @rule()
    def client_closes(self) -> None:
        self.table.client_says(self.client, wire.TcpClose(), self.id)

    @rule(stream=st.sampled_from(["stdout", "data"]))
    def client_grants(self, stream: wire.StreamName) -> None:
        self.table.client_says(self.client, wire.Credit(stream, 2), self.id)

    @rule(ends=st.booleans())
    def agent_sends_more_than_the_client_takes(self, ends: bool) -> None:
        self.table.agent_says(self.output, self.id)
        self.table.agent_says(self.output, self.id)
        if ends:
            self.table.agent_says(self.last, self.id)

    @rule()
    def agent_says_its_last_word(self) -> None:
        self.table.agent_says(self.last, self.id)

    @rule()
    def agent_grants(self) -> None:
        name: wire.StreamName = "stdin" if self.kind == "exec" else "data"
        self.table.agent_says(wire.Credit(name, STDIN_WINDOW), self.id)

    @rule()
    def agent_takes(self) -> None:
        self.table.router.next_for_agent(self.client)

    @rule()
    def client_reads(self) -> None:
        self.table.client_reads(self.client)

    @invariant()
    def the_client_has_pending_what_its_sessions_have(self) -> None:
        assert self.client.account.pending == sum(s.account.pending for s in self.client.sessions.values())


PendingModel.TestCase.settings = settings(max_examples=300, stateful_step_count=25)
TestPending: Any = PendingModel.TestCase
