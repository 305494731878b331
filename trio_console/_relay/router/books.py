"""The relay's books: every byte that the relay keeps or has promised, and what its clients have in the guest.

The books have four sums for each session, for its client, for the client's user, and for the whole relay:

* *reserved*: the windows of streams, which the agent may send before a client's socket has taken the bytes;
* *held*: frames that wait for their client's credit, with the cost of keeping them;
* *queued*: frames that wait for their client's socket (only for clients, users and the relay, because a frame may
  be queued for longer than its session is open);
* *pending*: pieces that a client has sent and the agent has not got yet, with the cost of keeping them.

A window also has an account, which says where its bytes are. Each byte is always in one place::

    size = granted + held + queued + owed + lost

The agent may send the *granted* bytes. Data that it has sent is *held* or *queued* here. When the socket has taken
the data, its bytes are *owed* to the agent, until a grant makes them *granted* again. *Lost* bytes were dropped,
and are never granted again. If an agent sends more than it was granted, *granted* is negative.

For each client, for its user and for the relay there is also the *excess*: what is kept for the client's socket
(frames that are queued or held, with the cost of keeping them) beyond what its windows have reserved, and beyond a
little that every client may have. The gate compares it with a bound.

The books also count, in the same accounts, what clients have in the guest: sessions, processes and handles (see
`Numbers`). A session has its numbers until its id is free, and its process until the guest has told its end. A
handle is its session's while it is being opened, and its client's as long as it is open. An account of a client
stays until its slot is free, because the processes of a client that has gone may still live.

Every operation moves bytes from one place to another. For the numbers that it has changed it asserts that no part
is larger than its whole, and that every byte of a window is in one place. `Books.check` checks all numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from trio_console._relay.router.limits import Numbers
from trio_console._wire.credit import is_due

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "FRAME_COST",
    "PIECE_COST",
    "Account",
    "Books",
    "ClientAccount",
    "SessionAccount",
    "UserAccount",
    "Window",
]

_NOTHING: Final = Numbers()

#: Bytes, about, that a frame that is kept costs beside its own: a guest can send frames of nine bytes.
FRAME_COST: Final = 128

#: Bytes, about, that a pending piece costs beside its data.
PIECE_COST: Final = 128


class Account:
    """Four sums in bytes, the excess, and three numbers: of the relay."""

    __slots__ = ("excess", "handles", "held", "open", "pending", "processes", "queued", "reserved")

    def __init__(self) -> None:
        self.reserved = 0
        self.held = 0
        self.queued = 0
        self.pending = 0
        self.excess = 0
        self.open = 0  # sessions
        self.processes = 0
        self.handles = 0

    @property
    def numbers(self) -> Numbers:
        """What there is of the things that are bounded."""
        return Numbers(self.open, self.processes, self.handles)


@final
class UserAccount(Account):
    """The sums of a user's clients, which are parts of the sums of the relay."""

    __slots__ = ("clients",)

    def __init__(self) -> None:
        super().__init__()
        self.clients: set[ClientAccount] = set()


@final
class ClientAccount(Account):
    """The sums of a client, which are parts of the sums of its user."""

    __slots__ = ("is_written_off", "kept", "numbered", "open_handles", "sessions", "uid", "user")

    def __init__(self, uid: int | None, user: UserAccount) -> None:
        super().__init__()
        self.uid: Final = uid
        self.user: Final = user
        self.sessions: set[SessionAccount] = set()  # those with windows
        self.numbered: set[SessionAccount] = set()  # those with numbers
        self.open_handles: set[int] = set()
        self.kept = 0  # the bytes of all frames that are kept for it, with their costs
        self.is_written_off = False  # it is being cut, and has no excess


@final
class SessionAccount(Account):
    """The sums of a session, which are parts of the sums of its client."""

    __slots__ = ("client", "windows")

    def __init__(self, client: ClientAccount) -> None:
        super().__init__()
        self.client: Final = client
        self.windows: list[Window] = []


@final
class Window:
    """The places of the bytes of a stream's window; see the module."""

    __slots__ = ("granted", "held", "lost", "owed", "queued", "session", "size")

    def __init__(self, session: SessionAccount, size: int) -> None:
        self.session: Final = session
        self.size: Final = size
        self.granted = size
        self.held = 0
        self.queued = 0
        self.owed = 0
        self.lost = 0


