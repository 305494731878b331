"""States of the relay's sessions and clients: those that may follow one another do, and others are an error."""

from __future__ import annotations

import itertools

import pytest

from tests.relay.router._frames import Table
from trio_console import _wire as wire
from trio_console._relay.router.states import CLIENT, SESSION, ClientState, SessionState
from trio_console._states import IllegalStepError

S = SessionState
C = ClientState

EXEC = wire.ExecRequest("c", window=1)
READ = wire.FsRequest(wire.OpRead(handle=1, offset=0), window=1)
TCP = wire.TcpConnect("h", 1, window=1)

#: All steps that may happen; no other step may.
SESSION_STEPS = {
    (S.OPEN, S.GIVEN_UP),
    (S.OPEN, S.CLOSING),
    (S.OPEN, S.ABANDONED),
    (S.OPEN, S.ENDED),
    (S.OPEN, S.LEAVING),
    (S.OPEN, S.OVER),
    (S.GIVEN_UP, S.CLOSING),
    (S.GIVEN_UP, S.ABANDONED),
    (S.GIVEN_UP, S.LEAVING),
    (S.GIVEN_UP, S.OVER),
    (S.CLOSING, S.LEAVING),
    (S.CLOSING, S.OVER),
    (S.ABANDONED, S.OVER),
    (S.ENDED, S.LEAVING),
    (S.ENDED, S.OVER),
    (S.LEAVING, S.OVER),
}
CLIENT_STEPS = {
    (C.CONNECTED, C.QUARANTINED),
    (C.QUARANTINED, C.GONE),
    (C.QUARANTINED, C.RETIRED),
    (C.RETIRED, C.GONE),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(S, S)), ids=lambda state: state.name)
def test_a_session_goes_from_state_to_state_as_the_table_says(old: SessionState, new: SessionState) -> None:
    table = Table()
    client = table.connect()
    session = client.sessions[table.open(client, EXEC)]
    session.state = old
    if (old, new) in SESSION_STEPS:
        session.become(new)
        assert session.state is new
    else:
        with pytest.raises(IllegalStepError, match=f"{new.name}.*{old.name}"):
            session.become(new)
        assert session.state is old


@pytest.mark.parametrize(("old", "new"), list(itertools.product(C, C)), ids=lambda state: state.name)
def test_a_client_goes_from_state_to_state_as_the_table_says(old: ClientState, new: ClientState) -> None:
    client = Table().connect()
    client.state = old
    if (old, new) in CLIENT_STEPS:
        client.become(new)
        assert client.state is new
    else:
        with pytest.raises(IllegalStepError, match=f"{new.name}.*{old.name}"):
            client.become(new)
        assert client.state is old


def test_both_begin_where_everything_is_possible() -> None:
    assert SESSION.first is S.OPEN
    assert CLIENT.first is C.CONNECTED


def test_a_command_that_has_ended_behind_held_output_leaves_when_that_is_granted() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    session = client.sessions[id_]
    for message in (wire.ExecStdout(b"ab"), wire.ExecStdout(b"c"), wire.ExecExited(0)):
        table.agent_says(message, id_)
    assert session.state is S.ENDED
    table.client_says(client, wire.Credit("stdout", 9), id_)
    assert session.state is S.LEAVING
    table.client_reads(client)
    assert session.state is S.OVER


def test_a_read_that_was_given_up_leaves_with_its_last_frame() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, READ)
    session = client.sessions[id_]
    table.client_says(client, wire.Cancel(), id_)
    assert session.state is S.GIVEN_UP
    table.agent_says(wire.FsResponse(ok=True), id_)
    assert session.state is S.LEAVING


def test_a_connection_that_is_closed_is_over_once_the_agent_has_it() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, TCP)
    session = client.sessions[id_]
    table.client_says(client, wire.TcpClose(), id_)
    assert session.state is S.CLOSING
    table.client_says(client, wire.Cancel(), id_)
    assert session.state is S.CLOSING
    table.client_says(client, wire.TcpClose(), id_)
    table.to_agent(client)
    assert session.state is S.OVER


def test_a_session_that_a_mistake_has_ended_is_abandoned_until_the_agent_says_its_last() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    session = client.sessions[id_]
    table.client_says(client, wire.TcpEof(), id_)
    assert session.state is S.ABANDONED
    table.agent_says(wire.ExecExited(-1), id_)
    assert session.state is S.OVER


def test_a_client_is_quarantined_until_the_guest_has_said_its_last_words() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    session = client.sessions[id_]
    table.router.disconnect(client, 0)
    assert client.state is C.QUARANTINED
    assert session.state is S.OVER
    for last, kind in list(client.last_words.items()):
        assert client.state is C.QUARANTINED
        table.agent_says(wire.ExecExited(0) if kind == "exec" else wire.FsResponse(ok=True), last)
    assert client.state is C.GONE


def test_a_client_of_which_the_guest_says_nothing_is_retired() -> None:
    table = Table()
    client = table.connect()
    table.router.disconnect(client, 0)
    assert table.router.tick(60) == [client.slot]
    assert client.state is C.RETIRED
