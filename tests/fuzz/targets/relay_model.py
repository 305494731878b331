"""The reference of the relay: a second, plain implementation of what a relay must send.

The model reads nothing out of the relay. Each frame that goes into the relay also goes into the model, and the
relay must send what the model says: which frames, under which ids, in which order, and which frames it drops. The
relay may choose two things: how many pieces of a stream it joins into one frame, and when it grants credit. For
these the model states bounds.

One thing is left to the client. A client that uses an id again at once may find that old data counts to the new
session: data that it had sent to the id's former session, and that the relay had handed over before that session
ended. This can only be the client's own data, under the client's own id.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, final

import msgspec

from tests.fuzz.targets import cbor_reference
from tests.fuzz.targets.relay_parts import (
    SLOTS,
    DataClass,
    Item,
    Party,
    Session,
    Stream,
    class_of,
    data_of,
    front,
    ids_of,
    in_front,
    may_end,
    parse,
    slot_of,
)
from tests.fuzz.targets.relay_users import things_of
from trio_console import _wire as wire
from trio_console._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.fuzz.targets.relay_users import Users
    from trio_console._relay.router import RouterLimits

__all__ = ["Model", "Verdict"]

#: The relay joins the pieces of a stream that it holds, up to this many bytes.
_JOINED: Final = 8 * 1024

#: Bytes beyond twice its window that a guest may send before the relay takes it for broken.
_FORGIVEN: Final = 64 * 1024

_SHUTDOWN: Final = 4
_TERMINAL: Final = 1

#: The first generation of the protocol that knows the message for an error.
_TOLD_FROM: Final = 5

_STREAMS: Final[dict[str, dict[DataClass, str]]] = {
    "exec": {wire.ExecStdout: "stdout", wire.ExecStderr: "stderr"},
    "fs": {wire.FsData: "data"},
    "tcp": {wire.TcpData: "data"},
    "call": {},
}
#: The stream of a client's input, by the kind of session.
_INPUT: Final = {"exec": "stdin", "fs": "data", "tcp": "data"}
_OPENS: Final[dict[type[wire.Message], str]] = {
    wire.ExecRequest: "exec",
    wire.FsRequest: "fs",
    wire.TcpConnect: "tcp",
    wire.Ping: "call",
    wire.Touch: "call",
    wire.KillBackground: "call",
}
_PART_OF: Final[dict[type[wire.Message], str]] = {
    wire.ExecStdin: "exec",
    wire.ExecSignal: "exec",
    wire.ExecResize: "exec",
    wire.ExecRelease: "exec",
    wire.ExecKill: "exec",
    wire.FsData: "fs",
    wire.TcpData: "tcp",
    wire.TcpEof: "tcp",
    wire.TcpClose: "tcp",
}
#: All messages that a client may send.
_CLIENTS: Final = {*_OPENS, *_PART_OF, wire.Shutdown, wire.Credit, wire.Cancel}
_OVERTAKE: Final = (
    *(wire.ExecStarted, wire.ExecStdinError, wire.ExecLeft),
    *(wire.TcpConnected, wire.TcpBroken, wire.Credit),
)

#: What is only sent to an agent that has announced that it tells the ends of commands.
_ABOUT_ENDS: Final = (wire.ExecRelease, wire.ExecKill, wire.KillBackground)


class Verdict(NamedTuple):
    """What the relay must do with a frame of a client."""

    cut: bool
    to_agent: list[bytes]
    shutdown: bool = False


class _TurnedDown(Exception):
    """A request that is answered in the guest's place, because its client lacks a right, or has enough."""

    def __init__(self, answer: wire.Message) -> None:
        self.answer = answer


class _Refused(Exception):
    def __init__(self, kind: str) -> None:
        self.kind = kind


