"""Faults of a console, as data; and `FaultLine`, one direction of a console on which they happen.

A `Fault` is an action and the frame at which it happens, so a list of faults has the same effect in every run. A
`FaultLine` is given bytes, cuts them into frames, counts the frames, and returns the bytes that come out at the
other side. Where a fault happens it also returns a `FiredFault`; its effect on the whole console is the task of
the caller that moves the bytes.

There is no I/O, no thread and no trio here, and this module must not know what is at either end.
"""

from __future__ import annotations

import signal
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, final, get_args

from trio_console._errors import ProtocolError
from trio_console._wire import (
    MESSAGE_TYPES,
    parse_frame,
    parse_size,
    peek_type,
)
from trio_console._wire import Direction as Sender

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Action",
    "Corrupt",
    "Direction",
    "Disconnect",
    "Drop",
    "Duplicate",
    "Effect",
    "Fault",
    "FaultLine",
    "FiredFault",
    "Flood",
    "LineStatistics",
    "Reorder",
    "Signal",
    "Stall",
    "Truncate",
]

#: ``"tx"``: what the guest transmits, guest to host. ``"rx"``: what it receives, host to guest.
Direction: TypeAlias = Literal["tx", "rx"]


@final
@dataclass(frozen=True, slots=True)
class Stall:
    """Let nothing pass in this direction, from this frame on, until `FaultyGuest.resume`."""


