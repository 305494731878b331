"""The relay's books: whatever is entered, sums are those of their parts, and no byte of a window is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_console._relay.router.books import FRAME_COST, Books
from trio_console._relay.router.limits import Numbers

if TYPE_CHECKING:
    from trio_console._relay.router.books import Account, ClientAccount, SessionAccount, Window


def sums(account: Account) -> tuple[int, int, int, int]:
    return account.reserved, account.held, account.queued, account.pending


def opened(uid: int = 7) -> tuple[Books, ClientAccount, SessionAccount, Window]:
    """Books with a client, who has a session with a window of 100 bytes."""
    books = Books()
    client = books.open_client(uid)
    session = books.open_session(client, 1, 100)
    return books, client, session, session.windows[0]


def test_a_window_is_reserved_for_its_session_client_user_and_relay() -> None:
    books, client, first, _ = opened()
    second = books.open_session(client, 2, 10)
    assert [window.size for window in (*first.windows, *second.windows)] == [100, 10, 10]
    assert [sums(each)[0] for each in (first, second, client, books.users[7], books.relay)] == [100, 20] + [
        120
    ] * 3


def test_a_window_is_free_again_everywhere_when_its_session_is_over() -> None:
    books, client, session, _ = opened()
    books.release(session)
    assert sums(client) == sums(books.users[7]) == sums(books.relay) == (0, 0, 0, 0)
    books.check()


def test_a_window_is_not_given_back_twice() -> None:
    books, _, session, _ = opened()
    books.release(session)
    with pytest.raises(AssertionError, match="given back once"):
        books.release(session)


def test_data_goes_from_granted_to_queued_to_owed_and_is_granted_again() -> None:
    books, client, _, window = opened()
    books.queue(client, 60, window, 50)
    assert (window.granted, window.queued, window.owed) == (50, 50, 0)
    assert sums(client) == sums(books.users[7]) == sums(books.relay) == (100, 0, 60, 0)
    assert books.sent(client, 60, window, 50) == 50
    assert (window.granted, window.queued, window.owed) == (50, 0, 50)
    assert sums(client) == sums(books.users[7]) == sums(books.relay) == (100, 0, 0, 0)
    books.grant(window, 50)
    assert (window.granted, window.queued, window.owed) == (100, 0, 0)


@pytest.mark.parametrize(("size", "due"), [(0, 0), (49, 0), (50, 50), (51, 51), (100, 100)])
def test_nothing_is_granted_again_below_half_a_window(size: int, due: int) -> None:
    books, client, _, window = opened()
    books.queue(client, 200, window, size)
    assert books.sent(client, 200, window, size) == due


def test_data_that_is_held_is_let_go_into_the_queue() -> None:
    books, client, session, window = opened()
    books.hold(window, 188, 50)
    assert (window.granted, window.held) == (50, 50)
    assert sums(session)[1] == sums(client)[1] == sums(books.users[7])[1] == sums(books.relay)[1] == 188
    books.let_go(window, 188, 60, 50)
    assert (window.granted, window.held, window.queued) == (50, 0, 50)
    assert sums(session)[1] == 0
    assert sums(client) == sums(books.users[7]) == sums(books.relay) == (100, 0, 60, 0)


def test_held_data_that_is_dropped_is_lost_and_counted() -> None:
    books, _, session, window = opened()
    books.hold(window, 188, 50)
    books.drop_held(window, 188)
    assert (window.granted, window.held, window.lost) == (50, 0, 50)
    assert sums(session)[1] == sums(books.relay)[1] == 0
    assert books.dropped_bytes == 50


def test_data_far_beyond_a_window_is_lost_and_counted() -> None:
    books, _, _, window = opened()
    books.refuse(window, 500)
    assert (window.granted, window.lost) == (-400, 500)
    assert books.dropped_bytes == 500


def test_what_waits_for_the_agent_counts_until_the_agent_has_it() -> None:
    books, client, session, _ = opened()
    books.pend(session, 40)
    assert [sums(each)[3] for each in (session, client, books.users[7], books.relay)] == [40] * 4
    books.take(session, 30)
    assert [sums(each)[3] for each in (session, client, books.users[7], books.relay)] == [10] * 4
    books.drop_pending(session, 4)
    assert [sums(each)[3] for each in (session, client, books.users[7], books.relay)] == [0] * 4
    assert books.dropped_bytes == 4


def test_the_clients_of_a_user_are_one_sum_and_those_of_another_are_not() -> None:
    books = Books()
    for uid, size in ((1, 10), (1, 20), (2, 40)):
        books.queue(books.open_client(uid), size)
    assert (books.users[1].queued, books.users[2].queued, books.relay.queued) == (30, 40, 70)
    books.check()


def test_what_is_queued_for_a_client_that_has_gone_is_dropped_and_its_last_windows_are_free() -> None:
    books, client, _, window = opened()
    books.queue(client, 60, window, 50)
    books.leave(client)
    books.close_client(client)
    assert books.dropped_bytes == 60
    assert sums(books.relay) == (0, 0, 0, 0)
    assert not books.users
    assert not books.clients


def test_a_user_has_an_account_as_long_as_a_client() -> None:
    books = Books()
    first, second = books.open_client(1), books.open_client(1)
    for client in (first, second):
        books.leave(client)
    assert list(books.users) == [1]
    books.close_client(first)
    assert list(books.users) == [1]
    books.close_client(second)
    assert not books.users


@pytest.mark.parametrize("name", ["held", "pending"])
def test_neither_a_session_nor_its_client_goes_before_what_they_keep(name: str) -> None:
    books, client, session, window = opened()
    if name == "held":
        books.hold(window, 10, 1)
    else:
        books.pend(session, 10)
    with pytest.raises(AssertionError, match="a session that is over keeps nothing"):
        books.release(session)
    client.sessions.clear()  # as if its sessions had ended without an entry
    with pytest.raises(AssertionError, match="a client that left keeps nothing"):
        books.leave(client)


def test_more_than_was_put_in_cannot_be_taken_out() -> None:
    books, client, session, window = opened()
    for operation in (
        lambda: books.sent(client, 1),
        lambda: books.take(session, 1),
        lambda: books.let_go(window, 1, 0, 0),
        lambda: books.drop_queued(client, 1),
    ):
        with pytest.raises(AssertionError, match="a part is in its whole"):
            operation()


@pytest.mark.parametrize(
    "name", ["reserved", "held", "queued", "pending", "excess", "open", "processes", "handles"]
)
@pytest.mark.parametrize("whole", ["client", "user", "relay"])
def test_a_sum_that_is_not_of_its_parts_is_found(name: str, whole: str) -> None:
    books, client, _, _ = opened()
    account = {"client": client, "user": books.users[7], "relay": books.relay}[whole]
    setattr(account, name, getattr(account, name) + 1)
    with pytest.raises(AssertionError, match=f"are {name}"):
        books.check()


@pytest.mark.parametrize("place", ["granted", "held", "queued", "owed", "lost"])
def test_a_byte_of_a_window_that_is_nowhere_is_found(place: str) -> None:
    books, _, _, window = opened()
    setattr(window, place, getattr(window, place) - 1)
    with pytest.raises(AssertionError, match="every byte of a window is somewhere"):
        books.check()


SIZES = st.integers(0, 60)
SPARED = 150


class BooksModel(RuleBasedStateMachine):
    """Any operations that are possible in a state; each number must be that of a plain count."""

    @initialize()
    def begin(self) -> None:
        self.books = Books(SPARED)
        self.sessions: list[tuple[SessionAccount, Window]] = []
        self.queue: list[tuple[ClientAccount, int, Window | None, int]] = []
        self.held: list[tuple[Window, int, int]] = []
        self.pending: list[tuple[SessionAccount, int]] = []
        self.numbers: dict[SessionAccount, Numbers] = {}
        self.handles: set[tuple[ClientAccount, int]] = set()
        self.left: list[ClientAccount] = []  # those that have gone, and have slots

    def pick(self, number: int) -> tuple[SessionAccount, Window]:
        return self.sessions[number % len(self.sessions)]

    def pick_numbered(self, number: int) -> SessionAccount:
        return list(self.numbers)[number % len(self.numbers)]

    @rule(uid=st.integers(0, 1), size=SIZES)
    def open(self, uid: int, size: int) -> None:
        self._open_session(self.books.open_client(uid), size)

    @precondition(lambda self: self.sessions)
    @rule(who=SIZES, size=SIZES)
    def open_another(self, who: int, size: int) -> None:
        self._open_session(self.pick(who)[0].client, size)

    def _open_session(self, client: ClientAccount, size: int) -> None:
        needs = Numbers(size % 2, size // 2 % 2, size // 4 % 2)
        session = self.books.open_session(client, 1, size, needs)
        self.sessions.append((session, session.windows[0]))
        self.numbers[session] = needs

    @precondition(lambda self: self.sessions)
    @rule(who=SIZES, size=SIZES, head=SIZES, of_window=st.booleans())
    def agent_says(self, who: int, size: int, head: int, of_window: bool) -> None:
        session, window = self.pick(who)
        item = (session.client, size + head, window if of_window else None, size if of_window else 0)
        self.books.queue(*item)
        self.queue.append(item)

    @precondition(lambda self: self.sessions)
    @rule(who=SIZES, size=SIZES, head=SIZES)
    def agent_says_too_early(self, who: int, size: int, head: int) -> None:
        _, window = self.pick(who)
        self.books.hold(window, size + head, size)
        self.held.append((window, size + head, size))

    @precondition(lambda self: self.held)
    @rule(size=SIZES)
    def client_grants(self, size: int) -> None:
        window, kept, data = self.held.pop(0)
        self.books.let_go(window, kept, data + size, data)
        self.queue.append((window.session.client, data + size, window, data))

    @precondition(lambda self: self.queue)
    @rule()
    def socket_takes(self) -> None:
        client, size, window, data = self.queue.pop(0)
        due = self.books.sent(client, size, window, data)
        if window is not None and due:
            self.books.grant(window, due)

    @precondition(lambda self: self.sessions)
    @rule(who=SIZES, size=SIZES)
    def client_says(self, who: int, size: int) -> None:
        session, _ = self.pick(who)
        self.books.pend(session, size)
        self.pending.append((session, size))

    @precondition(lambda self: self.pending)
    @rule()
    def agent_takes(self) -> None:
        self.books.take(*self.pending.pop(0))

    @precondition(lambda self: self.sessions)
    @rule(who=SIZES)
    def end(self, who: int) -> None:
        session, window = self.pick(who)
        self._drop(session, window)
        self.books.release(session)
        self.sessions.remove((session, window))

    def _drop(self, session: SessionAccount, window: Window) -> None:
        kept = sum(kept for owner, kept, _ in self.held if owner is window)
        self.books.drop_held(window, kept)
        self.held = [one for one in self.held if one[0] is not window]
        self.books.drop_pending(session, 0)
        self.pending = [one for one in self.pending if one[0] is not session]

    @precondition(lambda self: self.sessions)
    @rule(who=SIZES)
    def leave(self, who: int) -> None:
        client = self.pick(who)[0].client
        for session, window in self.sessions:
            if session.client is client:
                self._drop(session, window)
        self.books.leave(client)
        self.sessions = [one for one in self.sessions if one[0].client is not client]
        self.queue = [one for one in self.queue if one[0] is not client]
        for session, numbers in self.numbers.items():
            if session.client is client:
                self.numbers[session] = Numbers(processes=numbers.processes)
        self.handles = {one for one in self.handles if one[0] is not client}
        self.left.append(client)

    @precondition(lambda self: self.left)
    @rule()
    def free_its_slot(self) -> None:
        client = self.left.pop(0)
        self.books.close_client(client)
        self.numbers = {one: numbers for one, numbers in self.numbers.items() if one.client is not client}

    @precondition(lambda self: self.numbers)
    @rule(who=SIZES)
    def free_its_id(self, who: int) -> None:
        session = self.pick_numbered(who)
        if session.client not in self.left:
            self.books.forget(session)
            del self.numbers[session]

    @precondition(lambda self: self.numbers)
    @rule(who=SIZES)
    def its_process_ends(self, who: int) -> None:
        session = self.pick_numbered(who)
        if self.numbers[session].processes or session.client not in self.left:
            self.books.end_process(session)
            self.numbers[session] = self.numbers[session]._replace(processes=0)

    @precondition(lambda self: self.numbers)
    @rule(who=SIZES, handle=SIZES)
    def it_opens_a_handle(self, who: int, handle: int) -> None:
        session = self.pick_numbered(who)
        if session.client not in self.left:
            self.books.open_handle(session, handle)
            if self.numbers[session].handles and (session.client, handle) not in self.handles:
                self.numbers[session] = self.numbers[session]._replace(handles=0)
                self.handles.add((session.client, handle))

    @precondition(lambda self: self.sessions)
    @rule(who=SIZES, handle=SIZES)
    def a_handle_is_closed(self, who: int, handle: int) -> None:
        client = self.pick(who)[0].client
        self.books.close_handle(client, handle)
        self.handles.discard((client, handle))

    @invariant()
    def numbers_are_what_is_there(self) -> None:
        if not hasattr(self, "books"):
            return
        self.books.check()
        relay = self.books.relay
        for name in Numbers._fields:
            opened = len(self.handles) if name == "handles" else 0
            of_sessions = sum(getattr(numbers, name) for numbers in self.numbers.values())
            assert getattr(relay.numbers, name) == opened + of_sessions
        assert relay.reserved == sum(window.size for _, window in self.sessions)
        assert relay.held == sum(kept for _, kept, _ in self.held)
        assert relay.queued == sum(size for _, size, _, _ in self.queue)
        assert relay.pending == sum(size for _, size in self.pending)
        for client in self.books.clients:
            kept = sum(size + FRAME_COST for owner, size, _, _ in self.queue if owner is client)
            kept += sum(cost for window, cost, _ in self.held if window.session.client is client)
            assert client.kept == kept
            assert client.excess == max(0, kept - client.reserved - SPARED)
        for _, window in self.sessions:
            assert window.held == sum(data for owner, _, data in self.held if owner is window)
            assert window.queued == sum(data for _, _, owner, data in self.queue if owner is window)
            assert 2 * window.owed < window.size or not window.owed


BooksModel.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestBooks: Any = BooksModel.TestCase
