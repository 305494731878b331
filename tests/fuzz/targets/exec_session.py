"""The agent's session of a command, with a command and a host that do anything in any order, at their own time.

The pipes are real, and the processes are not. The reference, `ExecModel`, says after each step what must have been
said by then, and what must not.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast, final
from unittest import mock

import trio
import trio.testing

from tests.fuzz.targets.agent_router import the_same_each_time
from tests.fuzz.targets.exec_model import ExecModel
from tests.fuzz.targets.script import Script
from trio_console import _wire as wire
from trio_console._processes import COMMAND_MARK, Wanted
from trio_console._trio.turns import sources_left_alone
from trio_console.agent._held import Held, Holding
from trio_console.agent._process import session as session_module
from trio_console.agent._process.session import STDIN_WINDOW, ExecSession
from trio_console.agent._session import Activity

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["fuzz_exec_session"]

_ID: Final = 7
_SIZES: Final = (1, 10, 100, 1000, 30_000)
_CREDITS: Final = (1, 50, 1000, 40_000)
_WINDOWS: Final[Sequence[int | wire.UnsetType]] = (wire.UNSET, 0, 100, 100_000)
_ENDS: Final[Sequence[wire.ExecEnds | wire.UnsetType]] = (
    wire.UNSET,
    wire.ExecEnds(0),
    wire.ExecEnds(1000),
    wire.ExecEnds(),
)
_STREAMS: Final[Sequence[wire.StreamName]] = ("stdout", "stderr")
_TICK, _MEDIUM, _LONG = 0.01, 0.6, 5.0


@final
class _Sender:
    """In place of `Sender`: there is always room, and what is said is kept in order."""

    def __init__(self, model: ExecModel) -> None:
        self.activity = Activity()
        self.alone = sources_left_alone()
        self.outbox = self
        self._model = model
        self.trace = 0

    def _say(self, message: wire.Message) -> None:
        self.trace = zlib.crc32(repr(message)[:100].encode(), self.trace)
        self._model.hear(message)

    def send(self, message: wire.Message, session_id: int) -> None:
        assert session_id == _ID
        self._say(message)

    commit_unreserved = send
    commit_small = send

    def commit_data(self, cls: Any, session_id: int, data: bytes, _reserved: int) -> None:
        self.send(cls(bytes(data)), session_id)

    def reserve_nowait(self, _size: int) -> bool:
        return True

    def release(self, _size: int) -> None:
        pass

    async def reserve_small(self) -> None:
        await trio.lowlevel.checkpoint()

    def release_small(self) -> None:
        pass


@final
class _Command:
    """In place of `Child`, `Hunt` and `Sinks`: a leader, and whoever else has its streams."""

    tty = False
    pid = 77
    number = 5

    def __init__(self, model: ExecModel, *, unkillable: int) -> None:
        self._model = model
        self._unkillable = unkillable
        self.exit_fd, self._exit = os.pipe()
        self._reader, self.stdin = os.pipe()
        pipes = {name: os.pipe() for name in _STREAMS}
        self.outputs = {name: pipe[0] for name, pipe in pipes.items()}
        self._writers = {name: pipe[1] for name, pipe in pipes.items()}
        self._own = {self.exit_fd, self.stdin, *self.outputs.values()}
        for fd in (*self._own, *self._writers.values()):
            os.set_blocking(fd, False)
        self._status: wire.ExecExited | None = None

    # What it does

    def write(self, name: wire.StreamName, data: bytes) -> None:
        if name in self._writers:
            with suppress(BlockingIOError, BrokenPipeError):
                size = os.write(self._writers[name], data)
                self._model.wrote(name, data[:size])

    def close(self, name: wire.StreamName) -> None:
        if name in self._writers:
            os.close(self._writers.pop(name))
            self._model.closed(name)

    def exit(self, code: int, signal: int | None = None) -> None:
        if self._status is None:
            self._status = wire.ExecExited(code, wire.UNSET if signal is None else signal)
            self._model.exited(self._status)
            os.close(self._exit)

    def end(self) -> None:
        """Close what is left of it."""
        for name in _STREAMS:
            self.close(name)
        self.exit(0)
        os.close(self._reader)
        assert not self._own, "the agent keeps a descriptor"

    # What the session calls

    def kill_group(self, number: int) -> None:
        self._model.signalled(number)
        if number in (9, 15):
            self.exit(-1, number)

    def wanted(self) -> Wanted:
        return Wanted(COMMAND_MARK, "mark")

    async def kill(self, wanted: Wanted, grace: float) -> int:
        assert wanted == self.wanted()
        self._model.hunted(grace, self._unkillable)
        await trio.lowlevel.checkpoint()
        self.exit(-1, 9)
        for name in _STREAMS:
            self.close(name)
        return self._unkillable

    def status(self) -> wire.ExecExited | None:
        return self._status

    def resize(self, rows: int, cols: int) -> None:
        pass

    def let_go_of_terminal(self) -> None:
        pass

    def close_stdin(self) -> None:
        self._own.discard(self.stdin)
        os.close(self.stdin)

    def give_away(self, fd: int) -> int:
        self._own.remove(fd)
        return fd

    def take(self, fd: int, _slot: object = None) -> None:
        self._model.sunk += 1
        os.close(fd)

    def reap(self) -> None:
        while self._own:
            os.close(self._own.pop())


async def _play(script: Script, clock: trio.testing.MockClock) -> int:
    ends, window = script.pick(_ENDS), script.pick(_WINDOWS)
    request = wire.ExecRequest("c", window=window, ends=ends)
    model = ExecModel(ends, window)
    sender = _Sender(model)
    command = _Command(model, unkillable=script.byte() % 3)

    async def spawn(_request: wire.ExecRequest, _size: tuple[int, int]) -> Any:
        await trio.lowlevel.checkpoint()
        return command

    fake_sender, fakes, fake_spawn = cast("Any", (sender, command, spawn))
    input_ = Holding(Held(4 * STDIN_WINDOW), 0, STDIN_WINDOW, STDIN_WINDOW)
    session = ExecSession(
        fake_sender, _ID, request, spawn=fake_spawn, sinks=fakes, hunt=fakes, stdin_window=input_
    )
    over = trio.Event()

    async def run() -> None:
        await session.run()
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        model.settled()
        while script and not over.is_set():
            await _step(script, session, command, model, clock)
            await trio.testing.wait_all_tasks_blocked()
            model.settled()
        if not over.is_set():
            model.cut()
            session.end()
            await trio.testing.wait_all_tasks_blocked()
            model.settled()
    assert over.is_set(), "it does not end"
    command.end()
    model.check_last()
    return sender.trace


async def _step(
    script: Script, session: ExecSession, command: _Command, model: ExecModel, clock: trio.testing.MockClock
) -> None:
    how, what = script.byte(), script.byte()
    name = _STREAMS[what % 2]
    match how % 12:
        case 0 | 1:
            command.write(name, bytes([what]) * _SIZES[what // 2 % len(_SIZES)])
        case 2:
            command.close(name)
        case 3 if what % 2:
            command.exit(what)
        case 4 | 5:
            await _hear(session, model, wire.Credit(name, _CREDITS[what // 2 % len(_CREDITS)]))
        case 6 | 7:
            dt = _LONG if what > 200 else _MEDIUM if what > 150 else _TICK
            model.pass_time(dt)
            clock.jump(dt)
        case 8:
            await _hear(session, model, _ORDERS[what % len(_ORDERS)])
        case 9 if what > 200:
            model.shut_down()
            session.shut_down(None)
        case 10 if what > 200:
            model.depart()
            session.depart()
            session.end()
        case 11 if what > 220:
            error = wire.Error("invalid_session", "a bad frame")
            model.bad_frame(error)
            session.end(error)
        case _:
            await _hear(session, model, wire.ExecStdin(b"x" * (what % 4)))


_ORDERS: Final[Sequence[wire.Message]] = (
    wire.ExecSignal(1),
    wire.ExecSignal(0),
    wire.ExecSignal(15),
    wire.ExecSignal(32),
    wire.ExecRelease(),
    wire.ExecKill(700),
    wire.ExecKill(700, after_exit=True),
    wire.ExecResize(3, 4),
)


async def _hear(session: ExecSession, model: ExecModel, message: wire.Message) -> None:
    """As the router gives it to a session."""
    if not session.ended:
        model.told(message)
        await session.receive(message)


def fuzz_exec_session(data: bytes) -> int:
    """Whatever a command does and its host says: the bytes come in order, each end is told once, then nothing."""
    clock = trio.testing.MockClock()
    with (
        the_same_each_time(data),
        mock.patch.object(session_module, "fcntl", _Fcntl()),
    ):
        return trio.run(_play, Script(data[:160]), clock, clock=clock)


class _Fcntl:
    """In place of the module: no pipe is enlarged, because others may have all large pipes of a user."""

    F_SETPIPE_SZ = fcntl.F_SETPIPE_SZ
    ioctl = staticmethod(fcntl.ioctl)

    def fcntl(self, *_args: Any) -> Any:
        raise PermissionError
