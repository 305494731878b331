"""The client's side of a command, with a guest that sends anything in any order, and a user who does anything.

The reference, `_Model`, is a second, plain program for the same rules: what is known of the exit, whether the
session goes on, and which bytes a reader gets.
"""

from __future__ import annotations

import subprocess
import zlib
from typing import TYPE_CHECKING, Final, TypeAlias, final
from unittest import mock

import trio
import trio.testing

from tests.fuzz.targets.script import Script
from trio_console import GuestLostError, ProtocolError
from trio_console import _wire as wire
from trio_console._session import connection as _connection
from trio_console._session.connection import Connection
from trio_console._session.process.command import Command
from trio_console._session.process.plumbing import attach_output
from trio_console._session.process.process import GuestProcess
from trio_console._session.process.session import ProcessSession
from trio_console._session.receiving import WINDOW, IncomingStream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["fuzz_process_session"]

_PIPE, _DEVNULL, _STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT

_SIZES: Final = (0, 1, 2, 100, 100, 100, WINDOW // 2, WINDOW)

_CODES: Final = (0, 1, 255, -1, 2**31 - 1, -(2**31))
_SIGNALS: Final[Sequence[int | wire.UnsetType]] = (wire.UNSET, wire.UNSET, 9, 0, -1, 2**31 - 1)
_NAMES: Final[Sequence[wire.StreamName]] = ("stdout", "stderr", "stdout", "stderr", "stdin", "data")

#: What a session may end with, if not with an exit. Anything else is an error of this program.
_ERRORS: Final = (GuestLostError, ProtocolError, OSError, LookupError)

_Said: TypeAlias = "Callable[[Script], wire.Message]"

_IN_ORDER: Final[Sequence[_Said]] = (
    lambda s: wire.ExecStdout(bytes([s.byte()]) * s.pick(_SIZES)),
    lambda s: wire.ExecStderr(bytes([s.byte()]) * s.pick(_SIZES)),
    lambda _: wire.ExecStarted(1),
    lambda s: wire.ExecLeft(s.pick(_CODES), s.pick(_SIGNALS)),
    lambda s: wire.ExecStreamEnded(s.pick(_NAMES)),
    lambda s: wire.Credit(s.pick(_NAMES), s.pick(_SIZES)),
)
_RARE: Final[Sequence[_Said]] = (
    lambda s: wire.ExecExited(s.pick(_CODES), s.pick(_SIGNALS)),
    lambda s: wire.ExecExited(s.pick(_CODES), held=[s.pick(_NAMES)], alive=s.byte()),
    lambda s: wire.ExecDropped(s.pick(_NAMES)),
    lambda s: wire.ExecFailed(kind=s.pick(("not_found", "other", "new")), errno=s.pick((None, 2)), message="m"),
    lambda _: wire.ExecFailed(kind="other", message="m", stage=wire.USER_STAGE),
    lambda s: wire.Error(s.pick(("exit_unknown", "not_confirmed", "invalid_session", "new")), "m"),
    lambda s: wire.ExecStdinError(errno=s.pick((None, 32)), message="m"),
    lambda _: wire.TcpConnected(),
    lambda _: wire.TcpClosed(),
    lambda _: wire.Pong(),
    lambda _: wire.FsData(b"x"),
    lambda _: wire.ExecSignal(9),
    lambda _: wire.ExecKill(0),
    lambda _: wire.RelayLost("m"),
    lambda s: wire.ExecStarted(1, s.byte()),
    lambda s: wire.ExecExited(s.pick(_CODES), alive=s.pick((0, 1))),
    lambda _: wire.BackgroundKilled(0),
)


@final
class _Stream:
    """One stream of output, as its reader must see it."""

    def __init__(self, *, closed: bool) -> None:
        self.closed = closed
        self.let_go = False
        self.ended = False
        self.broken = False  # ended with an error
        self.unread = bytearray()

    def put(self, data: bytes) -> None:
        if not (self.closed or self.let_go or self.ended):
            self.unread += data

    def end(self, *, broken: bool) -> None:
        self.broken = self.broken or (broken and not self.ended)
        self.ended = True

    def close(self) -> None:
        self.closed = True
        self.unread.clear()


@final
class _Model:
    """See the module. ``merges``: one stream carries both outputs, put together on this side."""

    def __init__(self, stdout: _Stream, stderr: _Stream, *, merges: bool) -> None:
        self.streams: dict[str, _Stream] = {"stdout": stdout, "stderr": stderr}
        self._merges = merges
        self.returncode: int | None = None
        self.failed = False  # an error was told before an exit
        self.broken = False  # an error was told, before or after an exit
        self.left = False
        self.heard = True  # whether messages still reach the session
        self.got = {"stdout": 0, "stderr": 0}  # bytes
        self.number: int | None = None  # of a command that may have left something

    def hear(self, message: wire.Message) -> None:
        if not self.heard:
            return
        match message:
            case wire.ExecStdout(data):
                self._put("stdout", data)
            case wire.ExecStderr(data):
                self._put("stderr", data)
            case wire.ExecStarted() | wire.Credit() | wire.ExecStdinError():
                self._hear_of_start(message)
            case wire.ExecLeft(code, number):
                if not self.left:
                    self._exit(code, number)
            case wire.ExecStreamEnded(name) | wire.ExecDropped(name):
                self._end_one(name, broken=isinstance(message, wire.ExecDropped))
            case wire.ExecExited():
                self._hear_last(message)
            case _:
                self.heard = not wire.type_of(message).flags & wire.FLAG_TERMINAL
                self.fail()

    def _end_one(self, name: str, *, broken: bool) -> None:
        if name in self.streams:
            self.streams["stdout" if broken and self._merges else name].end(broken=broken)

    def _hear_of_start(self, message: wire.Message) -> None:
        if isinstance(message, wire.ExecStarted):
            self.number = None if message.command is wire.UNSET else message.command

    def _hear_last(self, message: wire.ExecExited) -> None:
        self.heard = False
        self._exit(message.code, message.signal)
        self._end(broken=False)
        if message.alive is not wire.UNSET:  # nothing is left
            self.number = None

    def _put(self, name: str, data: bytes) -> None:
        self.got[name] += len(data)
        self.streams["stdout" if self._merges else name].put(data)

    def _exit(self, code: int, number: int | wire.UnsetType) -> None:
        self.left = True
        if self.returncode is None:
            self.returncode = -number if isinstance(number, int) and number > 0 else code

    def _end(self, *, broken: bool) -> None:
        for stream in self.streams.values():
            stream.end(broken=broken)

    def fail(self) -> None:
        self.failed |= not self.left
        self.broken = self.left = True
        self._end(broken=True)


class _Silent(trio.abc.Stream):
    """A stream that is not used: frames are given to the connection as if they had come."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise NotImplementedError

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise NotImplementedError

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def _why() -> str:
    await trio.lowlevel.checkpoint()
    return "why"


@final
class _Command:
    """A session under test and its model, which are compared after each step."""

    def __init__(self, script: Script) -> None:
        how = script.byte()
        flow = wire.Flow(WINDOW) if how & 1 else wire.UNSET
        features = [wire.EXEC_ENDS] if how & 2 else wire.UNSET
        ready = wire.Ready(boot_time_ns=1, init_time_ns=1, ready_time_ns=1, flow=flow, features=features)
        self.connection = Connection(_Silent(), wire.FrameDecoder(), ready, 7, range(1, 100), _why)
        stdout, stderr = (_PIPE, _DEVNULL)[how >> 2 & 1], (_PIPE, _STDOUT, _DEVNULL, _PIPE)[how >> 3 & 3]
        command = Command(
            self.connection,
            given=["c"],
            stdin=_PIPE,
            stdout=stdout,
            stderr=stderr,
            shell=False,
            env=None,
            cwd=None,
            user=None,
            rlimits=None,
            tty=False,
            rows=24,
            cols=80,
            drain=script.pick((None, 0.0)),
        )
        self.session = ProcessSession(self.connection, command)
        self.granted = {"stdout": 0, "stderr": 0}
        self.session.open()
        self.connection.send = self._note_sent  # type: ignore[method-assign]
        assert not list(attach_output(self.session)), "a job where there is nothing to copy"
        joined = stderr == _STDOUT
        self.model = _Model(
            _Stream(closed=stdout == _DEVNULL),
            _Stream(closed=stderr == _DEVNULL),
            merges=joined and not self.session.tells_ends,
        )
        if joined:
            self.model.streams["stderr"].end(broken=False)
        self.readers = {
            "stdout": IncomingStream(self.session.output),
            "stderr": IncomingStream(self.session.error_output),
        }
        self.waited: object = None  # what the wait has given: a status or an error
        self.confirmed = 0
        self.trace = 0

    def _note_sent(self, message: wire.Message, session_id: int) -> None:
        """In place of `Connection.send`."""
        assert session_id == self.session.id
        wire.encode(message, session_id)  # raises if it is not valid
        if isinstance(message, wire.Credit) and message.stream in self.granted:
            self.granted[message.stream] += message.bytes

    async def wait(self) -> None:
        try:
            self.waited = await GuestProcess(self.session).wait()
        except _ERRORS as exc:
            self.waited = exc

    # Steps

    def guest_says(self, message: wire.Message) -> None:
        self._route(wire.encode(message, self.session.id))
        self.model.hear(message)

    def guest_says_badly(self, script: Script) -> None:
        """A message of some type with any payload, which mostly cannot be decoded."""
        row = script.pick(list(wire.MESSAGE_TYPES.values()))
        payload = script.take(script.byte() % 40)
        body = b"\xa3\x61v\x07\x61t\x78" + bytes([len(row.name)]) + row.name.encode() + b"\x61p"
        frame = wire.Frame(self.session.id, row.flags, body + b"\x58" + bytes([len(payload)]) + payload)
        self.connection._route(frame)
        try:
            message = wire.decode(frame)
        except ProtocolError:
            if self.model.heard:
                self.model.fail()
                self.model.heard = False
        else:
            self.model.hear(message)

    def _route(self, raw: bytes) -> None:
        self.connection._route(wire.Frame(self.session.id, raw[8], raw[9:]))

    async def user_reads(self, name: str, size: int) -> None:
        """Read, if that does not have to wait."""
        stream = self.model.streams[name]
        if not (stream.unread or stream.ended or stream.closed):
            return
        try:
            data = await self.readers[name].receive_some(size)
        except trio.ClosedResourceError:
            assert stream.closed, "the user has not closed it"
        except (trio.BrokenResourceError, ProtocolError):
            assert stream.broken, "an error for nothing"
            assert not stream.unread, "an error in front of bytes"
        else:
            assert data or (stream.ended and not stream.broken and not stream.unread), "not the end"
            assert not stream.closed
            assert stream.unread.startswith(data), "other bytes than the guest has sent"
            del stream.unread[: len(data)]
            self.trace = zlib.crc32(data[:9], self.trace)

    def user_does(self, how: int) -> None:
        session, streams = self.session, self.model.streams
        match how % 10:
            case 0 | 1:
                name = "stdout" if how % 10 else "stderr"
                (session.output if how % 10 else session.error_output).close()
                streams[name].close()
            case 2:
                session.discard_output()
                for stream in streams.values():
                    stream.let_go = True
            case 3:
                session.close_input()
            case 4:
                session.signal(15)
            case 5:
                session.kill_all((0.0, 1e9)[how % 2])
            case 6:
                session.kill_rest((-1.0, 2.5)[how % 2])
            case 7 if self.model.heard and not session.ended:
                session.give_up(self._confirm)
                self.model.fail()
                self.model.number = None
            case 8 if how == 8:
                self.lose()
            case _:
                self._let_go(how)

    def _let_go(self, how: int) -> None:
        if how < 128:
            self.session.send(wire.ExecRelease())
            return
        kill = self.session.kill_of_background((0.0, 1e9)[how % 2])
        assert (None if kill is None else kill.command) == self.model.number, "another command"
        self.model.number = None

    def _confirm(self) -> None:
        self.confirmed += 1

    def lose(self) -> None:
        self.connection.lose("the guest is gone")
        if self.model.heard:
            self.model.heard = False
            if not self.session_over:
                self.model.fail()

    @property
    def session_over(self) -> bool:
        return self.model.broken

    # What must hold

    def check(self) -> None:
        session, model = self.session, self.model
        assert session.error is None or isinstance(session.error, _ERRORS), repr(session.error)
        assert (session.error is not None) == model.broken, repr(session.error)
        assert session.returncode == model.returncode, "another status"
        assert session.left == model.left
        assert session.ended == (model.broken or not model.heard)
        assert self.confirmed <= 1
        for name, stream in model.streams.items():
            incoming = session.output if name == "stdout" else session.error_output
            assert incoming._size == len(stream.unread), f"other bytes of {name} are there to be read"
        for name, size in self.granted.items():
            spare = 2 * WINDOW if model.broken else 0  # for what a killed command still says
            assert size <= model.got[name] + spare, "more is granted than has come"

    def check_waited(self) -> None:
        """All tasks have run: who waits for the exit has the status, or the error; the same whenever it looks."""
        model = self.model
        if not model.left:
            assert self.waited is None
        elif model.failed:
            assert isinstance(self.waited, _ERRORS), f"waited for {self.waited!r}"
        else:
            assert self.waited == model.returncode is not None


async def _play(script: Script) -> int:
    command = _Command(script)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(command.wait)
        await trio.testing.wait_all_tasks_blocked()
        while script:
            how = script.byte()
            match how % 8:
                case 0 | 1 | 2:
                    command.guest_says(script.pick(_IN_ORDER)(script))
                case 3:
                    command.guest_says(script.pick((*_IN_ORDER, *_RARE))(script))
                case 4 if how > 200:
                    command.guest_says_badly(script)
                case 4 | 5:
                    await command.user_reads(("stdout", "stderr")[how >> 3 & 1], script.pick(_SIZES) or 7)
                case 6:
                    command.user_does(script.byte())
                case _:
                    await trio.testing.wait_all_tasks_blocked()
                    command.check_waited()
            command.check()
        command.lose()
        await trio.testing.wait_all_tasks_blocked()
        command.check()
        command.check_waited()
        for name, stream in command.model.streams.items():
            while stream.unread:
                await command.user_reads(name, WINDOW)
            await command.user_reads(name, 1)  # the end, which must not have to be waited for
            assert stream.ended
    told = f"{command.session.returncode} {type(command.session.error)} {command.granted} {command.model.got}"
    return zlib.crc32(told.encode(), command.trace)


def fuzz_process_session(data: bytes) -> int:
    """Whatever the guest sends and the user does: an exit is told once, the streams end, and no error is ours."""

    def fail(text: str, *args: object) -> None:
        raise AssertionError(text % args)

    # (In whatever order tasks run: only one waits, and it changes nothing.)
    with mock.patch.object(_connection._log, "exception", fail):
        return trio.run(_play, Script(data), clock=trio.testing.MockClock(autojump_threshold=0))
