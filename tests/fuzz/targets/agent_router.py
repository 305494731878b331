"""The agent's router with any frames from the host, and with sessions that do not touch the machine."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Final, final
from unittest import mock

import trio
import trio.testing

from tests.fuzz.targets.agent_model import AgentModel, Told, told
from tests.fuzz.targets.script import Script
from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._processes import Wanted
from trio_console._trio.turns import Turn
from trio_console._wire.ids import slot_of
from trio_console._wire.outbox import Outbox
from trio_console.agent._process.background import KillSession
from trio_console.agent._router import Ending, Router
from trio_console.agent._session import Activity, Sender, Session
from trio_console.agent._system.boot import FrameSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["fuzz_agent_router", "the_same_each_time"]

_IDS: Final = (1, 1, 1, 2, 3, 0, 2**25 - 2, 2**25 - 1, 2**32 - 1)

_STEP: Final = (2**32 - 1) // 128

#: The same, and both sides of each edge.
_EDGES: Final = (1, 1, 2, 3, 0, _STEP - 1, _STEP, _STEP + 1, 128 * _STEP - 1, 128 * _STEP, 2**32 - 1)

_MESSAGES: Final[Sequence[wire.Message]] = (
    wire.ExecRequest("waits"),
    wire.ExecRequest("quits"),
    wire.ExecRequest("breaks"),
    wire.ExecRequest("refused"),
    wire.TcpConnect("h", 1),
    wire.ExecStdin(b"x"),
    wire.TcpData(b"x"),
    wire.FsData(b"x"),
    wire.TcpClose(),
    wire.ExecSignal(9),
    wire.Credit("stdin", 1),
    wire.Cancel(),
    wire.Ping(),
    wire.Touch(),
    wire.ClockSync(1),
    wire.ClientDisconnected(1, 3),
    wire.ClientDisconnected(0, 2**32 - 1),
    wire.ClientDisconnected(5, 2),
    wire.ExecExited(0),
)

#: The same about the ends of commands: requests, what a host may say, and what only an agent may say.
_ABOUT_ENDS: Final[Sequence[wire.Message]] = (
    wire.ExecRequest("waits", ends=wire.ExecEnds(), stdio=wire.ExecStdio("null", "null", "stdout")),
    wire.ExecRequest("quits", ends=wire.ExecEnds(0)),
    wire.ExecRelease(),
    wire.ExecKill(0),
    wire.ExecKill(2**32 - 1, after_exit=False),
    wire.ExecKill(0, after_exit=True),
    wire.ExecLeft(0),
    wire.ExecLeft(-1, 9),
    wire.ExecStreamEnded("stdout"),
    wire.KillBackground(0, 0),
    wire.KillBackground(1, 0),
    wire.BackgroundKilled(0),
)


@final
class _Console(trio.abc.Stream):
    """The agent's end of a console, whose pieces come when the agent has nothing else to do."""

    def __init__(self, pieces: Sequence[bytes], settled: Callable[[bytes], None]) -> None:
        self._pieces = list(pieces)
        self._settled = settled
        self.written = bytearray()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.testing.wait_all_tasks_blocked()
        piece = self._pieces.pop(0) if self._pieces else b""
        self._settled(piece)
        return piece

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.written += data

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Session(Session):
    """A session that does only what its request says."""

    kind: ClassVar[str] = "exec"
    accepts = frozenset({wire.ExecStdin, wire.ExecSignal, wire.Credit, wire.ExecRelease, wire.ExecKill})

    def __init__(self, sender: Sender, session_id: int, does: str, received: list[Told]) -> None:
        super().__init__(sender, session_id)
        self._does = does
        self._received = received

    async def run(self) -> None:
        with self._scope:
            self._send_now(wire.ExecStarted(1))
            await trio.lowlevel.checkpoint()
            if self.departed:
                await trio.sleep_forever()  # the router ends it, at some moment
            if self._does == "breaks":
                raise RuntimeError("a mistake in a session")
            if self._does != "quits":
                await trio.sleep_forever()
        await self._say_last(wire.ExecExited(0))

    async def receive(self, message: wire.Message) -> None:
        assert type(message) in self.accepts
        assert not self.ended
        self._received.append(told(self.id, message))
        if isinstance(message, wire.ExecSignal) or (
            isinstance(message, wire.ExecKill) and message.after_exit is not True
        ):
            self.end()


