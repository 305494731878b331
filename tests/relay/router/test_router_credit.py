"""Credit in the relay: what the agent may send, what the relay holds, and what the relay grants."""

from __future__ import annotations

import pytest

from tests.relay.router._frames import KIB, Table
from tests.tools.peer import parse, said
from trio_console import _wire as wire
from trio_console._relay.router.states import SessionState

EXEC = wire.ExecRequest(cmd="true")
READ = wire.FsRequest(wire.OpRead(handle=1, offset=0))
WRITE = wire.FsRequest(wire.OpWrite(handle=1, offset=0))
CONNECT = wire.TcpConnect(host="h", port=1)


def asked(table: Table, orders: object) -> int:
    """The window in the request that the agent gets."""
    [(_, request)] = said(orders.to_agent)  # type: ignore[attr-defined]
    window = request.window  # type: ignore[union-attr]
    assert isinstance(window, int)
    return window


# Windows


@pytest.mark.parametrize("request_", [EXEC, READ, CONNECT], ids=lambda r: type(r).__name__)
def test_a_request_without_a_window_gets_one(request_: wire.Message) -> None:
    table = Table()
    client = table.connect()
    assert asked(table, table.client_says(client, request_, 1)) == 16 * KIB


def test_a_clients_smaller_window_is_kept() -> None:
    table = Table()
    assert asked(table, table.client_says(table.connect(), wire.ExecRequest(cmd="x", window=100), 1)) == 100


def test_a_clients_larger_window_is_cut_to_the_relays() -> None:
    table = Table()
    request = wire.ExecRequest(cmd="x", window=1 << 30)
    assert asked(table, table.client_says(table.connect(), request, 1)) == 16 * KIB


def test_a_window_of_nothing_still_lets_the_agent_begin() -> None:
    table = Table()
    assert asked(table, table.client_says(table.connect(), wire.ExecRequest(cmd="x", window=0), 1)) == 1


def test_the_rest_of_a_request_and_its_version_are_kept() -> None:
    table = Table()
    request = wire.ExecRequest(cmd="x", args=["a", "é"], env=["K=v"], tty=True, rows=1, cols=2, cwd="/", user="u")
    raw = wire.encode(request, 1, version=10)
    [got] = parse(table.router.from_client(table.connect(), parse(raw)[0]).to_agent)
    message = wire.decode(got)
    assert isinstance(message, wire.ExecRequest)
    assert message.window == 16 * KIB
    assert message == wire.ExecRequest(
        cmd="x", args=["a", "é"], env=["K=v"], tty=True, rows=1, cols=2, cwd="/", user="u", window=16 * KIB
    )
    assert wire.decode_envelope(got.body).version == 10


def test_windows_of_one_client_stay_within_its_budget_until_the_least() -> None:
    table = Table()
    client = table.connect()
    windows = [asked(table, table.client_says(client, READ, id_)) for id_ in range(1, 7)]
    assert windows == [16 * KIB] * 4 + [1 * KIB] * 2


def test_a_request_for_the_contents_of_a_file_is_passed_on_with_the_window_of_the_relay() -> None:
    table = Table()
    client = table.connect()
    request = wire.FsRequest(wire.OpRealPath("/"), window=64 * KIB, contents=True)
    ((id_, got),) = table.to_agent(client, table.client_says(client, request, client.ids[0]))
    assert (id_, got) == (client.ids[0], wire.FsRequest(wire.OpRealPath("/"), window=16 * KIB, contents=True))
    table.agent_says(wire.FsData(bytes(16 * KIB)), id_)
    table.agent_says(wire.FsResponse(ok=True), id_)
    assert table.to_client(client) == [(id_, wire.FsData(bytes(16 * KIB))), (id_, wire.FsResponse(ok=True))]


def test_a_command_takes_two_windows() -> None:
    table = Table()
    client = table.connect()
    windows = [asked(table, table.client_says(client, EXEC, id_)) for id_ in range(1, 5)]
    assert windows == [16 * KIB, 16 * KIB, 1 * KIB, 1 * KIB]


