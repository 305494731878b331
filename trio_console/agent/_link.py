"""What sessions see of the rest of the agent: a way to send, counters, and their own contract.

Nothing here knows any particular kind of session.
"""

from __future__ import annotations

import abc
import enum
import time
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar, final

import trio

from trio_console import _wire as wire
from trio_console._states import Steps
from trio_console._wire.credit import SendWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._wire.outbox import Outbox

__all__ = ["VOICE", "Activity", "Link", "PromptSession", "SendCredit", "Session", "Voice"]

_B = TypeVar("_B", bytes, memoryview)

# A share of the bulk lane for frames whose size does not matter; the lane counts what they really are.
_SMALL_FRAME: Final = 128

#: Bytes of frames that are queued without asking for room, until the router waits for some.
_UNRESERVED_BUDGET: Final = 64 * 1024


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

    __slots__ = ("_unreserved", "activity", "outbox")

    def __init__(self, outbox: Outbox, activity: Activity) -> None:
        self.outbox = outbox
        self.activity = activity
        self._unreserved = 0

    def send(self, message: wire.Message, session_id: int) -> None:
        """Send at once, overtaking data of all sessions. Never blocks."""
        assert wire.type_of(message).overtakes, "what may not overtake data is sent behind it"
        self.outbox.send_control(wire.encode(message, session_id))
        if wire.type_of(message).activity:
            self.activity.note_guest_message()

    def commit_data(
        self, cls: type[wire.DataMessage], session_id: int, data: bytes | memoryview, reserved: int
    ) -> None:
        """Send data against a share of the bulk lane that was reserved before it was read.

        `bytes` are not copied.
        """
        if isinstance(data, bytes):
            self.outbox.commit((wire.encode_data_lead(cls, session_id, len(data)), data), reserved)
        else:
            self.outbox.commit(wire.encode_data(cls, session_id, data), reserved)
        self.activity.note_guest_message()

    async def reserve_small(self) -> None:
        """Wait for one's turn to `commit_small`; to be followed by that or `release_small`.

        Not a checkpoint if there is room.
        """
        if not self.outbox.reserve_nowait(_SMALL_FRAME):
            await self.outbox.reserve(_SMALL_FRAME)

    def commit_small(self, message: wire.Message, session_id: int) -> None:
        """Send behind all data that was sent before."""
        self.outbox.commit(wire.encode(message, session_id), _SMALL_FRAME)
        if wire.type_of(message).activity:
            self.activity.note_guest_message()

    def release_small(self) -> None:
        """Send nothing after all."""
        self.outbox.release(_SMALL_FRAME)

    def commit_frame(self, frame: bytes, reserved: int) -> None:
        """Send a whole frame behind all data, against a share of the bulk lane."""
        self.outbox.commit(frame, reserved)
        self.activity.note_guest_message()

    def commit_unreserved(self, message: wire.Message, session_id: int) -> None:
        """Send a small frame behind all data at once, whether or not there is room. See `wait_room`."""
        frame = wire.encode(message, session_id)
        self._unreserved += len(frame)
        self.outbox.commit(frame, 0)
        if wire.type_of(message).activity:
            self.activity.note_guest_message()

    async def wait_room(self) -> None:
        """Wait while too much is queued that nobody waited to send. For the router, between two frames.

        Not a checkpoint when there is room.
        """
        await self.outbox.wait_control_room()
        if self._unreserved >= _UNRESERVED_BUDGET:
            await self.outbox.reserve(0)  # that is: until the lane is within its budget
            self.outbox.release(0)
            self._unreserved = 0


@final
class SendCredit:
    """What a client lets us send of one stream.

    Args:
        window: bytes that may be sent and not granted anew, or ``None`` if the client does not count.
    """

    __slots__ = ("_given_up", "_room", "_window")

    def __init__(self, window: int | None) -> None:
        self._window: Final = SendWindow(window)
        self._given_up = False
        self._room = trio.Event()

    async def wait(self, wanted: int) -> int:
        """Wait until something may be sent; return how much, at most ``wanted``. One task waits at a time.

        Not a checkpoint when something may be. 0 is after `give_up`.
        """
        while not (size := self._window.may_send(wanted)) and not self._given_up:
            self._room = trio.Event()
            await self._room.wait()
        return size

    def note_sent(self, nbytes: int) -> None:
        self._window.sent(nbytes)

    def grant(self, nbytes: int) -> None:
        self._window.granted(nbytes)
        self._room.set()

    def give_up(self) -> None:
        """Wait for no grant any more: what may not be sent yet will not be."""
        self._given_up = True
        self._room.set()


class Voice(enum.Enum):
    """What a session may still say under its id, and whose that is."""

    LIVE = enum.auto()  # everything
    QUIET = enum.auto()  # data: the agent is to stop, and nobody is to be told how the session ends
    ENDING = enum.auto()  # the terminal frame
    DEPARTED = enum.auto()  # the terminal frame, for a relay: the client is gone, and somebody else may get the id
    OVER = enum.auto()  # nothing: it has said its terminal frame, or the id belongs to somebody else


VOICE: Final = Steps(
    {
        Voice.LIVE: {Voice.QUIET, Voice.ENDING, Voice.DEPARTED, Voice.OVER},
        Voice.QUIET: {Voice.OVER},
        Voice.ENDING: {Voice.DEPARTED, Voice.OVER},
        Voice.DEPARTED: {Voice.OVER},
        Voice.OVER: set(),
    }
)

