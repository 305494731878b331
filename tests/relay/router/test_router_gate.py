"""The frames that a client may send, and the answers to all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cbor2
import pytest

from tests.relay.router._frames import Table
from tests.tools.peer import frame, parse
from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._wire.ids import MAX_CLIENTS, STEP, slot_ids

MALFORMED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "wire" / "data" / "malformed.json").read_text()
)
BAD_LENGTH = {"len_4", "len_over_4MiB"}
WELL_FORMED = {"stdin_unknown_session", "tcp_data_unknown_session", "tcp_eof_unknown_session"}
TOO_OLD = {"wrong_flags_v4"}
BAD = [m for m in MALFORMED if m["name"] not in BAD_LENGTH | WELL_FORMED | TOO_OLD | {"bootstrap_after_ready"}]

EXEC = wire.ExecRequest(cmd="true")
READ = wire.FsRequest(wire.OpRead(handle=1, offset=0))
CONNECT = wire.TcpConnect(host="h", port=1)


# Ids


@pytest.mark.parametrize("offset", [-1, STEP - 1, STEP])
def test_an_id_just_outside_a_clients_range_cuts_it(offset: int) -> None:
    table = Table()
    table.connect()
    client = table.connect()
    with pytest.raises(ProtocolError, match="not one of this client's"):
        table.client_says(client, wire.Ping(), client.ids.start + offset)


@pytest.mark.parametrize("index", [0, -1])
def test_the_first_and_the_last_id_of_a_range_are_forwarded(index: int) -> None:
    table = Table()
    client = table.connect()
    orders = table.client_says(client, wire.Ping(), client.ids[index])
    assert table.to_agent(client, orders) == [(client.ids[index], wire.Ping())]


@pytest.mark.parametrize("id_", [0, 0xFFFFFFFF])
def test_an_id_of_nobody_cuts_the_client(id_: int) -> None:
    table = Table()
    with pytest.raises(ProtocolError):
        table.client_says(table.connect(), wire.Ping(), id_)


def test_the_lowest_free_slot_is_given() -> None:
    table = Table()
    assert [table.connect().slot for _ in range(3)] == [0, 1, 2]


def test_the_129th_client_finds_no_slot() -> None:
    table = Table()
    for _ in range(MAX_CLIENTS):
        table.connect()
    assert table.router.connect(0) is None


# Shutdown


def test_shutdown_with_id_0_is_forwarded_and_noted() -> None:
    table = Table()
    client = table.connect()
    orders = table.client_says(client, wire.Shutdown(), 0)
    assert orders.shutdown
    assert table.to_agent(client, orders) == [(0, wire.Shutdown())]


def test_shutdown_with_an_id_of_the_client_is_forwarded_with_id_0() -> None:
    table = Table()
    client = table.connect()
    orders = table.client_says(client, wire.Shutdown(), client.ids[5])
    assert orders.shutdown
    assert table.to_agent(client, orders) == [(0, wire.Shutdown())]


def test_another_message_with_the_shutdown_flag_is_no_shutdown() -> None:
    table = Table()
    client = table.connect()
    ping = frame(wire.Ping(), 1)
    orders = table.router.from_client(client, wire.Frame(1, wire.FLAG_SHUTDOWN, ping.body))
    assert not orders.shutdown
    assert orders.to_agent == []


def test_what_pretends_to_be_a_shutdown_with_id_0_cuts_the_client_without_an_answer() -> None:
    table = Table()
    client = table.connect()
    with pytest.raises(ProtocolError):
        table.router.from_client(client, wire.Frame(0, wire.FLAG_SHUTDOWN, frame(wire.Ping(), 1).body))
    assert table.to_client(client) == []


# Bad bodies


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad["name"])
def test_a_bad_body_is_answered_here_and_never_forwarded(bad: dict[str, Any]) -> None:
    table = Table()
    client = table.connect()
    one = parse(bytes.fromhex(bad["frame_hex"]))[0]
    orders = table.router.from_client(client, one)
    assert orders.to_agent == []
    [(id_, error)] = table.to_client(client)
    assert id_ == one.id
    assert isinstance(error, wire.Error)
    for reply in bad["replies"]:
        assert error.kind == reply["kind"]
    assert orders.busy is client
    assert table.router.refused_frames == 1


def test_a_mistake_of_a_peer_that_does_not_know_errors_cuts_it() -> None:
    table = Table()
    [bad] = [m for m in MALFORMED if m["name"] in TOO_OLD]
    with pytest.raises(ProtocolError):
        table.router.from_client(table.connect(), parse(bytes.fromhex(bad["frame_hex"]))[0])


@pytest.mark.parametrize("version", [4, 5])
def test_a_message_that_is_not_allowed_is_answered_only_if_its_sender_knows_the_answer(version: int) -> None:
    table = Table()
    client = table.connect()
    bad = frame(wire.ExecStarted(1), client.ids[0], version=version)
    if version < 5:
        with pytest.raises(ProtocolError, match="may not be sent by a client"):
            table.router.from_client(client, bad)
    else:
        table.router.from_client(client, bad)
    assert len(table.to_client(client)) == (version >= 5)


def test_an_unknown_type_is_answered_and_not_forwarded() -> None:
    table = Table()
    client = table.connect()
    body = frame(wire.Ping(), 1).body.replace(b"core.ping", b"core.pang")
    assert table.router.from_client(client, wire.Frame(1, 0, body)).to_agent == []
    [(_, error)] = table.to_client(client)
    assert isinstance(error, wire.Error)
    assert error.kind == "unsupported_message_type"


@pytest.mark.parametrize(
    "message",
    [
        wire.Bootstrap(),
        wire.InitAck(),
        wire.ClientDisconnected(1, 100),
        wire.ClockSync(1),
        wire.Ready(boot_time_ns=1, init_time_ns=1, ready_time_ns=1),
        wire.ExecStarted(1),
        wire.ExecStdout(b"x"),
        wire.ExecExited(0),
        wire.Pong(),
        wire.FsResponse(ok=True),
        wire.TcpConnected(),
        wire.TcpClosed(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_not_a_clients_to_send_is_refused(message: wire.Message) -> None:
    table = Table()
    client = table.connect()
    assert table.client_says(client, message, 3).to_agent == []
    [(id_, error)] = table.to_client(client)
    assert id_ == 3
    assert isinstance(error, wire.Error)
    assert error.kind == "unsupported_message_type"


@pytest.mark.parametrize(
    "message", [wire.ExecRelease(), wire.ExecKill(0), wire.KillBackground(1, 0)], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "unknown"])
def test_what_an_agent_has_not_announced_never_reaches_it(message: wire.Message, is_open: bool) -> None:
    table = Table(features=("something_else",))
    client = table.connect()
    id_ = table.open(client, EXEC) if is_open else 3
    orders = table.client_says(client, message, id_)
    assert said_to_agent(table, orders) == ([(id_, wire.ExecSignal(9))] if is_open else [])
    [(_, error)] = table.to_client(client)
    assert isinstance(error, wire.Error)
    assert error.kind == "unsupported_message_type"


@pytest.mark.parametrize("message", [wire.ExecRelease(), wire.ExecKill(5, True)], ids=lambda m: type(m).__name__)
def test_what_an_agent_has_announced_goes_to_it_at_once(message: wire.Message) -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    assert table.client_says(client, message, client.ids[9]).to_agent == []  # of no session
    table.client_says(client, wire.ExecStdin(b"x"), id_)
    orders = table.client_says(client, message, id_)
    assert said_to_agent(table, orders)[0] == (id_, message)


@pytest.mark.parametrize(
    ("request_", "last"), [(EXEC, wire.ExecSignal(9)), (CONNECT, wire.TcpClose()), (READ, wire.Cancel())]
)
def test_an_error_ends_the_session_it_is_about(request_: wire.Message, last: wire.Message) -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, request_)
    orders = table.client_says(client, wire.Pong(), id_)
    assert said_to_agent(table, orders) == [(id_, last)]
    [(_, error)] = table.to_client(client)
    assert isinstance(error, wire.Error)


def test_nothing_more_of_a_session_that_was_refused_reaches_the_client() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.Pong(), id_)
    table.to_client(client)
    table.agent_says(wire.ExecStdout(b"late"), id_)
    table.agent_says(wire.ExecExited(-1), id_)
    assert table.to_client(client) == []
    assert not client.sessions


def test_nothing_more_of_a_session_that_was_refused_reaches_the_agent() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(b"queued"), id_)
    table.client_says(client, wire.Pong(), id_)
    table.client_says(client, wire.ExecStdin(b"late"), id_)
    assert table.to_agent(client) == []


def said_to_agent(table: Table, orders: Any) -> list[tuple[int, wire.Message]]:
    return [(one.id, wire.decode(one)) for one in parse(orders.to_agent)]


# Sessions


@pytest.mark.parametrize(
    "message",
    [EXEC, READ, CONNECT, wire.Ping(), wire.Touch(), wire.KillBackground(1, 0)],
    ids=lambda m: type(m).__name__,
)
def test_an_id_in_use_is_not_given_a_second_session(message: wire.Message) -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    orders = table.client_says(client, message, id_)
    # The client forgets the id at an error, so the command under it ends.
    assert said_to_agent(table, orders) == [(id_, wire.ExecSignal(9))]
    [(_, error)] = table.to_client(client)
    assert isinstance(error, wire.Error)
    assert error.kind == "invalid_session"
    assert "in use" in error.message


def test_an_id_is_free_after_its_terminal_frame() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.agent_says(wire.ExecExited(0), id_)
    orders = table.client_says(client, wire.Ping(), id_)
    assert table.to_agent(client, orders) == [(id_, wire.Ping())]


def test_one_session_more_than_the_limit_is_refused() -> None:
    table = Table(sessions=3)
    client = table.connect()
    for offset in range(3):
        assert table.client_says(client, wire.Ping(), client.ids[offset]).to_agent
    assert table.client_says(client, wire.Ping(), client.ids[3]).to_agent == []
    [(_, error)] = table.to_client(client)
    assert isinstance(error, wire.Error)
    assert error.kind == "invalid_session"


def test_a_session_that_ends_makes_room_for_another() -> None:
    table = Table(sessions=1)
    client = table.connect()
    table.open(client, wire.Ping())
    table.agent_says(wire.Pong(), client.ids[0])
    assert table.client_says(client, wire.Ping(), client.ids[1]).to_agent


@pytest.mark.parametrize(
    "message", [wire.TcpClose(), wire.TcpEof(), wire.TcpData(b"x"), wire.FsData(b"x")], ids=str
)
def test_a_message_for_another_kind_of_session_does_not_make_the_relay_forget_a_command(
    message: wire.Message,
) -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    orders = table.client_says(client, message, id_)
    assert table.to_agent(client, orders) == [(id_, wire.ExecSignal(9))]
    orders = table.router.disconnect(client, 0)
    assert (id_, wire.ExecSignal(9)) in said_to_agent(table, orders)
    assert table.router.slots.quarantined == 1
    # The slot stays taken until the command has ended in the guest.
    [(last_id, _)] = [(one.id, one) for one in parse(orders.behind)]
    table.agent_says(wire.FsResponse(ok=True), last_id)
    assert table.router.slots.quarantined == 1
    table.agent_says(wire.ExecExited(-1), id_)
    assert table.router.slots.quarantined == 0


@pytest.mark.parametrize(
    "message", [wire.ExecSignal(9), wire.ExecResize(1, 1), wire.ExecStdin(b"x"), wire.TcpEof()]
)
def test_what_comes_for_an_id_that_is_not_open_is_ignored(message: wire.Message) -> None:
    table = Table()
    client = table.connect()
    orders = table.client_says(client, message, client.ids[0])
    assert table.to_agent(client, orders) == []
    assert table.to_client(client) == []


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (wire.FsData(b"x"), wire.FsResponse(ok=False, error="unknown write session: 1")),
        (wire.TcpData(b"x"), wire.TcpFailed("unknown TCP session: 1")),
    ],
)
def test_data_for_an_id_that_is_not_open_is_answered_as_an_agent_would(
    message: wire.Message, answer: wire.Message
) -> None:
    table = Table()
    client = table.connect()
    orders = table.client_says(client, message, 1)
    assert table.to_agent(client, orders) == []
    assert table.to_client(client) == [(1, answer)]


def test_a_request_that_a_window_makes_too_long_is_refused_and_leaves_nothing() -> None:
    table = Table()
    client = table.connect()
    spare = wire.MAX_FRAME_LENGTH - len(wire.encode(wire.ExecRequest(cmd=""), 1)) + 4
    request = wire.ExecRequest(cmd="x" * (spare - 20))
    while len(wire.encode(request, 1)) < wire.MAX_FRAME_LENGTH + 4:
        request = wire.ExecRequest(cmd=request.cmd + "x")
    assert table.client_says(client, request, 1).to_agent == []
    [(_, error)] = table.to_client(client)
    assert isinstance(error, wire.Error)
    assert not client.sessions
    assert table.router.books.relay.reserved == 0


# From the agent


@pytest.mark.parametrize("id_", [0, STEP, 5 * STEP, MAX_CLIENTS * STEP, 0xFFFFFFFF])
def test_a_frame_for_nobodys_id_is_dropped_and_counted(id_: int) -> None:
    table = Table()
    client = table.connect()
    table.agent_says(wire.Pong(), id_)
    assert table.to_client(client) == []
    assert table.router.dropped_frames == 1


def test_a_frame_for_a_slot_without_a_client_is_dropped_and_counted() -> None:
    table = Table()
    table.connect()
    table.agent_says(wire.Pong(), slot_ids(1)[0])
    assert table.router.dropped_frames == 1


def test_frames_pass_as_they_came() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.Ping())
    body = bytes.fromhex("b90003617607617469636f72652e706f6e67617041a0")
    odd = wire.Frame(id_, 1, body)
    table.router.from_agent(odd)
    [item] = client.take(1)
    assert parse(item.frame) == [odd]


@pytest.mark.parametrize("flags", [0, 1, 2, 4, 0x80])
def test_nonsense_from_the_agent_is_passed_on_and_raises_nothing(flags: int) -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.router.from_agent(wire.Frame(id_, flags, b"\xff\xff"))
    [item] = client.take(1)
    assert parse(item.frame) == [wire.Frame(id_, flags, b"\xff\xff")]


def test_answers_to_calls_overtake_data() -> None:
    table = Table()
    client = table.connect()
    exec_id = table.open(client, EXEC)
    ping = table.open(client, wire.Ping(), 1)
    table.agent_says(wire.ExecStdout(b"x" * 10000), exec_id)
    table.agent_says(wire.Pong(), ping)
    assert [id_ for id_, _ in table.to_client(client)] == [ping, exec_id]


def test_what_the_agent_sends_ahead_of_data_overtakes_it_here_as_well() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.agent_says(wire.ExecStdout(b"a"), id_)
    table.agent_says(wire.ExecStdinError(message="m"), id_)
    assert [type(message) for _, message in table.to_client(client)] == [wire.ExecStdinError, wire.ExecStdout]


def test_the_exit_stays_behind_the_output() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    sent = [wire.ExecStarted(1), wire.ExecStdout(b"a"), wire.ExecStderr(b"b"), wire.ExecExited(0)]
    for message in sent:
        table.agent_says(message, id_)
    assert table.to_client(client) == [(id_, message) for message in sent]


def test_control_of_a_session_overtakes_its_stdin() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(b"x" * 100), id_)
    orders = table.client_says(client, wire.ExecSignal(2), id_)
    assert [type(message) for _, message in table.to_agent(client, orders)] == [wire.ExecSignal, wire.ExecStdin]


# What not every agent can decode


def with_more(message: wire.Message, frame_id: int, *, beside: bool, version: int = 7) -> wire.Frame:
    """A message with a simple value under a key that nobody knows, in its payload or beside it."""
    raw = wire.encode(message, frame_id, version=version)
    envelope = cbor2.loads(raw[9:])
    more = {"later": cbor2.CBORSimpleValue(255)}
    if beside:
        envelope |= more
    else:
        envelope["p"] = cbor2.dumps(cbor2.loads(envelope["p"]) | more)
    return wire.Frame(frame_id, raw[8], cbor2.dumps(envelope))


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("window", [None, 1000])
def test_what_not_every_agent_can_decode_is_answered_and_not_forwarded(beside: bool, window: int | None) -> None:
    table = Table(window=window)
    client = table.connect()
    orders = table.router.from_client(client, with_more(EXEC, client.ids[0], beside=beside))
    assert table.to_agent(client, orders) == []
    [(answered, error)] = table.to_client(client)
    assert answered == client.ids[0]
    assert isinstance(error, wire.Error)
    assert error.kind == "invalid_payload"
    assert "not every agent can decode" in error.message
    assert not client.sessions


def test_a_session_in_which_that_is_sent_ends_in_the_guest() -> None:
    table = Table()
    client = table.connect()
    table.client_says(client, EXEC, client.ids[0])
    orders = table.router.from_client(client, with_more(wire.ExecSignal(1), client.ids[0], beside=False))
    assert table.to_agent(client, orders) == [(client.ids[0], wire.ExecSignal(9))]


def test_a_client_that_knows_no_errors_is_cut_for_it() -> None:
    table = Table()
    client = table.connect()
    with pytest.raises(ProtocolError, match="not every agent can decode"):
        table.router.from_client(client, with_more(EXEC, client.ids[0], beside=False, version=4))
