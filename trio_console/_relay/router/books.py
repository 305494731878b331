"""The relay's books: every byte that the relay keeps or has promised, in one ledger.

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

Every operation moves bytes from one place to another. For the numbers that it has changed it asserts that no part
is larger than its whole, and that every byte of a window is in one place. `Books.check` checks all numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from trio_console._wire.credit import is_due

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FRAME_COST", "PIECE_COST", "Account", "Books", "ClientAccount", "SessionAccount", "Window"]

#: Bytes, about, that a waiting frame costs beside its own: a guest can send frames of nine bytes.
FRAME_COST: Final = 128

#: Bytes, about, that a pending piece costs beside its data.
PIECE_COST: Final = 128


class Account:
    """Four sums in bytes: of a user, or of the relay."""

    __slots__ = ("held", "pending", "queued", "reserved")

    def __init__(self) -> None:
        self.reserved = 0
        self.held = 0
        self.queued = 0
        self.pending = 0


@final
class ClientAccount(Account):
    """The sums of a client, which are parts of the sums of its user."""

    __slots__ = ("sessions", "uid", "user")

    def __init__(self, uid: int, user: Account) -> None:
        super().__init__()
        self.uid: Final = uid
        self.user: Final = user
        self.sessions: set[SessionAccount] = set()


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

    Attributes:
        relay: the sums of all clients.
        clients: the accounts of all connected clients.
        users: for each user id with a connected client, the sums of all its clients.
        dropped_bytes: all bytes that were ever dropped.
    """

    def __init__(self) -> None:
        self.relay: Final = Account()
        self.clients: Final[set[ClientAccount]] = set()
        self.users: Final[dict[int, Account]] = {}
        self.dropped_bytes = 0

    # Accounts

    def open_client(self, uid: int) -> ClientAccount:
        """Open the account of a new client of a user."""
        user = self.users.setdefault(uid, Account())
        client = ClientAccount(uid, user)
        self.clients.add(client)
        return client

    def close_client(self, client: ClientAccount) -> None:
        """Close the account of a client that has gone. Its held and pending bytes were dropped before.

        This drops its queued bytes, and frees the windows of the sessions whose terminal frame is queued.
        """
        self.dropped_bytes += client.queued
        self._add_queued(client, -client.queued)
        for session in tuple(client.sessions):
            self.release(session)
        assert client.reserved == client.held == client.queued == client.pending == 0, (
            "a client that left keeps nothing"
        )
        self.clients.remove(client)
        if not any(other.uid == client.uid for other in self.clients):
            user = self.users.pop(client.uid)
            assert user.reserved == user.held == user.queued == user.pending == 0, "a whole is its parts"

    def open_session(self, client: ClientAccount, streams: int = 0, size: int = 0) -> SessionAccount:
        """Open the account of a new session, and reserve a window of ``size`` bytes for each of its streams."""
        session = SessionAccount(client)
        client.sessions.add(session)
        session.windows += [Window(session, size) for _ in range(streams)]
        self._add_reserved(session, streams * size)
        return session

    def release(self, session: SessionAccount) -> None:
        """Free the windows of a session that is over. Its held and pending bytes were dropped before."""
        assert session.held == session.pending == 0, "a session that is over keeps nothing"
        assert session in session.client.sessions, "a window is given back once"
        session.client.sessions.remove(session)
        self._add_reserved(session, -session.reserved)
        session.windows.clear()

    # From the agent to a client

    def queue(self, client: ClientAccount, size: int, window: Window | None = None, data: int = 0) -> None:
        """Note that a client's queue became ``size`` bytes longer, with ``data`` bytes of a window."""
        user, relay = client.user, self.relay
        client.queued += size
        user.queued += size
        relay.queued += size
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

    def let_go(self, window: Window, held: int, queued: int, data: int) -> None:
        """Note that a held frame of cost ``held`` was queued, and the queue became ``queued`` bytes longer."""
        self._add_held(window.session, -held)
        self._add_queued(window.session.client, queued)
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
        """Note that frames of ``size`` bytes, without a window, were removed from a client's queue and dropped."""
        self._add_queued(client, -size)
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
        assert 0 <= session.held <= client.held <= user.held <= relay.held, "a part is in its whole"

    def _add_queued(self, client: ClientAccount, size: int) -> None:
        user, relay = client.user, self.relay
        client.queued += size
        user.queued += size
        relay.queued += size
        assert 0 <= client.queued <= user.queued <= relay.queued, "a part is in its whole"

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
        for uid, user in self.users.items():
            own = [client for client in self.clients if client.uid == uid]
            assert own, "a user has an account for its clients"
            assert all(client.user is user for client in own), "a user has one account"
            for name in _SUMS:
                _check_sum(name, user, own)
        for name in _SUMS:
            _check_sum(name, self.relay, self.users.values())


_SUMS: Final = ("reserved", "held", "queued", "pending")


def _check_sum(name: str, whole: Account, parts: Iterable[Account]) -> None:
    there, expected = getattr(whole, name), sum(getattr(part, name) for part in parts)
    assert there == expected, (
        f"a whole is its parts: {there} bytes are {name}, and the parts of that are {expected}"
    )


def _is_whole(window: Window) -> bool:
    held, queued, owed, lost = window.held, window.queued, window.owed, window.lost
    if held < 0 or queued < 0 or owed < 0 or lost < 0:
        return False
    return window.granted + held + queued + owed + lost == window.size