def test_a_session_that_is_opened_later_gets_its_share_of_what_is_left() -> None:
    table = Table(rest_divisor=4)
    client = table.connect()
    windows = [asked(table, table.client_says(client, READ, id_)) for id_ in range(1, 5)]
    assert windows == [16 * KIB, 12 * KIB, 9 * KIB, 27 * KIB // 4]


def test_windows_of_all_clients_stay_within_the_total() -> None:
    table = Table()
    windows = []
    for _ in range(3):
        client = table.connect()
        windows += [asked(table, table.client_says(client, READ, client.ids[n])) for n in range(4)]
    assert windows == [16 * KIB] * 8 + [1 * KIB] * 4


def test_a_window_is_free_again_once_the_client_has_the_last_frame() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.agent_says(wire.ExecExited(0), id_)
    assert table.router.books.relay.reserved == 32 * KIB
    table.client_reads(client)
    assert table.router.books.relay.reserved == 0


# Output


def test_the_agent_is_granted_what_the_socket_took_half_a_window_at_a_time() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.agent_says(wire.ExecStdout(bytes(8 * KIB - 1)), id_)
    assert table.client_reads(client)[1] == []
    table.agent_says(wire.ExecStdout(b"x"), id_)
    assert table.client_reads(client)[1] == [(id_, wire.Credit("stdout", 8 * KIB))]


def test_stdout_and_stderr_have_accounts_of_their_own() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.agent_says(wire.ExecStdout(bytes(7 * KIB)), id_)
    table.agent_says(wire.ExecStderr(bytes(8 * KIB)), id_)
    assert table.client_reads(client)[1] == [(id_, wire.Credit("stderr", 8 * KIB))]


def test_nothing_is_granted_while_the_client_does_not_read() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    orders = table.agent_says(wire.ExecStdout(bytes(16 * KIB)), id_)
    assert orders.to_agent == []
    assert orders.busy is client


def test_a_session_that_took_over_an_id_is_granted_nothing_for_the_old_one() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, CONNECT)
    table.agent_says(wire.TcpData(bytes(16 * KIB)), id_)
    table.client_says(client, wire.TcpClose(), id_)
    table.to_agent(client)
    table.open(client, CONNECT)
    assert table.client_reads(client)[1] == []


def test_nothing_is_granted_for_a_session_that_the_guest_has_ended() -> None:
    # The next session under this id would have the credit.
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.agent_says(wire.ExecStdout(bytes(16 * KIB)), id_)
    table.agent_says(wire.ExecExited(0), id_)
    assert table.client_reads(client)[1] == []


def test_output_beyond_a_clients_credit_is_held() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=100))
    table.agent_says(wire.ExecStdout(b"a" * 100), id_)
    table.agent_says(wire.ExecStdout(b"b" * 50), id_)
    assert table.client_reads(client)[0] == [(id_, wire.ExecStdout(b"a" * 100))]
    table.client_says(client, wire.Credit("stdout", 50), id_)
    assert table.client_reads(client)[0] == [(id_, wire.ExecStdout(b"b" * 50))]


def test_held_output_does_not_hold_the_other_stream() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=100))
    table.agent_says(wire.ExecStdout(b"a" * 100), id_)
    table.agent_says(wire.ExecStdout(b"b"), id_)
    table.agent_says(wire.ExecStderr(b"e"), id_)
    assert (id_, wire.ExecStderr(b"e")) in table.client_reads(client)[0]


def test_a_clients_credit_goes_no_further() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=100))
    assert table.client_says(client, wire.Credit("stdout", 50), id_).to_agent == []


def test_the_last_frame_stays_behind_held_output() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=10))
    table.agent_says(wire.ExecStdout(b"a" * 10), id_)
    table.agent_says(wire.ExecStdout(b"b" * 10), id_)
    table.agent_says(wire.ExecExited(0), id_)
    assert wire.ExecExited(0) not in [m for _, m in table.client_reads(client)[0]]
    table.client_says(client, wire.Credit("stdout", 10), id_)
    assert table.client_reads(client)[0] == [(id_, wire.ExecStdout(b"b" * 10)), (id_, wire.ExecExited(0))]


def test_end_of_file_stays_behind_held_data() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.TcpConnect("h", 1, window=10))
    for message in (wire.TcpData(b"a" * 10), wire.TcpData(b"b" * 10), wire.TcpEof()):
        table.agent_says(message, id_)
    assert table.client_reads(client)[0] == [(id_, wire.TcpData(b"a" * 10))]
    table.client_says(client, wire.Credit("data", 1), id_)
    assert table.client_reads(client)[0] == [(id_, wire.TcpData(b"b" * 10)), (id_, wire.TcpEof())]


