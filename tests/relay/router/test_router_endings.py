"""Clients that leave, and their slots after that."""

from __future__ import annotations

import pytest

from tests.relay.router._frames import KIB, Table
from tests.tools.peer import parse, said
from trio_console import _wire as wire
from trio_console._wire.ids import MAX_CLIENTS

EXEC = wire.ExecRequest(cmd="true")
READ = wire.FsRequest(wire.OpRead(handle=1, offset=0))
QUESTION = wire.FsData(b"")
DONE = wire.FsResponse(ok=True)


def test_a_disconnect_kills_each_command_then_tells_then_asks() -> None:
    table = Table()
    table.connect()
    client = table.connect()
    ids = [table.open(client, EXEC, offset) for offset in (0, 5, 2)]
    ended = table.open(client, EXEC, 7)
    table.agent_says(wire.ExecExited(0), ended)
    orders = table.router.disconnect(client, 0)
    assert said(orders.to_agent) == [
        *((id_, wire.ExecSignal(9)) for id_ in sorted(ids)),
        (0, wire.ClientDisconnected(client.ids.start, client.ids.stop)),
    ]
    assert said(orders.behind) == [(client.ids[-1], QUESTION)]


def test_an_agent_that_confirms_is_told_only_that_the_client_has_gone_and_asked_in_that_message() -> None:
    table = Table(features=(wire.FORGETS,))
    client = table.connect()
    id_ = table.open(client, EXEC)
    orders = table.router.disconnect(client, 0)
    gone = wire.ClientDisconnected(client.ids.start, client.ids.stop, client.ids[-1])
    assert said(orders.to_agent) == [(0, gone)]
    assert orders.behind == ()
    table.agent_says(wire.ExecExited(-1), id_)
    assert table.router.slots.quarantined == 1
    table.agent_says(wire.ClientForgotten(), client.ids[-1])
    assert table.router.slots.quarantined == 0
    assert table.connect().slot == 0


@pytest.mark.parametrize("features", [(), (wire.FORGETS,)])
def test_the_question_needs_no_disk_of_the_guest(features: tuple[str, ...]) -> None:
    table = Table(features=features)
    orders = table.router.disconnect(table.connect(), 0)
    asked = {type(message) for _, message in (*said(orders.to_agent), *said(orders.behind))}
    assert wire.FsRequest not in asked


def test_only_commands_are_killed_by_signal() -> None:
    table = Table()
    client = table.connect()
    table.open(client, READ)
    table.open(client, wire.TcpConnect("h", 1), 1)
    table.open(client, wire.Ping(), 2)
    orders = table.router.disconnect(client, 0)
    assert said(orders.to_agent) == [(0, wire.ClientDisconnected(client.ids.start, client.ids.stop))]


def test_the_question_at_the_end_has_an_id_that_is_free() -> None:
    table = Table()
    client = table.connect()
    table.open(client, EXEC, -1)
    orders = table.router.disconnect(client, 0)
    [(id_, _)] = said(orders.behind)
    assert id_ == client.ids[-2]


def test_the_question_waits_behind_data_that_may_still_be_on_its_way() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(b"x"), id_)
    orders = table.router.disconnect(client, 0)
    assert [message for _, message in said(orders.behind)] == [QUESTION]
    assert QUESTION not in [message for _, message in said(orders.to_agent)]


def quarantined() -> tuple[Table, int, int, int]:
    """A slot whose client has gone: the table, the ids of the two commands, and that of the last request."""
    table = Table()
    client = table.connect()
    first, second = (table.open(client, EXEC, offset) for offset in (0, 1))
    [(last_id, _)] = said(table.router.disconnect(client, 100).behind)
    return table, first, second, last_id


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_slot_is_free_once_every_command_and_the_question_are_answered(order: tuple[int, ...]) -> None:
    table, *ids = quarantined()
    for index in order:
        assert table.router.connect(0).slot != 0  # type: ignore[union-attr]
        table.agent_says(DONE if index == 2 else wire.ExecExited(-1), ids[index])
    assert table.connect().slot == 0
    assert table.router.dropped_frames == 0