@final
class Model:
    """See the module."""

    def __init__(
        self, credit: bool, ends: bool, agent_window: int, limits: RouterLimits, users: Users | None = None
    ) -> None:
        self.users = users
        self._credit = credit
        self._ends = ends
        self._agent_window = agent_window
        self._limits = limits
        self.parties: dict[int, Party] = {}
        self.awaited: dict[int, tuple[float, dict[int, str]]] = {}  # by slot: until when, and whose last words
        self.late: dict[int, dict[int, str]] = {}  # by slot: the same, when nobody waits for them any more
        self.refused_frames = 0
        self.dropped_frames = 0
        # Bytes of data that were dropped; and these with all that was in their frames. What is counted is between.
        self.lost = 0
        self.lost_with_frames = 0

    @property
    def committed(self) -> int:
        return sum(party.committed for party in self.parties.values())

    # Clients come and go

    def connect(self, uid: int = 0) -> Party | None:
        """Give a client the first slot that no client has, and for which the guest sends no more frames.

        `None` if there are as many clients as are allowed.
        """
        if self.users is not None and not self.users.may_connect(uid, self.parties.values()):
            return None
        taken = {*self.parties, *self.awaited, *self.late}
        slot = next(slot for slot in range(SLOTS) if slot not in taken)
        party = self.parties[slot] = Party(slot, ids_of(slot), uid=uid)
        if self.users is not None:
            self.users.owners[slot] = uid
        return party

    def disconnect(self, party: Party, last_id: int) -> tuple[list[bytes], list[bytes]]:
        """The frames for the guest: to forget the ids, which it is asked to confirm under ``last_id``.

        A guest that does not know this is told before to kill each command that may still run, and is sent data
        for no session, in the second list, which goes behind the client's data: it answers that as well.
        """
        del self.parties[party.slot]
        kills = sorted(s.id for s in party.sessions.values() if s.kind == "exec" and s.last is None)
        self._lose_items(party.queued)
        for session in list(party.open):
            self._release(party, session)
        for session in party.sessions.values():
            self._drop_pending(session)
        gone = wire.ClientDisconnected(party.ids.start, party.ids.stop, last_id if self._ends else wire.UNSET)
        behind = [] if self._ends else [wire.encode(wire.FsData(b""), last_id)]
        last = [] if self._ends else [wire.encode(wire.ExecSignal(9), id_) for id_ in kills]
        return [*last, wire.encode(gone)], behind

    def await_last_words(self, party: Party, last_id: int, now: float) -> None:
        """The guest is asked under an id for which it sends nothing else."""
        tail = party.ids[-2 * self._limits.sessions - 1 :]
        assert last_id in party.ids
        assert last_id not in party.sessions, "the last question has the id of a session"
        assert last_id not in party.used or all(id_ in party.used for id_ in tail), (
            "the last question's id was used"
        )
        words = {s.id: "exec" for s in party.sessions.values() if s.kind == "exec" and s.last is None}
        if self.users is not None:
            self.users.commands[party.slot] = len(words)
        self.awaited[party.slot] = (
            now + self._limits.quarantine,
            {**words, last_id: "call" if self._ends else "fs"},
        )

    def tick(self, now: float) -> list[int]:
        late = [slot for slot, (deadline, _) in self.awaited.items() if deadline <= now]
        for slot in late:
            self.late[slot] = self.awaited.pop(slot)[1]
        return late

    # From a client

    def client_frame(self, party: Party, frame: wire.Frame) -> Verdict:
        if frame.id not in party.ids and not (frame.id == 0 and frame.flags & _SHUTDOWN):
            return Verdict(True, [])
        out: list[bytes] = []
        if not _is_portable(bytes(frame.body)):
            return self._refuse(party, frame, "invalid_payload", None, None, out)
        try:
            message = wire.decode(frame)
        except ProtocolError as exc:
            return self._refuse(party, frame, exc.kind, exc.message_type, exc.version, out)
        envelope = wire.decode_envelope(bytes(frame.body))
        if not isinstance(message, wire.Shutdown) and not _is_portable(bytes(envelope.payload)):
            return self._refuse(party, frame, "invalid_payload", envelope.type, envelope.version, out)
        try:
            unknown = (wire.Cancel,) if not self._credit else ()
            if type(message) not in _CLIENTS or isinstance(
                message, unknown if self._ends else unknown + _ABOUT_ENDS
            ):
                raise _Refused("unsupported_message_type")
            self._accept(party, frame, message, out)
        except _TurnedDown as exc:
            self.refused_frames += 1
            if frame.id:
                self._answer(party, frame.id, exc.answer)
            return Verdict(False, [])
        except _Refused as exc:
            version = wire.decode_envelope(frame.body).version
            return self._refuse(party, frame, exc.kind, wire.type_of(message).name, version, out)
        return Verdict(False, out, isinstance(message, wire.Shutdown))

    def _refuse(
        self, party: Party, frame: wire.Frame, kind: str, name: str | None, version: int | None, out: list[bytes]
    ) -> Verdict:
        """Answer a frame in the guest's place, and end its session. A client that knows no such answer is cut."""
        self.refused_frames += 1
        if frame.id == 0 or (version is not None and version < _TOLD_FROM):
            return Verdict(True, [])
        session = party.sessions.get(frame.id)
        if session is not None:
            self._give_up(party, session, out)
        self._answer(party, frame.id, wire.Error(kind, "", wire.UNSET if name is None else name))
        return Verdict(False, out)

    def _answer(self, party: Party, id_: int, message: wire.Message) -> None:
        party.quick.append(Item(id_, b"", message))

    def _accept(self, party: Party, frame: wire.Frame, message: wire.Message, out: list[bytes]) -> None:
        session = party.sessions.get(frame.id)
        kind = _PART_OF.get(type(message))
        if isinstance(message, wire.Shutdown):
            self._turn_down(party, message)
            out.append(wire.encode(message))
        elif type(message) in _OPENS:
            if session is not None or len(party.sessions) >= self._limits.sessions:
                raise _Refused("invalid_session")
            self._turn_down(party, message)
            out.append(self._open(party, frame, message))
        elif session is None:
            if isinstance(message, wire.FsData):
                self._answer(party, frame.id, wire.FsResponse(ok=False))
            elif isinstance(message, wire.TcpData):
                self._answer(party, frame.id, wire.TcpFailed(""))
        elif session.over:
            self._lose(frame)
        elif kind is not None and kind != session.kind:
            raise _Refused("invalid_session")
        else:
            self._accept_within(party, session, frame, message, out)

    def _turn_down(self, party: Party, request: wire.Message) -> None:
        answer = None if self.users is None else self.users.refuse(party, self.parties.values(), request)
        if answer is not None:
            raise _TurnedDown(answer)

    def _accept_within(
        self, party: Party, session: Session, frame: wire.Frame, message: wire.Message, out: list[bytes]
    ) -> None:
        if isinstance(message, wire.Credit):
            self._grant(party, session, message)
        elif session.last is not None:
            # The guest does not know the session any more. Its client forgets a connection when it closes it.
            self._lose(frame)
            if isinstance(message, wire.TcpClose):
                self._release(party, session)
                del party.sessions[session.id]
            elif isinstance(message, wire.Cancel) and session.kind != "exec":
                self._want_no_more(session)
                self._say_last(party, session)
        elif isinstance(message, wire.DataMessage):
            self._pend(party, session, type(message), message.data)
        elif isinstance(message, (wire.TcpEof, wire.TcpClose)):
            if isinstance(message, wire.TcpClose):
                session.closing = True
                self._want_no_more(session)
            self._pend(party, session, None, wire.encode_frame(*frame))
        else:
            if isinstance(message, wire.Cancel):
                self._drop_pending(session)
                if session.kind != "exec":
                    self._want_no_more(session)
            out.append(wire.encode_frame(*frame))

    def _want_no_more(self, session: Session) -> None:
        session.unwanted = True
        for stream in session.streams.values():
            self._lose_items(stream.held)
            stream.held.clear()
            stream.credit = None  # no frame waits for it any more

    def _open(self, party: Party, frame: wire.Frame, message: wire.Message) -> bytes:
        """If the guest counts credit, each stream gets a window: a part of the rest, at most what was asked."""
        kind = _OPENS[type(message)]
        names = _STREAMS[kind]
        drops = isinstance(message, wire.ExecRequest) and message.drops is True
        session = Session(frame.id, kind, {}, None, False, drops=drops)
        raw = wire.encode_frame(*frame)
        if self._credit and isinstance(message, (wire.ExecRequest, wire.FsRequest, wire.TcpConnect)):
            limits = self._limits
            wanted = None if message.window is wire.UNSET else message.window
            of_user = sum(one.committed for one in self.parties.values() if one.uid == party.uid)
            left = min(
                limits.client_budget - party.committed,
                limits.user_budget - of_user,
                limits.total_budget - self.committed,
            )
            window = max(
                min(limits.largest_window, left // (limits.rest_divisor * len(names))), limits.least_window
            )
            if wanted is not None:
                window = max(min(window, wanted), 1)
            streams = {cls: Stream(frame.id, cls, name, window, wanted) for cls, name in names.items()}
            session = Session(frame.id, kind, streams, self._agent_window, wanted is not None)
            version = wire.decode_envelope(frame.body).version
            raw = wire.encode(msgspec.structs.replace(message, window=window), frame.id, version=version)
        session.needs = things_of(message)
        if isinstance(message, wire.FsRequest) and isinstance(message.op, wire.OpCloseHandle):
            session.closes = message.op.handle
        party.sessions[frame.id] = session
        party.open.append(session)
        party.used.add(frame.id)
        return raw

    def _pend(self, party: Party, session: Session, cls: DataClass | None, data: bytes) -> None:
        last_cls, last = session.pending[-1] if session.pending else (None, b"")
        # (Data without bytes is the end of the stream.)
        if cls is not None and cls is last_cls and data and last and len(last + data) <= _JOINED:
            session.pending[-1] = (cls, last + data)
        else:
            session.pending.append((cls, data))
        self._take_turn(party, session)

    def _take_turn(self, party: Party, session: Session) -> None:
        if session.ready() and not session.turn:
            session.turn = True
            party.round.append(session)

    def feed(self, party: Party) -> bytes | None:
        """The next data of a client for the guest: the client's sessions take turns."""
        while party.round:
            session = party.round.popleft()
            session.turn = False
            if not session.ready():
                continue
            cls, data = session.pending.popleft()
            if cls is None:
                raw = data
            else:
                size = min(len(data), self._limits.slice, len(data) if session.room is None else session.room)
                if size < len(data):
                    session.pending.appendleft((cls, data[size:]))
                if session.room is not None:
                    session.room -= size
                raw = wire.encode(cls(data[:size]), session.id)
            if session.closing and not session.pending:
                self._release(party, session)
                del party.sessions[session.id]
            else:
                self._take_turn(party, session)
            return raw
        return None

    def _give_up(self, party: Party, session: Session, out: list[bytes]) -> None:
        """The client has forgotten the session, so the session must end in the guest as well."""
        self._release(party, session)
        if session.over:
            return
        session.over = True
        if session.last is not None:
            del party.sessions[session.id]
        elif session.kind == "exec":
            out.append(wire.encode(wire.ExecSignal(9), session.id))
        elif session.kind == "tcp":
            out.append(wire.encode(wire.TcpClose(), session.id))
            del party.sessions[session.id]
        elif session.kind == "fs" and self._credit:
            out.append(wire.encode(wire.Cancel(), session.id))

    def _release(self, party: Party, session: Session) -> None:
        self._drop_pending(session)
        for stream in session.streams.values():
            stream.closed = True
            self._lose_items(stream.held)
            stream.held.clear()
        if session in party.open:
            party.open.remove(session)

    # From the guest

    def guest_frame(self, frame: wire.Frame, out: list[bytes]) -> bool:
        """Whether a slot is free now."""
        slot = slot_of(frame.id)
        party = None if slot is None else self.parties.get(slot)
        if party is None:
            return self._last_word(slot, frame)
        cls = class_of(frame)
        session = party.sessions.get(frame.id)
        if session is None:
            party.slow.append(Item(frame.id, wire.encode_frame(*frame)))
        elif not self._is_for_relay(party, session, frame):
            self._guest_within(party, session, frame, cls, out)
        return False

    def _last_word(self, slot: int | None, frame: wire.Frame) -> bool:
        words = self.late.get(-1 if slot is None else slot)
        if slot in self.awaited:
            words = self.awaited[slot][1]
        if slot is not None and words is not None and frame.flags & _TERMINAL:
            if frame.id in words and may_end(frame, words[frame.id]):
                kind = words.pop(frame.id)
                if self.users is not None:
                    self.users.commands[slot] -= kind == "exec"
                if not words:
                    self.awaited.pop(slot, None)
                    self.late.pop(slot, None)
                    if self.users is not None:
                        del self.users.owners[slot], self.users.commands[slot]
                return not words
        self.dropped_frames += 1
        return False

    def _is_for_relay(self, party: Party, session: Session, frame: wire.Frame) -> bool:
        """Take credit of the guest; returns whether it is only for the relay, because the client counts none."""
        if session.room is None or frame.flags:
            return False
        try:
            message = wire.decode(frame)
        except ProtocolError:
            return False
        if not isinstance(message, wire.Credit):
            return False
        if message.stream == _INPUT.get(session.kind):
            # A guest can never grant more than its whole window.
            session.room = min(session.room + message.bytes, self._agent_window)
            self._take_turn(party, session)
        return not session.counts

    def _guest_within(
        self, party: Party, session: Session, frame: wire.Frame, cls: type[wire.Message] | None, out: list[bytes]
    ) -> None:
        raw = wire.encode_frame(*frame)
        if frame.flags & _TERMINAL:
            if not may_end(frame, session.kind):
                self._drop(frame)
                return
            _note_end(party, session, frame)
            if session.over:
                self._drop_pending(session)
                del party.sessions[session.id]
            else:
                self._finish(party, session, raw)
        elif session.over:
            self._drop(frame)
        elif (data := wire.measure_data(frame)) is not None:
            stream = session.streams.get(data[0])
            if _STREAMS[session.kind].get(data[0]) in session.lossy:
                self._drop(frame)
            elif stream is None:
                party.slow.append(Item(frame.id, raw, data=data_of(frame), session=session))
            elif session.last is not None or session.unwanted:
                self._drop(frame)
            else:
                self._guest_data(party, session, stream, raw, frame, out)
        elif cls in _OVERTAKE:
            party.quick.append(Item(frame.id, raw))
        else:
            blocked = next((stream for stream in in_front(session, frame) if stream.held), None)
            queue = party.slow if blocked is None else blocked.held
            queue.append(Item(frame.id, raw, session=session))

    def _guest_data(
        self, party: Party, session: Session, stream: Stream, raw: bytes, frame: wire.Frame, out: list[bytes]
    ) -> None:
        item = Item(frame.id, raw, stream=stream, data=data_of(frame))
        stream.said += len(item.data)
        if stream.said - stream.granted > 2 * stream.window + _FORGIVEN:
            self._drop(frame)
            self._give_up(party, session, out)
            self._answer(party, session.id, wire.Error("invalid_session", ""))
        elif stream.credit is None:
            party.slow.append(item)
        elif not stream.held and (stream.credit > 0 or not item.data):
            stream.credit -= len(item.data)
            party.slow.append(item)
        else:
            self._hold(stream, item)

    def _hold(self, stream: Stream, item: Item) -> None:
        before = stream.held[-1] if stream.held else None
        if before is not None and before.data and item.data and len(before.data + item.data) <= _JOINED:
            data = before.data + item.data
            stream.held.pop()
            item = Item(item.id, wire.encode(stream.cls(data), item.id), stream=stream, data=data)
        stream.held.append(item)

    def _grant(self, party: Party, session: Session, message: wire.Credit) -> None:
        for stream in session.streams.values():
            if stream.name == message.stream and stream.credit is not None:
                stream.credit += message.bytes
                while stream.held and (stream.credit > 0 or not stream.held[0].data):
                    item = stream.held.popleft()
                    stream.credit -= len(item.data)
                    party.slow.append(item)
        self._say_last(party, session)

    def _finish(self, party: Party, session: Session, raw: bytes) -> None:
        self._drop_pending(session)
        if session.last is not None:
            self.dropped_frames += 1
            return
        for stream in session.streams.values():
            stream.closed = True
        session.last = Item(session.id, raw, ends=session, session=session)
        self._say_last(party, session)

    def _say_last(self, party: Party, session: Session) -> None:
        if session.last is not None and not any(stream.held for stream in session.streams.values()):
            (party.quick if session.kind == "call" else party.slow).append(session.last)
            del party.sessions[session.id]

    def guest_lost(self) -> None:
        """The guest is gone: clients get all frames that are held, whatever credit they have given."""
        for party in self.parties.values():
            for session in list(party.sessions.values()):
                for stream in session.streams.values():
                    party.slow.extend(stream.held)
                    stream.held.clear()
                    stream.credit = None
            for session in list(party.sessions.values()):
                self._say_last(party, session)

    # To a client

    def take(self, party: Party, batch: Sequence[bytes]) -> None:
        """These frames go to the socket. Each must be the first of its queue, and the quick queue goes first."""
        for number, raw in enumerate(batch):
            frame = parse(raw)
            assert frame.id in party.ids, "a frame of somebody else"
            queues = (party.quick,) if not number and party.quick else (party.quick, party.slow)
            for queue in queues:
                if (taken := front(queue, frame, raw)) is not None:
                    party.in_flight += taken
                    break
            else:
                raise AssertionError("a frame that is not the client's next one")

    def took(self, party: Party, grants: Sequence[bytes]) -> None:
        """The socket has taken the frames, so these bytes are granted again, at the latest with half a window."""
        streams = [item.stream for item in party.in_flight if item.stream is not None]
        open_ = {(stream.id, stream.name): stream for stream in streams if not stream.closed}
        for item in party.in_flight:
            if item.stream is not None:
                item.stream.taken += len(item.data)
        for raw in grants:
            frame = parse(raw)
            message = wire.decode(frame)
            assert isinstance(message, wire.Credit)
            stream = open_[frame.id, message.stream]
            stream.granted += message.bytes
            assert stream.granted <= stream.taken, "more credit than was taken"
        for stream in open_.values():
            assert 2 * (stream.taken - stream.granted) < stream.window, "credit is kept back"
        for item in party.in_flight:
            if item.ends is not None:
                self._release(party, item.ends)
        party.in_flight.clear()

    def drop_data(self, party: Party, queued: int, out: list[bytes]) -> bool:
        """Drop what a client does not read, of which so many bytes are queued; the guest counts no credit.

        Returns whether the client is told, and so not cut.
        """
        output = [item for item in party.slow if _is_data(item) and _kind(item) in ("exec", "")]
        if any(item.session is not None and not item.session.drops for item in output):
            return False
        slow, party.slow = party.slow, deque()
        for item in slow:
            if not any(item is one for one in output):
                party.slow.append(item)
                continue
            self._lose_items([item])
            queued -= len(item.raw)
            name = _STREAMS["exec"].get(wire.measure_data(parse(item.raw))[0])  # type: ignore[index]
            if item.session is not None and name is not None and name not in item.session.lossy:
                item.session.lossy.add(name)
                told = wire.encode(wire.ExecDropped(name), item.id)  # type: ignore[arg-type]
                party.slow.append(Item(item.id, told))
                queued += len(told)
        if queued > self._limits.client_budget:
            self._drop_rest(party, out)
        return True

    def _drop_rest(self, party: Party, out: list[bytes]) -> None:
        """All data of files and connections, and what comes behind it: their clients get an error instead."""
        slow, party.slow = party.slow, deque()
        lossy: list[Session] = []
        for item in slow:
            session = item.session
            if session is not None and _is_data(item) and session not in lossy:
                lossy.append(session)
            if session is None or session not in lossy:
                party.slow.append(item)
                continue
            self._lose_items([item])
            if item.ends is not None:
                party.slow.append(_loss(session)._replace(ends=session))
        for session in lossy:
            ended = any(item.ends is session for item in party.slow)
            if not ended and not session.over and not session.closing and not session.unwanted:
                self._give_up(party, session, out)
                party.slow.append(_loss(session))

    # What is lost

    def _drop(self, frame: wire.Frame) -> None:
        self.dropped_frames += 1
        self._lose(frame)

    def _lose(self, frame: wire.Frame) -> None:
        data = wire.measure_data(frame)
        self.lost += 0 if data is None else data[1]
        self.lost_with_frames += wire.HEADER_SIZE + len(frame.body)

    def _lose_items(self, items: Iterable[Item]) -> None:
        for item in items:
            self.lost += len(item.data)
            self.lost_with_frames += len(item.raw) if item.answer is None else 2000

    def _drop_pending(self, session: Session) -> None:
        self.lost += sum(len(data) for cls, data in session.pending if cls is not None)
        self.lost_with_frames += sum(len(data) for _, data in session.pending)
        session.pending.clear()


def _is_data(item: Item) -> bool:
    return bool(item.raw) and wire.measure_data(parse(item.raw)) is not None


def _kind(item: Item) -> str:
    return "" if item.session is None else item.session.kind


def _loss(session: Session) -> Item:
    """The end of a session of which data was dropped."""
    answer = wire.FsResponse(ok=False) if session.kind == "fs" else wire.TcpFailed("")
    return Item(session.id, b"", answer)


def _note_end(party: Party, session: Session, frame: wire.Frame) -> None:
    """What the guest has ended, opened or closed with a session's last frame."""
    session.ended = True
    try:
        message = wire.decode(frame)
    except ProtocolError:
        return
    if not isinstance(message, wire.FsResponse):
        return
    if session.closes is not None:
        text = message.error or ""
        if (
            message.ok
            or "invalid handle" in text
            or any(f"(os error {number})" in text for number in (5, 28, 122))
        ):
            party.handles.discard(session.closes)
    elif message.ok and isinstance(message.data, wire.ResultHandle) and session.needs[2]:
        if message.data.value not in party.handles:
            party.handles.add(message.data.value)
            session.needs = (session.needs[0], session.needs[1], 0)


def _is_portable(data: bytes) -> bool:
    """Whether every agent can decode what an item says, if it is an item at all."""
    try:
        return cbor_reference.is_portable(data)
    except cbor_reference.Refused:
        return True