def test_a_second_last_frame_is_dropped_while_the_first_is_held() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=1))
    for message in (wire.ExecStdout(b"a"), wire.ExecStdout(b"b"), wire.ExecExited(1), wire.ExecExited(2)):
        table.agent_says(message, id_)
    table.client_says(client, wire.Credit("stdout", 100), id_)
    assert [m for _, m in table.client_reads(client)[0]][-1] == wire.ExecExited(1)
    assert table.router.books.relay.reserved == 0


def test_data_behind_the_last_frame_is_dropped_and_counted() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=1))
    for message in (wire.ExecStdout(b"a"), wire.ExecStdout(b"b"), wire.ExecExited(1), wire.ExecStdout(b"late")):
        table.agent_says(message, id_)
    table.client_says(client, wire.Credit("stdout", 100), id_)
    assert [m for _, m in table.client_reads(client)[0]][1:] == [wire.ExecStdout(b"b"), wire.ExecExited(1)]
    assert table.router.books.dropped_bytes == len(b"late")


def test_an_agent_that_sends_far_beyond_its_window_loses_the_session() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=10))
    last: list[tuple[int, wire.Message]] = []
    for _ in range(200):
        last += said(table.agent_says(wire.ExecStdout(bytes(KIB)), id_).to_agent)
    assert last == [(id_, wire.ExecSignal(9))]
    assert isinstance(table.to_client(client)[0][1], wire.Error)
    assert client.account.held == 0


def test_what_such_an_agent_sent_is_dropped_and_counted() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=10))
    sent = 0
    while id_ in client.sessions and client.sessions[id_].state is not SessionState.ABANDONED:
        table.agent_says(wire.ExecStdout(bytes(KIB)), id_)
        sent += KIB
    got = sum(len(m.data) for _, m in table.to_client(client) if isinstance(m, wire.ExecStdout))
    assert sent - got == table.router.books.dropped_bytes


def test_single_bytes_that_wait_are_joined() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    other = table.open(client, wire.ExecRequest(cmd="x", window=1), 1)
    for _ in range(20 * KIB):
        table.agent_says(wire.ExecStdout(b"x"), id_)
        table.agent_says(wire.ExecStdout(b"y"), other)
    assert client.account.queued < 200 * KIB
    assert sum(len(stream.held) for stream in client.sessions[other].streams.values()) < 10
    got, _credit = table.client_reads(client)
    assert b"".join(m.data for n, m in got if n == id_ and isinstance(m, wire.ExecStdout)) == b"x" * 20 * KIB
    assert client.account.queued == 0


def test_frames_pass_unjoined_while_the_client_keeps_up() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    for data in (b"a", b"b"):
        table.agent_says(wire.ExecStdout(data), id_)
    assert table.client_reads(client)[0] == [(id_, wire.ExecStdout(b"a")), (id_, wire.ExecStdout(b"b"))]


# Input


def test_stdin_is_sent_in_slices() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    data = bytes(range(256)) * 40
    table.client_says(client, wire.ExecStdin(data), id_)
    got = [message for _, message in table.to_agent(client)]
    assert [len(m.data) for m in got if isinstance(m, wire.ExecStdin)] == [4096, 4096, 2048]
    assert b"".join(m.data for m in got if isinstance(m, wire.ExecStdin)) == data


@pytest.mark.parametrize("window", [wire.UNSET, 100])
def test_stdin_beyond_the_agents_window_waits_for_its_credit(window: int) -> None:
    table = Table(window=100)
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=window))
    table.client_says(client, wire.ExecStdin(b"a" * 150), id_)
    assert table.to_agent(client) == [(id_, wire.ExecStdin(b"a" * 100))]
    table.agent_says(wire.Credit("stdin", 30), id_)
    assert table.to_agent(client) == [(id_, wire.ExecStdin(b"a" * 30))]


def test_the_agents_credit_is_not_shown_to_a_client_that_does_not_count() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.agent_says(wire.Credit("stdin", 30), id_)
    assert table.to_client(client) == []


def test_the_agents_credit_is_passed_on_to_a_client_that_counts() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=100))
    table.agent_says(wire.Credit("stdin", 30), id_)
    assert table.to_client(client) == [(id_, wire.Credit("stdin", 30))]


