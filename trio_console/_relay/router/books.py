"""The relay's books: every byte that the relay keeps or has promised, in one ledger.

Four sums are kept of each session, of its client, of the client's user and of the whole relay:

* *reserved*: windows of streams: what the agent may send ahead of the clients' sockets;
* *held*: frames that wait until their client gives credit, with what it costs to keep them;
* *queued*: frames that wait until their client's socket has taken them (of clients, users and the relay only: a
  frame may be queued for longer than its session lives);
* *pending*: pieces that a client has sent and that the agent has not got yet, with what it costs to keep them.

A window has an account of another kind, which says where its bytes are. Each of them is always somewhere::

    size = granted + held + queued + owed + lost

The agent may send those that are *granted*. Data that it has sent is *held* or *queued* here; once the socket has
taken it, as much is *owed* to the agent, and a grant pays that back. What is *lost* was dropped, and is never
granted again. An agent that sends more than it was granted makes that number negative.

Every operation moves bytes from one place to another. On the numbers that it has touched it asserts that no part
is larger than its whole, and that every byte of a window is somewhere. `Books.check` looks at all numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from trio_console._wire.credit import is_due

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FRAME_COST", "PIECE_COST", "Account", "Books", "ClientAccount", "SessionAccount", "Window"]

#: Bytes that a frame which waits for a client costs beside itself, about: a guest can make frames of nine bytes.
FRAME_COST: Final = 128

#: Bytes that a piece which waits for the agent costs beside its data, about.
PIECE_COST: Final = 128


class Account:
    """Four sums; of a user, or of the relay."""

    __slots__ = ("held", "pending", "queued", "reserved")

    def __init__(self) -> None:
        self.reserved = 0
        self.held = 0
        self.queued = 0
        self.pending = 0


@final
class ClientAccount(Account):
    """The sums of a client; those of its user have them in them."""

    __slots__ = ("sessions", "uid", "user")

    def __init__(self, uid: int, user: Account) -> None:
        super().__init__()
        self.uid: Final = uid
        self.user: Final = user
        self.sessions: set[SessionAccount] = set()


@final
class SessionAccount(Account):
    """The sums of a session; those of its client have them in them."""

    __slots__ = ("client", "windows")

    def __init__(self, client: ClientAccount) -> None:
        super().__init__()
        self.client: Final = client
        self.windows: list[Window] = []


@final
class Window:
    """Where the bytes of a stream's window are; see the module."""

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
    """The ledger. Nobody else changes a number in an account or a window.

    Attributes:
        relay: the sums of all clients.
        clients: the accounts of all clients that are there.
        users: the sums of all clients of a user, by user id, while there are any.
        dropped_bytes: everything that was dropped since the beginning.
    """

    def __init__(self) -> None:
        self.relay: Final = Account()
        self.clients: Final[set[ClientAccount]] = set()
        self.users: Final[dict[int, Account]] = {}
        self.dropped_bytes = 0

    # Who has an account

    def open_client(self, uid: int) -> ClientAccount:
        """A client of a user came."""
        user = self.users.setdefault(uid, Account())
        client = ClientAccount(uid, user)
        self.clients.add(client)
        return client

    def close_client(self, client: ClientAccount) -> None:
        """A client has gone, and what its sessions had held and pending was dropped.

        What is queued for it is dropped now, and the windows of sessions whose last frame is queued are free.
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

    def open_session(self, client: ClientAccount) -> SessionAccount:
        """A client opened a session."""
        session = SessionAccount(client)
        client.sessions.add(session)
        return session

    def reserve(self, session: SessionAccount, size: int) -> Window:
        """The agent is promised a window of ``size`` bytes for a stream of a session."""
        window = Window(session, size)
        session.windows.append(window)
        self._add_reserved(session, size)
        return window

    def release(self, session: SessionAccount) -> None:
        """A session is over, and what it had held and pending was dropped: its windows are free."""
        assert session.held == session.pending == 0, "a session that is over keeps nothing"
        assert session in session.client.sessions, "a window is given back once"
        session.client.sessions.remove(session)
        self._add_reserved(session, -session.reserved)
        session.windows.clear()

    # From the agent to a client

    def queue(self, client: ClientAccount, size: int, window: Window | None = None, data: int = 0) -> None:
        """A frame was put into a client's queue, which is ``size`` bytes longer, ``data`` of them of a window."""
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
        """A frame with ``data`` bytes of a window was held back, which takes ``size`` bytes more to keep."""
        self._add_held(window.session, size)
        window.granted -= data
        window.held += data
        assert _is_whole(window), "every byte of a window is somewhere"

    def let_go(self, window: Window, held: int, queued: int, data: int) -> None:
        """A frame that took ``held`` bytes to keep was put into the queue, which is ``queued`` bytes longer."""
        self._add_held(window.session, -held)
        self._add_queued(window.session.client, queued)
        window.held -= data
        window.queued += data
        assert _is_whole(window), "every byte of a window is somewhere"

    def drop_held(self, window: Window, held: int) -> None:
        """All that was held back of a window, which took ``held`` bytes to keep, was dropped."""
        self._add_held(window.session, -held)
        self.dropped_bytes += window.held
        window.lost += window.held
        window.held = 0
        assert _is_whole(window), "every byte of a window is somewhere"

    def refuse(self, window: Window, data: int) -> None:
        """The agent sent data for a window that is dropped, because it is far too much."""
        self.dropped_bytes += data
        window.granted -= data
        window.lost += data
        assert _is_whole(window), "every byte of a window is somewhere"

    def sent(self, client: ClientAccount, size: int, window: Window | None = None, data: int = 0) -> int:
        """A client's socket has taken a frame; returns what is to be granted now, from half a window on."""
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
        """The agent is told that it may send so much more."""
        window.owed -= data
        window.granted += data
        assert _is_whole(window), "every byte of a window is somewhere"

    def drop_queued(self, client: ClientAccount, size: int) -> None:
        """Frames of so many bytes, without a window, were taken out of a client's queue and dropped."""
        self._add_queued(client, -size)
        self.dropped_bytes += size

    # From a client to the agent

    def pend(self, session: SessionAccount, size: int) -> None:
        """What waits for the agent, of one session, takes ``size`` bytes more to keep."""
        client, relay = session.client, self.relay
        user = client.user
        session.pending += size
        client.pending += size
        user.pending += size
        relay.pending += size
        assert 0 <= session.pending <= client.pending <= user.pending <= relay.pending, "a part is in its whole"

    def take(self, session: SessionAccount, size: int) -> None:
        """The agent gets some of that, which takes ``size`` bytes less to keep."""
        self.pend(session, -size)

    def drop_pending(self, session: SessionAccount, data: int) -> None:
        """All that a session had pending, with ``data`` bytes in it, was dropped."""
        self.pend(session, -session.pending)
        self.dropped_bytes += data

    def drop(self, size: int) -> None:
        """What came was dropped at once, and was in no account."""
        self.dropped_bytes += size

    # One sum, wherever it is kept

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
        """Look at every account and every window, for tests.

        Raises:
            AssertionError: a sum is not that of its parts, or a byte of a window is nowhere.
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
    assert there == expected, f"{there} bytes are {name}, and the parts of that are {expected}"


def _is_whole(window: Window) -> bool:
    held, queued, owed, lost = window.held, window.queued, window.owed, window.lost
    if held < 0 or queued < 0 or owed < 0 or lost < 0:
        return False
    return window.granted + held + queued + owed + lost == window.size
