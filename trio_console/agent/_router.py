"""The agent's only reader: it parses frames and gives each to its session.

The router has the table of sessions and does not know what happens inside them. A bad frame ends the session that
it belongs to, and never the agent. Only a length out of bounds ends the agent, because the beginning of the next
frame is then unknown. Frames of one id never overtake each other, so each terminal frame is sent behind the data.

The catalogue says what a message does, and how it is answered if its id is not open. A new kind of session needs
its rows there, and its opening message in ``openers``.
"""

from __future__ import annotations

import contextlib
import enum
import traceback
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, final

import msgspec
import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._trio.reports import StderrReports
from trio_console._wire.ids import slot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trio_console.agent._session import Sender, Session
    from trio_console.agent._system.boot import FrameSource

    #: Makes a session for an opening message, or returns the terminal message that refuses it; or `None`, when it
    #: has sent the terminal message itself.
    Opener: TypeAlias = Callable[[Sender, int, wire.Message], "Session | wire.Message | None"]

__all__ = ["Ending", "Router", "log"]

_M = TypeVar("_M", bound=wire.Message)

_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class Ending(enum.Enum):
    """Why the agent stopped."""

    CONSOLE_CLOSED = enum.auto()
    OUT_OF_STEP = enum.auto()
    SHUT_DOWN = enum.auto()
    RESET = enum.auto()


#: Writes a report to the agent's stderr. It never blocks: the host may not read it.
log: Final = StderrReports("trio_console.agent")


def _control(cls: type[_M], act: Callable[[int, _M], None]) -> Callable[[int, wire.Message], None]:
    """A control of a function for one class of messages."""

    def control(frame_id: int, message: wire.Message) -> None:
        assert isinstance(message, cls), "a control gets the message that it is registered for"
        act(frame_id, message)

    return control


