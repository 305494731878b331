"""What the relay keeps for a client: when its socket is read, when it is too much, what a waiting piece costs."""

from __future__ import annotations

import pytest

from tests.relay.router._frames import KIB, Table
from tests.tools.memory import held_by
from tests.tools.peer import frame
from trio_console import _wire as wire
from trio_console._relay.router.books import PIECE_COST

EXEC = wire.ExecRequest(cmd="true")
CONNECT = wire.TcpConnect(host="h", port=1)


def test_a_client_is_not_read_while_too_much_of_it_waits_for_the_agent() -> None:
    table = Table(window=10)
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(bytes(32 * KIB)), id_)
    assert not table.router.gate.may_read(client)
    for _ in range(PIECE_COST // 10 + 1):  # the cost of keeping a piece counts as well
        assert not table.router.gate.may_read(client)
        table.to_agent(client)
        table.agent_says(wire.Credit("stdin", 10), id_)
    table.to_agent(client)
    assert table.router.gate.may_read(client)


def test_a_client_that_keeps_to_the_agents_credit_is_read_on_whatever_the_guest_takes() -> None:
    table = Table(window=16 * KIB)
    client = table.connect()
    for offset in range(10):
        id_ = table.open(client, wire.ExecRequest(cmd="x", window=KIB), offset)
        table.client_says(client, wire.ExecStdin(bytes(16 * KIB)), id_)
    assert client.account.pending > 160 * KIB
    assert not table.router.gate.may_read(client)
    table.to_agent(client)  # the console takes the data, but no process reads it
    assert client.account.pending == 0
    assert table.router.gate.may_read(client)


def test_no_guest_grants_more_than_its_window() -> None:
    table = Table(window=10)
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(bytes(100)), id_)
    table.to_agent(client)
    table.agent_says(wire.Credit("stdin", 50), id_)
    assert table.to_agent(client) == [(id_, wire.ExecStdin(bytes(10)))]


def test_empty_pieces_of_input_are_not_free_of_charge() -> None:
    table = Table(window=10)
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(bytes(100)), id_)
    for _ in range(1000):
        table.client_says(client, wire.ExecStdin(b""), id_)
    assert not table.router.gate.may_read(client)


def test_a_client_is_not_read_while_too_much_is_queued_for_it() -> None:
    table = Table()
    client = table.connect()
    for offset in range(700):
        table.client_says(client, wire.Pong(), client.ids[offset])
    assert client.account.queued > 64 * KIB
    assert not table.router.gate.may_read(client)
    table.client_reads(client)
    assert table.router.gate.may_read(client)


def test_whoever_reads_nothing_overflows_by_answers() -> None:
    table = Table()
    client = table.connect()
    data = frame_data()
    while client.account.kept <= 128 * KIB:
        assert table.router.gate.to_cut(client) is None
        table.agent_says(data, client.ids[0])
    assert table.router.gate.to_cut(client) is client


@pytest.mark.parametrize("said", [wire.TcpData(b""), wire.TcpEof()])
def test_what_is_held_back_overflows_as_what_is_queued_does(said: wire.Message) -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.TcpConnect("h", 1, window=1))
    table.agent_says(wire.TcpData(b"ab"), id_)
    table.agent_says(wire.TcpData(b"c"), id_)
    while table.router.gate.to_cut(client) is None:
        before = client.account.held
        table.agent_says(said, id_)
        assert client.account.held > before
    assert client.account.held < 130 * KIB
    table.client_says(client, wire.Credit("data", 5), id_)
    assert client.account.held == 0


@pytest.mark.parametrize("held", [False, True])
def test_frames_that_are_nearly_all_header_count_for_what_they_cost(held: bool) -> None:
    table = Table()
    client = table.connect()
    id_ = client.ids[0]
    if held:
        table.open(client, wire.ExecRequest(cmd="x", window=1))
        table.agent_says(wire.ExecStdout(b"ab"), id_)
        table.agent_says(wire.ExecStdout(b"c"), id_)
    frames = 0
    while table.router.gate.to_cut(client) is None:
        table.router.from_agent(wire.Frame(id_, 0, b""))
        frames += 1
    # An object in a queue costs more than a hundred bytes, however small its frame is.
    assert frames < (64 + 64) * KIB / 100


