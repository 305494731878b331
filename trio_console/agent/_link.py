"""What sessions see of the rest of the agent: a way to send, counters, and their own contract.

Nothing here knows any particular kind of session.
"""

from __future__ import annotations

import abc
import time
from typing import TYPE_CHECKING, ClassVar, Final, final

import trio

from trio_console import _protocol as wire

if TYPE_CHECKING:
    from trio_console._outbox import Outbox

__all__ = ["Activity", "Link", "Session"]

_UNCOUNTED: Final = (wire.Pong, wire.Touched, wire.Error)

# A share of the bulk lane for frames whose size does not matter; the lane counts what they really are.
_SMALL_FRAME: Final = 128


@final
class Activity:
    """Counts what goes on, for whoever decides that a guest has been idle for too long."""

    __slots__ = (
        "exec_output_bytes",
        "fs_bytes",
        "guest_messages",
        "host_messages",
        "last",
        "seq",
        "tcp_bytes",
    )

    def __init__(self) -> None:
        self.seq = 0
        self.last = time.time()
        self.host_messages = 0
        self.guest_messages = 0
        self.exec_output_bytes = 0
        self.fs_bytes = 0
        self.tcp_bytes = 0

    def note_host_message(self) -> None:
        self.host_messages += 1
        self._note()

    def note_guest_message(self) -> None:
        self.guest_messages += 1
        self._note()

    def _note(self) -> None:
        self.seq += 1
        self.last = time.time()


@final
class Link:
    """Sends messages and counts them.

    All methods raise `trio.BrokenResourceError` or `trio.ClosedResourceError` once the console is gone;
    sessions let that pass, the router deals with it.
    """

    __slots__ = ("activity", "outbox")

    def __init__(self, outbox: Outbox, activity: Activity) -> None:
        self.outbox = outbox
        self.activity = activity

    def send(self, message: wire.Message, session_id: int) -> None:
        """Send at once, overtaking data of all sessions. Never blocks."""
        self.outbox.send_control(wire.encode(message, session_id))
        if type(message) not in _UNCOUNTED:
            self.activity.note_guest_message()

    def commit_data(self, cls: type[wire.DataMessage], session_id: int, data: bytes, reserved: int) -> None:
        """Send data against a share of the bulk lane that was reserved before it was read."""
        self.outbox.commit(wire.encode_data(cls, session_id, data), reserved)
        self.activity.note_guest_message()

    async def reserve_small(self) -> None:
        """Wait for one's turn to `commit_small`; to be followed by that or `release_small`."""
        await self.outbox.reserve(_SMALL_FRAME)

    def commit_small(self, message: wire.Message, session_id: int) -> None:
        """Send behind all data that was sent before."""
        self.outbox.commit(wire.encode(message, session_id), _SMALL_FRAME)
        if type(message) not in _UNCOUNTED:
            self.activity.note_guest_message()

    def release_small(self) -> None:
        """Send nothing after all."""
        self.outbox.release(_SMALL_FRAME)


class Session(abc.ABC):
    """Everything that shares one id, from the opening frame to the terminal frame.

    `run` is the session; the other methods are called by the router, from another task of the same
    thread, also before `run` has begun and up to the moment it returns.
    """

    __slots__ = ("_departed", "_ending", "_link", "_muted", "_scope", "id")

    #: A word for the heartbeat's counters: ``exec``, ``fs`` or ``tcp``.
    kind: ClassVar[str]

    #: Message classes `receive` takes. Others that come with this id are treated as if it were free.
    accepts: ClassVar[frozenset[type[wire.Message]]]

    def __init__(self, link: Link, session_id: int) -> None:
        self.id = session_id
        self._link = link
        self._scope = trio.CancelScope()
        self._ending: wire.Message | None = None
        self._muted = False
        self._departed = False

    @abc.abstractmethod
    async def run(self) -> None:
        """Live, and end with one terminal frame at most.

        The terminal frame is the last thing done, with no checkpoint between queueing it and returning:
        the id is free the moment the peer can see that frame. If cancelled from outside, end everything at
        once and send nothing.
        """

    @abc.abstractmethod
    async def receive(self, message: wire.Message) -> None:
        """Take a message of this session. The whole channel waits: return soon."""

    def end(self, ending: wire.Message | None = None) -> None:
        """End now; what is under way is dropped. Idempotent.

        Args:
            ending: the terminal message; ``None`` leaves it to the session.
        """
        self._ending = self._ending or ending
        self._scope.cancel()

    def depart(self) -> None:
        """The client is gone: end. The terminal frame tells a relay that the id may be used again."""
        self._departed = True
        self.end()

    @property
    def departed(self) -> bool:
        """Whether the client is gone, so that somebody else may come to use the id."""
        return self._departed

    @property
    def ended(self) -> bool:
        """Whether `end` was called: nothing but the terminal frame may be sent any more.

        Tasks of the session find out at their next checkpoint, which may be too late: one that had been
        woken before runs on to it first, and by then the id may be somebody else's.
        """
        return self._scope.cancel_called

    def mute(self) -> None:
        """Send no terminal frame any more: the id belongs to somebody else, or nobody is to be told."""
        self._muted = True

    def shut_down(self) -> None:
        """The guest is about to stop: end in order, silently. What is left after a while is cancelled."""
        self.mute()
        self.end()

    def _send_now(self, message: wire.Message) -> None:
        """Send at once, unless the session was ended."""
        if not self.ended:
            self._link.send(message, self.id)

    async def _say_last(self, message: wire.Message) -> None:
        """Send the terminal frame behind the session's data, unless somebody has forbidden it meanwhile."""
        await self._link.reserve_small()
        if self._muted:
            self._link.release_small()
        else:
            self._link.commit_small(self._ending or message, self.id)