def test_end_of_input_needs_no_credit_and_stays_behind_the_data() -> None:
    table = Table(window=10)
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(b"a" * 11), id_)
    table.client_says(client, wire.ExecStdin(b""), id_)
    assert table.to_agent(client) == [(id_, wire.ExecStdin(b"a" * 10))]
    table.agent_says(wire.Credit("stdin", 1), id_)
    assert table.to_agent(client) == [(id_, wire.ExecStdin(b"a")), (id_, wire.ExecStdin(b""))]


def test_tcp_eof_and_close_stay_behind_the_data() -> None:
    table = Table(window=10)
    client = table.connect()
    id_ = table.open(client, CONNECT)
    for message in (wire.TcpData(b"a" * 11), wire.TcpEof(), wire.TcpClose()):
        table.client_says(client, message, id_)
    assert table.to_agent(client) == [(id_, wire.TcpData(b"a" * 10))]
    table.agent_says(wire.Credit("data", 5), id_)
    assert table.to_agent(client) == [(id_, wire.TcpData(b"a")), (id_, wire.TcpEof()), (id_, wire.TcpClose())]


def test_tcp_close_frees_the_id_once_the_agent_has_it() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, CONNECT)
    table.client_says(client, wire.TcpClose(), id_)
    assert id_ in client.sessions
    table.to_agent(client)
    assert id_ not in client.sessions
    assert table.router.books.relay.reserved == 0


@pytest.mark.parametrize("behind", [wire.TcpEof(), wire.TcpData(b"x")])
def test_what_comes_behind_a_close_does_not_undo_it(behind: wire.Message) -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, CONNECT)
    table.client_says(client, wire.TcpClose(), id_)
    table.client_says(client, behind, id_)
    table.to_agent(client)
    assert not client.sessions


def test_closing_from_both_sides_gives_the_window_back_once() -> None:
    table = Table()
    client = table.connect()
    other = table.open(client, EXEC, 1)
    id_ = table.open(client, CONNECT)
    table.client_says(client, wire.TcpClose(), id_)
    table.agent_says(wire.TcpClosed(), id_)
    table.to_agent(client)
    table.client_reads(client)
    assert table.router.books.relay.reserved == client.account.reserved == 32 * KIB
    table.agent_says(wire.ExecExited(0), other)
    table.client_reads(client)
    assert table.router.books.relay.reserved == client.account.reserved == 0


def test_input_of_a_session_that_has_ended_is_dropped() -> None:
    table = Table(window=10)
    client = table.connect()
    id_ = table.open(client, EXEC)
    table.client_says(client, wire.ExecStdin(b"a" * 50), id_)
    table.agent_says(wire.ExecExited(0), id_)
    assert table.to_agent(client) == []
    assert client.account.pending == 0
    assert table.router.books.dropped_bytes == 50


def test_a_cancel_drops_what_waits_in_front_of_it() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, WRITE)
    table.client_says(client, wire.FsData(b"x" * 100), id_)
    orders = table.client_says(client, wire.Cancel(), id_)
    assert table.to_agent(client, orders) == [(id_, wire.Cancel())]


def test_sessions_take_turns() -> None:
    table = Table()
    client = table.connect()
    ids = [table.open(client, EXEC, offset) for offset in range(3)]
    for id_ in ids:
        table.client_says(client, wire.ExecStdin(bytes(8 * KIB)), id_)
    assert [id_ for id_, _ in table.to_agent(client)] == ids * 2


def test_a_session_without_credit_does_not_hold_the_others() -> None:
    table = Table(window=10)
    client = table.connect()
    stuck, free = (table.open(client, EXEC, offset) for offset in range(2))
    table.client_says(client, wire.ExecStdin(bytes(100)), stuck)
    table.to_agent(client)
    table.client_says(client, wire.ExecStdin(b"go"), free)
    assert table.to_agent(client) == [(free, wire.ExecStdin(b"go"))]


