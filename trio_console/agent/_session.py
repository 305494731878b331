"""The agent as sessions see it: the sender of their messages, the counters of activity, and their base class.

This module must not know any particular kind of session.
"""

from __future__ import annotations

import abc
import enum
import time
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar, final

import trio

from trio_console import _wire as wire
from trio_console._states import Steps
from trio_console._trio.turns import sources_left_alone
from trio_console._wire.credit import SendWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._wire.outbox import Outbox

__all__ = ["VOICE", "Activity", "PromptSession", "SendCredit", "Sender", "Session", "Voice"]

_B = TypeVar("_B", bytes, memoryview)

#: Bytes that are reserved for a small frame; the outbox then counts the frame's real size.
_SMALL_FRAME: Final = 128

#: Bytes of frames that are queued without a reservation, before the router waits for room.
_UNRESERVED_BUDGET: Final = 64 * 1024


@final
class Activity:
    """Counts messages and bytes, for a program that decides whether a guest has been idle for too long."""

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
class Sender:
    """Sends messages and counts them.

    All methods raise `trio.BrokenResourceError` or `trio.ClosedResourceError` once the console is gone. Sessions
    do not catch these errors; the router does.
    """

    __slots__ = ("_unreserved", "activity", "alone", "outbox")

    def __init__(self, outbox: Outbox, activity: Activity) -> None:
        self.outbox = outbox
        self.activity = activity
        self.alone: Final = sources_left_alone()
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
        """Send data, and use up the reservation of ``reserved`` bytes made before the data was read.

        `bytes` are not copied.
        """
        if isinstance(data, bytes):
            self.outbox.commit((wire.encode_data_lead(cls, session_id, len(data)), data), reserved)
        else:
            self.outbox.commit(wire.encode_data(cls, session_id, data), reserved)
        self.activity.note_guest_message()

    async def reserve_small(self) -> None:
        """Reserve room for a small frame; `commit_small` or `release_small` must follow.

        Not a checkpoint if there is room. If cancelled, nothing is reserved.
        """
        if not self.outbox.reserve_nowait(_SMALL_FRAME):
            await self.outbox.reserve(_SMALL_FRAME)

    def commit_small(self, message: wire.Message, session_id: int) -> None:
        """Send a message behind all data that was sent before, and use up the reservation."""
        self.outbox.commit(wire.encode(message, session_id), _SMALL_FRAME)
        if wire.type_of(message).activity:
            self.activity.note_guest_message()

    def release_small(self) -> None:
        """Give the reservation back."""
        self.outbox.release(_SMALL_FRAME)

    def commit_frame(self, frame: bytes, reserved: int) -> None:
        """Send a whole frame behind all data, and use up a reservation of ``reserved`` bytes."""
        self.outbox.commit(frame, reserved)
        self.activity.note_guest_message()

    def commit_unreserved(self, message: wire.Message, session_id: int) -> None:
        """Queue a small frame behind all data at once, also if there is no room. See `wait_room`."""
        frame = wire.encode(message, session_id)
        self._unreserved += len(frame)
        self.outbox.commit(frame, 0)
        if wire.type_of(message).activity:
            self.activity.note_guest_message()

    async def wait_room(self) -> None:
        """Wait while too many frames are queued without a reservation. For the router, between two frames.

        Not a checkpoint when there is room.
        """
        await self.outbox.wait_control_room()
        if self._unreserved >= _UNRESERVED_BUDGET:
            await self.outbox.reserve(0)  # waits until the bulk queue is within its budget
            self.outbox.release(0)
            self._unreserved = 0


