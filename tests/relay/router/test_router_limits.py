"""Limits: each bound one below, at and one above it, for a client and a user, among clients of several users."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from tests.relay.router._frames import KIB, Table
from tests.relay.router.test_router_rights import options
from trio_console import _wire as wire
from trio_console._relay.router.limits import NO_BOUND, Numbers

if TYPE_CHECKING:
    from trio_console._relay.router import Client, Orders

EXEC = wire.ExecRequest(cmd="true")
CONNECT = wire.TcpConnect(host="h", port=1)
STAT = wire.FsRequest(wire.OpStat("/", True))
READ = wire.FsRequest(wire.OpRead(1, 0))
OPEN = wire.FsRequest(wire.OpOpenFile("/a", options(read=True)))
OPEN_DIR = wire.FsRequest(wire.OpOpenDir("/a"))

BOUND = 5
ONE, OTHER = 1000, 2000  # users


def bounds(**numbers: int) -> Numbers:
    return Numbers(*(numbers.get(name, NO_BOUND) for name in Numbers._fields))


def asks(table: Table, client: Client, request: wire.Message, offset: int) -> wire.Message | None:
    """The answer of the relay to a request; `None` if it was forwarded."""
    id_ = client.ids[offset]
    orders = table.client_says(client, request, id_)
    got = [message for there, message in table.to_client(client) if there == id_]
    assert bool(got) != bool(orders.to_agent)
    table.router.books.check()
    return got[0] if got else None


def number_of(answer: wire.Message | None) -> int | None:
    """The errno of a refusal."""
    match answer:
        case wire.ExecFailed():
            return answer.errno
        case wire.FsResponse(error=str(text)) | wire.TcpFailed(text):
            return next(number for number in errno.errorcode if f"(os error {number})" in text)
    assert answer is None
    return None


#: For each bound: the requests that count, and the errno of one too many.
COUNTED: dict[str, tuple[list[wire.Message], int]] = {
    "sessions": ([EXEC, CONNECT, STAT, READ, OPEN], errno.EAGAIN),
    "processes": ([EXEC], errno.EAGAIN),
    "handles": ([OPEN, OPEN_DIR], errno.EMFILE),
}


class Population:
    """Two clients of one user, one of another, and this program's own, each with some sessions of all kinds."""

    def __init__(self, **limits: Any) -> None:
        self.table = Table(**limits)
        self.first, self.second = self.table.connect(ONE), self.table.connect(ONE)
        self.other, self.own = self.table.connect(OTHER), self.table.connect(None)
        self._offsets: dict[Client, int] = {}

    def asks(self, client: Client, request: wire.Message) -> int | None:
        offset = self._offsets[client] = self._offsets.get(client, -1) + 1
        return number_of(asks(self.table, client, request, offset))

    def last_id(self, client: Client) -> int:
        return client.ids[self._offsets[client]]


@pytest.mark.parametrize("name", COUNTED)
def test_a_client_may_have_as_many_as_its_bound_and_no_more(name: str) -> None:
    requests, number = COUNTED[name]
    here = Population(client=bounds(**{name: BOUND}))
    for client in (here.first, here.second, here.other):  # each has the whole bound for itself
        got = [here.asks(client, requests[count % len(requests)]) for count in range(BOUND + 1)]
        assert got == [*[None] * BOUND, number]
    for _ in range(BOUND + 1):
        assert here.asks(here.own, requests[0]) is None


@pytest.mark.parametrize("name", COUNTED)
def test_the_clients_of_a_user_may_have_as_many_as_its_bound_together(name: str) -> None:
    requests, number = COUNTED[name]
    here = Population(user=bounds(**{name: BOUND}))
    got = []
    for count in range(BOUND + 1):
        client = (here.first, here.second)[count % 2]
        got.append(here.asks(client, requests[count % len(requests)]))
    assert got == [*[None] * BOUND, number]
    assert here.asks(here.first, requests[0]) == number
    for client in (here.other, here.own):
        assert [here.asks(client, requests[0]) for _ in range(BOUND)] == [None] * BOUND
    assert here.asks(here.other, requests[0]) == number
    assert here.asks(here.own, requests[0]) is None


@pytest.mark.parametrize("whose", ["client", "user"])
@pytest.mark.parametrize("name", COUNTED)
def test_what_does_not_count_is_not_refused(name: str, whose: str) -> None:
    here = Population(**{whose: bounds(**{name: 1})})
    first = here.first
    assert here.asks(first, COUNTED[name][0][0]) is None
    for request in (wire.Ping(), wire.Touch(), wire.FsRequest(wire.OpCloseHandle(7))):
        assert here.asks(first, request) is None
    others = {"sessions": [], "processes": [CONNECT, STAT, OPEN], "handles": [EXEC, CONNECT, STAT, READ]}
    for request in others[name]:
        assert here.asks(first, request) is None