@final
class Router:
    """Reads frames until the end, whichever end it is.

    Args:
        source: where frames come from.
        sender: where they go.
        nursery: where sessions run. Cancelling it is up to the owner, when `run` has returned.
        openers: kinds of sessions by the class of their opening message.
        forget_client: called with the range of ids (start, end) of a client that has gone. What it returns is
            called when all sessions of the client were told to end.
        set_clock: called with nanoseconds since the epoch, or ``None`` to leave the clock alone.
        shutdown_grace: seconds that sessions are given to end in order.
        resets: whether a reset is obeyed, as the agent has announced it then.
    """

    def __init__(
        self,
        source: FrameSource,
        sender: Sender,
        nursery: trio.Nursery,
        *,
        openers: Mapping[type[wire.Message], Opener],
        forget_client: Callable[[int, int], Callable[[], object]],
        set_clock: Callable[[int], object] | None,
        shutdown_grace: float,
        resets: bool = False,
    ) -> None:
        self._source = source
        self._sender = sender
        self._nursery = nursery
        self._openers = openers
        self._forget_client = forget_client
        self._set_clock = set_clock
        self._shutdown_grace = shutdown_grace
        self._ended = trio.Event()  # one more session, or farewell
        self._farewells = 0  # tasks that end the sessions of a client that has gone
        # Handed on in the order of arrival, and once in a turn of the loop.
        self._farewell_turn: Final = trio.Lock()
        self._shutdown = trio.CancelScope()
        self._reset: int | None = None  # the id for the answer to a reset
        self._grace: float | None = None  # seconds until the host ends the guest by force, if it has told that
        self._controls: Mapping[type[wire.Message], Callable[[int, wire.Message], None]] = {
            wire.Ping: self._ping,
            wire.Touch: self._touch,
            wire.ClockSync: _control(wire.ClockSync, self._clock_sync),
            wire.ClientDisconnected: _control(wire.ClientDisconnected, self._client_disconnected),
            wire.Shutdown: _control(wire.Shutdown, self._shut_down_in_time),
        }
        if resets:
            self._controls = {**self._controls, wire.Reset: _control(wire.Reset, self._begin_reset)}
        self._running: set[Session] = set()  # all, also those that were replaced under their id
        #: Sessions by id. A session that was replaced under its id is not in this table, but may still run.
        self.sessions: dict[int, Session] = {}

    # Reading

    async def run(self) -> Ending:
        """Serve until the console closes, breaks or gets out of step, a shutdown is over, or a reset is wanted.

        After a reset, and only then, the caller has to call `end_all`.
        """
        ending = Ending.CONSOLE_CLOSED
        with self._shutdown:
            ending = await self._read()
        if self._shutdown.cancel_called:
            await self._end_in_order()
            return Ending.SHUT_DOWN
        return ending

    async def _read(self) -> Ending:
        try:
            while (frame := await self._source.next_frame()) is not None:
                if self._source.keeps_loop():
                    self._sender.outbox.write_now()
                if self._source.has_more:
                    self._sender.outbox.join_turn()
                try:
                    await self._take(frame)
                except MemoryError:
                    lack = ProtocolError(
                        "the guest has no memory for this", kind="invalid_session", frame_id=frame.id
                    )
                    self._refuse(frame, lack)
                if self._shutdown.cancel_called:
                    break  # frames that are buffered already are ignored
                if self._reset is not None:
                    return Ending.RESET
                await self._sender.wait_room()
        except ProtocolError as exc:
            log(f"the console is out of step: {exc}")
            return Ending.OUT_OF_STEP
        except _GONE:
            pass
        return Ending.CONSOLE_CLOSED

    async def _take(self, frame: wire.Frame) -> None:
        try:
            message = wire.decode(frame)
        except ProtocolError as exc:
            self._refuse(frame, exc)
            return
        cls, row = type(message), wire.type_of(message)
        if row.activity:  # a Touch counts, too: that is its purpose
            self._sender.activity.note_host_message()
        session = self._owner(frame.id)
        if session is not None and cls in session.accepts:
            if not session.ended:
                if row.place is wire.Place.ENDS:
                    session.let_go_of_id()
                await session.receive(message)
        elif cls in self._openers:
            self._open(frame, message)
        elif cls in self._controls:
            self._controls[cls](frame.id, message)
        elif row.orphan is None:
            pass  # a message that came too late, or that only an agent may send
        elif session is not None:
            self._refuse(frame, _bad_session(frame, message, "is a session of another kind"))
        else:
            self._sender.commit_unreserved(row.orphan(frame.id), frame.id)

    def _refuse(self, frame: wire.Frame, exc: ProtocolError) -> None:
        """End the frame's session, if there is one; the error says why, if the peer knows that message."""
        error = wire.Error(exc.kind, str(exc), exc.message_type or msgspec.UNSET)
        understood = exc.version is None or wire.knows(exc.version, wire.Error)
        session = self._owner(frame.id)
        if session is not None:
            session.end(error if understood else None)
        elif understood:
            self._sender.commit_unreserved(error, frame.id)

    # Sessions

    def _owner(self, session_id: int) -> Session | None:
        """The session that owns an id now."""
        session = self.sessions.get(session_id)
        return None if session is None or session.departed else session

    def _open(self, frame: wire.Frame, message: wire.Message) -> None:
        owner = self._owner(frame.id)
        former = self.sessions.get(frame.id)
        if former is not None and owner is None:
            # The id was given to a new client before the former owner's session was over.
            former.mute()
        if owner is not None or slot_of(frame.id) is None:
            # The client forgets an id for which it gets an error, so the session that owns it must end as well.
            why = "is already in use" if owner is not None else "is out of range"
            self._refuse(frame, _bad_session(frame, message, why))
            return
        session = self._openers[type(message)](self._sender, frame.id, message)
        if isinstance(session, wire.Message):
            self._sender.commit_unreserved(session, frame.id)
            return
        if session is None:
            return
        assert former is None or (former.muted and former.ended), "only the owner of an id speaks under it"
        self.sessions[frame.id] = session
        self._running.add(session)
        self._nursery.start_soon(self._run_session, session)

    async def _run_session(self, session: Session) -> None:
        try:
            await session.run()
            assert session.muted, "every session ends once: its terminal frame was said, or forbidden"
        except* _GONE:
            pass  # the router gets the same error
        except* Exception as group:  # noqa: BLE001
            # A failure in one session must not end the others.
            log(f"session {session.id} failed\n{''.join(traceback.format_exception(group))}")
            if not session.muted:
                with contextlib.suppress(*_GONE):
                    error = wire.Error("invalid_session", "internal error of the agent: its log has the traceback")
                    self._sender.commit_unreserved(error, session.id)
        finally:
            if self.sessions.get(session.id) is session:
                del self.sessions[session.id]
            self._running.discard(session)
            self._ended.set()

    # Messages that belong to no session

    def _ping(self, frame_id: int, _message: wire.Message) -> None:
        self._sender.send(wire.Pong(), frame_id)

    def _touch(self, frame_id: int, _message: wire.Message) -> None:
        self._sender.send(wire.Touched(self._sender.activity.seq), frame_id)

    def _clock_sync(self, _id: int, message: wire.ClockSync) -> None:
        if self._set_clock is not None:
            self._set_clock(message.unix_time_nanos)

    def _client_disconnected(self, _id: int, message: wire.ClientDisconnected) -> None:
        theirs = [
            session
            for session in self.sessions.values()
            if message.id_start <= session.id < message.id_end_exclusive
        ]
        for session in theirs:
            session.depart()
        finish = self._forget_client(message.id_start, message.id_end_exclusive)
        self._farewells += 1
        self._nursery.start_soon(self._say_farewell, theirs, finish)
        if message.confirm is not msgspec.UNSET:
            # Behind all that was queued for these ids; nothing that a client can block is waited for.
            self._sender.commit_unreserved(wire.ClientForgotten(), message.confirm)

    async def _say_farewell(self, sessions: Sequence[Session], finish: Callable[[], object]) -> None:
        """End the sessions of a client that has gone, in turns with those of others that have.

        Each has several tasks, and what it holds is given back. All sessions of a client, or one of each of many
        clients, would keep the loop for tens of milliseconds, while every other client waits.
        """
        try:
            for session in sessions:
                if not session.delivering:
                    async with self._farewell_turn:
                        session.end()
            async with self._farewell_turn:
                finish()
        finally:
            self._farewells -= 1
            self._ended.set()

    # Reset

    def _begin_reset(self, _id: int, message: wire.Reset) -> None:
        self._reset = message.confirm

    async def end_all(self) -> None:
        """End all sessions, with all that their commands have started; then answer the reset, if there was one.

        What commands have left whose sessions were over goes on. A start that hangs in the kernel is waited for.
        """
        for session in self._running:
            with contextlib.suppress(*_GONE):  # nobody hears of its end
                session.end()
        while self._running or self._farewells:
            await self._wait_for_an_end()
        if self._reset is not None:
            self._sender.commit_unreserved(wire.ResetDone(), self._reset)

    # Shutdown

    def _shut_down_in_time(self, _id: int, message: wire.Shutdown) -> None:
        self._grace = None if message.grace is msgspec.UNSET else message.grace / 1000
        self.shut_down()

    def shut_down(self) -> None:
        """Stop reading, end all sessions in order, and let `run` return. A second call does nothing."""
        self._shutdown.cancel()

    async def _end_in_order(self) -> None:
        """End all sessions. What a client has sent before it closed a connection is delivered before that.

        (Each session bounds the time for its delivery.)
        """
        for session in self.sessions.values():
            session.shut_down(self._grace)
        with trio.move_on_after(self._shutdown_grace):
            while self._running:
                await self._wait_for_an_end()
        for session in self._running:
            if not session.delivering:
                session.end()
        while any(session.delivering for session in self._running):
            await self._wait_for_an_end()

    async def _wait_for_an_end(self) -> None:
        self._ended = trio.Event()
        await self._ended.wait()


def _bad_session(frame: wire.Frame, message: wire.Message, why: str) -> ProtocolError:
    return ProtocolError(
        f"id {frame.id} {why}",
        kind="invalid_session",
        frame_id=frame.id,
        message_type=wire.type_of(message).name,
        version=wire.decode_envelope(frame.body).version,
    )
