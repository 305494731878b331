"""One frame stream to an agent, shared by any number of sessions.

Two tasks own the stream: the outbox writes frames, and the reader here parses frames and gives each to its
session. Sessions are called synchronously and never make the reader wait, with one exception: an agent that counts
no credit can send more than a session's user reads, and then the whole stream is paused until the user has read.

A bad frame ends the session that it belongs to, and so does an exception that a session raises. Bytes that are not
frames end the connection. In each case every session ends with a reason: when `Connection.run` ends, for whatever
reason, it calls `Session.on_error` of each session that has not ended by itself.

This module must not know what sessions do, nor how the guest was started.
"""

from __future__ import annotations

import abc
import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, final

import msgspec
import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError, UnsupportedByPeer, again
from trio_console._session.owner import Owner
from trio_console._trio.lost import GuestLostError, explained
from trio_console._trio.nursery import hidden_nursery
from trio_console._trio.reports import LoggedReports
from trio_console._trio.turns import Costly, Turn
from trio_console._wire.credit import Admitted
from trio_console._wire.ids import TRANSPORT_ID, IdSequence
from trio_console._wire.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_console._session.statistics import SessionStatistics
    from trio_console._wire.credit import Admission

__all__ = ["Connection", "Question", "Session"]

_log: Final = LoggedReports("trio_console.client")

#: Seconds of silence allowed to a guest that takes no more bytes. The last bytes of a dying guest arrive at once;
#: a guest that has only closed its input will never answer again.
_LAST_WORDS_TIME: Final = 1.0


_RELAY_LOST: Final = wire.type_of(wire.RelayLost).name
_TRANSPORT_CREDIT: Final = wire.type_of(wire.TransportCredit).name


class Session(abc.ABC):
    """The host's side of a session. The reader calls its methods, which must not block.

    The constructor takes an id with `Connection.new_id`, and sends nothing: `Connection.open` sends the request,
    when the object is complete. An exception of a callback ends only this session.
    """

    id: int

    @abc.abstractmethod
    def on_message(self, message: wire.Message) -> None:
        """Act on a message of this session. After a terminal message there are no more calls."""

    @abc.abstractmethod
    def on_error(self, error: Exception) -> None:
        """End the session abnormally. There are no more calls, but if this raises it is called once more.

        Args:
            error: `GuestLostError`, `ProtocolError`, or the exception of a callback of this session. Unless the
                guest is lost, the guest still has the session, and has to be told.
        """

    def leave(self) -> None:  # noqa: B027  (most sessions have nothing to say)
        """Tell the guest that its user is about to leave it. Not called after an end."""

    def statistics(self) -> SessionStatistics | None:
        """What it has moved; `None` for a session that is over after a moment. Any thread may ask."""
        return None

    @property
    def congested(self) -> bool:
        """Whether more bytes are unread than a connection should hold, so that the reader must wait."""
        return False

    async def wait_relieved(self) -> None:
        """Wait until not `congested`."""
        await trio.lowlevel.checkpoint()


@final
class Question(Session):
    """A session of one request and one answer."""

    def __init__(self, session_id: int) -> None:
        self.id = session_id
        self.reply: wire.Message | None = None
        self.error: Exception | None = None
        self.done = trio.Event()

    def on_message(self, message: wire.Message) -> None:
        self.reply = message
        self.done.set()

    def on_error(self, error: Exception) -> None:
        self.error = error
        self.done.set()


