"""One frame stream to an agent, shared by any number of sessions.

Two tasks own the stream: the outbox writes, and the reader here parses and routes. Sessions are told
synchronously and never make the reader wait, with one exception: an agent that knows no credit can send more
than a session's user reads, and then the whole stream is paused until that user has caught up.

A bad frame ends the session it belongs to, and so does an exception that a session raises when it is told
something. Bytes that are no frames end the connection. Either way every session ends with a reason:
`Session.on_error` is called for each that had not ended by itself, whatever ends `Connection.run`.

This module must not know what sessions do, nor how the guest was started.
"""

from __future__ import annotations

import abc
import logging
import math
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError, UnsupportedByPeer, again
from trio_console._session.owner import Owner
from trio_console._trio.lost import GuestLostError, explained
from trio_console._trio.nursery import hidden_nursery
from trio_console._wire.ids import IdSequence
from trio_console._wire.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Connection", "Session"]

_log: Final = logging.getLogger("trio_console.client")

#: Seconds of silence allowed to a guest that takes nothing any more. What a dying guest had written before is
#: here at once; one that merely has closed its input will never answer anything again.
_LAST_WORDS_TIME: Final = 1.0


class Session(abc.ABC):
    """Everything that shares one id, as the client sees it. Called by the reader; must not block.

    Its constructor takes an id with `Connection.new_id`, and sends nothing: `Connection.open` does, once the
    object is whole. What a callback raises ends this session alone.
    """

    id: int

    @abc.abstractmethod
    def on_message(self, message: wire.Message) -> None:
        """A message of this session came. If it is a terminal one, it was the last call."""

    @abc.abstractmethod
    def on_error(self, error: Exception) -> None:
        """The session ended abnormally. The last call; repeated once if it raises.

        Args:
            error: `GuestLostError`, `ProtocolError`, or what a callback of this session has raised. Unless the
                guest is lost, it still has the session, and has to be told.
        """

    @property
    def congested(self) -> bool:
        """Whether the reader must wait: more is unread than a connection should hold."""
        return False

    async def wait_relieved(self) -> None:
        """Wait until no longer `congested`."""
        await trio.lowlevel.checkpoint()