def test_what_a_quarantined_slot_still_says_is_dropped_and_counted() -> None:
    table, first, *_ = quarantined()
    table.agent_says(wire.ExecStdout(b"late"), first)
    assert table.router.dropped_frames == 1
    assert table.router.slots.quarantined == 1


def test_an_answer_that_came_before_does_not_count_twice() -> None:
    table, first, second, last_id = quarantined()
    table.agent_says(wire.ExecExited(-1), first)
    table.agent_says(wire.ExecExited(-1), first)
    table.agent_says(DONE, last_id)
    assert table.router.slots.quarantined == 1
    table.agent_says(wire.ExecExited(-1), second)
    assert table.router.slots.quarantined == 0


def test_a_slot_is_retired_when_the_guest_does_not_finish_with_it() -> None:
    table, *_ = quarantined()
    assert table.router.tick(159.9) == []
    assert table.router.tick(160.0) == [0]
    assert table.router.slots.retired == 1
    assert table.connect().slot == 1


def test_a_retired_slot_is_free_when_the_last_words_come_after_all() -> None:
    table, first, second, last_id = quarantined()
    table.router.tick(1000)
    for id_, last in ((last_id, DONE), (first, wire.ExecExited(-1)), (second, wire.ExecExited(-1))):
        assert table.router.slots.retired == 1
        assert not table.agent_says(wire.ExecStdout(b"late"), second).slot_freed
        freed = table.agent_says(last, id_).slot_freed
    assert freed
    assert table.router.slots.retired == 0
    assert table.router.dropped_frames == 3
    assert table.connect().slot == 0


def test_a_retired_slot_is_not_retired_again() -> None:
    table, *_ = quarantined()
    assert table.router.tick(1000) == [0]
    assert table.router.tick(2000) == []


def test_a_command_that_has_ended_behind_held_output_is_not_waited_for() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=10))
    table.agent_says(wire.ExecStdout(b"x" * 10), id_)
    table.agent_says(wire.ExecStdout(b"y"), id_)
    table.agent_says(wire.ExecExited(0), id_)
    assert id_ in client.sessions
    orders = table.router.disconnect(client, 0)
    assert [type(message) for _, message in said(orders.to_agent)] == [wire.ClientDisconnected]
    table.agent_says(DONE, said(orders.behind)[0][0])
    assert table.router.slots.quarantined == 0


def test_all_slots_can_be_used_again_and_again() -> None:
    table = Table()
    for _ in range(3):
        clients = [table.connect() for _ in range(MAX_CLIENTS)]
        assert table.router.connect(0) is None
        for client in clients:
            orders = table.router.disconnect(client, 0)
            table.agent_says(DONE, said(orders.behind)[0][0])
    assert table.router.books.relay.reserved == 0


def test_whatever_was_kept_for_a_client_is_given_back_and_counted() -> None:
    table = Table()
    client = table.connect()
    held = table.open(client, wire.ExecRequest(cmd="x", window=100))
    queued = table.open(client, EXEC, 1)
    table.client_says(client, wire.ExecStdin(b"i" * 7), queued)
    table.agent_says(wire.ExecStdout(b"h" * 100), held)
    table.agent_says(wire.ExecStdout(b"h" * 11), held)
    table.agent_says(wire.ExecStdout(b"q" * 13), queued)
    in_queue = client.account.queued
    table.router.disconnect(client, 0)
    assert table.router.books.relay.reserved == 0
    assert table.router.books.dropped_bytes == in_queue + 11 + 7


def test_the_last_of_a_session_in_the_queue_does_not_keep_its_window_after_the_client() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.agent_says(wire.ExecExited(0), id_)
    assert table.router.books.relay.reserved > 0
    table.router.disconnect(client, 0)
    assert table.router.books.relay.reserved == 0


