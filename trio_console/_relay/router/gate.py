"""The gate decides what becomes of a client's frames, by the rules of the catalogue and by the limits.

It compares, and changes nothing: a message and its row in the catalogue with the state of its session, and the
sums in the books with their bounds.

Three kinds of messages are not forwarded. A body that cannot be decoded, or a type that it does not know, makes an
agent of another make exit, and the guest with it. A message that only a relay may send could end other clients'
work. A message for a session of another kind makes an agent answer with a terminal frame, and the relay would then
forget a command that still runs.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, final

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._relay.router.limits import Numbers
from trio_console._relay.router.rights import FILE_DEMANDS, NEEDS, WRITING, RefusedError
from trio_console._relay.router.session import SHAPES, Opening
from trio_console._relay.router.states import SessionState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trio_console._relay.router.books import Account, Books
    from trio_console._relay.router.clients import Client
    from trio_console._relay.router.limits import RouterLimits
    from trio_console._relay.router.rights import Right
    from trio_console._relay.router.session import RelaySession

__all__ = ["Gate", "Way", "may_end"]

Way: TypeAlias = Literal["pend", "send", "queue", "close", "cancel", "grant", "drop", "late close", "late cancel"]
"""What becomes of a message within a session:

* *pend*: its data is kept until the agent takes it;
* *send*: its frame goes to the agent at once, because it may overtake data;
* *queue*: its frame is kept behind the data of its session;
* *close*, *cancel*: the same as queue and send, but the client then needs only the terminal frame;
* *grant*: the client gives credit, which is for the relay;
* *drop*: the agent must not get it, because the session has ended there, or was told to end. It would answer data
  for an unknown id with a terminal frame, which would end the next session with this id;
