"""The reference of the agent's router: its duties to the host, written a second time and in the plainest way.

It is given each frame, and told when all tasks wait again ("settled"). It says which sessions are open then, and
which frames the host has received. The sessions are those of the target: they do what their request says.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from trio_console import _wire as wire
from trio_console._errors import ProtocolError

__all__ = ["AgentModel", "Told", "told"]

#: Ids are given out in 128 ranges. The number before each range, and those after the last, have no owner.
_STEP: Final = (2**32 - 1) // 128

#: The first generation of the protocol that knows the message for an error.
_TOLD_FROM: Final = 5

_FOR_A_COMMAND: Final = (wire.ExecStdin, wire.ExecSignal, wire.Credit, wire.ExecRelease, wire.ExecKill)

#: A frame without the words in it that do not matter: its id, its type, and what it says there.
Told: TypeAlias = tuple[int, str, str]


def told(id_: int, message: wire.Message) -> Told:
    name = wire.type_of(message).name
    match message:
        case wire.Error(kind, text, offending):
            return id_, name, f"{kind} {offending if isinstance(offending, str) else ''} {bool(text)}"
        case wire.FsResponse(ok):
            return id_, name, str(ok)
        case wire.ExecExited(code) | wire.ExecStarted(code):
            return id_, name, str(code)
        case wire.BackgroundKilled(alive):
            return id_, name, str(alive)
        case wire.ExecKill(grace, after_exit):
            return id_, name, f"{grace} {after_exit}"
        case _:
            return id_, name, ""


@final
@dataclass(eq=False, slots=True)
class _Session:
    id: int
    does: str
    begun: bool = False
    ended: bool = False
    ending: wire.Message | None = None
    departed: bool = False
    muted: bool = False
    prompt: bool = False  # its id is free as soon as it is ended, and not when its task is over


@final
class AgentModel:
    """See the module."""

    def __init__(self) -> None:
        self._table: dict[int, _Session] = {}
        self._replaced: list[_Session] = []
        self.out: Counter[Told] = Counter()  # that the host has not got yet
        self.forgotten: list[tuple[int, int]] = []
        self.clock: list[int] = []
        self.received: list[Told] = []  # by sessions
        self.over = False  # shut down

    @property
    def living(self) -> list[int]:
        return sorted(self._table)

    def frame(self, frame: wire.Frame) -> None:
        if self.over:
            return
        owner = self._table.get(frame.id)
        if owner is not None and owner.departed:
            owner = None
        try:
            message = wire.decode(frame)
        except ProtocolError as exc:
            self._refuse(frame, owner, exc.kind, exc.message_type, exc.version)
            return
        name = wire.type_of(message).name
        if owner is not None and not owner.prompt and isinstance(message, _FOR_A_COMMAND):
            self._receive(owner, message)
        elif isinstance(message, (wire.ExecRequest, wire.TcpConnect, wire.KillBackground)):
            valid = frame.id % _STEP != 0 and frame.id < 128 * _STEP
            if owner is not None or not valid:
                version = wire.decode_envelope(frame.body).version
                self._refuse(frame, owner, "invalid_session", name, version)
            else:
                self._open(frame.id, message)
        elif isinstance(message, (wire.FsData, wire.TcpData)):
            self._orphan(frame, owner, message)
        else:
            self._control(frame.id, message)

    def _say(self, id_: int, message: wire.Message) -> None:
        self.out[told(id_, message)] += 1

    def _refuse(
        self, frame: wire.Frame, owner: _Session | None, kind: str, name: str | None, version: int | None
    ) -> None:
        """A frame ends its session. It is answered if the host's generation knows the answer."""
        understood = version is None or version >= _TOLD_FROM
        error = wire.Error(kind, "words", name or wire.UNSET)
        if owner is not None:
            owner.ended = True
            if understood and owner.ending is None:
                owner.ending = error
            if owner.prompt:
                self._say(owner.id, owner.ending or wire.Error("invalid_session", "words"))
                owner.departed = owner.muted = True
        elif understood:
            self._say(frame.id, error)

    def _receive(self, owner: _Session, message: wire.Message) -> None:
        if not owner.ended:
            self.received.append(told(owner.id, message))
            kills = isinstance(message, wire.ExecKill) and message.after_exit is not True
            owner.ended = kills or isinstance(message, wire.ExecSignal)

    def _open(self, id_: int, message: wire.ExecRequest | wire.TcpConnect | wire.KillBackground) -> None:
        former = self._table.get(id_)
        if former is not None:
            former.muted = True
        does = message.cmd if isinstance(message, wire.ExecRequest) else ""
        prompt = isinstance(message, wire.KillBackground)
        if isinstance(message, wire.KillBackground):
            does = "quits" if message.command else "waits"
        if does == "refused":
            self._say(id_, wire.ExecFailed(kind="not_found", message="refused"))
            return
        if former is not None:
            self._replaced.append(former)
        self._table[id_] = _Session(id_, does, prompt=prompt)

    def _orphan(self, frame: wire.Frame, owner: _Session | None, message: wire.Message) -> None:
        if owner is not None:
            version = wire.decode_envelope(frame.body).version
            self._refuse(frame, owner, "invalid_session", wire.type_of(message).name, version)
        elif isinstance(message, wire.FsData):
            self._say(frame.id, wire.FsResponse(ok=False, error="words"))
        else:
            self._say(frame.id, wire.TcpFailed("words"))

    def _control(self, id_: int, message: wire.Message) -> None:
        match message:
            case wire.Ping():
                self._say(id_, wire.Pong())
            case wire.Touch():
                self._say(id_, wire.Touched(0))
            case wire.ClockSync(nanoseconds):
                self.clock.append(nanoseconds)
            case wire.ClientDisconnected(start, stop, confirm):
                self.forgotten.append((start, stop))
                for session in self._table.values():
                    if start <= session.id < stop:
                        session.departed = session.ended = True
                        session.muted |= session.prompt
                if confirm is not wire.UNSET:
                    self._say(confirm, wire.ClientForgotten())
            case wire.Shutdown():
                self.over = True
                self._table.clear()
                self._replaced.clear()

    def settle(self) -> None:
        """All tasks wait, so the sessions have gone as far as they can."""
        for session in (*self._replaced, *self._table.values()):
            self._run(session)
        self._replaced.clear()
        self._table = {id_: session for id_, session in self._table.items() if not session.ended}

    def _run(self, session: _Session) -> None:
        if not (session.begun or session.ended or session.muted or session.prompt):
            self._say(session.id, wire.ExecStarted(1))
        session.begun = True
        last: wire.Message = session.ending or (wire.BackgroundKilled(3) if session.prompt else wire.ExecExited(0))
        if not session.ended and session.does == "breaks":
            last = wire.Error("invalid_session", "words")
        elif not session.ended and session.does != "quits":
            return
        session.ended = True
        if not session.muted:
            self._say(session.id, last)