def test_windows_that_were_given_never_overflow() -> None:
    table = Table(answers_budget=48 * KIB)
    client = table.connect()
    ids = [table.open(client, wire.ExecRequest(cmd="x", window=KIB), offset) for offset in range(100)]
    for id_ in ids:
        for data in (wire.ExecStdout(bytes(KIB)), wire.ExecStderr(bytes(KIB))):
            table.agent_says(data, id_)
    assert client.account.queued > 64 * KIB + 48 * KIB
    assert table.router.gate.to_cut(client) is None


def test_a_piece_that_waits_keeps_no_more_than_what_is_left_of_it() -> None:
    table = Table(window=None, slice=1000)
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(bytes(1_000_000)), id_)
    session = client.sessions[id_]
    while session.account.pending > 10_000:
        table.router.next_for_agent(client)
    [(_, view)] = session.pending
    assert len(view.obj) < 25_000
    while session.pending:
        assert len(table.router.next_for_agent(client) or b"") > 1000


def frame_data() -> wire.Message:
    return wire.ExecStdout(bytes(1000))


def test_costs_of_pending_pieces_add_up_to_nothing_in_the_end() -> None:
    table = Table(window=None, slice=7)
    client = table.connect()
    id_ = table.open(client, CONNECT)
    for data in (b"", b"abc", bytes(100)):
        table.client_says(client, wire.TcpData(data), id_)
    table.client_says(client, wire.TcpEof(), id_)
    assert client.account.pending == 103 + len(wire.encode(wire.TcpEof(), id_)) + 3 * PIECE_COST
    session = client.sessions[id_]
    while session.pending:
        table.router.next_for_agent(client)
    assert session.account.pending == client.account.pending == 0


def test_pieces_that_wait_cost_what_they_hold() -> None:
    table = Table(pending_budget=1 << 20)
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="c", window=1))
    # (An end between them, so that they are not joined.)
    said = [bytes([number % 256, number // 256]) if number % 2 else b"" for number in range(5000)]
    frames = [frame(wire.ExecStdin(data), id_) for data in said]
    with held_by() as held:
        for one in frames:
            table.router.from_client(client, one)
    assert held.size < 1.2 * client.account.pending


def test_crumbs_that_wait_for_the_agent_go_on_in_few_frames() -> None:
    table = Table(window=None, slice=64 * KIB, pending_budget=1 << 20)
    client = table.connect()
    id_ = table.open(client, EXEC)
    for number in range(8 * KIB):
        table.client_says(client, wire.ExecStdin(bytes([number % 256, number // 256])), id_)
    assert client.account.pending == 16 * KIB + 2 * PIECE_COST
    first, second = table.to_agent(client)
    assert first == (id_, wire.ExecStdin(b"".join(bytes([n % 256, n // 256]) for n in range(4 * KIB))))
    assert second == (id_, wire.ExecStdin(b"".join(bytes([n % 256, n // 256]) for n in range(4 * KIB, 8 * KIB))))
    assert client.account.pending == 0


@pytest.mark.parametrize(("more", "pieces"), [(KIB - 1, 1), (KIB, 1), (KIB + 1, 2)])
def test_pieces_are_joined_up_to_eight_kib(more: int, pieces: int) -> None:
    table = Table(window=None)
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(bytes(7 * KIB)), id_)
    table.client_says(client, wire.ExecStdin(bytes(more)), id_)
    assert client.account.pending == 7 * KIB + more + pieces * PIECE_COST


def test_nothing_is_joined_to_the_end_of_input_nor_the_end_to_it() -> None:
    table = Table(window=None)
    client = table.connect()
    id_ = table.open(client, EXEC)
    said = [wire.ExecStdin(data) for data in (b"a", b"", b"b", b"c")]
    for message in said:
        table.client_says(client, message, id_)
    assert table.to_agent(client) == [
        (id_, wire.ExecStdin(b"a")),
        (id_, wire.ExecStdin(b"")),
        (id_, wire.ExecStdin(b"bc")),
    ]


def test_data_is_joined_to_the_rest_of_a_piece_that_was_sent_in_part() -> None:
    table = Table(window=10)
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(b"0123456789ab"), id_)
    assert table.to_agent(client) == [(id_, wire.ExecStdin(b"0123456789"))]
    table.client_says(client, wire.ExecStdin(b"cd"), id_)
    table.agent_says(wire.Credit("stdin", 10), id_)
    assert table.to_agent(client) == [(id_, wire.ExecStdin(b"abcd"))]
    assert client.account.pending == 0