# Compared for each chunk.
_PASSING_ON: Final = (Voice.LIVE, Voice.QUIET)


class Session(abc.ABC):
    """Everything that shares one id, from the opening frame to the terminal frame.

    `run` is the session; the other methods are called by the router, from another task of the same
    thread, also before `run` has begun and up to the moment it returns.
    """

    __slots__ = ("_ending", "_link", "_scope", "_voice", "id")

    #: A word for the heartbeat's counters: ``exec``, ``fs`` or ``tcp``; empty: not counted.
    kind: ClassVar[str]

    #: Message classes `receive` takes. Others that come with this id are treated as if it were free.
    accepts: ClassVar[frozenset[type[wire.Message]]]

    def __init__(self, link: Link, session_id: int) -> None:
        self.id = session_id
        self._link = link
        self._scope = trio.CancelScope()
        self._ending: wire.Message | None = None
        self._voice = VOICE.first

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
        if self._voice is Voice.LIVE:
            self._become(Voice.ENDING)
        elif self._voice is Voice.QUIET:
            self._become(Voice.OVER)
        self._scope.cancel()

    def depart(self) -> None:
        """The client is gone: end. The terminal frame tells a relay that the id may be used again."""
        if self._voice in (Voice.LIVE, Voice.ENDING):
            self._become(Voice.DEPARTED)
        self.end()

    def _become(self, voice: Voice) -> None:
        self._voice = VOICE.take(self._voice, voice)

    @property
    def departed(self) -> bool:
        """Whether the id may be used by somebody else: its client, or the session itself, is done with it.

        The session may still have to let go of what it holds.
        """
        return self._voice in (Voice.DEPARTED, Voice.OVER)

    @property
    def muted(self) -> bool:
        """Whether there is no terminal frame to be sent: see `mute`, or it was sent."""
        return self._voice in (Voice.QUIET, Voice.OVER)

    @property
    def ended(self) -> bool:
        """Whether nothing but the terminal frame may be sent any more, if that.

        Tasks of the session find out at their next checkpoint, which may be too late: one that had been
        woken before runs on to it first, and by then the id may be somebody else's.
        """
        return self._voice not in _PASSING_ON

    def mute(self) -> None:
        """Send no terminal frame any more: the id is somebody else's, or nobody is to be told. Idempotent."""
        if not self.muted:
            self._become(Voice.QUIET if self._voice is Voice.LIVE else Voice.OVER)

    def let_go_of_id(self) -> None:
        """The last frame of the id has gone by, ours or (the router sees to that) the client's: it is free now."""
        if self._voice is not Voice.OVER:
            self._become(Voice.OVER)

    def shut_down(self) -> None:
        """The guest is about to stop: end in order, silently. What is left after a while is cancelled."""
        self.mute()
        self.end()

    def _send_now(self, message: wire.Message) -> None:
        """Send at once, unless the session was ended."""
        if self._voice is Voice.LIVE:
            self._link.send(message, self.id)

    async def _pass_on(
        self, cls: type[wire.DataMessage], share: int, read: Callable[[int], _B | None]
    ) -> _B | None:
        """Read at most ``share`` bytes without blocking and send them; return what ``read`` returned.

        The console's room is taken before the bytes are. Between the read and the commit there is no
        checkpoint, so that bytes are either still where they were or on their way. There is none at all if there
        is room at once: the caller sees to one between two calls.
        """
        outbox = self._link.outbox
        if not outbox.reserve_nowait(share):
            await outbox.reserve(share)
        data: _B | None = None
        try:
            if not self.ended:
                data = read(share)
        finally:
            if not data:
                outbox.release(share)
        if data:
            self._link.commit_data(cls, self.id, data, share)
        return data

    async def _say_last(self, message: wire.Message) -> None:
        """Send the terminal frame behind the session's data, unless somebody has forbidden it meanwhile."""
        await self._link.reserve_small()
        if self.muted:
            self._link.release_small()
        else:
            self._become(Voice.OVER)  # an id is free when its terminal frame is on its way
            self._link.commit_small(self._ending or message, self.id)


class PromptSession(Session):
    """A session that gives its id back the moment it is ended.

    Its task may take longer: a thread inside a system call cannot be stopped, and what that call uses must
    not be let go of before it returns. So the terminal frame is said at once and not by the task.
    """

    __slots__ = ()

    @abc.abstractmethod
    def _cut_short(self) -> wire.Message:
        """The terminal message of a session that is ended and nobody says with which."""

    def end(self, ending: wire.Message | None = None) -> None:
        """See `Session.end`."""
        untold = not self.muted
        self.let_go_of_id()
        self._scope.cancel()
        if untold:
            self._link.commit_unreserved(ending or self._cut_short(), self.id)

    def depart(self) -> None:
        """The client is gone: end without a word."""
        self.mute()
        super().depart()

    async def _answer(self, frame: bytes) -> bool:
        """Send the terminal frame, an encoded one, behind the session's data; whether it was sent.

        It is not if the session was ended meanwhile.
        """
        await self._link.outbox.reserve(len(frame))
        if self.muted:
            self._link.outbox.release(len(frame))
            return False
        self.let_go_of_id()
        self._link.commit_frame(frame, len(frame))
        return True