@final
@dataclass(frozen=True, slots=True)
class Disconnect:
    """Cut the console in both directions before this frame: each side sees that the other has gone.

    Attributes:
        error: errno with which the host's reads fail; `None`, the default, is end of file.
    """

    error: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to the guest's process on this machine, before this frame.

    SIGKILL plays an agent that crashes; SIGSTOP plays one that hangs while its console stays open.

    Attributes:
        number: the signal's number; by default SIGKILL.
    """

    number: int = signal.SIGKILL


@final
@dataclass(frozen=True, slots=True)
class Drop:
    """Lose this frame."""


@final
@dataclass(frozen=True, slots=True)
class Duplicate:
    """Deliver this frame more than once.

    Attributes:
        copies: how many copies follow the frame; by default 1.
    """

    copies: int = 1


@final
@dataclass(frozen=True, slots=True)
class Corrupt:
    """Flip bits in one byte of this frame.

    A frame is four bytes of length, four of id, one of flags, and the message. So offset 0 puts the whole byte
    stream out of step, and the last byte is data in most frames.

    Attributes:
        offset: the byte's offset in the frame; counted from the end if negative. An offset beyond the frame means
            the frame's last byte, or its first. By default the last byte.
        mask: the bits to flip, 1 to 255; by default 1.
    """

    offset: int = -1
    mask: int = 0x01

    def __post_init__(self) -> None:
        if not 1 <= self.mask <= 0xFF:
            raise ValueError(f"mask must be between 1 and 255, not {self.mask}")


@final
@dataclass(frozen=True, slots=True)
class Reorder:
    """Deliver this frame late, behind one or more later frames.

    Attributes:
        by: how many frames overtake it; by default 1. If no more come, it is delivered when the console ends.
        across_sessions: count only frames of other sessions, and keep the order inside this session. An agent may
            do that by the protocol.
    """

    by: int = 1
    across_sessions: bool = False

    def __post_init__(self) -> None:
        if self.by < 1:
            raise ValueError(f"by must be at least 1, not {self.by}")


@final
@dataclass(frozen=True, slots=True)
class Truncate:
    """Deliver only the beginning of this frame.

    Attributes:
        keep: how many bytes of the frame are delivered; `None`, the default, is half of them.
        then: what happens next: by default this direction stalls. (After a resume it is out of step.)
    """

    keep: int | None = None
    then: Stall | Disconnect | Signal = field(default_factory=Stall)

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 0:
            raise ValueError(f"keep must not be negative, but is {self.keep}")


@final
@dataclass(frozen=True, slots=True)
class Flood:
    """From this frame on, send the same bytes again and again, as fast as the other side takes them.

    Later frames of this direction are lost.

    Attributes:
        data: the bytes to repeat; `None`, the default, is this frame.
    """

    data: bytes | None = None

    def __post_init__(self) -> None:
        if self.data is not None and not self.data:
            raise ValueError("data must not be empty")


#: Actions on the whole console, and not on the bytes of a frame.
Effect: TypeAlias = Stall | Disconnect | Signal

Action: TypeAlias = Stall | Disconnect | Signal | Drop | Duplicate | Corrupt | Reorder | Truncate | Flood


@final
@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """An action that happens once, at the nth frame that matches.

    Frames are counted from the opening of the guest, including the frames of the boot: the first two that a guest
    transmits are ``core.init.resolved`` and ``core.ready``. A fault that is added with `FaultyGuest.inject` counts
    from then on. Only one fault acts on a frame; if two are due, the second waits for the next frame that matches.

    Attributes:
        action: what happens.
        message: the message type of the frames that match, such as ``"core.exec.stdout"``; `None`, the default,
            matches every frame.
        nth: the number of the matching frame at which the action happens, counted from 1; by default 1.
        direction: ``"tx"`` for frames that the guest transmits, ``"rx"`` for frames that it receives; `None`, the
            default, is the direction of ``message``, or ``"tx"`` if that has both directions or is not given.

    Raises:
        ValueError: there is no such message type, it has another direction, or ``nth`` is below 1.
        TypeError: ``action`` is not an action.
    """

    action: Action
    message: str | None = None
    nth: int = 1
    direction: Direction | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.action, get_args(Action)):
            known = ", ".join(action.__name__ for action in get_args(Action))
            raise TypeError(f"action must be one of {known}, not {self.action!r:.80}")
        if self.nth < 1:
            raise ValueError(f"nth must be at least 1, not {self.nth}")
        if self.direction not in (None, "tx", "rx"):
            raise ValueError(f"direction must be 'tx' or 'rx', not {self.direction!r}")
        possible = _directions(self.message)
        if self.direction is None:
            object.__setattr__(self, "direction", possible[0])
        elif self.direction not in possible:
            raise ValueError(f"{self.message} goes in the direction {possible[0]!r} only")


def _directions(message: str | None) -> list[Direction]:
    if message is None:
        return ["tx", "rx"]
    row = MESSAGE_TYPES.get(message)
    if row is None:
        raise ValueError(f"there is no message type {message!r}; known: {', '.join(sorted(MESSAGE_TYPES))}")
    senders: list[tuple[Direction, Sender]] = [("tx", Sender.AGENT_TO_HOST), ("rx", Sender.HOST_TO_AGENT)]
    return [name for name, sender in senders if sender in row.direction]


@final
@dataclass(frozen=True, slots=True)
class FiredFault:
    """A fault that has happened.

    Attributes:
        fault: the fault.
        frame: the number of the frame in its direction, counted from 1.
        message: the frame's message type, or ``""`` if it cannot be read.
        session: the frame's correlation id.
    """

    fault: Fault
    frame: int
    message: str
    session: int

    @property
    def effect(self) -> Effect | None:
        """The action on the whole console, if the fault has one."""
        action = self.fault.action
        if isinstance(action, Truncate):
            return action.then
        return action if isinstance(action, Stall | Disconnect | Signal) else None


@final
@dataclass(frozen=True, slots=True)
class LineStatistics:
    """One direction of a faulty console so far.

    Attributes:
        frames: whole frames that came in.
        bytes_in: bytes that came in.
        bytes_out: bytes that came out.
    """

    frames: int
    bytes_in: int
    bytes_out: int


class _Awaited:
    """A fault that has not happened yet, and the number of frames that have matched."""

    __slots__ = ("fault", "seen")

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.seen = 0

    def counts(self, message: str) -> bool:
        """Count a frame if it matches; returns whether the fault is due at this frame."""
        if self.fault.message not in (None, message):
            return False
        self.seen += 1
        return self.seen >= self.fault.nth


class _Held:
    """A frame that is delivered late, and the later frames that must stay behind it."""

    __slots__ = ("frames", "left", "session")

    def __init__(self, frame: bytes, by: int, session: int | None) -> None:
        self.frames = [frame]
        self.left = by
        self.session = session  # later frames of this session stay behind the frame; None for no session


@final
class FaultLine:
    """One direction of a console, with faults.

    Give it bytes with `feed`; then call `take` until it returns `None`. Used by one thread at a time.

    Args:
        faults: the faults of this direction.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._awaited = [_Awaited(fault) for fault in faults]
        self._partial = bytearray()
        self._out: deque[bytes | FiredFault] = deque()
        self._held: _Held | None = None
        self._raw = False  # the bytes are not frames, so they pass uncounted
        self._lost = False  # a flood has begun, so no more bytes pass
        self._flood: bytes | None = None
        self._frames = 0
        self._bytes_in = 0
        self._bytes_out = 0

    def add(self, fault: Fault) -> None:
        """Add a fault, which counts from now on."""
        self._awaited.append(_Awaited(fault))

    def statistics(self) -> LineStatistics:
        return LineStatistics(self._frames, self._bytes_in, self._bytes_out)

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes in; they may be cut anywhere."""
        self._bytes_in += len(data)
        if self._lost:
            return
        if self._raw:
            self._out.append(bytes(data))
            return
        self._partial += data
        while (frame := self._cut()) is not None:
            self._pass(frame)

    def end(self) -> None:
        """Take no more bytes: late and incomplete frames come out now."""
        self._release()
        if self._partial:
            self._out.append(bytes(self._partial))
            self._partial.clear()

    def take(self) -> bytes | FiredFault | None:
        """The next bytes or fired fault that come out; `None` if more bytes have to come in first."""
        if self._out:
            item = self._out.popleft()
        elif self._flood is not None:
            item = self._flood
        else:
            return None
        if isinstance(item, bytes):
            self._bytes_out += len(item)
        return item

    def _cut(self) -> bytes | None:
        """Remove the first whole frame from the bytes that have come, and return it."""
        partial = self._partial
        try:
            size = parse_size(partial)
        except ProtocolError:
            # These bytes are not frames; the other side has to detect that.
            self._raw = True
            self.end()
            return None
        if size is None or len(partial) < size:
            return None
        frame = bytes(memoryview(partial)[:size])
        del partial[:size]
        return frame

    def _pass(self, frame: bytes) -> None:
        self._frames += 1
        session = parse_frame(frame).id
        fault, message = self._due(frame)
        if fault is None:
            self._let_out(frame, session)
            return
        fired = FiredFault(fault, self._frames, message, session)
        if isinstance(fault.action, Truncate):
            keep = fault.action.keep
            self._release()
            self._out.extend((frame[: len(frame) // 2 if keep is None else keep], fired))
        else:
            # The fired fault comes before the bytes: a flood has no end, and an effect happens before its frame.
            self._out.append(fired)
            self._act(fault.action, frame, session)

    def _due(self, frame: bytes) -> tuple[Fault | None, str]:
        """The fault that is due at this frame, if any, and the frame's type."""
        if not self._awaited:
            return None, ""
        try:
            message = peek_type(parse_frame(frame).body)
        except ProtocolError:
            message = ""
        due = [awaited for awaited in self._awaited if awaited.counts(message)]
        if not due:
            return None, message
        self._awaited.remove(due[0])
        return due[0].fault, message

    def _act(self, action: Action, frame: bytes, session: int) -> None:
        match action:
            case Stall() | Disconnect() | Signal():
                self._let_out(frame, session)
            case Duplicate(copies):
                for _ in range(1 + copies):
                    self._let_out(frame, session)
            case Corrupt(offset, mask):
                at = max(0, min(offset if offset >= 0 else len(frame) + offset, len(frame) - 1))
                changed = bytearray(frame)
                changed[at] ^= mask
                self._let_out(bytes(changed), session)
            case Reorder(by, across_sessions):
                self._release()
                self._held = _Held(frame, by, session if across_sessions else None)
            case Flood(data):
                self._release()
                self._flood = frame if data is None else data
                self._lost = True
                self._partial.clear()

    def _let_out(self, frame: bytes, session: int) -> None:
        held = self._held
        if held is not None and held.session == session:
            held.frames.append(frame)
            return
        self._out.append(frame)
        if held is not None:
            held.left -= 1
            if not held.left:
                self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._out.extend(self._held.frames)
            self._held = None