@pytest.mark.parametrize(
    ("request_", "data"), [(EXEC, wire.ExecStdin(b"i" * 9)), (CONNECT, wire.TcpData(b"i" * 9))]
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_the_agents_credit_for_another_stream_lets_no_input_pass(
    request_: wire.Message, data: wire.Message, name: wire.StreamName
) -> None:
    table = Table(window=5)
    client = table.connect()
    id_ = table.open(client, request_)
    table.client_says(client, data, id_)
    assert len(table.to_agent(client)) == 1
    table.agent_says(wire.Credit(name, 100), id_)
    assert table.to_agent(client) == []
    assert table.client_reads(client)[0] == []  # it is for the relay, because the client counts no credit
    table.agent_says(wire.Credit("stdin" if request_ is EXEC else "data", 100), id_)
    assert len(table.to_agent(client)) == 1


# The end of a stream

BOTH = wire.ExecRequest(cmd="x", window=100, ends=wire.ExecEnds())
OUT, ERR = wire.ExecStdout(b"o" * 100), wire.ExecStderr(b"e" * 100)


def test_the_end_of_a_stream_does_not_overtake_what_is_held_of_it() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, BOTH)
    for message in (OUT, ERR, OUT, ERR, wire.ExecStreamEnded("stderr")):  # the second ones are held
        table.agent_says(message, id_)
    assert table.to_client(client) == [(id_, OUT), (id_, ERR)]
    table.client_says(client, wire.Credit("stdout", 100), id_)
    assert table.to_client(client) == [(id_, OUT)]
    table.client_says(client, wire.Credit("stderr", 100), id_)
    assert table.to_client(client) == [(id_, ERR), (id_, wire.ExecStreamEnded("stderr"))]


@pytest.mark.parametrize("held", [OUT, ERR], ids=["stdout", "stderr"])
def test_the_end_of_a_stream_does_not_wait_for_what_is_held_of_another(held: wire.DataMessage) -> None:
    other: wire.StreamName = "stderr" if held is OUT else "stdout"
    table = Table()
    client = table.connect()
    id_ = table.open(client, BOTH)
    for _ in range(2):
        table.agent_says(held, id_)
    table.agent_says(wire.ExecStreamEnded(other), id_)
    assert table.to_client(client) == [(id_, held), (id_, wire.ExecStreamEnded(other))]


def test_that_a_command_has_left_overtakes_what_is_held() -> None:
    table = Table()
    client = table.connect()
    id_ = table.open(client, BOTH)
    for message in (OUT, OUT, wire.ExecLeft(0)):
        table.agent_says(message, id_)
    assert table.to_client(client) == [(id_, wire.ExecLeft(0)), (id_, OUT)]


# Agents that count no credit


@pytest.mark.parametrize("window", [wire.UNSET, 100])
def test_nothing_is_rewritten_for_an_agent_without_credit(window: int) -> None:
    table = Table(window=None)
    raw = wire.encode(wire.ExecRequest(cmd="x", window=window), 1, version=10)
    assert table.router.from_client(table.connect(), parse(raw)[0]).to_agent == [raw]
    assert table.router.books.relay.reserved == 0


def test_no_credit_is_given_to_an_agent_without_credit() -> None:
    table = Table(window=None)
    client = table.connect()
    id_ = table.open(client, wire.ExecRequest(cmd="x", window=100))
    table.agent_says(wire.ExecStdout(bytes(64 * KIB)), id_)
    assert table.client_reads(client)[1] == []


