"""The parts of the relay's reference: clients, their sessions, streams, and the frames that wait for them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, final

from trio_console import _wire as wire
from trio_console._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "SLOTS",
    "STEP",
    "DataClass",
    "Item",
    "Party",
    "Session",
    "Stream",
    "class_of",
    "data_of",
    "front",
    "ids_of",
    "in_front",
    "may_end",
    "parse",
    "slot_of",
]

DataClass: TypeAlias = type[wire.DataMessage]

_ENDS: Final[dict[type[wire.Message], str]] = {
    wire.ExecExited: "exec",
    wire.ExecFailed: "exec",
    wire.FsResponse: "fs",
    wire.TcpClosed: "tcp",
    wire.TcpFailed: "tcp",
    wire.Pong: "call",
    wire.Touched: "call",
    wire.ClientForgotten: "call",
    wire.ResetDone: "call",
    wire.BackgroundKilled: "call",
}

SLOTS: Final = 128

#: Slot k has the ids between two multiples of this number. The multiples themselves belong to no slot.
STEP: Final = (2**32 - 1) // SLOTS


def ids_of(slot: int) -> range:
    return range(slot * STEP + 1, slot * STEP + STEP)


def slot_of(id_: int) -> int | None:
    return next((slot for slot in (id_ // STEP,) if slot < SLOTS and id_ in ids_of(slot)), None)


def parse(raw: bytes) -> wire.Frame:
    """One whole frame."""
    assert int.from_bytes(raw[:4], "big") + 4 == len(raw)
    return wire.Frame(int.from_bytes(raw[4:8], "big"), raw[8], raw[9:])


@final
@dataclass(eq=False, slots=True)
class Stream:
    """Bytes from the guest to a client."""

    id: int
    cls: DataClass
    name: str
    window: int
    credit: int | None  # the client's; `None` if it does not count
    held: deque[Item] = field(default_factory=deque)
    said: int = 0
    taken: int = 0
    granted: int = 0
    closed: bool = False  # the guest has ended it, or is to


@final
@dataclass(eq=False, slots=True)
class Session:
    id: int
    kind: str
    streams: dict[DataClass, Stream]
    room: int | None  # bytes that the guest takes now; `None` if it does not count
    counts: bool  # whether the client does
    pending: deque[tuple[DataClass | None, bytes]] = field(default_factory=deque)
    turn: bool = False
    closing: bool = False
    over: bool = False  # for the client
    last: Item | None = None  # what the guest said last, behind what is held
    unwanted: bool = False  # its data, by its client
    drops: bool = False  # whether its client is told of output that is dropped
    lossy: set[str] = field(default_factory=set)  # the streams of which some was dropped
    needs: tuple[int, int, int] = (0, 0, 0)  # see `Things`
    closes: int | None = None  # the handle that it closes
    ended: bool = False  # the guest has told its end

    def ready(self) -> bool:
        if not self.pending:
            return False
        cls, data = self.pending[0]
        return cls is None or not data or self.room is None or self.room > 0


class Item(NamedTuple):
    """A frame for a client: as it came, or an answer by the relay, whose words do not matter."""

    id: int
    raw: bytes
    answer: wire.Message | None = None
    stream: Stream | None = None
    data: bytes = b""
    ends: Session | None = None
    session: Session | None = None

    def is_in(self, frame: wire.Frame, raw: bytes) -> bool:
        if self.answer is None:
            return self.raw == raw
        try:
            return frame.id == self.id and _same_answer(self.answer, wire.decode(frame))
        except ProtocolError:
            return False  # the guest's, which comes after


@final
@dataclass(eq=False, slots=True)
class Party:
    """A client."""

    slot: int
    ids: range
    sessions: dict[int, Session] = field(default_factory=dict)
    open: list[Session] = field(default_factory=list)  # whose windows are not given back
    quick: deque[Item] = field(default_factory=deque)
    slow: deque[Item] = field(default_factory=deque)
    in_flight: list[Item] = field(default_factory=list)  # given to its socket, which has not taken it
    round: deque[Session] = field(default_factory=deque)
    used: set[int] = field(default_factory=set)  # ids that it has opened
    uid: int = 0
    handles: set[int] = field(default_factory=set)  # of its open files

    @property
    def committed(self) -> int:
        return sum(stream.window for session in self.open for stream in session.streams.values())

    @property
    def queued(self) -> Iterable[Item]:
        return (*self.in_flight, *self.quick, *self.slow)


def _same_answer(expected: wire.Message, message: wire.Message) -> bool:
    match message:
        case wire.Error(kind, text, offending):
            if not isinstance(expected, wire.Error):
                return False
            return (expected.kind, expected.offending_type) == (kind, offending) and bool(text)
        case wire.FsResponse(ok, error):
            return isinstance(expected, wire.FsResponse) and not ok and bool(error)
        case _:
            return type(message) is type(expected)


def class_of(frame: wire.Frame) -> type[wire.Message] | None:
    try:
        row = wire.MESSAGE_TYPES.get(wire.peek_type(frame.body))
    except ProtocolError:
        return None
    return None if row is None else row.cls


def data_of(frame: wire.Frame) -> bytes:
    data = wire.measure_data(frame)
    return b"" if data is None else bytes(frame.body[len(frame.body) - data[1] :])


def front(queue: deque[Item], frame: wire.Frame, raw: bytes) -> list[Item] | None:
    """Take the parts of a frame off a queue: its first item, or several pieces of one stream."""
    if not queue:
        return None
    if queue[0].is_in(frame, raw):
        return [queue.popleft()]
    first, data = queue[0].stream, data_of(frame)
    if first is None or not data or first.cls is not class_of(frame) or first.id != frame.id:
        return None
    taken: list[Item] = []
    while data and queue and queue[0].stream is first and queue[0].data and data.startswith(queue[0].data):
        data = data[len(queue[0].data) :]
        taken.append(queue.popleft())
    return None if data else taken


def in_front(session: Session, frame: wire.Frame) -> Iterable[Stream]:
    """The streams whose data a frame without data must not overtake: all, or the one whose end it is."""
    try:
        message = wire.decode(frame)
    except ProtocolError:
        return session.streams.values()
    name = message.stream if isinstance(message, wire.ExecStreamEnded) else None
    return [stream for stream in session.streams.values() if name in (None, stream.name)]


def may_end(frame: wire.Frame, kind: str) -> bool:
    """Whether a frame fits a session of this kind. If not, it is the last frame of the id's former session."""
    cls = class_of(frame)
    return cls is None or cls not in _ENDS or _ENDS[cls] == kind
