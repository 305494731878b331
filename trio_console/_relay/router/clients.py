"""One client, as the router knows it: its ids, its sessions, and the frames that are queued for it.

The frames are here; the books count their bytes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, final

from trio_console._relay.router.books import FRAME_COST
from trio_console._relay.router.session import join_last
from trio_console._relay.router.states import CLIENT, ClientState
from trio_console._wire.ids import slot_ids

if TYPE_CHECKING:
    from trio_console import _wire as wire
    from trio_console._relay.router.books import ClientAccount
    from trio_console._relay.router.session import Outgoing, RelaySession

__all__ = ["Client"]

#: Bytes queued for a client from which on small frames of one stream are joined. Below it, frames stay as they
#: came.
_BACKLOG: Final = 128 * 1024


@final
class Client:
    """One client: its ids, its sessions, and the frames that are queued for it.

    Attributes:
        account: its sums in the books.
        hurried: frames for its socket that are sent before those in `outgoing`.
        outgoing: frames for its socket.
        round: sessions with frames for the agent, in the order of their turns. (Also sessions whose frames were
            dropped before their turn: they keep their places.)
        last_words: after it has gone, the ids for which the guest has not sent a terminal frame yet, and the kinds
            of their sessions.
    """

    def __init__(self, slot: int, account: ClientAccount) -> None:
        self.slot: Final = slot
        self.ids: Final = slot_ids(slot)
        self.account: Final = account
        self.state = CLIENT.first
        self.sessions: dict[int, RelaySession] = {}
        self.hurried: deque[Outgoing] = deque()
        self.outgoing: deque[Outgoing] = deque()
        self.round: OrderedDict[RelaySession, None] = OrderedDict()
        self.last_words: dict[int, wire.SessionKind] = {}
        self._recent: dict[
            int, None
        ] = {}  # ids at the end of its range that it has used, in the order of last use

    def become(self, state: ClientState) -> None:
        """Change the state.

        Raises:
            IllegalStepError: the table of states does not allow this step.
        """
        self.state = CLIENT.take(self.state, state)

    @property
    def kept_size(self) -> int:
        """The bytes of all frames that are kept for it, with their costs."""
        return self.account.queued + FRAME_COST * (len(self.hurried) + len(self.outgoing)) + self.account.held

    def note_opened(self, session_id: int, tail: int) -> None:
        """Remember that a session was opened, if its id is one of the last ``tail`` ids of the range."""
        if session_id >= self.ids.stop - tail:
            self._recent.pop(session_id, None)
            self._recent[session_id] = None

    def quiet_id(self, tail: int) -> int:
        """An id for which the guest sends no more frames: one that was never used, or not for a long time.

        An id whose session is over is not enough. Data of the client may still be on its way to that session, and
        an agent answers data for an unknown id with a terminal frame.
        """
        for session_id in reversed(self.ids[-tail:]):
            if session_id not in self._recent:
                return session_id
        return next(session_id for session_id in self._recent if session_id not in self.sessions)

    def put(self, item: Outgoing, *, hurried: bool = False) -> int:
        """Queue a frame for its socket; returns how many bytes longer the queue is.

        A hurried frame overtakes the others.
        """
        queue = self.hurried if hurried else self.outgoing
        if queue and self.account.queued > _BACKLOG:
            added = join_last(queue, item)
            if added is not None:
                return added
        queue.append(item)
        return len(item.frame)

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