@final
class SendCredit:
    """The credit that a client grants for one stream.

    Args:
        window: bytes that may be sent before a grant, or ``None`` if the client counts no credit.
    """

    __slots__ = ("_room", "_window", "given_up")

    def __init__(self, window: int | None) -> None:
        self._window: Final = SendWindow(window)
        #: Whether no more grants are waited for.
        self.given_up = False
        self._room = trio.Event()

    async def wait(self, wanted: int) -> int:
        """Wait until bytes may be sent; returns how many, at most ``wanted``, or 0 after `give_up`.

        Only one task waits at a time. Not a checkpoint if there is credit.
        """
        while not (size := self._window.may_send(wanted)) and not self.given_up:
            self._room = trio.Event()
            await self._room.wait()
        return size

    def may_send(self, wanted: int) -> int:
        """How many bytes may be sent now, at most ``wanted``."""
        return self._window.may_send(wanted)

    def note_sent(self, nbytes: int) -> None:
        self._window.sent(nbytes)

    def grant(self, nbytes: int) -> None:
        self._window.granted(nbytes)
        self._room.set()

    def give_up(self) -> None:
        """Wait for no more grants: bytes without credit will not be sent."""
        self.given_up = True
        self._room.set()


class Voice(enum.Enum):
    """The frames that a session may still send under its id."""

    LIVE = enum.auto()  # all frames
    QUIET = enum.auto()  # data, but no terminal frame: the agent is about to stop
    ENDING = enum.auto()  # only the terminal frame
    DEPARTED = (
        enum.auto()
    )  # only the terminal frame, for a relay: the client is gone; the id may get another owner
    OVER = enum.auto()  # none: the terminal frame was sent, or the id has another owner


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

# Looking into an enum is slow before Python 3.12, and these are looked at for each frame.
_LIVE: Final = Voice.LIVE
_SILENT: Final = (Voice.QUIET, Voice.OVER)
_GONE: Final = (Voice.DEPARTED, Voice.OVER)


