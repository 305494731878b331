"""The reference of the agent's session of a command: what its host must have been told by now, and what not.

It is given what the command and the host do, the messages of the session, and the time. It knows no tasks. Where
the moment of something depends on when a silence has begun, it says only by when it must have happened, and before
when it must not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, final

from trio_console import _wire as wire

__all__ = ["ExecModel"]

#: Bytes of a stream from which on a relay may hold the last word behind them.
_HELD: Final = 65536

#: Seconds: the silence for a host that has not said how long, the time to bury, and what counts as one moment.
_LEGACY_DRAIN: Final = 0.25
_BURIAL: Final = 2.0
_TOGETHER: Final = 0.01


@final
@dataclass
class _Stream:
    window: float
    credit: float  # bytes in all
    written: bytearray = field(default_factory=bytearray)
    got: bytearray = field(default_factory=bytearray)
    closed: bool = False
    ended: bool = False  # which was told
    due: int | None = None  # bytes that still come after the host has let go, or with no drain
    quiet: float = 0.0  # seconds since it has closed, and all was told

    def grant(self, size: int) -> None:
        """Credit beyond the window does not count."""
        self.credit = min(self.credit + size, len(self.got) + self.window)

    @property
    def whole(self) -> bool:
        return self.closed and len(self.got) == len(self.written)

    @property
    def delivered(self) -> bool:
        """Whether the host has got all that must come."""
        return self.whole or (self.due is not None and len(self.got) >= self.due)


@final
class ExecModel:
    """See the module."""

    def __init__(self, ends: wire.ExecEnds | wire.UnsetType, window: int | wire.UnsetType) -> None:
        self._tells = ends is not wire.UNSET
        if ends is wire.UNSET:
            self._drain = _LEGACY_DRAIN
        else:
            self._drain = math.inf if ends.drain is None else ends.drain / 1000
        credit = math.inf if window is wire.UNSET else window
        self._streams = {name: _Stream(credit, credit) for name in ("stdout", "stderr")}
        self._exit: wire.ExecExited | None = None
        self._left = False
        self._since_exit = 0.0
        self._quiet = 0.0  # seconds in which nothing came, after the exit
        self._silence = 0.0  # of these, those since the host could take something
        self._forced = False
        self._doomed = False
        self._ending: wire.Error | None = None
        self._muted = False
        self._departed = False
        self._grace = _BURIAL
        self._alive: int | None = None
        self._signals: list[int] = []
        self.sunk = 0
        self._last: wire.Message | None = None

    # What the command does

    def wrote(self, name: str, data: bytes) -> None:
        self._streams[name].written += data

    def closed(self, name: str) -> None:
        self._streams[name].closed = True

    def exited(self, status: wire.ExecExited) -> None:
        self._exit = status
        self._silence = self._quiet = 0.0
        if self._drain == 0:
            self._let_go()
        if self._doomed:
            self._forced = True

    def _let_go(self) -> None:
        for stream in self._streams.values():
            size = len(stream.written)
            stream.due = size if stream.due is None else min(size, stream.due)

    # What the host does

    def told(self, message: wire.Message) -> None:
        match message:
            case wire.Credit(name, size) if name in self._streams:
                self._streams[name].grant(size)
            case wire.ExecSignal(number) if 1 <= number <= 31:
                self._signals.append(number)
            case wire.ExecRelease():
                self._let_go()
            case wire.ExecKill(grace, after_exit):
                self._grace = grace / 1000
                if after_exit is True and self._exit is None:
                    self._doomed = True
                else:
                    self._forced = True

    def shut_down(self) -> None:
        self._muted = True
        self._signals.append(15)

    def depart(self) -> None:
        self._departed = self._forced = True

    def bad_frame(self, error: wire.Error) -> None:
        self._ending = self._ending or error
        self._forced = True

    def cut(self) -> None:
        """The end of the test."""
        self._forced = True

    def pass_time(self, seconds: float) -> None:
        if self._exit is not None:
            self._since_exit += seconds
            self._quiet += seconds
            self._silence = self._silence + seconds if self._takes else 0.0
        for stream in self._streams.values():
            # (An end is read as bytes are: while the command runs and its host reads, it has to have credit.)
            read_on = self._exit is None and stream.due is None
            if stream.whole and (not read_on or stream.credit > len(stream.got)):
                stream.quiet += seconds

    @property
    def _takes(self) -> bool:
        """Whether the host could take a byte of each stream."""
        return all(stream.whole or stream.credit > len(stream.got) for stream in self._streams.values())

    # What the agent does

    def hear(self, message: wire.Message) -> None:
        assert self._last is None, "something is said behind the last word"
        match message:
            case wire.ExecStdout(data) | wire.ExecStderr(data):
                name = "stdout" if isinstance(message, wire.ExecStdout) else "stderr"
                stream = self._streams[name]
                assert data, "no bytes are no message"
                assert not stream.ended, "bytes behind the end of their stream"
                stream.got += data
                assert stream.written.startswith(stream.got), "other bytes than were written"
                assert len(stream.got) <= stream.credit, "more than the host takes"
                self._silence = self._quiet = 0.0
            case wire.ExecStreamEnded(name):
                stream = self._streams[name]
                assert self._tells, "an end that nobody has asked for"
                assert stream.whole, "an end in front of bytes, or of a stream that is open"
                assert not stream.ended, "a stream ends twice"
                assert stream.quiet >= _TOGETHER, "an end that comes together with the exit is told by that"
                stream.ended = True
            case wire.ExecLeft(code, number):
                assert self._tells, "an exit that nobody has asked for"
                assert not self._left, "an exit is told twice"
                assert self._exit == wire.ExecExited(code, number), "an exit is invented"
                self._left = True
            case wire.ExecStarted() | wire.Credit() | wire.ExecStdinError():
                pass
            case _:
                self._hear_last(message)

    def _hear_last(self, message: wire.Message) -> None:
        assert not self._muted, "a last word that was forbidden"
        self._last = message
        if self._ending is not None:
            assert message == self._ending, "another error"
            return
        assert isinstance(message, wire.ExecExited), message
        assert self._exit is not None, "an exit is invented"
        assert (message.code, message.signal) == (self._exit.code, self._exit.signal), "another status"
        may_be_held = any(len(stream.got) >= _HELD for stream in self._streams.values())
        told = self._left or self._departed or not self._tells
        assert told or not may_be_held, "an exit is told only behind output that a relay may hold"
        held = [] if message.held is wire.UNSET else list(message.held)
        if not self._tells:
            assert message.held is message.alive is wire.UNSET
        elif self._forced:
            assert message.alive == (wire.UNSET if self._alive is None else self._alive)
        else:
            assert message.alive is wire.UNSET, "killed, when nobody asked for it"
            for name, stream in self._streams.items():
                assert (name in held) or stream.whole, "a stream that is open counts as ended"
                # (One that was let go of may have ended after that.)
                let_go = stream.due is not None or self._quiet >= self._drain
                assert (name not in held) or not stream.whole or let_go, "a stream that has ended counts as held"
        if not self._forced:
            silent = self._quiet >= self._drain and self._takes
            assert silent or all(stream.delivered for stream in self._streams.values()), "too early"

    def signalled(self, number: int) -> None:
        if not self._signals and number == 9:
            assert self._forced or self._exit is not None, "killed, when nobody asked for it"
            return
        if self._signals:
            assert number == self._signals.pop(0) or number == 9, "another signal"

    def hunted(self, grace: float, alive: int) -> None:
        assert self._forced, "killed, when nobody asked for it"
        assert self._alive is None, "killed twice"
        assert not self._departed, "what a client has left is killed by others"
        assert grace == self._grace, "another grace"
        self._alive = alive

    # What must hold

    def settled(self) -> None:
        """All tasks wait: what can be told has been told."""
        if self._forced or self._muted:
            assert self._forced is False or self._last is not None or self._muted, "it was to be ended"
            return
        if self._exit is not None and all(stream.whole for stream in self._streams.values()):
            assert self._last is not None, "all is over, and the last word is missing"
        if self._last is not None:
            return
        for stream in self._streams.values():
            due = len(stream.written) if stream.due is None else stream.due
            assert len(stream.got) >= min(due, stream.credit), "bytes are kept back"
            untold = self._tells and stream.whole and stream.due is None and not stream.ended
            assert not untold or stream.quiet < _TOGETHER, "an untold end"
        if self._exit is not None:
            assert not self._tells or self._left or self._since_exit < _TOGETHER, "an exit is not told"
            assert not all(stream.delivered for stream in self._streams.values()), "nothing more is waited for"
            assert self._silence < 2 * self._drain or not self._drain, "the silence has no end"

    def check_last(self) -> None:
        assert not [number for number in self._signals if number != 9], "a signal is lost"
