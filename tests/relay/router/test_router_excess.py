"""What the relay keeps for all clients beyond their windows: how much, and who is cut when it is too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.relay.router._frames import KIB, Table
from trio_console import _wire as wire
from trio_console._relay.router.books import FRAME_COST

if TYPE_CHECKING:
    from trio_console._relay.router import Client

ANSWER = wire.ExecStdout(bytes(1000))  # for an id without a request, so that no window bounds it
SPARED, BOUND = 16 * KIB, 128 * KIB  # of the table


def pile_up(table: Table, client: Client, excess: int) -> None:
    """Let the agent send answers until a client that reads nothing has so much excess, or up to 2 KiB more."""
    while client.account.excess < excess:
        table.agent_says(ANSWER, client.ids[0])


def ask(table: Table, client: Client) -> None:
    """A client asks something, gets the answer and reads it."""
    table.client_says(client, wire.Ping(), client.ids[1])
    table.agent_says(wire.Pong(), client.ids[1])
    assert table.router.gate.to_cut(client) is not client
    got, _ = table.client_reads(client)
    assert (client.ids[1], wire.Pong()) in got
    assert table.router.gate.to_cut(client) is not client


def cut_all(table: Table, client: Client) -> list[Client]:
    """Cut as the server does when something has changed for a client; returns who was cut, in order."""
    cut: list[Client] = []
    while (worst := table.router.gate.to_cut(client)) is not None:
        table.router.write_off(worst)
        cut.append(worst)
    for one in cut:
        table.router.disconnect(one, 0.0)
    return cut


def test_a_client_may_keep_a_little_that_is_no_excess() -> None:
    table = Table()
    client = table.connect()
    while client.account.kept <= SPARED:
        assert client.account.excess == 0
        table.agent_says(ANSWER, client.ids[0])
    assert client.account.excess == client.account.kept - SPARED
    table.client_reads(client)
    assert table.router.books.relay.excess == 0


def test_nobody_is_cut_while_the_excess_of_all_is_within_its_bound() -> None:
    table = Table()
    clients = [table.connect(uid) for uid in (1, 1, 2, None)]
    for client in clients:
        pile_up(table, client, BOUND // 4 - 2 * KIB)
    assert BOUND - 8 * KIB <= table.router.books.relay.excess <= BOUND
    assert [table.router.gate.to_cut(client) for client in clients] == [None] * 4


def test_of_the_clients_of_a_user_the_one_with_the_largest_excess_is_cut() -> None:
    table = Table()
    clients = [table.connect(1) for _ in range(3)]
    for client, size in zip(clients, (40, 60, 40), strict=True):
        pile_up(table, client, size * KIB)
    # (It is cut for a frame of any client.)
    assert [table.router.gate.to_cut(client) for client in clients] == [clients[1]] * 3


def test_many_clients_of_a_user_that_keep_little_each_do_not_have_one_of_another_user_cut() -> None:
    table = Table()
    many, one = [table.connect(1) for _ in range(5)], table.connect(2)
    pile_up(table, one, 40 * KIB)
    for client in many:
        pile_up(table, client, 18 * KIB)
    assert sum(client.account.excess for client in many) < BOUND < table.router.books.relay.excess
    assert max(client.account.excess for client in many) < one.account.excess
    assert table.router.gate.to_cut(one) in many


def test_clients_are_cut_until_the_rest_is_within_the_bound_and_no_longer() -> None:
    table = Table()
    clients = [table.connect(1) for _ in range(6)]
    for client, size in zip(clients, (10, 46, 28, 70, 38, 60), strict=True):
        pile_up(table, client, size * KIB)
    assert cut_all(table, clients[0]) == [clients[3], clients[5]]
    assert table.router.books.relay.excess <= BOUND


def test_what_is_kept_for_a_client_that_is_being_cut_has_no_other_client_cut() -> None:
    table = Table()
    first, second = table.connect(1), table.connect(1)
    pile_up(table, first, 70 * KIB)
    pile_up(table, second, 60 * KIB)
    assert table.router.gate.to_cut(second) is first
    table.router.write_off(first)
    for _ in range(200):
        table.agent_says(ANSWER, first.ids[0])
    assert table.router.gate.to_cut(first) is None
    pile_up(table, second, 70 * KIB)
    assert table.router.gate.to_cut(second) is None
    table.router.books.check()
    table.router.disconnect(first, 0.0)
    table.router.books.check()
    assert table.router.books.relay.excess == second.account.excess


@pytest.mark.parametrize("uid", [1, 2, None])
def test_whoever_reads_is_not_cut_for_those_that_do_not(uid: int | None) -> None:
    table = Table()
    greedy, honest = [table.connect(1) for _ in range(4)], table.connect(uid)
    cut: list[Client] = []
    for _ in range(5):
        while not cut:
            for client in greedy:
                table.agent_says(ANSWER, client.ids[0])
                ask(table, honest)
                cut += cut_all(table, client)
        assert honest not in cut
        greedy = [table.connect(1) if client in cut else client for client in greedy]
        cut.clear()
    ask(table, honest)


@pytest.mark.parametrize("uid", [1, 2, None])
@pytest.mark.parametrize("credit", [None, 100])
def test_whoever_has_not_read_the_data_of_its_windows_has_no_excess_and_is_not_cut(
    uid: int | None, credit: int | None
) -> None:
    table = Table()
    greedy, slow = [table.connect(1) for _ in range(4)], table.connect(uid)
    request = wire.ExecRequest(cmd="x", window=wire.UNSET if credit is None else credit)
    id_ = table.open(slow, request)
    window = slow.sessions[id_].streams[wire.ExecStdout].window.size
    for said in (wire.ExecStdout(bytes(window)), wire.ExecStderr(bytes(window))):
        table.agent_says(said, id_)
    assert slow.account.kept > slow.account.reserved
    assert slow.account.excess == 0
    while table.router.books.relay.excess <= BOUND:
        for client in greedy:
            table.agent_says(ANSWER, client.ids[0])
    assert table.router.gate.to_cut(slow) in greedy


def test_a_client_without_excess_is_not_cut_because_its_user_has_most_of_it() -> None:
    table = Table(largest_window=64 * KIB, client_budget=128 * KIB)
    slow, greedy = table.connect(1), [table.connect(1) for _ in range(8)]
    id_ = table.open(slow, wire.TcpConnect("h", 1))
    window = slow.sessions[id_].streams[wire.TcpData].window.size
    table.agent_says(wire.TcpData(bytes(window)), id_)
    while table.router.books.relay.excess <= BOUND:
        for client in greedy:
            table.agent_says(ANSWER, client.ids[0])
    assert slow.account.kept > max(client.account.kept for client in greedy)
    assert table.router.gate.to_cut(greedy[0]) in greedy


def test_of_what_is_kept_for_a_client_with_windows_only_the_rest_is_excess() -> None:
    table = Table(largest_window=48 * KIB)
    client = table.connect()
    table.open(client, wire.TcpConnect("h", 1))
    assert client.account.reserved > 0
    pile_up(table, client, KIB)
    assert client.account.excess == client.account.kept - client.account.reserved - SPARED


def test_answers_that_windows_have_covered_are_excess_when_the_windows_are_free() -> None:
    table = Table(largest_window=48 * KIB)
    client = table.connect()
    id_ = table.open(client, wire.TcpConnect("h", 1))
    reserved = client.account.reserved
    while client.account.kept <= reserved:
        table.agent_says(ANSWER, client.ids[0])
    assert client.account.excess == 0
    table.client_says(client, wire.TcpClose(), id_)
    table.to_agent(client)
    assert client.account.reserved == 0
    assert client.account.excess == client.account.kept - SPARED > 0


def test_a_frame_that_is_on_its_way_into_the_socket_counts_until_the_socket_has_taken_it() -> None:
    table = Table()
    client = table.connect()
    pile_up(table, client, 50 * KIB)
    excess = client.account.excess
    batch = client.take(1 << 40)
    assert client.account.excess == excess
    table.router.sent_to_client(client, batch)
    assert client.account.kept == client.account.excess == 0


def test_without_credit_the_policy_bounds_what_is_queued_and_this_the_cost_of_the_frames() -> None:
    table = Table(window=None)
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x"))
    frames = 0
    while client.account.excess == 0:
        table.agent_says(wire.ExecStdout(b"x"), id_)
        frames += 1
    assert frames == SPARED // FRAME_COST + 1
    for size in (1000, 64 * KIB):
        table.agent_says(wire.ExecStdout(bytes(size)), id_)
        table.router.books.check()
    assert client.account.queued > 64 * KIB
    assert client.account.excess == 0  # the policy has to decide about all of it
    assert table.router.gate.to_cut(client) is None
    while client.account.queued > 64 * KIB:
        table.router.sent_to_client(client, client.take(1))
        table.router.books.check()
