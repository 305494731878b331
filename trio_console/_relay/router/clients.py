"""What the router knows of one client: its ids, its sessions, and what is queued for it.

What waits is here; how many bytes that are, the books say.
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

#: Bytes queued for a client from which on pieces of one stream are joined. Below, frames pass as they came.
_BACKLOG: Final = 128 * 1024


@final
class Client:
    """One client: its ids, its sessions, and what is queued for it.

    Attributes:
        account: its sums in the books.
        hurried: frames for its socket that go before those in `outgoing`.
        round: sessions with something that the agent may get, in the order of their turns. (And some that had,
            and lost it before their turn: they keep their places.)
        last_words: once it has gone, the ids of which the guest is yet to say the last, and their sessions' kinds.
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
        self._recent: dict[int, None] = {}  # ids at the end of its range that it has opened, the last ones last

    def become(self, state: ClientState) -> None:
        """Go on to another state.

        Raises:
            IllegalStepError: that may not follow the one it is in.
        """
        self.state = CLIENT.take(self.state, state)

    @property
    def kept_size(self) -> int:
        """All that is kept for it, with what it costs to do so."""
        return self.account.queued + FRAME_COST * (len(self.hurried) + len(self.outgoing)) + self.account.held

    def note_opened(self, id_: int, tail: int) -> None:
        """A session was opened. ``tail`` is how many ids at the end of the range are remembered."""
        if id_ >= self.ids.stop - tail:
            self._recent.pop(id_, None)
            self._recent[id_] = None

    def quiet_id(self, tail: int) -> int:
        """An id of which the guest has nothing to say any more: one that was never opened, or long ago.

        That its session is over is not enough. What the client has sent may still be on its way to it, and an
        agent answers data for an id that it does not know with a terminal frame.
        """
        unused = (id_ for id_ in reversed(self.ids[-tail:]) if id_ not in self._recent)
        id_ = next(unused, None)
        return next(id_ for id_ in self._recent if id_ not in self.sessions) if id_ is None else id_

    def put(self, item: Outgoing, *, hurried: bool = False) -> int:
        """Queue a frame for its socket; returns how many bytes longer the queue is.

        A hurried one overtakes those that are not.
        """
        queue = self.hurried if hurried else self.outgoing
        if queue and self.account.queued > _BACKLOG:
            added = join_last(queue, item)
            if added is not None:
                return added
        queue.append(item)
        return len(item.frame)

    def take(self, limit: int) -> list[Outgoing]:
        """Take frames for its socket, at least one if there is any, together at most about ``limit`` bytes."""
        batch: list[Outgoing] = []
        size = 0
        for queue in (self.hurried, self.outgoing):
            while queue and (not batch or size + len(queue[0].frame) <= limit):
                item = queue.popleft()
                batch.append(item)
                size += len(item.frame)
        return batch