@final
class Books:
    """The ledger. Only its methods change the numbers in accounts and windows.

    Args:
        spared: bytes kept for a client beyond its windows that are not excess.
        policed: with an agent without credit, which has no windows: the bytes queued for a client above which the
            slow-client policy bounds all that is kept for it. Below it only the costs of frames can be excess.

    Attributes:
        relay: the sums of all clients.
        clients: the accounts of all clients that have slots: of those connected, and of those that have gone and
            whose sessions the guest has not ended.
        users: for each user id with such a client, the sums of all its clients. `None` is this program itself.
        dropped_bytes: all bytes that were ever dropped.
    """

    def __init__(self, spared: int = 0, policed: int | None = None) -> None:
        self._spared: Final = spared
        self._policed: Final = policed
        self.relay: Final = Account()
        self.clients: Final[set[ClientAccount]] = set()
        self.users: Final[dict[int | None, UserAccount]] = {}
        self.dropped_bytes = 0

    # Accounts

    def open_client(self, uid: int | None) -> ClientAccount:
        """Open the account of a new client of a user; `None` is this program itself."""
        user = self.users.setdefault(uid, UserAccount())
        client = ClientAccount(uid, user)
        self.clients.add(client)
        user.clients.add(client)
        return client

    def leave(self, client: ClientAccount) -> None:
        """Note that a client has gone. Its held and pending bytes were dropped before.

        This drops its queued bytes, and frees the windows of the sessions whose terminal frame is queued. The
        guest closes all that the client had there; only its processes still count, until their ends are told.
        """
        self.dropped_bytes += client.queued
        self._add_queued(client, -client.queued, client.held + client.queued - client.kept)
        for session in tuple(client.sessions):
            self.release(session)
        for session in tuple(client.numbered):
            self._count(client, session, sessions=-session.open, handles=-session.handles)
            if not session.processes:
                client.numbered.remove(session)
        self._count(client, handles=-len(client.open_handles))
        client.open_handles.clear()
        assert client.reserved == client.kept == client.pending == client.excess == 0, (
            "a client that left keeps nothing"
        )

    def write_off(self, client: ClientAccount) -> None:
        """Note that a client is being cut: what is kept for it goes with it, and is no excess any more."""
        client.is_written_off = True
        self._add_excess(client, -client.excess)

    def close_client(self, client: ClientAccount) -> None:
        """Close the account of a client that has gone, because its slot is free."""
        for session in tuple(client.numbered):
            self.forget(session)
        self.clients.remove(client)
        user = client.user
        user.clients.remove(client)
        if not user.clients:
            del self.users[client.uid]
            assert user.reserved == user.held == user.queued == user.pending == user.excess == 0, (
                "a whole is its parts"
            )
            assert user.numbers == (0, 0, 0), "a number is the sum of its parts"

    def open_session(
        self, client: ClientAccount, streams: int = 0, size: int = 0, needs: Numbers = _NOTHING
    ) -> SessionAccount:
        """Open the account of a new session, and reserve a window of ``size`` bytes for each of its streams."""
        session = SessionAccount(client)
        client.sessions.add(session)
        client.numbered.add(session)
        session.windows += [Window(session, size) for _ in range(streams)]
        # (`_add_reserved` and `_count` in one, without the calls: most sessions are short.)
        user, relay = client.user, self.relay
        for account in (session, client, user, relay):
            account.reserved += streams * size
            account.open += needs.sessions
            account.processes += needs.processes
            account.handles += needs.handles
        if client.excess:
            self._weigh(client)
        assert client.reserved <= user.reserved <= relay.reserved, "a part is in its whole"
        assert client.open <= user.open <= relay.open, "a number is at most that of its whole"
        return session

    def release(self, session: SessionAccount) -> None:
        """Free the windows of a session that is over. Its held and pending bytes were dropped before."""
        assert session.held == session.pending == 0, "a session that is over keeps nothing"
        assert session in session.client.sessions, "a window is given back once"
        session.client.sessions.remove(session)
        self._add_reserved(session, -session.reserved)
        session.windows.clear()

    # What clients have in the guest

    def forget(self, session: SessionAccount) -> None:
        """Note that the id of a session is free, and that the guest has ended what it opened."""
        client = session.client
        assert session in client.numbered, "a session is counted once"
        client.numbered.remove(session)
        if session.open or session.processes or session.handles:
            # (`_count` without the call: most sessions are short.)
            for account in (client, client.user, self.relay):
                account.open -= session.open
                account.processes -= session.processes
                account.handles -= session.handles
            session.open = session.processes = session.handles = 0
            assert 0 <= client.open <= client.user.open <= self.relay.open, "a number is at most that of its whole"

    def end_process(self, session: SessionAccount) -> None:
        """Note that the guest has told the end of a session's process, if it has one."""
        self._count(session.client, session, processes=-session.processes)

    def open_handle(self, session: SessionAccount, handle: int) -> None:
        """Note that the guest has opened a handle for a session."""
        client = session.client
        if session.handles and handle not in client.open_handles:
            client.open_handles.add(handle)
            session.handles -= 1  # it is its client's now, and still counted there

    def close_handle(self, client: ClientAccount, handle: int) -> None:
        """Note that the guest has closed a handle, if the client has it."""
        if handle in client.open_handles:
            client.open_handles.remove(handle)
            self._count(client, handles=-1)

    def _count(
        self,
        client: ClientAccount,
        session: SessionAccount | None = None,
        sessions: int = 0,
        processes: int = 0,
        handles: int = 0,
    ) -> None:
        if not (sessions or processes or handles):
            return
        user, relay = client.user, self.relay
        part: Account = client if session is None else session
        for account in (client, user, relay) if session is None else (session, client, user, relay):
            account.open += sessions
            account.processes += processes
            account.handles += handles
        assert 0 <= part.open <= client.open <= user.open <= relay.open, "a number is at most that of its whole"
        if processes:
            assert 0 <= part.processes <= client.processes <= user.processes <= relay.processes, (
                "a number of processes is at most that of its whole"
            )
        if handles:
            assert 0 <= part.handles <= client.handles <= user.handles <= relay.handles, (
                "a number of handles is at most that of its whole"
            )

    # From the agent to a client

    def queue(
        self, client: ClientAccount, size: int, window: Window | None = None, data: int = 0, cost: int = FRAME_COST
    ) -> None:
        """Note that a client's queue became ``size`` bytes longer, with ``data`` bytes of a window.

        A frame that was joined to another one has no cost of its own.
        """
        user, relay = client.user, self.relay
        client.queued += size
        user.queued += size
        relay.queued += size
        client.kept += size + cost
        if client.kept > client.reserved + self._spared:
            self._weigh(client)
        assert 0 <= client.queued <= user.queued <= relay.queued, "a part is in its whole"
        if window is not None:
            window.granted -= data
            window.queued += data
            places = window.granted + window.held + window.queued + window.owed + window.lost
            assert places == window.size, "every byte of a window is somewhere"

    def hold(self, window: Window, size: int, data: int) -> None:
        """Note that a frame with ``data`` bytes of a window is held, which costs ``size`` bytes."""
        self._add_held(window.session, size)
        window.granted -= data
        window.held += data
        assert _is_whole(window), "every byte of a window is somewhere"

    def let_go(self, window: Window, held: int, queued: int, data: int, cost: int = FRAME_COST) -> None:
        """Note that a held frame of cost ``held`` was queued, and the queue became ``queued`` bytes longer."""
        self._add_held(window.session, -held)
        self._add_queued(window.session.client, queued, cost)
        window.held -= data
        window.queued += data
        assert _is_whole(window), "every byte of a window is somewhere"

    def drop_held(self, window: Window, held: int) -> None:
        """Note that all held frames of a window, of cost ``held``, were dropped."""
        self._add_held(window.session, -held)
        self.dropped_bytes += window.held
        window.lost += window.held
        window.held = 0
        assert _is_whole(window), "every byte of a window is somewhere"

    def refuse(self, window: Window, data: int) -> None:
        """Note that data of the agent was dropped because it exceeds its window by far."""
        self.dropped_bytes += data
        window.granted -= data
        window.lost += data
        assert _is_whole(window), "every byte of a window is somewhere"

    def sent(self, client: ClientAccount, size: int, window: Window | None = None, data: int = 0) -> int:
        """Note that a client's socket has taken a frame; returns the bytes to grant now, or 0."""
        user, relay = client.user, self.relay
        client.queued -= size
        user.queued -= size
        relay.queued -= size
        client.kept -= size + FRAME_COST
        if client.excess or client.kept > client.reserved + self._spared:
            self._weigh(client)
        assert 0 <= client.queued <= user.queued <= relay.queued, "a part is in its whole"
        if window is None:
            return 0
        window.queued -= data
        window.owed += data
        places = window.granted + window.held + window.queued + window.owed + window.lost
        assert places == window.size, "every byte of a window is somewhere"
        return window.owed if is_due(window.owed, window.size) else 0

    def grant(self, window: Window, data: int) -> None:
        """Note that the agent is granted ``data`` more bytes."""
        window.owed -= data
        window.granted += data
        assert _is_whole(window), "every byte of a window is somewhere"

    def drop_queued(self, client: ClientAccount, size: int) -> None:
        """Note that a frame of ``size`` bytes, without a window, was removed from a client's queue and dropped."""
        self._add_queued(client, -size, -FRAME_COST)
        self.dropped_bytes += size

    # From a client to the agent

    def pend(self, session: SessionAccount, size: int) -> None:
        """Note that the pending pieces of a session cost ``size`` more bytes."""
        client, relay = session.client, self.relay
        user = client.user
        session.pending += size
        client.pending += size
        user.pending += size
        relay.pending += size
        assert 0 <= session.pending <= client.pending <= user.pending <= relay.pending, "a part is in its whole"

    def take(self, session: SessionAccount, size: int) -> None:
        """Note that the agent gets pending bytes of a session, which then costs ``size`` bytes less."""
        self.pend(session, -size)

    def drop_pending(self, session: SessionAccount, data: int) -> None:
        """Note that all pending pieces of a session were dropped, with ``data`` bytes in them."""
        self.pend(session, -session.pending)
        self.dropped_bytes += data

    def drop(self, size: int) -> None:
        """Note that bytes were dropped at once, without being in any account."""
        self.dropped_bytes += size

    # One sum, in all accounts that have it

    def _add_reserved(self, session: SessionAccount, size: int) -> None:
        client, relay = session.client, self.relay
        user = client.user
        session.reserved += size
        client.reserved += size
        user.reserved += size
        relay.reserved += size
        if client.kept > client.reserved + self._spared:
            self._weigh(client)
        assert 0 <= session.reserved <= client.reserved <= user.reserved <= relay.reserved, (
            "a part is in its whole"
        )

    def _add_held(self, session: SessionAccount, size: int) -> None:
        client, relay = session.client, self.relay
        user = client.user
        session.held += size
        client.held += size
        user.held += size
        relay.held += size
        client.kept += size
        if client.excess or client.kept > client.reserved + self._spared:
            self._weigh(client)
        assert 0 <= session.held <= client.held <= user.held <= relay.held, "a part is in its whole"

    def _add_queued(self, client: ClientAccount, size: int, cost: int) -> None:
        user, relay = client.user, self.relay
        client.queued += size
        user.queued += size
        relay.queued += size
        client.kept += size + cost
        if client.excess or client.kept > client.reserved + self._spared:
            self._weigh(client)
        assert 0 <= client.queued <= user.queued <= relay.queued, "a part is in its whole"

    # The excess

    def covered(self, client: ClientAccount) -> int:
        """The bytes kept for a client that something else bounds: its windows, or the slow-client policy."""
        if self._policed is None:
            return client.reserved
        return client.queued if client.queued <= self._policed else client.kept

    def _excess(self, client: ClientAccount) -> int:
        return 0 if client.is_written_off else max(0, client.kept - self.covered(client) - self._spared)

    def _weigh(self, client: ClientAccount) -> None:
        """Find out the excess of a client, for which more or less is kept or reserved than before.

        (Most callers compare first, to save the call: a client that reads has none.)
        """
        self._add_excess(client, self._excess(client) - client.excess)

    def _add_excess(self, client: ClientAccount, size: int) -> None:
        user, relay = client.user, self.relay
        client.excess += size
        user.excess += size
        relay.excess += size
        assert 0 <= client.excess <= user.excess <= relay.excess, "a part is in its whole"

    def check(self) -> None:
        """Check every account and every window, for tests.

        Raises:
            AssertionError: a sum is not the sum of its parts, or a byte of a window is in no place.
        """
        for client in self.clients:
            for session in client.sessions:
                assert all(map(_is_whole, session.windows)), "every byte of a window is somewhere"
                assert session.reserved == sum(window.size for window in session.windows), "a whole is its parts"
                assert session.queued == 0, "what is queued is the client's"
            for name in ("reserved", "held", "pending"):
                _check_sum(name, client, client.sessions)
            for name in ("open", "processes"):
                _check_sum(name, client, client.numbered)
            _check_sum("handles", client, client.numbered, len(client.open_handles))
            expected = self._excess(client)
            assert client.excess == expected, f"a whole is its parts: {client.excess} are excess, not {expected}"
        for uid, user in self.users.items():
            own = {client for client in self.clients if client.uid == uid}
            assert own, "a user has an account for its clients"
            assert user.clients == own, "a user has one account"
            for name in _SUMS:
                _check_sum(name, user, own)
        for name in _SUMS:
            _check_sum(name, self.relay, self.users.values())
        for client in self.clients:
            assert client.kept >= client.queued + client.held, "a whole is its parts"


_SUMS: Final = ("reserved", "held", "queued", "pending", "excess", "open", "processes", "handles")


def _check_sum(name: str, whole: Account, parts: Iterable[Account], own: int = 0) -> None:
    there, expected = getattr(whole, name), own + sum(getattr(part, name) for part in parts)
    assert there == expected, f"a whole is its parts: {there} are {name}, and the parts of that are {expected}"


def _is_whole(window: Window) -> bool:
    held, queued, owed, lost = window.held, window.queued, window.owed, window.lost
    if held < 0 or queued < 0 or owed < 0 or lost < 0:
        return False
    return window.granted + held + queued + owed + lost == window.size
