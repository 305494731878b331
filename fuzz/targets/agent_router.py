"""The agent's router: what the host's end of a console can make of it, with sessions that touch nothing."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Final, final

import trio
import trio.testing

from fuzz.targets.script import Script
from trio_console import _protocol as wire
from trio_console._errors import ProtocolError
from trio_console._outbox import Outbox
from trio_console.agent._boot import FrameSource
from trio_console.agent._ids import is_session_id
from trio_console.agent._link import Activity, Link, Session
from trio_console.agent._router import Ending, Router

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["fuzz_agent_router"]

_IDS: Final = (1, 1, 1, 2, 3, 0, 2**25 - 2, 2**25 - 1, 2**32 - 1)

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


@final
class _Console(trio.abc.Stream):
    """The agent's end of a console, whose pieces come when the agent has nothing else to do."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = list(pieces)
        self.written = bytearray()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._pieces.pop(0) if self._pieces else b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.written += data

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Session(Session):
    """Does what its request says, and nothing else."""

    kind: ClassVar[str] = "exec"
    accepts = frozenset({wire.ExecStdin, wire.ExecSignal, wire.Credit})

    def __init__(self, link: Link, session_id: int, does: str) -> None:
        super().__init__(link, session_id)
        self._does = does

    async def run(self) -> None:
        with self._scope:
            self._send_now(wire.ExecStarted(1))
            await trio.lowlevel.checkpoint()
            if self._does == "breaks":
                raise RuntimeError("a mistake in a session")
            if self._does != "quits":
                await trio.sleep_forever()
        await self._say_last(wire.ExecExited(0))

    async def receive(self, message: wire.Message) -> None:
        assert type(message) in self.accepts
        assert not self.ended
        if isinstance(message, wire.ExecSignal):
            self.end()


def _open(link: Link, session_id: int, message: wire.Message) -> Session | wire.Message:
    assert is_session_id(session_id)
    if isinstance(message, wire.ExecRequest) and message.cmd == "refused":
        return wire.ExecFailed(kind="not_found", message="refused")
    return _Session(link, session_id, message.cmd if isinstance(message, wire.ExecRequest) else "")


def fuzz_agent_router(data: bytes) -> None:
    """Frames in pieces, some of them sensible, and what the router does about it."""
    stream = _pieces(Script(data))
    frames, ends = _what_was_sent(b"".join(stream))
    console = _Console(stream)
    # trio shuffles the tasks that are to run, and what it does that with is not public; but an input that fails
    # once is to fail again.
    trio._core._run._r.seed(data)
    with contextlib.redirect_stderr(io.StringIO()):  # where it says what it thinks of all this
        ending = trio.run(_serve, console)
    if ending is not Ending.SHUT_DOWN:
        assert ending is ends
    _check_answers(frames, bytes(console.written))


def _pieces(script: Script) -> list[bytes]:
    pieces = [b""]
    while script:
        match script.byte() % 8:
            case 0:
                pieces.append(b"")
            case 1:
                pieces[-1] += script.take(script.byte())
            case 2:
                row = script.pick(list(wire.MESSAGE_TYPES.values()))
                body = b"\xa3\x61v\x07\x61t\x78" + bytes([len(row.name)]) + row.name.encode() + b"\x61p"
                payload = script.take(script.byte())
                body += b"\x58" + bytes([len(payload)]) + payload
                pieces[-1] += wire.encode_frame(script.pick(_IDS), row.flags, body)
            case _:
                id_ = script.pick(_IDS)
                pieces[-1] += wire.encode(script.pick(_MESSAGES), id_)
    return [piece for piece in pieces if piece]


def _what_was_sent(stream: bytes) -> tuple[list[wire.Frame], Ending]:
    decoder = wire.FrameDecoder()
    decoder.feed(stream)
    frames: list[wire.Frame] = []
    try:
        for frame in decoder:
            frames.append(frame)  # noqa: PERF402  (those in front of an error are wanted, too)
        decoder.feed_eof()
    except ProtocolError:
        return frames, Ending.OUT_OF_STEP
    return frames, Ending.CONSOLE_CLOSED


async def _serve(console: _Console) -> Ending:
    outbox = Outbox(console)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        async with trio.open_nursery() as sessions:
            router = Router(
                FrameSource(console),
                Link(outbox, Activity()),
                sessions,
                openers={wire.ExecRequest: _open, wire.TcpConnect: _open},
                forget_files=lambda start, end: None,
                set_clock=lambda nanoseconds: None,
                shutdown_grace=1,
            )
            ending = await router.run()
            await trio.testing.wait_all_tasks_blocked()
            sessions.cancel_scope.cancel()
        assert not router.sessions, "a session that nobody runs"
        outbox.close()
    return ending


def _check_answers(frames: list[wire.Frame], written: bytes) -> None:
    """Only what an agent may say, only under ids it was spoken to, and one last word at most for each request."""
    decoder = wire.FrameDecoder()
    decoder.feed(written)
    answers = list(decoder)
    decoder.feed_eof()
    asked = Counter(frame.id for frame in frames)
    ended = Counter(frame.id for frame in answers if frame.flags & wire.FLAG_TERMINAL)
    assert ended <= asked
    for frame in answers:
        assert frame.id in asked
        assert wire.type_of(wire.decode(frame)).direction & wire.Direction.AGENT_TO_HOST
    for id_, requests in Counter(frame.id for frame in frames if _opens(frame)).items():
        # (Who asks twice under one id has not waited for the first to end, and gets what it deserves.)
        if requests == 1:
            said = [type(wire.decode(frame)) for frame in answers if frame.id == id_]
            assert said.count(wire.ExecStarted) <= 1
            assert said.count(wire.ExecExited) + said.count(wire.ExecFailed) <= 1


def _opens(frame: wire.Frame) -> bool:
    try:
        return isinstance(wire.decode(frame), (wire.ExecRequest, wire.TcpConnect))
    except ProtocolError:
        return False
