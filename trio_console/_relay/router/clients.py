"""One client, as the router knows it: its ids, its sessions, and the frames that are queued for it.

The frames are here; the books count their bytes. Whatever is put into the queue, or dropped from it, is entered in
the books by the same method.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, final

from trio_console import _wire as wire
from trio_console._relay.router.books import FRAME_COST
from trio_console._relay.router.session import Outgoing, RelaySession, join_last
from trio_console._relay.router.states import CLIENT, ClientState
from trio_console._wire.ids import slot_ids

if TYPE_CHECKING:
    from trio_console._relay.router.books import Books, SessionAccount
    from trio_console._relay.router.rights import Rights
    from trio_console._relay.router.session import Opening, RelayStream

__all__ = ["Client", "loss"]

#: Bytes queued for a client from which on small frames of one stream are joined. Below it, frames stay as they
#: came.
_BACKLOG: Final = 128 * 1024


def loss(session: RelaySession) -> bytes:
    """The terminal frame of a file operation or a connection of which data was dropped."""
    why = "its client read too slowly, and bytes for it were dropped: Input/output error (os error 5)"
    message = wire.FsResponse(ok=False, error=why) if session.kind == "fs" else wire.TcpFailed(why)
    return wire.encode(message, session.id)


def _is_output(item: Outgoing) -> bool:
    """Whether data is output of a command, or of a session that is not known."""
    return item.session is None or item.session.kind == "exec"


def _stream_of(item: Outgoing, session: RelaySession) -> wire.StreamName | None:
    """The stream of a session that data belongs to; `None` if the guest has sent it in the wrong session."""
    found = wire.measure_data(wire.parse_frame(item.frame))
    return None if found is None else session.shape.outputs.get(found[0])


@final
class Client:
    """One client: its ids, its sessions, and the frames that are queued for it.

    Args:
        slot: its slot.
        uid: its user, for whose account its own is opened; `None` is this program itself.
        rights: what it may do.
        books: the ledger.
        tail: a number of ids that is larger than that of all sessions that it can have.

    Attributes:
        account: its sums in the books.
        hurried: frames for its socket that are sent before those in `outgoing`.
        outgoing: frames for its socket.
        round: sessions with frames for the agent, in the order of their turns. (Also sessions whose frames were
            dropped before their turn: they keep their places.)
        starting: its commands of which the guest has said nothing yet.
        has_left: whether its connection was found closed, while frames of it are still handled.
        last_words: after it has gone, the ids for which the guest has not sent a terminal frame yet, and the kinds
            of their sessions.
    """

    def __init__(self, slot: int, uid: int | None, rights: Rights, books: Books, tail: int) -> None:
        self._books: Final = books
        self.slot: Final = slot
        self.granted: Final = rights.granted
        self.ids: Final = slot_ids(slot)
        self.account: Final = books.open_client(uid)
        self.state = CLIENT.first
        self.was_refused_shutdown = False  # so that a client is named once in the program's log
        self.sessions: dict[int, RelaySession] = {}
        self.hurried: deque[Outgoing] = deque()
        self.outgoing: deque[Outgoing] = deque()
        self.round: OrderedDict[RelaySession, None] = OrderedDict()
        self.starting: set[RelaySession] = set()
        self.has_left = False
        self.last_words: dict[int, wire.SessionKind] = {}
        self._unended: dict[int, SessionAccount] = {}  # after it has gone: its commands, by their ids
        # The last ids of its range, and which of them it has used, in the order of last use.
        self._tail: Final = self.ids[-tail:]
        self._recent: dict[int, None] = {}

    def become(self, state: ClientState) -> None:
        """Change the state.

        Raises:
            IllegalStepError: the table of states does not allow this step.
        """
        self.state = CLIENT.take(self.state, state)

    def open(self, session_id: int, opening: Opening) -> None:
        """Open a session."""
        assert session_id in self.ids, "a session has an id of its client's"
        session = self.sessions[session_id] = RelaySession(session_id, opening, self._books, self.account)
        if session.kind == "exec":
            self.starting.add(session)
        if session_id in self._tail:
            self._recent.pop(session_id, None)
            self._recent[session_id] = None

    def end(self, session: RelaySession) -> None:
        """End a session for which no more frames come: its id is free."""
        del self.sessions[session.id]
        session.end()
        self._books.forget(session.account)

    def quiet_id(self) -> int:
        """An id for which the guest sends no more frames: one that was never used, or not for a long time.

        An id whose session is over is not enough. Data of the client may still be on its way to that session, and
        an agent answers data for an unknown id with a terminal frame.
        """
        for session_id in reversed(self._tail):
            if session_id not in self._recent:
                return session_id
        return next(session_id for session_id in self._recent if session_id not in self.sessions)

    def queue(self, item: Outgoing, *, hurried: bool = False, held_in: RelayStream | None = None) -> None:
        """Queue a frame for its socket, one that has just come, or one that was held in a stream.

        A hurried frame overtakes the others.
        """
        queue = self.hurried if hurried else self.outgoing
        joined = join_last(queue, item) if queue and self.account.queued > _BACKLOG else None
        if joined is None:
            queue.append(item)
        added, cost = (len(item.frame), FRAME_COST) if joined is None else (joined, 0)
        if held_in is None:
            window = None if item.stream is None else item.stream.window
            self._books.queue(self.account, added, window, item.size, cost)
        else:
            self._books.let_go(held_in.window, len(item.frame) + FRAME_COST, added, item.size, cost)

    def take(self, limit: int) -> list[Outgoing]:
        """Take frames for its socket, of about ``limit`` bytes at most, but at least one frame if there is any."""
        batch: list[Outgoing] = []
        size = 0
        for queue in (self.hurried, self.outgoing):
            while queue and (not batch or size + len(queue[0].frame) <= limit):
                item = queue.popleft()
                batch.append(item)
                size += len(item.frame)
        return batch

    def drop_output(self) -> bool:
        """Drop the output of commands in its queue, and put into its place a message that says so.

        Returns whether that was done: not if it would not be told of a command that this was done to.
        """
        output = [item for item in self.outgoing if item.is_data and _is_output(item)]
        if not all(item.session is None or item.session.drops for item in output):
            return False
        items, self.outgoing = self.outgoing, deque()
        for item in items:
            if not item.is_data or not _is_output(item):
                self.outgoing.append(item)
                continue
            self._books.drop_queued(self.account, len(item.frame))
            session = item.session
            name = None if session is None else _stream_of(item, session)
            if session is not None and name is not None and name not in session.lossy:
                session.lossy |= {name}
                self.queue(Outgoing(wire.encode(wire.ExecDropped(name), session.id), session=session))
        return True

    def drop_rest(self) -> dict[RelaySession, bool]:
        """Drop the data in its queue, and in each session with such data all that comes behind it.

        The terminal frame of such a session becomes one that tells of that, but not if the client has closed it.

        Returns these sessions, and for each whether its terminal frame was in the queue.
        """
        lossy: dict[RelaySession, bool] = {}
        items, self.outgoing = self.outgoing, deque()
        for item in items:
            session = item.session
            if session is not None and item.is_data:
                lossy.setdefault(session, False)
            if session is None or session not in lossy:
                self.outgoing.append(item)
                continue
            self._books.drop_queued(self.account, len(item.frame))
            if item.ends is not None:
                lossy[session] = True
                self.queue(Outgoing(loss(session), ends=session, session=session))
        return lossy

    def hear_last_word(self, session_id: int) -> bool:
        """Note that the guest has sent a terminal frame after the client has gone.

        Returns whether it was the last one, behind which the slot is free.
        """
        del self.last_words[session_id]
        ended = self._unended.pop(session_id, None)
        if ended is not None:
            self._books.end_process(ended)
        if self.last_words:
            return False
        self._books.close_client(self.account)
        return True

    def close(self) -> None:
        """Drop all that is kept for it, because it has gone."""
        for session in tuple(self.sessions.values()):
            session.end()
            if session.account.processes:
                self._unended[session.id] = session.account
        self.sessions.clear()
        self.hurried.clear()
        self.outgoing.clear()
        self._books.leave(self.account)