@pytest.mark.parametrize(
    ("request_", "end"),
    [
        (EXEC, wire.ExecExited(0)),
        (EXEC, wire.ExecFailed(kind="not_found", message="")),
        (STAT, wire.FsResponse(ok=True)),
        (CONNECT, wire.TcpFailed("refused")),
        (OPEN, wire.FsResponse(ok=False, error="open: no")),
        (OPEN, wire.Error("invalid_payload", "no")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_ended_does_not_count(request_: wire.Message, end: wire.Message) -> None:
    for name in Numbers._fields:
        here = Population(client=bounds(**{name: 1}), user=bounds(**{name: 1}))
        counts = request_ in COUNTED[name][0]
        for _ in range(3):
            assert here.asks(here.first, request_) is None
            expected = COUNTED[name][1] if counts else None
            assert number_of(asks(here.table, here.second, request_, 50)) == expected
            here.table.agent_says(end, here.last_id(here.first))
            if not counts:
                here.table.agent_says(end, here.second.ids[50])
            here.table.client_reads(here.first)
            here.table.client_reads(here.second)
        assert here.table.router.books.relay.numbers == (0, 0, 0)


def test_a_connection_that_its_client_has_closed_counts_until_the_close_is_sent() -> None:
    here = Population(client=bounds(sessions=1))
    assert here.asks(here.first, CONNECT) is None
    id_ = here.last_id(here.first)
    here.table.client_says(here.first, wire.TcpClose(), id_)
    assert here.asks(here.first, CONNECT) == errno.EAGAIN
    assert here.table.to_agent(here.first) == [(id_, wire.TcpClose())]
    assert here.asks(here.first, CONNECT) is None


def test_a_command_whose_client_was_told_of_its_end_counts_until_the_guest_has_told_it() -> None:
    here = Population(client=bounds(processes=1))
    assert here.asks(here.first, EXEC) is None
    id_ = here.last_id(here.first)
    here.table.client_says(here.first, wire.TcpClose(), id_)  # a mistake, which ends the session
    here.table.to_client(here.first)
    assert here.asks(here.first, EXEC) == errno.EAGAIN
    here.table.agent_says(wire.ExecExited(-1), id_)
    assert here.asks(here.first, EXEC) is None


def test_a_command_that_has_exited_is_no_process_although_its_output_is_not_read() -> None:
    here = Population(client=bounds(processes=1, sessions=3))
    first = here.first
    assert here.asks(first, wire.ExecRequest(cmd="yes", window=KIB)) is None
    id_ = here.last_id(first)
    for _ in range(2):
        here.table.agent_says(wire.ExecStdout(bytes(KIB)), id_)
    here.table.agent_says(wire.ExecExited(0), id_)
    assert id_ in first.sessions  # its exit waits behind the output
    assert here.asks(first, EXEC) is None
    assert here.table.router.books.relay.numbers == (2, 1, 0)


# Handles


def opens(here: Population, client: Client, handle: int) -> int | None:
    """Open a file; the guest answers with a handle."""
    number = here.asks(client, OPEN)
    if number is None:
        response = wire.FsResponse(ok=True, data=wire.ResultHandle(handle))
        here.table.agent_says(response, here.last_id(client))
        here.table.client_reads(client)
    return number


def closes(here: Population, client: Client, handle: int, answer: wire.Message) -> None:
    assert here.asks(client, wire.FsRequest(wire.OpCloseHandle(handle))) is None
    here.table.agent_says(answer, here.last_id(client))
    here.table.client_reads(client)


def test_an_open_file_counts_until_it_is_closed() -> None:
    here = Population(client=bounds(handles=2))
    assert [opens(here, here.first, number) for number in (1, 2, 3)] == [None, None, errno.EMFILE]
    assert here.table.router.books.relay.numbers == (0, 0, 2)
    closes(here, here.first, 1, wire.FsResponse(ok=True))
    assert [opens(here, here.first, number) for number in (4, 5)] == [None, errno.EMFILE]


def test_a_file_that_is_being_opened_counts() -> None:
    here = Population(client=bounds(handles=2))
    assert [here.asks(here.first, OPEN) for _ in range(3)] == [None, None, errno.EMFILE]


@pytest.mark.parametrize(
    ("answer", "closed"),
    [
        (wire.FsResponse(ok=True), True),
        (wire.FsResponse(ok=False, error="close: Input/output error (os error 5)"), True),
        (wire.FsResponse(ok=False, error="close: No space left on device (os error 28)"), True),
        (wire.FsResponse(ok=False, error="invalid handle: 1"), True),
        (wire.FsResponse(ok=False, error="close: Resource temporarily unavailable (os error 11)"), False),
        (wire.FsResponse(ok=False), False),
        (wire.Error("invalid_payload", "what?"), False),
    ],
)
def test_a_file_counts_until_the_guest_has_closed_it(answer: wire.Message, *, closed: bool) -> None:
    here = Population(client=bounds(handles=1))
    assert opens(here, here.first, 1) is None
    closes(here, here.first, 1, answer)
    assert (opens(here, here.first, 2) is None) is closed


def test_closing_what_one_does_not_have_gives_nothing() -> None:
    here = Population(client=bounds(handles=1), user=bounds(handles=2))
    assert opens(here, here.first, 1) is None
    assert opens(here, here.second, 2) is None
    for client, handle in ((here.first, 2), (here.first, 3), (here.other, 1), (here.own, 1)):
        closes(here, client, handle, wire.FsResponse(ok=True))
    assert [opens(here, client, 4) for client in (here.first, here.second)] == [errno.EMFILE] * 2
    closes(here, here.first, 1, wire.FsResponse(ok=True))
    closes(here, here.first, 1, wire.FsResponse(ok=True))
    assert [opens(here, client, 5) for client in (here.first, here.second)] == [None, errno.EMFILE]


def test_a_file_that_was_opened_although_its_client_has_given_it_up_counts() -> None:
    here = Population(client=bounds(handles=1))
    assert here.asks(here.first, OPEN) is None
    id_ = here.last_id(here.first)
    here.table.client_says(here.first, wire.Cancel(), id_)
    here.table.agent_says(wire.FsResponse(ok=True, data=wire.ResultHandle(9)), id_)
    here.table.client_reads(here.first)
    assert here.asks(here.first, OPEN) == errno.EMFILE
    closes(here, here.first, 9, wire.FsResponse(ok=True))
    assert here.asks(here.first, OPEN) is None


def test_a_file_whose_contents_come_with_the_answer_is_not_open() -> None:
    here = Population(client=bounds(handles=1))
    for _ in range(2):
        assert here.asks(here.first, wire.FsRequest(OPEN.op, window=1000, contents=True)) is None
        id_ = here.last_id(here.first)
        here.table.agent_says(wire.FsData(b"all of it"), id_)
        here.table.agent_says(wire.FsResponse(ok=True), id_)
        here.table.client_reads(here.first)
        assert here.table.router.books.relay.numbers == (0, 0, 0)


@pytest.mark.parametrize("bad", [b"", b"\xa0", b"nonsense"])
def test_an_answer_that_nobody_understands_opens_nothing(bad: bytes) -> None:
    here = Population(client=bounds(handles=1))
    assert here.asks(here.first, OPEN) is None
    good = wire.encode(wire.FsResponse(ok=True, data=wire.ResultHandle(9)))
    body = (
        good[wire.HEADER_SIZE : wire.HEADER_SIZE + good[wire.HEADER_SIZE :].index(b"\x61p")]
        + b"\x61p"
        + bytes([0x40 + len(bad)])
        + bad
    )
    here.table.router.from_agent(wire.Frame(here.last_id(here.first), wire.FLAG_TERMINAL, body))
    here.table.router.sent_to_client(here.first, here.first.take(1 << 40))
    assert here.table.router.books.relay.numbers == (0, 0, 0)
    assert opens(here, here.first, 1) is None


# A client that has gone


def leave(here: Population, client: Client) -> tuple[list[int], int]:
    """Disconnect a client; returns the ids of its commands, and the one that confirms that it has gone."""
    orders: Orders = here.table.router.disconnect(client, 0.0)
    kills = [id_ for id_, message in _said(orders.to_agent) if isinstance(message, wire.ExecSignal)]
    [(last_id, _)] = _said(orders.behind)
    here.table.router.books.check()
    return kills, last_id


def _said(frames: Any) -> list[tuple[int, wire.Message]]:
    from tests.tools.peer import said

    return said(frames)


def test_the_commands_of_a_client_that_has_gone_count_for_its_user_until_the_guest_has_told_their_ends() -> None:
    here = Population(client=bounds(processes=2), user=bounds(processes=2))
    assert [here.asks(here.first, EXEC) for _ in range(2)] == [None, None]
    kills, last_id = leave(here, here.first)
    assert here.asks(here.second, EXEC) == errno.EAGAIN
    assert here.asks(here.other, EXEC) is None
    here.table.agent_says(wire.ExecExited(-1), kills[0])
    assert [here.asks(here.second, EXEC) for _ in range(2)] == [None, errno.EAGAIN]
    here.table.agent_says(wire.FsResponse(ok=False, error="unknown write session"), last_id)
    assert here.asks(here.second, EXEC) == errno.EAGAIN
    here.table.agent_says(wire.ExecExited(-1), kills[1])
    assert here.asks(here.second, EXEC) is None


def test_files_and_connections_of_a_client_that_has_gone_do_not_count() -> None:
    here = Population(user=bounds(sessions=2, handles=1))
    assert opens(here, here.first, 1) is None
    assert here.asks(here.first, CONNECT) is None
    assert here.asks(here.second, OPEN) == errno.EMFILE
    leave(here, here.first)
    assert here.table.router.books.relay.numbers == (0, 0, 0)
    assert [here.asks(here.second, OPEN), here.asks(here.second, CONNECT)] == [None, None]


def test_commands_of_a_slot_that_is_retired_count_until_their_ends_are_told() -> None:
    here = Population(user=bounds(processes=1))
    assert here.asks(here.first, EXEC) is None
    kills, _ = leave(here, here.first)
    here.table.router.tick(1e9)
    assert here.asks(here.second, EXEC) == errno.EAGAIN
    here.table.agent_says(wire.ExecExited(-1), kills[0])
    assert here.asks(here.second, EXEC) is None


# Clients


def test_as_many_clients_connect_as_are_allowed_and_no_more() -> None:
    table = Table(clients=3)
    clients = [table.router.connect(uid) for uid in (ONE, OTHER, None, ONE)]
    assert [client is not None for client in clients] == [True, True, True, False]
    assert clients[0] is not None
    table.router.disconnect(clients[0], 0.0)
    assert table.router.connect(OTHER) is not None  # in another slot: this bound is one on those connected
    assert table.router.connect(OTHER) is None


def test_a_user_has_as_many_slots_as_are_allowed_and_no_more() -> None:
    table = Table(clients_per_user=2)
    clients = [table.router.connect(uid) for uid in (ONE, OTHER, ONE, None, ONE, OTHER, OTHER)]
    assert [client is not None for client in clients] == [True, True, True, True, False, True, False]


def test_a_slot_in_quarantine_is_its_users_until_it_is_free() -> None:
    here = Population(clients_per_user=2)
    router = here.table.router
    assert router.connect(ONE) is None
    assert not router.may_get_slot(ONE)
    _, last_id = leave(here, here.first)
    assert router.connect(ONE) is None
    assert router.may_get_slot(ONE)  # it is worth waiting
    assert not router.may_get_slot(OTHER) or router.connect(OTHER) is not None
    here.table.agent_says(wire.FsResponse(ok=False, error="unknown write session"), last_id)
    assert router.connect(ONE) is not None
    assert router.connect(ONE) is None


def test_a_user_cannot_use_up_the_slots_by_coming_and_going() -> None:
    table = Table(clients_per_user=3)
    came = 0
    for _ in range(200):
        client = table.router.connect(ONE)
        if client is not None:
            came += 1
            table.router.disconnect(client, 0.0)
    table.router.tick(1e9)  # its slots are retired, and still its own
    assert came == 3
    assert table.router.connect(ONE) is None
    assert table.router.connect(OTHER) is not None


# Bytes


def window_of(table: Table, orders: Orders, client: Client) -> int:
    [(_, request)] = table.to_agent(client, orders)
    assert isinstance(request, wire.TcpConnect)
    assert isinstance(request.window, int)
    return request.window


@pytest.mark.parametrize(("rest", "window"), [(KIB - 1, KIB), (KIB, KIB), (KIB + 1, KIB + 1), (2 * KIB, 2 * KIB)])
def test_a_stream_gets_what_is_left_of_its_users_bytes_or_the_least(rest: int, window: int) -> None:
    # (In these tests one stream may take all of the rest, and the least window is 1 KiB.)
    here = Population(user_budget=20 * KIB, client_budget=1000 * KIB, total_budget=1000 * KIB)
    for count, client in ((0, here.first), (1, here.second)):
        wanted = 20 * KIB - rest - 16 * KIB * count if count else 16 * KIB
        orders = here.table.client_says(client, wire.TcpConnect("h", 1, window=wanted), client.ids[0])
        assert window_of(here.table, orders, client) == wanted
    for client, expected in ((here.first, window), (here.other, 16 * KIB), (here.own, 16 * KIB)):
        orders = here.table.client_says(client, CONNECT, client.ids[1])
        assert window_of(here.table, orders, client) == expected
    assert here.table.router.books.users[ONE].reserved == 20 * KIB - rest + window