@final
class Connection:
    """The host's or client's end of a frame stream.

    Args:
        stream: carries the frames. The caller closes it.
        decoder: the decoder that was used for the boot or the greeting; it may hold bytes that came after those.
        ready: the agent's ready message.
        generation: the protocol generation that the peer wrote into that message.
        ids: the correlation ids to use.
        explain: called when the stream has ended; it finds out why, in words. See `explained`.
        cause: called after that; the exception that is the cause, if one is known.
        admission: what the agent admits of all that comes over its console, if this is the console's owner, and
            the agent may count that.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        decoder: wire.FrameDecoder,
        ready: wire.Ready,
        generation: int,
        ids: range,
        explain: Callable[[], Awaitable[str]],
        cause: Callable[[], Exception | None] = lambda: None,
        admission: Admission | None = None,
    ) -> None:
        self.ready: Final = ready
        self.peer_generation: Final = generation
        self.generation: Final = min(generation, wire.GENERATION)
        self.outbox: Final = Outbox(stream, admission=admission)
        self.lost: GuestLostError | None = None
        self.frames_received = 0
        self.bytes_received = 0
        self.frames_dropped = 0
        self.bytes_discarded = 0
        self._owner: Final = Owner()
        self._stream = stream
        self._decoder = decoder
        self._ids: Final = IdSequence(ids)
        #: The sessions by the ids in use. `None`: the session is over on this side, but the guest still has it.
        self._sessions: dict[int, Session | None] = {}
        self._explain = explain
        self._cause = cause
        self._told = ""  # the reason of the end, if a relay has told it
        self._expected: str | None = None  # the reason of the end, if this side has caused it
        self._awaiting_end = 0  # how many tasks wait for that end
        self._write_error: Exception | None = None
        self._ended = trio.Event()
        # Shielded: when the user's block is cancelled, sessions still need the frames that confirm the ends of
        # their processes. `lose` ends it, and the caller of `run` always calls `lose`.
        self._running = trio.CancelScope(shield=True)
        # Ends the reading when no more bytes can be expected. A deadline is set only while the reader waits.
        self._patience = trio.CancelScope()
        self._receiving = False
        self._door = trio.Lock()
        self._promised = 0  # of the outbox's bulk bytes, those up to the last message that was said behind data

    # Its tasks

    @trio.lowlevel.enable_ki_protection
    async def run(self, *beside: Callable[[], Awaitable[None]]) -> None:
        """Read and write until the stream ends; then end every session. Errors of the peer are not raised.

        Args:
            beside: further async functions, each run in a task until this ends.
        """
        try:
            with self._running:
                async with hidden_nursery() as nursery:
                    nursery.start_soon(self._write)
                    for task in beside:
                        nursery.start_soon(task)
                    reason, cause = await self._read()
                    if self._expected is None:
                        reason = self._told or await explained(reason, self._explain)
                    self.lose(self._expected or reason, self._cause() or cause)
        except BaseException as exc:
            # Such as a KeyboardInterrupt. Without the reader every session would wait for ever.
            self.lose("the task that reads the guest's console was ended", exc)
            raise

    @trio.lowlevel.enable_ki_protection
    async def _write(self) -> None:
        try:
            await self.outbox.run()
        except Exception as exc:  # noqa: BLE001  (the stream may be of any class)
            self._write_error = exc
        # The stream broke, or the outbox was closed. In both cases no more frames of ours arrive, so no more
        # answers will come; frames that the guest has sent already are still read.
        if self._receiving:
            self._lose_patience()

    def _lose_patience(self) -> None:
        self._patience.deadline = trio.current_time() + _LAST_WORDS_TIME

    async def _receive(self) -> bytes:
        """Receive more bytes; ``b""`` at end of file."""
        self._receiving = True
        if self.outbox.closed:
            self._lose_patience()
        data = bytes(await self._stream.receive_some())
        self._receiving = False
        self.bytes_received += len(data)
        if self.outbox.closed:
            self._patience.deadline = math.inf  # it bounds the guest's silence, and not the user's reading
        return data

    async def _read(self) -> tuple[str, BaseException | None]:
        with self._patience:
            return await self._read_frames()
        if self._write_error is not None:
            return f"writing to the console failed: {self._write_error!r}", self._write_error
        return "the guest takes no more bytes from its console", None

    async def _read_frames(self) -> tuple[str, BaseException | None]:
        costly = Costly()
        try:
            while True:
                await self._handle_frames(costly)
                data = await self._receive()
                if not data:
                    self._decoder.feed_eof()
                    return "the guest closed its console", None
                self._decoder.feed(data)
        except ProtocolError as exc:
            return f"the console is out of step ({exc})", exc
        except trio.BrokenResourceError as exc:
            return "the console broke", exc.__cause__ or exc
        except trio.ClosedResourceError:
            return "the console was closed on this side", None
        except Exception as exc:  # noqa: BLE001  (the stream may be of any class)
            return f"reading from the console failed: {exc!r}", exc

    async def _handle_frames(self, costly: Costly) -> None:
        """Handle the frames that have come, in turns: a guest's frames may be tiny, and of any number."""
        turn = Turn()
        for frame in self._decoder:
            if turn.is_over:
                await turn.pause()
            self.frames_received += 1
            if wire.is_costly(frame):
                session = await costly.run(partial(self._route, frame))
            else:
                session = self._route(frame)
            if session is not None and session.congested:
                await session.wait_relieved()

    def _route(self, frame: wire.Frame) -> Session | None:
        session = self._sessions.get(frame.id)
        ends = bool(frame.flags & wire.FLAG_TERMINAL)
        if ends:
            self._forget(frame.id)
        if session is None:
            self._overhear(frame)
            return None
        try:
            session.on_message(wire.decode(frame))
        except Exception as exc:  # noqa: BLE001  (an error of one session must not end the others)
            if _is_newer(exc, frame):
                self.frames_dropped += 1  # a type of a newer agent is ignored, so that types can be added
                return None
            if not ends:
                self._sessions[frame.id] = None
            self._tell(session, exc)
            return None
        return session

    def _overhear(self, frame: wire.Frame) -> None:
        """Drop a frame that belongs to no session, unless it speaks of all sessions.

        In such a frame a relay says why the guest is gone, or the agent of a console how much it admits.
        """
        message: wire.Message | None = None
        if isinstance(frame.body, bytes):  # it is small
            with suppress(ProtocolError):
                known = wire.peek_type(frame.body) in (_RELAY_LOST, _TRANSPORT_CREDIT)
                message = wire.decode(frame) if known else None
        if isinstance(message, wire.RelayLost):
            self._told = message.reason
        elif not (
            isinstance(message, wire.TransportCredit)
            and frame.id == TRANSPORT_ID
            and self.outbox.announce(Admitted(*msgspec.structs.astuple(message)))
        ):
            self.frames_dropped += 1

    def _tell(self, session: Session, error: Exception) -> None:
        """End a session with an error, also if its `on_error` raises."""
        try:
            session.on_error(error)
        except Exception:  # noqa: BLE001  (logged)
            _log.exception("on_error() of %r raised while it was ended with %r; trying again", session, error)
            # The cause (such as too little memory) may be over, and the tasks that wait for the session must wake.
            try:
                session.on_error(error)
            except Exception:  # noqa: BLE001  (logged)
                _log.exception("%r could not be ended: a task that waits for it may wait for ever", session)

    # Endings

    def expect_end(self, reason: str) -> None:
        """Note that this side causes the end of the stream. The guest may be silent until then."""
        self._expected = reason
        self._awaiting_end += 1

    def leave(self) -> None:
        """Let each session tell the guest, behind its data, that its user leaves the guest."""
        for session in self._sessions.values():
            if session is not None:
                session.leave()

    @property
    def owes(self) -> bool:
        """Whether the stream has not taken all yet that was said behind data."""
        return self.outbox.bulk_written < self._promised and not self.outbox.closed

    async def wait_delivered(self) -> None:
        """Wait until the stream has taken all that was said behind data. If cancelled, nothing changes."""
        await self.outbox.wait_written(self._promised)

    def await_end_no_more(self) -> None:
        """Note that a caller of `expect_end` no longer waits. The end may still come, and is then expected."""
        self._awaiting_end -= 1
        assert self._awaiting_end >= 0, "a wait for the end is over once"

    def lose(self, reason: str, cause: BaseException | None = None) -> None:
        """End every session with `GuestLostError`, and end `run`. In further calls the first reason stays."""
        if self.lost is None:
            self.lost = GuestLostError(reason)
            self.lost.__cause__ = cause
        self.outbox.close()
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            if session is not None:
                self._tell(session, self.lost)
        assert not self._sessions, "every session ends once: those told here are not told again"
        self._ended.set()
        self._running.cancel()

    @property
    def awaits_end(self) -> bool:
        """Whether a task has told the guest to end, and waits for the end."""
        return self._awaiting_end > 0

    @property
    def waits_for_bytes(self) -> bool:
        """Whether the reader waits for bytes; false while it waits for a congested session."""
        return self._receiving

    async def wait_ended(self) -> None:
        await self._ended.wait()

    # For sessions

    def heard(self) -> int:
        """The bytes that have come from the guest so far."""
        return self.bytes_received

    @property
    def active_sessions(self) -> int:
        return len(self._active())

    def session_statistics(self) -> tuple[SessionStatistics, ...]:
        told = [session.statistics() for session in self._active()]
        return tuple(one for one in told if one is not None)

    def _active(self) -> list[Session]:
        # Any thread may ask, while sessions come and go: a list is made of the dictionary in one step.
        return [session for session in list(self._sessions.values()) if session is not None]

    def note_discarded(self, size: int) -> None:
        """Count bytes that came and will not be read."""
        self.bytes_discarded += size

    def check_alive(self) -> None:
        if self.lost is not None:
            raise again(self.lost)

    def check_supported(self, cls: type[wire.Message]) -> None:
        """Raise `UnsupportedByPeer` if the peer does not know this message type."""
        if not wire.knows(self.generation, cls):
            row = wire.type_of(cls)
            raise UnsupportedByPeer(
                f"{row.name} needs generation {row.generation} of the agent protocol, and the guest's agent "
                f"({self.ready.agent_version or 'no version given'}) speaks {self.peer_generation}"
            )

    async def check_in(self) -> None:
        """Do what a call that needs no request owes: check that the caller may make it, and be a checkpoint."""
        self._owner.check()
        await trio.lowlevel.checkpoint()

    async def wait_may_open(self) -> None:
        """Wait while too many requests are queued because the guest does not read. Called before every `open`.

        Otherwise the requests of cancelled calls would pile up while the guest is stopped.

        If there is room it raises a cancellation that is due, and lets no other task run: the caller waits for the
        answer.
        """
        self._owner.check()  # also for objects, such as paths, that have no owner of their own
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._door.locked() or not self.outbox.has_control_room:  # (behind those who wait already)
            async with self._door:
                await self.outbox.wait_control_room()

    def new_id(self) -> int:
        """An id for a new session. `open` must be called with it before the next checkpoint."""
        return self._ids.take(self._sessions)

    def open(self, session: Session, request: wire.Message) -> None:
        """Register a session and queue its request: both, or, if this raises, neither. Not a checkpoint.

        Raises:
            GuestLostError, UnsupportedByPeer: the guest is gone, or too old. Nothing was sent.
            ValueError: a field does not fit the protocol. Nothing was sent.
            ProtocolError: the request is longer than a frame may be. Nothing was sent.
        """
        self.check_alive()
        self.check_supported(type(request))
        # (What only the console's owner asks has no id of its own: the request names the one for the answer.)
        frame = wire.encode(request, 0 if wire.type_of(request).host_only else session.id)
        assert session.id not in self._sessions, "an id is used in the turn in which it was taken"
        self._sessions[session.id] = session
        # If the writer has failed and the reader has not noticed it yet, `lose` will end the session.
        if not self.outbox.closed:
            try:
                self.outbox.send_control(frame)
            except BaseException:
                self._forget(session.id)
                raise

    def send(self, message: wire.Message, session_id: int) -> None:
        """Send a control message of a session; if the guest is lost, do nothing: the session gets the error."""
        if not self.outbox.closed:
            self.outbox.send_control(wire.encode(message, session_id))
        self._note_said(message, session_id)

    def send_behind(self, message: wire.Message, session_id: int) -> None:
        """Send a small message of a session behind its data, without waiting; otherwise as `send`."""
        self.say_behind(message, session_id)
        self._note_said(message, session_id)

    def say_behind(self, message: wire.Message, session_id: int) -> None:
        """As `send_behind`, and the session goes on in any case."""
        if not self.outbox.closed:
            self.outbox.commit(wire.encode(message, session_id), 0)
            self._promised = self.outbox.bulk_queued

    def _note_said(self, message: wire.Message, session_id: int) -> None:
        if wire.type_of(message).place is wire.Place.ENDS:  # the guest says nothing more of it
            self._forget(session_id)

    def _forget(self, session_id: int) -> None:
        """The last frame of a session has gone by, or none ever did: its id is free.

        The guest may have said its last word before we say ours, so it may be free already.
        """
        self._sessions.pop(session_id, None)


def _is_newer(exc: Exception, frame: wire.Frame) -> bool:
    """Whether a message could not be decoded because its type is unknown here."""
    unknown = isinstance(exc, ProtocolError) and exc.kind == "unsupported_message_type"
    return unknown and not frame.flags & wire.FLAG_TERMINAL