@final
class _Hunt:
    """In place of the agent's hunt: the mark of what is wanted says whether it is found at once, or never."""

    async def kill(self, wanted: Wanted, grace: float) -> int:
        await trio.lowlevel.checkpoint()
        if wanted.mark == "0":
            await trio.sleep_forever()
        return 3


@final
class _Agent:
    """The router under test and its model, which are compared each time when all tasks wait."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.console = _Console(pieces, self.settled)
        self._model = AgentModel()
        self._sent = wire.FrameDecoder()
        self._answers = wire.FrameDecoder()
        self._seen = 0
        self._received: list[Told] = []
        self._forgotten: list[tuple[int, int]] = []
        self._seen_off: list[tuple[int, int]] = []
        self._clock: list[int] = []
        self.ends: Ending = Ending.CONSOLE_CLOSED
        self.trace = 0

    def settled(self, piece: bytes) -> None:
        """All tasks are blocked; ``piece`` is what the host sends next."""
        self._model.settle()
        assert sorted(self.router.sessions) == self._model.living, "other sessions live"
        self._check_answers()
        assert sorted(self._seen_off) == sorted(self._forgotten), "a client that has gone was not seen off"
        try:
            if piece:
                self._sent.feed(piece)
                for frame in self._sent:
                    self._model.frame(frame)
            else:
                self._sent.feed_eof()
        except ProtocolError:
            self.ends = Ending.OUT_OF_STEP

    def _check_answers(self) -> None:
        written = bytes(self.console.written[self._seen :])
        self._seen += len(written)
        self.trace = zlib.crc32(written, self.trace)
        self._answers.feed(written)
        answers = [(frame.id, wire.decode(frame)) for frame in self._answers]
        assert not self._answers.pending
        assert Counter(told(id_, message) for id_, message in answers) == self._model.out, "something else is said"
        self._model.out.clear()
        assert self._received == self._model.received, "a session has got something else"
        assert self._forgotten == self._model.forgotten
        assert self._clock == self._model.clock
        for number, (id_, message) in enumerate(answers):
            row = wire.type_of(message)
            assert row.direction & wire.Direction.AGENT_TO_HOST
            if isinstance(message, wire.ExecExited):
                # (An id that is open twice between two looks has two lives in one list.)
                after = [type(later) for other, later in answers[number + 1 :] if other == id_]
                assert wire.ExecStarted not in after or after.count(wire.ExecExited), "said behind its last word"

    def _forget(self, start: int, end: int) -> Callable[[], object]:
        self._forgotten.append((start, end))
        return lambda: self._seen_off.append((start, end))

    def _open(self, sender: Sender, session_id: int, message: wire.Message) -> Session | wire.Message:
        assert slot_of(session_id) is not None
        if isinstance(message, wire.ExecRequest) and message.cmd == "refused":
            return wire.ExecFailed(kind="not_found", message="refused")
        does = message.cmd if isinstance(message, wire.ExecRequest) else ""
        return _Session(sender, session_id, does, self._received)

    def _open_kill(self, sender: Sender, session_id: int, message: wire.Message) -> Session:
        assert isinstance(message, wire.KillBackground)
        wanted = Wanted("V", str(min(message.command, 1)))
        return KillSession(sender, session_id, wanted, message.grace, _Hunt())  # type: ignore[arg-type]

    async def serve(self) -> Ending:
        outbox = Outbox(self.console)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            async with trio.open_nursery() as sessions:
                self.router = Router(
                    FrameSource(self.console),
                    Sender(outbox, Activity()),
                    sessions,
                    openers={
                        wire.ExecRequest: self._open,
                        wire.TcpConnect: self._open,
                        wire.KillBackground: self._open_kill,
                    },
                    forget_client=self._forget,
                    set_clock=self._clock.append,
                    shutdown_grace=1,
                )
                ending = await self.router.run()
                await trio.testing.wait_all_tasks_blocked()
                # (What was opened and ended by one piece is not looked at before it is gone.)
                self._model.settle()
                assert sorted(self.router.sessions) == self._model.living, "other sessions live"
                sessions.cancel_scope.cancel()
            assert not self.router.sessions, "a session that nobody runs"
            outbox.close()
        self._check_answers()
        assert ending is (Ending.SHUT_DOWN if self._model.over else self.ends)
        return ending


@contextlib.contextmanager
def the_same_each_time(data: bytes) -> Iterator[None]:
    """A run of trio in the block does the same for the same input.

    trio shuffles the tasks that are to run, and what it does that with is not public.
    """
    trio._core._run._r.seed(data)
    with mock.patch.object(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
        yield


def fuzz_agent_router(data: bytes) -> int:
    """Send frames in pieces, some of them valid, and check what the router does."""
    agent = _Agent(_pieces(Script(data)))
    with (
        the_same_each_time(data),
        mock.patch.object(Turn, "is_over", False),  # (real time: a busy machine would change the order)
        contextlib.redirect_stderr(io.StringIO()),  # the router's log
    ):
        ending = trio.run(agent.serve, clock=trio.testing.MockClock(autojump_threshold=0))
    return zlib.crc32(ending.name.encode(), agent.trace)


#: Frames in one piece, at most. What the router queues for these is within its bounds, so it waits for nothing.
_PIECE: Final = 60


def _pieces(script: Script) -> list[bytes]:
    pieces = [b""]
    count = 0
    ids: Sequence[int] = _IDS
    while script:
        how = script.byte()
        count += 1
        if how == 0xFF:
            ids = _EDGES  # from here on
        elif how % 8 == 0 or count >= _PIECE:
            pieces.append(b"")
            count = 0
        elif how % 8 == 1:
            pieces[-1] += script.take(script.byte())
        elif how % 8 == 2:
            pieces[-1] += _envelope(script, script.pick(list(wire.MESSAGE_TYPES.values())), ids)
        elif how == 0xFE:
            pieces[-1] += wire.encode(_disconnected(script, ids))
        elif how == 0xFD:
            pieces[-1] += wire.encode(wire.Shutdown())
        elif how == 0xFB:
            pieces[-1] += _wrong(script, ids)
        elif how == 0xFC:
            id_ = script.pick(ids)
            pieces[-1] += wire.encode(script.pick(_ABOUT_ENDS), id_)
        else:
            id_ = script.pick(ids)
            pieces[-1] += wire.encode(script.pick(_MESSAGES), id_)
    return [piece for piece in pieces if piece]


def _envelope(script: Script, row: wire.MessageType, ids: Sequence[int]) -> bytes:
    body = b"\xa3\x61v\x07\x61t\x78" + bytes([len(row.name)]) + row.name.encode() + b"\x61p"
    payload = script.take(script.byte())
    body += b"\x58" + bytes([len(payload)]) + payload
    return wire.encode_frame(script.pick(ids), row.flags, body)


def _disconnected(script: Script, ids: Sequence[int]) -> wire.Message:
    """A range of ids that begins and ends at a used id, or beside one."""
    start, end = script.pick(ids), script.pick(ids)
    how = script.byte()
    confirm = script.pick(ids) if how & 4 else wire.UNSET
    return wire.ClientDisconnected(start, min(2**32 - 1, end + how % 2), confirm)


def _wrong(script: Script, ids: Sequence[int]) -> bytes:
    """A message of some generation, with some flags."""
    id_ = script.pick(ids)
    raw = wire.encode(script.pick((*_MESSAGES, *_ABOUT_ENDS)), id_, version=script.pick((3, 4, 5, 7, 24)))
    return raw[:8] + bytes([raw[8] ^ script.pick((0, 1, 2, 4, 128))]) + raw[9:]
