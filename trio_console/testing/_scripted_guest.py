"""A guest whose commands are functions of the test: there is no agent, no child process and no file.

It is a task at the other end of a socket that speaks the agent's side of the protocol, for commands only.

This module must not know how a process's streams work.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._guests.spec import GuestHost, GuestSpec
from trio_console._guests.supervisor import Ours
from trio_console._trio.nursery import hidden_nursery
from trio_console._wire.outbox import Outbox
from trio_console.testing._scripted_process import STDIN_WINDOW, ScriptedProcess

__all__ = ["Exits", "ScriptedGuest"]

_RECEIVE_SIZE: Final = 64 * 1024


@final
@dataclass(frozen=True, slots=True)
class Exits:
    """A command that reads nothing, writes the given output, and exits.

    Attributes:
        status: exit status, by default 0; ``-N`` is an end by signal N.
        stdout, stderr: the bytes that it writes; by default none.
    """

    status: int = 0
    stdout: bytes = b""
    stderr: bytes = b""


#: A function that plays a command. It returns the exit status: `None` is 0, and ``-N`` is an end by signal N.
Play: TypeAlias = Callable[[ScriptedProcess], Awaitable[int | None]]


@final
class ScriptedGuest(GuestSpec):
    """A guest for tests that runs no command: each command is played by a function, or has a fixed result.

    It is given to `trio_console.open_guest`, `trio_console.serve_relay` or `FaultyGuest` like any guest. It starts
    only a task.

    A function is called with a `ScriptedProcess` and plays it: it reads its stdin, writes its stdout, and returns
    its exit status. If it raises an `OSError` before it has used a stream, the command could not be started, with
    that error. Any other exception is a mistake in the test, and is raised by `open_guest`. If the host kills the
    process, the function is cancelled.

    Pings are answered. Files and connections are refused with ``ENOSYS``; use the real agent for them.

    Args:
        commands: a function that plays every command; or a mapping from a command's name (its first argument) to
            such a function, to an `Exits`, or to an `OSError` for a command that cannot be started. A command
            whose name is not in the mapping is not found.

    Attributes:
        processes: every command that the host has requested since the guest was opened, in order.
    """

    _fails_its_test = True

    def __init__(self, commands: Play | Mapping[str, Play | Exits | OSError] = {}) -> None:  # noqa: B006
        self._commands = commands
        self._open = False
        self.processes: list[ScriptedProcess] = []

    def __repr__(self) -> str:
        return f"ScriptedGuest({self._commands!r})"

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        """See `trio_console.GuestSpec.run`. If cancelled, the guest is ended by force."""
        if self._open:
            raise RuntimeError("this ScriptedGuest is open: make one ScriptedGuest for each guest")
        self._open = True
        self.processes.clear()
        try:
            our_end, theirs = socket.socketpair()
            with theirs, Ours(lambda: our_end) as ours:
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
                ours.hand_over(GuestHost(ours.device), task_status)
                await _Agent(stream, self._play, self.processes).run()
        finally:
            self._open = False

    async def _play(self, process: ScriptedProcess) -> int | None:
        if callable(self._commands):
            return await self._commands(process)
        name = process.args[0]
        answer = self._commands.get(name)
        if answer is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        if isinstance(answer, OSError):
            raise OSError(answer.errno, answer.strerror or str(answer), answer.filename or name)
        if callable(answer):
            return await answer(process)
        await process.stdout.send_all(answer.stdout)
        await process.stderr.send_all(answer.stderr)
        return answer.status


@final
class _Agent:
    """The agent's side of one console."""

    def __init__(self, stream: trio.SocketStream, play: Play, processes: list[ScriptedProcess]) -> None:
        self._stream = stream
        self._play = play
        self._processes = processes
        self._outbox = Outbox(stream)
        self._running: dict[int, ScriptedProcess] = {}
        self._activity = 0

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Serve until the host closes the console or shuts the guest down.

        Raises:
            Exception: a function of the test has raised this.
        """
        try:
            async with hidden_nursery() as nursery:
                nursery.start_soon(self._outbox.run)
                await self._serve(nursery)
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(self._stream)

    async def _serve(self, nursery: trio.Nursery) -> None:
        decoder = wire.FrameDecoder()
        try:
            while data := await self._stream.receive_some(_RECEIVE_SIZE):
                decoder.feed(bytes(data))
                for frame in decoder:
                    if not self._obey(frame, nursery):
                        return
        except (ProtocolError, trio.BrokenResourceError):
            return  # out of step, or the host is gone

    def _obey(self, frame: wire.Frame, nursery: trio.Nursery) -> bool:
        """Act on one frame; returns `False` if the frame shuts the guest down."""
        try:
            message = wire.decode(frame)
        except ProtocolError as exc:
            self._say(wire.Error(kind=exc.kind, message=str(exc)), frame.id)
            if frame.id in self._running:
                self._running[frame.id]._kill()
            return True
        self._activity += 1
        match message:
            case wire.Shutdown():
                return False
            case wire.Bootstrap():
                self._say(wire.InitResolved(wire.DefaultUser(0, 0)))
            case wire.InitAck():
                self._say(wire.Ready(0, 0, 0, "scripted", wire.Flow(STDIN_WINDOW), [wire.FORGETS]))
            case wire.ExecRequest():
                if frame.id not in self._running:
                    process = ScriptedProcess(self._outbox, frame.id, message)
                    self._running[frame.id] = process
                    self._processes.append(process)
                    nursery.start_soon(self._run, frame.id, process)
            case wire.ClientDisconnected():
                self._forget(message)
            case _:
                self._answer(message, frame.id)
        return True

    def _forget(self, client: wire.ClientDisconnected) -> None:
        """End the commands of a client that has gone."""
        for session_id, process in self._running.items():
            if client.id_start <= session_id < client.id_end_exclusive:
                process._kill()
        if client.confirm is not wire.UNSET:
            self._say(wire.ClientForgotten(), client.confirm)

    def _answer(self, message: wire.Message, session_id: int) -> None:
        refusal = f"a scripted guest runs commands only: {os.strerror(errno.ENOSYS)} (os error {errno.ENOSYS})"
        match message:
            case wire.Ping():
                self._say(wire.Pong(), session_id)
            case wire.Touch():
                self._say(wire.Touched(self._activity), session_id)
            case wire.FsRequest():
                self._say(wire.FsResponse(ok=False, error=refusal), session_id)
            case wire.TcpConnect():
                self._say(wire.TcpFailed(refusal), session_id)
            case _:
                # A frame for a command that has just ended is ignored.
                if session_id in self._running:
                    self._running[session_id]._on_message(message)

    async def _run(self, session_id: int, process: ScriptedProcess) -> None:
        await process._run(self._play)
        del self._running[session_id]

    def _say(self, message: wire.Message, session_id: int = 0) -> None:
        if not self._outbox.closed:
            self._outbox.send_control(wire.encode(message, session_id))