@pytest.mark.parametrize("request_", [EXEC, READ, CONNECT], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("message", [wire.Credit("data", 5), wire.Cancel()], ids=["credit", "cancel"])
def test_credit_and_cancel_never_reach_an_agent_without_credit(
    request_: wire.Message, message: wire.Message
) -> None:
    table = Table(window=None)
    client = table.connect()
    id_ = table.open(client, request_)
    orders = table.client_says(client, message, id_)
    assert not {wire.Credit, wire.Cancel} & {type(m) for _, m in table.to_agent(client, orders)}
    orders = table.client_says(client, message, client.ids[9])
    assert table.to_agent(client, orders) == []


def test_a_refused_file_session_sends_no_cancel_to_an_agent_without_credit() -> None:
    table = Table(window=None)
    client = table.connect()
    id_ = table.open(client, READ)
    assert table.client_says(client, wire.Pong(), id_).to_agent == []


DROPPING = wire.ExecRequest(cmd="yes", drops=True)


def test_dropping_spares_everything_that_is_no_data_and_is_told_once() -> None:
    table = Table(window=None)
    client = table.connect()
    id_ = table.open(client, DROPPING)
    for message in (
        wire.ExecStarted(1),
        wire.ExecStdout(bytes(100)),
        wire.ExecStdout(bytes(200)),
        wire.ExecStdinError(message="m"),
        wire.ExecExited(0),
    ):
        table.agent_says(message, id_)
    orders = table.router.drop_data(client)
    assert orders is not None
    assert table.to_agent(client, orders) == []
    assert [m for _, m in table.client_reads(client)[0]] == [
        wire.ExecStarted(1),
        wire.ExecStdinError(message="m"),
        wire.ExecDropped("stdout"),
        wire.ExecExited(0),
    ]
    assert table.router.books.dropped_bytes > 300
    assert client.account.queued == 0


def test_no_more_of_a_stream_is_passed_on_behind_what_was_dropped_of_it() -> None:
    table = Table(window=None)
    client = table.connect()
    id_ = table.open(client, DROPPING)
    table.agent_says(wire.ExecStdout(b"lost"), id_)
    table.router.drop_data(client)
    table.agent_says(wire.ExecStdout(b"late"), id_)
    table.agent_says(wire.ExecStderr(b"whole"), id_)
    assert [m for _, m in table.client_reads(client)[0]] == [
        wire.ExecDropped("stdout"),
        wire.ExecStderr(b"whole"),
    ]


def test_a_client_that_would_not_be_told_loses_nothing_and_is_to_be_cut() -> None:
    table = Table(window=None)
    client = table.connect()
    told, untold = table.open(client, DROPPING), table.open(client, EXEC, 1)
    for id_ in (told, untold):
        table.agent_says(wire.ExecStdout(b"data"), id_)
    assert table.router.drop_data(client) is None
    assert table.router.books.dropped_bytes == 0
    assert [m for _, m in table.client_reads(client)[0]] == [wire.ExecStdout(b"data")] * 2


def test_files_and_connections_are_spared_if_it_is_enough_to_drop_output() -> None:
    table = Table(window=None)
    client = table.connect()
    command, file = table.open(client, DROPPING), table.open(client, READ, 1)
    table.agent_says(wire.FsData(b"contents"), file)
    for _ in range(17):
        table.agent_says(wire.ExecStdout(bytes(4 * KIB)), command)
    table.router.drop_data(client)
    table.agent_says(wire.FsResponse(ok=True), file)
    assert [m for _, m in table.client_reads(client)[0]] == [
        wire.FsData(b"contents"),
        wire.ExecDropped("stdout"),
        wire.FsResponse(ok=True),
    ]


def fill(table: Table, id_: int, cls: type[wire.DataMessage]) -> None:
    """Queue more than a client's budget."""
    for _ in range(17):
        table.agent_says(cls(bytes(4 * KIB)), id_)


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_file_of_which_bytes_are_dropped_ends_with_an_error(has_ended: bool) -> None:
    table = Table(window=None)
    client = table.connect()
    id_ = table.open(client, READ)
    fill(table, id_, wire.FsData)
    if has_ended:
        table.agent_says(wire.FsResponse(ok=True), id_)
    orders = table.router.drop_data(client)
    assert table.to_agent(client, orders) == []
    [(told, message)] = table.client_reads(client)[0]
    assert told == id_
    assert isinstance(message, wire.FsResponse)
    assert not message.ok
    assert "bytes for it were dropped" in (message.error or "")
    if not has_ended:
        table.agent_says(wire.FsData(b"late"), id_)
        table.agent_says(wire.FsResponse(ok=True), id_)
        assert table.client_reads(client)[0] == []
    assert not client.sessions
    table.router.books.check()


def test_a_connection_of_which_bytes_are_dropped_fails_and_is_closed_in_the_guest() -> None:
    table = Table(window=None)
    client = table.connect()
    id_ = table.open(client, CONNECT)
    table.agent_says(wire.TcpConnected(), id_)
    fill(table, id_, wire.TcpData)
    table.agent_says(wire.TcpEof(), id_)
    orders = table.router.drop_data(client)
    assert table.to_agent(client, orders) == [(id_, wire.TcpClose())]
    connected, failed = [m for _, m in table.client_reads(client)[0]]
    assert connected == wire.TcpConnected()
    assert isinstance(failed, wire.TcpFailed)
    assert not client.sessions