def test_when_the_guest_is_lost_held_output_goes_out_before_the_last_frame() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=1 * KIB))
    table.agent_says(wire.ExecStdout(b"x" * KIB), id_)
    table.agent_says(wire.ExecStdout(b"y"), id_)
    table.agent_says(wire.ExecExited(3), id_)
    table.router.lose_agent()
    assert [message for _, message in table.to_client(client)][-2:] == [wire.ExecStdout(b"y"), wire.ExecExited(3)]


def test_frames_of_a_client_never_reach_another() -> None:
    table = Table()
    one, other = table.connect(), table.connect()
    id_ = table.open(one, EXEC)
    table.agent_says(wire.ExecStdout(b"mine"), id_)
    assert table.to_client(other) == []
    assert parse(item.frame for item in one.take(1))


# An agent answers data for an id that it does not know any more with a terminal frame. One of those may be on its
# way when its id already means something else.


def test_an_answer_to_data_that_came_too_late_does_not_free_the_slot() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.FsRequest(wire.OpWrite(handle=1, offset=0)), -1)
    table.client_says(client, wire.FsData(b"x"), id_)
    assert table.to_agent(client) == [(id_, wire.FsData(b"x"))]
    table.agent_says(wire.FsResponse(ok=False, error="disk full"), id_)
    [(last_id, _)] = said(table.router.disconnect(client, 0).behind)
    table.agent_says(wire.FsResponse(ok=False, error=f"unknown write session: {id_}"), id_)
    assert table.router.slots.quarantined == 1
    table.agent_says(DONE, last_id)
    assert table.router.slots.quarantined == 0


def test_the_question_finds_an_id_even_if_all_that_are_remembered_were_used() -> None:
    table = Table(sessions=4)
    client = table.connect()
    for offset in range(-100, 0):
        id_ = table.open(client, wire.Ping(), offset)
        if offset != -50:
            table.agent_says(wire.Pong(), id_)
    [(last_id, _)] = said(table.router.disconnect(client, 0).behind)
    assert last_id in client.ids
    assert last_id != client.ids[-50]
    assert last_id not in client.ids[-4:], "of the newest ones there may be something on its way"


def test_an_id_that_was_used_again_is_one_of_the_newest() -> None:
    table = Table(sessions=4)
    client = table.connect()
    first = client.ids[-9]
    for offset in (*range(-9, 0), -9):
        id_ = table.open(client, wire.Ping(), offset)
        table.agent_says(wire.Pong(), id_)
    assert id_ == first
    [(last_id, _)] = said(table.router.disconnect(client, 0).behind)
    assert last_id == client.ids[-8]


STALE = [wire.TcpFailed("unknown TCP session: 1"), wire.FsResponse(ok=False), wire.TcpClosed(), wire.Pong()]


@pytest.mark.parametrize("last", STALE)
def test_the_last_word_of_an_ids_former_session_does_not_end_a_command(last: wire.Message) -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.agent_says(last, id_)
    assert id_ in client.sessions
    assert table.router.dropped_frames == 1
    assert (id_, wire.ExecSignal(9)) in said(table.router.disconnect(client, 0).to_agent)


@pytest.mark.parametrize("last", STALE)
def test_nor_does_it_end_the_wait_for_one_whose_client_has_gone(last: wire.Message) -> None:
    table, first, second, last_id = quarantined()
    table.agent_says(wire.ExecExited(-1), second)
    table.agent_says(DONE, last_id)
    table.agent_says(last, first)
    assert table.router.slots.quarantined == 1
    table.agent_says(wire.ExecFailed(kind="other", message="killed"), first)
    assert table.router.slots.quarantined == 0


def test_a_last_word_of_a_kind_that_nobody_knows_ends_a_session() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.router.from_agent(wire.Frame(id_, wire.FLAG_TERMINAL, b"\xa3"))
    assert id_ not in client.sessions