@final
class Connection:
    """The client's end of a frame stream.

    Args:
        stream: carries the frames; closed by whoever opened it.
        decoder: what was used during boot or handshake, with the bytes that came behind.
        ready: the agent's ready message.
        generation: the generation the peer stamped on it.
        ids: the correlation ids to use.
        explain: called when the stream has ended; finds out why, in words. See `explained`.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        decoder: wire.FrameDecoder,
        ready: wire.Ready,
        generation: int,
        ids: range,
        explain: Callable[[], Awaitable[str]],
    ) -> None:
        self.ready: Final = ready
        self.peer_generation: Final = generation
        self.generation: Final = min(generation, wire.GENERATION)
        self.outbox: Final = Outbox(stream)
        self.lost: GuestLostError | None = None
        self.frames_received = 0
        self.bytes_received = 0
        self.frames_dropped = 0
        self.bytes_discarded = 0
        self._owner: Final = Owner()
        self._stream = stream
        self._decoder = decoder
        self._ids: Final = IdSequence(ids)
        self._sessions: dict[int, Session] = {}
        self._explain = explain
        self._expected: str | None = None  # why, if the end is our own doing
        self._awaiting_end = 0  # how many wait for that
        self._write_error: Exception | None = None
        self._ended = trio.Event()
        # Shielded: when everything around is cancelled, sessions still have to hear how their processes ended.
        # `lose` ends it, and whoever started `run` calls that.
        self._running = trio.CancelScope(shield=True)
        # Ends the reading when nothing more is to be expected; a deadline is set only while it waits for bytes.
        self._patience = trio.CancelScope()
        self._receiving = False
        self._door = trio.Lock()

    # Its tasks

    @trio.lowlevel.enable_ki_protection
    async def run(self, *beside: Callable[[], Awaitable[None]]) -> None:
        """Read and write until the stream ends; then tell every session. Never raises for what others do.

        Args:
            beside: tasks that live as long as this.
        """
        try:
            with self._running:
                async with hidden_nursery() as nursery:
                    nursery.start_soon(self._write)
                    for task in beside:
                        nursery.start_soon(task)
                    reason, cause = await self._read()
                    if self._expected is None:
                        reason = await explained(reason, self._explain)
                    self.lose(self._expected or reason, cause)
        except BaseException as exc:
            # Such as a Ctrl-C that came here. Without a reader every session would wait for ever.
            self.lose("the task that reads the guest's console was ended", exc)
            raise

    @trio.lowlevel.enable_ki_protection
    async def _write(self) -> None:
        try:
            await self.outbox.run()
        except Exception as exc:  # noqa: BLE001  (a stream of the user's)
            self._write_error = exc
        # The stream broke, or we were told to stop. Either way nothing we say arrives, so that answers are not
        # to be waited for; what was said already is.
        if self._receiving:
            self._lose_patience()

    def _lose_patience(self) -> None:
        self._patience.deadline = trio.current_time() + _LAST_WORDS_TIME

    async def _receive(self) -> bytes:
        """More bytes, ``b""`` at the end."""
        self._receiving = True
        if self.outbox.closed:
            self._lose_patience()
        data = bytes(await self._stream.receive_some())
        self._receiving = False
        self.bytes_received += len(data)
        if self.outbox.closed:
            self._patience.deadline = math.inf  # it is for silence, not for a user who takes his time
        return data

    async def _read(self) -> tuple[str, BaseException | None]:
        with self._patience:
            return await self._read_frames()
        if self._write_error is not None:
            return f"writing to the console failed: {self._write_error!r}", self._write_error
        return "the guest takes nothing from its console any more", None

    async def _read_frames(self) -> tuple[str, BaseException | None]:
        try:
            while True:
                for frame in self._decoder:
                    self.frames_received += 1
                    session = self._route(frame)
                    if session is not None and session.congested:
                        await session.wait_relieved()
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
        except Exception as exc:  # noqa: BLE001  (a stream of the user's)
            return f"reading from the console failed: {exc!r}", exc

    def _route(self, frame: wire.Frame) -> Session | None:
        session = self._sessions.get(frame.id)
        if session is None:
            self.frames_dropped += 1
            return None
        if frame.flags & wire.FLAG_TERMINAL:
            self.forget(frame.id)
        try:
            session.on_message(wire.decode(frame))
        except Exception as exc:  # noqa: BLE001  (it is the session's, and must not cost the others anything)
            if _is_newer(exc, frame):
                self.frames_dropped += 1  # a newer agent's: skipping is what lets types be added
                return None
            self.forget(frame.id)
            self._tell(session, exc)
            return None
        return session

    def _tell(self, session: Session, error: Exception) -> None:
        """End a session with an error, whatever it makes of that."""
        try:
            session.on_error(error)
        except Exception:  # noqa: BLE001  (logged)
            _log.exception("%r could not be ended in order with %r; trying again", session, error)
            # What has stopped it (no memory) may be over, and those who wait for the session must be woken.
            try:
                session.on_error(error)
            except Exception:  # noqa: BLE001  (logged)
                _log.exception("%r could not be ended: who waits for it may wait for ever", session)

    # Endings

    def expect_end(self, reason: str) -> None:
        """The end of the stream will be our own doing. The guest may be silent until then."""
        self._expected = reason
        self._awaiting_end += 1

    def await_end_no_more(self) -> None:
        """Whoever has called `expect_end` has given up waiting. The end may still come, and is then expected."""
        self._awaiting_end -= 1

    def lose(self, reason: str, cause: BaseException | None = None) -> None:
        """The guest is gone: tell every session, and end `run`. Idempotent; the first reason stays."""
        if self.lost is None:
            self.lost = GuestLostError(reason)
            self.lost.__cause__ = cause
        self.outbox.close()
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            self._tell(session, self.lost)
        assert not self._sessions, "every session ends once: those told here are not told again"
        self._ended.set()
        self._running.cancel()

    @property
    def awaits_end(self) -> bool:
        """Whether somebody who has told the guest to end waits for that."""
        return self._awaiting_end > 0

    @property
    def waits_for_bytes(self) -> bool:
        """Whether it reads, and nothing has come; false while a session's unread bytes hold it up."""
        return self._receiving

    async def wait_ended(self) -> None:
        await self._ended.wait()

    # For sessions

    def heard(self) -> int:
        """Bytes that have come from the guest."""
        return self.bytes_received

    @property
    def active_sessions(self) -> int:
        return len(self._sessions)

    def note_discarded(self, size: int) -> None:
        """Bytes came that nobody reads."""
        self.bytes_discarded += size

    def check_alive(self) -> None:
        if self.lost is not None:
            raise again(self.lost)

    def check_supported(self, cls: type[wire.Message]) -> None:
        """Raise `UnsupportedByPeer` if the peer does not know this type. Nothing was sent then."""
        if not wire.knows(self.generation, cls):
            row = wire.type_of(cls)
            raise UnsupportedByPeer(
                f"{row.name} needs generation {row.generation} of the agent protocol, and the guest's agent "
                f"({self.ready.agent_version or 'no version given'}) speaks {self.peer_generation}"
            )

    async def wait_may_open(self) -> None:
        """Wait while too many requests lie unsent, because the guest does not read. Before every `open`.

        Otherwise requests that were given up would pile up for as long as the guest is stopped.
        """
        self._owner.check()  # also for those, such as paths, that have no owner of their own
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self._door:
            await self.outbox.wait_control_room()

    def new_id(self) -> int:
        """An id for a session that is being made; used by the next `open`, before any checkpoint."""
        return self._ids.take(self._sessions)

    def open(self, session: Session, request: wire.Message) -> None:
        """Register a session and send what opens it. Both or, whatever is raised, neither; no checkpoint.

        Raises:
            GuestLostError, UnsupportedByPeer: nothing was sent.
            ValueError: a field does not fit the protocol; nothing was sent.
            ProtocolError: the request is longer than a frame may be; nothing was sent.
        """
        self.check_alive()
        self.check_supported(type(request))
        frame = wire.encode(request, session.id)
        assert session.id not in self._sessions, "an id is used in the turn in which it was taken"
        self._sessions[session.id] = session
        # When the writer has failed and the reader has not found out yet, the session is told by `lose`.
        if not self.outbox.closed:
            try:
                self.outbox.send_control(frame)
            except BaseException:
                self.forget(session.id)
                raise

    def send(self, message: wire.Message, id_: int) -> None:
        """Send a control message of a session; nothing if the guest is lost, which the session is told."""
        if not self.outbox.closed:
            self.outbox.send_control(wire.encode(message, id_))

    def forget(self, id_: int) -> None:
        """Nothing of this session is of interest any more. Idempotent."""
        # It may be gone already: a session that is told a frame has no place in it does not ask whether that was a
        # last one.
        self._sessions.pop(id_, None)


def _is_newer(exc: Exception, frame: wire.Frame) -> bool:
    """Whether a message could not be read because its type is not known here."""
    unknown = isinstance(exc, ProtocolError) and exc.kind == "unsupported_message_type"
    return unknown and not frame.flags & wire.FLAG_TERMINAL