* *late close*, *late cancel*: dropped as well, but the client then needs no more than the terminal frame.
"""

#: The classes of messages that a client may send.
_CLIENTS: Final = frozenset(
    row.cls
    for row in wire.MESSAGE_TYPES.values()
    if wire.Direction.HOST_TO_AGENT in row.direction and not row.host_only
)

# (Short names, because in Python 3.11 each access to an enum's member is a call, and these are used for every
# frame.)
_ABANDONED: Final = SessionState.ABANDONED
_ENDED: Final = SessionState.ENDED


def may_end(cls: type[wire.Message] | None, kind: wire.SessionKind) -> bool:
    """Whether a terminal frame of the agent (`None`: of an unknown class) can end a session of a kind.

    If not, the frame is for the former session under the id: it answers data that came too late for that session.
    If a command were forgotten because of it, the command would run on, and its frames would go to the slot's next
    client.
    """
    row = None if cls is None else wire.type_of(cls)
    return row is None or not row.flags & wire.FLAG_TERMINAL or row.fits(kind)


@final
class Gate:
    """The rules; see the module.

    Args:
        flow: the agent's announcement that it counts credit, or `None`.
        limits: the bounds.
        features: the agent's words for the other additions to the protocol that it knows.
        books: the sums.
        clients: the connected clients by their slots.
    """

    def __init__(
        self,
        flow: wire.Flow | None,
        limits: RouterLimits,
        features: Collection[str],
        books: Books,
        clients: Mapping[int, Client],
    ) -> None:
        self._flow: Final = flow
        self._held_back: Final = 0 if flow is None else flow.held_back
        self._limits: Final = limits
        self._features: Final = frozenset(features)
        self._books: Final = books
        self._clients: Final = clients

    # The way of a frame

    def check(self, row: wire.MessageType) -> None:
        """Refuse a message that a client may not send, or that the agent has not announced to know.

        Raises:
            ProtocolError: with the text for the client. (So do the two methods below.)
        """
        if row.cls not in _CLIENTS:
            raise _refusal(row, "unsupported_message_type", "may not be sent by a client")
        announced = row.feature is None or row.feature in self._features
        if not announced or (row.cls is wire.Cancel and self._flow is None):
            raise _refusal(row, "unsupported_message_type", "is not known to this guest's agent")

    def lets_in(self, uid: int | None, *, after_quarantine: bool = False) -> bool:
        """Whether one more client of a user may connect.

        Args:
            uid: the user; `None` is this program itself.
            after_quarantine: do not count the clients that have gone, as if the guest had ended their sessions.
        """
        if len(self._clients) >= self._limits.clients:
            return False
        user = None if uid is None else self._books.users.get(uid)
        if user is None:
            return True
        connected = sum(client.account.user is user for client in self._clients.values())
        return (connected if after_quarantine else len(user.clients)) < self._limits.clients_per_user

    def admit(self, client: Client, frame_id: int, message: wire.Message, row: wire.MessageType) -> Opening:
        """Decide about a message that opens a session.

        Raises:
            RefusedError: the client lacks the right, or it or its user has enough already.
        """
        self.check(row)
        if frame_id in client.sessions:
            raise _refusal(row, "invalid_session", f"came for id {frame_id}, which is still in use")
        if len(client.sessions) >= self._limits.sessions:
            why = f"would be more than the {self._limits.sessions} sessions a client may have"
            raise _refusal(row, "invalid_session", why)
        needs, closes = self._allow(client, message, row)
        shape = SHAPES[row.cls]
        if self._flow is None or not isinstance(message, wire.StreamRequest):
            drops = isinstance(message, wire.ExecRequest) and message.drops is True
            return Opening(shape, needs=needs, closes=closes, drops=drops)
        wanted = None if message.window is wire.UNSET else message.window
        window = self._window(client, len(shape.outputs), wanted)
        return Opening(shape, window, wanted, self._flow.window, self._held_back, needs, closes)

    def _allow(self, client: Client, request: wire.Message, row: wire.MessageType) -> tuple[Numbers, int | None]:
        """Check a client's rights and bounds; returns what the session takes, and the handle that it closes.

        A command of a client that has left would be killed as soon as it was started.
        """
        if client.has_left and isinstance(request, wire.ExecRequest):
            raise RefusedError(errno.EPIPE, "the client has left before this was started")
        right: Right | None = row.right
        closes = None
        if isinstance(request, wire.FsRequest):
            op = request.op
            right, needs = FILE_DEMANDS[type(op)]
            if isinstance(op, wire.OpCloseHandle):
                closes = op.handle
            elif isinstance(op, wire.OpOpenFile) and _changes(op.options):
                right, needs = WRITING
        else:
            needs = NEEDS[row.kind]
        if right is not None and right not in client.granted:
            raise RefusedError.lacking(right)
        sessions, processes, handles = needs
        account = client.account
        if sessions and account.uid is not None:  # this program's own client has no bounds
            both = ((account, self._limits.client, "client"), (account.user, self._limits.user, "user"))
            for sums, bounds, whose in both:
                if (
                    sums.open + sessions > bounds.sessions
                    or sums.processes + processes > bounds.processes
                    or sums.handles + handles > bounds.handles
                ):
                    raise _too_many(needs, sums, bounds, whose)
        return needs, closes

    def check_shutdown(self, client: Client) -> None:
        """Check that a client may shut the guest down; raises as `admit`."""
        if "shutdown" not in client.granted:
            raise RefusedError.lacking("shutdown")

    def way(self, row: wire.MessageType, session: RelaySession) -> Way:
        """Decide about a message within a session."""
        state = session.state
        if row.cls is session.shape.input and state is not _ABANDONED and state is not _ENDED:
            return "pend"
        self.check(row)
        if state is _ABANDONED:
            return "drop"
        if row.cls not in session.shape.accepted:
            why = f"came for id {session.id}, which is no {row.kind} session"
            raise _refusal(row, "invalid_session", why)
        if row.cls is wire.Credit:
            return "grant"
        if row.cls is wire.Cancel:
            return "late cancel" if state is _ENDED else "cancel"
        if row.place is wire.Place.ENDS:
            return "late close" if state is _ENDED else "close"
        if state is _ENDED:
            return "drop"
        return "send" if row.overtakes else "queue"

    def _window(self, client: Client, count: int, wanted: int | None) -> int:
        """The window, in bytes, of each of ``count`` new streams, out of the rest of the budgets."""
        limits, books = self._limits, self._books
        left = min(
            limits.client_budget - client.account.reserved,
            limits.user_budget - client.account.user.reserved,
            limits.total_budget - books.relay.reserved,
        )
        window = max(limits.least_window, min(limits.largest_window, left // (limits.rest_divisor * count)))
        return window if wanted is None else max(1, min(window, wanted))

    # The bytes that are kept for a client

    def may_read(self, client: Client) -> bool:
        """Whether the client's socket may be read: not while too many of its bytes wait for the agent.

        A client's frames come in one order, so its credit for one session waits behind its input for another. If
        the client counts credit for that input, reading goes on as soon as the console has taken it. If it does
        not, and sends more than the agent takes, it pauses its own sessions, and no other client's: to read on,
        the relay would have to keep its input without a bound, or drop it.
        """
        limits, account = self._limits, client.account
        return account.pending < limits.pending_budget and account.queued < limits.client_budget

    def to_cut(self, client: Client) -> Client | None:
        """The client that must be cut now, if any, after the frames or the windows of a client have changed.

        It is this client, if more is kept for it than any client may have. Otherwise it may be any client: if the
        excess of all is over its bound, it is the one with the largest excess, of the user whose clients have the
        largest together. The caller cuts it, which takes its excess out of the books, and asks again.

        The windows bound data. This bounds the answers to requests of a client that does not read, the cost of
        keeping frames, and the frames that an agent sends without a request.

        An honest client is not cut because of others. While a client reads its socket, only what is on its way is
        kept for it. That is hardly ever more than what is allowed beyond its windows, and without excess no client
        is cut here. Data that it does not read, or gives no credit for, is within its windows. If a large answer
        gives it some excess for a moment, it is cut only if no other client of its user has more. Clients of
        another user cannot bring that about, however many they are: its user would have to have the largest excess
        of all.

        Nearly always this compares two numbers. Only when the bound is exceeded it looks at every client.
        """
        limits, books, account = self._limits, self._books, client.account
        # (Without excess it has less than this: its answers are at most the least that it may have.)
        if account.excess and (
            account.kept > max(limits.client_budget, books.covered(account)) + limits.answers_budget
        ):
            return client
        if books.relay.excess <= limits.total_answers:
            return None
        user = max(books.users.values(), key=_excess)
        own = (other for other in self._clients.values() if other.account.user is user)
        return max(own, key=lambda other: other.account.excess)


def _excess(account: Account) -> int:
    return account.excess


def _changes(options: wire.OpenOptions) -> bool:
    """Whether a file may change that is opened with these options."""
    return options.write or options.append or options.create or options.truncate or options.create_new


def _too_many(needs: Numbers, account: Account, bounds: Numbers, whose: str) -> RefusedError:
    """The error for a session for which a client or a user has not enough left."""
    rows = zip(Numbers._fields, needs, account.numbers, bounds, strict=True)
    name, bound = next((name, bound) for name, need, there, bound in rows if there + need > bound)
    number = errno.EMFILE if name == "handles" else errno.EAGAIN
    return RefusedError(number, f"the relay allows a {whose} {bound} {name} at a time")


def _refusal(row: wire.MessageType, kind: str, why: str) -> ProtocolError:
    """The error for a message that is well formed but not allowed here."""
    return ProtocolError(f"{row.name} {why}", kind=kind, message_type=row.name)