class Session(abc.ABC):
    """The agent's side of a session, from the request to the terminal frame.

    `run` is the task of the session. The router calls the other methods, from another task of the same thread,
    also before `run` has begun, and until it returns.
    """

    __slots__ = ("_ending", "_scope", "_sender", "_voice", "id")

    #: The session's name in the counters of the activity file: ``exec``, ``fs`` or ``tcp``; empty if not counted.
    kind: ClassVar[str]

    #: The classes of messages that `receive` takes. Other messages with this id are handled as if the id were
    #: free.
    accepts: ClassVar[frozenset[type[wire.Message]]]

    def __init__(self, sender: Sender, session_id: int) -> None:
        self.id = session_id
        self._sender = sender
        self._scope = trio.CancelScope()
        self._ending: wire.Message | None = None
        self._voice = VOICE.first

    @abc.abstractmethod
    async def run(self) -> None:
        """Run the session, and end it with at most one terminal frame.

        The terminal frame is the last step, with no checkpoint between queueing it and returning, because the id
        is free as soon as the peer sees that frame. If cancelled from outside, it ends everything at once and
        sends no terminal frame.
        """

    @abc.abstractmethod
    async def receive(self, message: wire.Message) -> None:
        """Take a message of this session. The reading of the whole console waits for this, so it must be short."""

    def end(self, ending: wire.Message | None = None) -> None:
        """End the session now; its unsent data is dropped. A second call does nothing.

        Args:
            ending: the terminal message; with ``None`` the session chooses it.
        """
        self._ending = self._ending or ending
        if self._voice is Voice.LIVE:
            self._become(Voice.ENDING)
        elif self._voice is Voice.QUIET:
            self._become(Voice.OVER)
        self._scope.cancel()

    def depart(self) -> None:
        """Note that the client is gone; `end` follows, unless the session is `delivering`.

        From now on only the terminal frame may be sent, which tells a relay that the id is free.
        """
        if self._voice in (Voice.LIVE, Voice.ENDING):
            self._become(Voice.DEPARTED)
        elif self._voice is Voice.QUIET:
            self._become(Voice.OVER)

    def _become(self, voice: Voice) -> None:
        self._voice = VOICE.take(self._voice, voice)

    @property
    def departed(self) -> bool:
        """Whether a new session may use the id: the client has gone, or the terminal frame was sent.

        The session may still have to release its resources.
        """
        return self._voice in _GONE

    @property
    def muted(self) -> bool:
        """Whether no terminal frame may be sent: it was forbidden (see `mute`), or was sent before."""
        return self._voice in _SILENT

    @property
    def ended(self) -> bool:
        """Whether at most the terminal frame may still be sent.

        The cancellation of the session's tasks is not enough: a task that was woken before runs on to its next
        checkpoint, and by then the id may have another owner. So each send checks this.
        """
        return self._voice not in _PASSING_ON

    @property
    def delivering(self) -> bool:
        """Whether the session only passes on what its client has sent, which is given more time at the end."""
        return False

    def mute(self) -> None:
        """Forbid the terminal frame: the id has another owner, or the agent stops. A second call does nothing."""
        if not self.muted:
            self._become(Voice.QUIET if self._voice is Voice.LIVE else Voice.OVER)

    def let_go_of_id(self) -> None:
        """The last frame of the id has gone by, ours or (the router sees to that) the client's: it is free now."""
        if self._voice is not Voice.OVER:
            self._become(Voice.OVER)

    def shut_down(self, grace: float | None) -> None:
        """End in order, without a terminal frame, because the guest is about to stop. Later it is cancelled.

        Args:
            grace: seconds for the guest to stop, `None` if the host has not told them.
        """
        self.mute()
        self.end()

    def _send_now(self, message: wire.Message) -> None:
        """Send at once, unless the session was ended."""
        if self._voice is _LIVE:
            self._sender.send(message, self.id)

    async def _pass_on(
        self, cls: type[wire.DataMessage], size: int, read: Callable[[int], _B | None]
    ) -> _B | None:
        """Read at most ``size`` bytes without blocking, and send them; returns the result of ``read``.

        Room in the outbox is reserved before the bytes are read. There is no checkpoint between the read and the
        commit, so that each byte is either still at its source or queued. If there is room at once there is no
        checkpoint at all: the caller must make one between two calls.

        If the session was ended, this waits until its task is cancelled, which may be many turns of the loop later
        (see `Router._say_farewell`). The source may be readable all that time, so the caller must not ask again.
        """
        assert size > 0, "a read of no bytes would look like the end of the data"
        outbox = self._sender.outbox
        if not outbox.reserve_nowait(size):
            await outbox.reserve(size)
        data: _B | None = None
        try:
            if not self.ended:
                data = read(size)
        finally:
            if not data:
                outbox.release(size)
        if data:
            self._sender.commit_data(cls, self.id, data, size)
        elif data is None and self.ended:
            await trio.sleep_forever()
        return data

    async def _say_last(self, message: wire.Message) -> None:
        """Send the terminal frame behind the session's data, unless it was forbidden in the meantime."""
        await self._sender.reserve_small()
        if self.muted:
            self._sender.release_small()
        else:
            self._become(Voice.OVER)  # an id is free when its terminal frame is queued
            self._sender.commit_small(self._ending or message, self.id)


class PromptSession(Session):
    """A session that frees its id at the moment it is ended.

    Its task may run longer: a thread inside a system call cannot be stopped, and the descriptors of that call must
    stay open until it returns. So `end` sends the terminal frame, and not the task.
    """

    __slots__ = ()

    @abc.abstractmethod
    def _cut_short(self) -> wire.Message:
        """The terminal message of a session that is ended without one."""

    def end(self, ending: wire.Message | None = None) -> None:
        """See `Session.end`."""
        untold = not self.muted
        self.let_go_of_id()
        self._scope.cancel()
        if untold:
            self._sender.commit_unreserved(ending or self._cut_short(), self.id)

    def depart(self) -> None:
        """See `Session.depart`. There is no terminal frame."""
        self.let_go_of_id()

    async def _answer(self, frame: bytes, data: bytes = b"") -> bool:
        """Send the encoded terminal frame behind the session's data; returns whether it was sent.

        It is not sent if the session was ended in the meantime.

        Args:
            frame: the terminal frame.
            data: the whole contents of a file, which are sent in front of it, or with it not at all.
        """
        await self._sender.outbox.reserve(len(data) + len(frame))
        if self.muted:
            self._sender.outbox.release(len(data) + len(frame))
            return False
        if data:
            self._sender.commit_data(wire.FsData, self.id, data, len(data))
        self.let_go_of_id()
        self._sender.commit_frame(frame, len(frame))
        return True
