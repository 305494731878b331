"""A command of a scripted guest, as the function that plays it sees it: the inside of a process.

This module must not know which function plays what, nor how frames get to the host.
"""

from __future__ import annotations

import math
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._buffers import flat_view

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_console._wire.outbox import Outbox

__all__ = ["STDIN_WINDOW", "ScriptedProcess"]

#: Bytes of input that a host may send ahead of the command; what the real agent announces.
STDIN_WINDOW: Final = 1024 * 1024

#: Bytes of output in a frame, as in the real agent.
_SLICE: Final = 128 * 1024

_RECEIVE_SIZE: Final = 64 * 1024

#: Signals that end no process which does not handle them.
_HARMLESS: Final = frozenset(
    {
        *(signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT),
        *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    }
)

#: Signals kept for `ScriptedProcess.signals` when nobody takes them.
_MAX_SIGNALS: Final = 64


@final
class ScriptedProcess:
    """A command that was asked for: what it is, its streams, and its end.

    Attributes:
        args: the command, its name included.
        env: variables that the host has set.
        cwd: the directory asked for, or `None`.
        user: the user asked for, or `None`.
        tty: whether it has a terminal.
        rows, cols: of the terminal; a resize changes them.
        pid: its process id, made up.
        stdin: a `trio.abc.ReceiveStream` of its input.
        stdout, stderr: `trio.abc.SendStream` for its output. Sending waits while the host does not read.
        returncode: how it has ended: a status, ``-N`` if signal N did it, `None` while it runs, and if it could
            not be started or the guest ended first.
    """

    def __init__(self, outbox: Outbox, id_: int, request: wire.ExecRequest) -> None:
        self.args: Final = [request.cmd, *request.args]
        self.env: Final = dict(entry.split("=", 1) for entry in request.env if "=" in entry)
        self.cwd: Final = request.cwd
        self.user: Final = request.user
        self.tty: Final = request.tty
        self.rows = request.rows
        self.cols = request.cols
        self.pid: Final = 1000 + id_
        self.returncode: int | None = None
        self._outbox = outbox
        self._id = id_
        self._started = False
        self._scope = trio.CancelScope()
        self._killed_by = 0
        self._signals: trio.MemorySendChannel[int] | None = None
        window = math.inf if request.window is wire.UNSET else request.window
        self._input = _Input(self)
        self._outputs: dict[wire.StreamName, _Output] = {
            "stdout": _Output(self, wire.ExecStdout, window),
            "stderr": _Output(self, wire.ExecStderr, window),
        }
        self.stdin: Final[trio.abc.ReceiveStream] = self._input
        self.stdout: Final[trio.abc.SendStream] = self._outputs["stdout"]
        self.stderr: Final[trio.abc.SendStream] = self._outputs["stdout" if self.tty else "stderr"]

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"exited with status {self.returncode}"
        return f"<trio_console.testing.ScriptedProcess {self.args!r}: {state}>"

    def signals(self) -> trio.MemoryReceiveChannel[int]:
        """Handle signals from now on: they arrive on this channel, as numbers, and end the process no more.

        SIGKILL still does: the function that plays the process is then cancelled.
        """
        self._signals, receive = trio.open_memory_channel[int](_MAX_SIGNALS)
        return receive

    async def start(self) -> None:
        """Report the process as started, if it is not yet. Using a stream, and returning, do so too."""
        await trio.lowlevel.checkpoint()
        if not self._started:
            self._started = True
            await self.send(wire.ExecStarted(self.pid))

    # The guest's side

    async def run(self, play: Callable[[ScriptedProcess], Awaitable[int | None]]) -> None:
        """Be played by a function to the end, and report it.

        Raises: what the function raises, except for an `OSError` before the process was started.
        """
        status: int | None = None
        try:
            with self._scope:
                status = await play(self) or 0
        except OSError as exc:
            if self._started:
                raise
            await self.send(_start_failure(exc, self.args[0]))
            return
        await self.start()
        self.returncode = -self._killed_by if status is None else status
        if self.returncode < 0:
            await self.send(wire.ExecExited(code=-1, signal=-self.returncode))
        else:
            await self.send(wire.ExecExited(self.returncode))

    async def send(self, message: wire.Message) -> None:
        """Queue a frame behind all that was sent of this process; drop it if the console is gone."""
        try:
            await self._outbox.send_bulk(wire.encode(message, self._id))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.sleep_forever()  # a guest without a host ends at once, and this with it

    def on_message(self, message: wire.Message) -> None:
        """What the host says of this process. Does not block."""
        match message:
            case wire.ExecStdin(data):
                self._input.put(data)
            case wire.ExecSignal(number):
                self._on_signal(number)
            case wire.ExecResize(rows, cols):
                self.rows, self.cols = rows, cols
            case wire.Credit(stream, size) if stream in self._outputs:
                self._outputs[stream].grant(size)

    def _on_signal(self, number: int) -> None:
        if self._signals is not None and number != signal.SIGKILL:
            # (One that nobody takes is pending, like any signal, and a handler may be gone.)
            with suppress(trio.WouldBlock, trio.BrokenResourceError):
                self._signals.send_nowait(number)
        elif number not in _HARMLESS:
            self.kill(number)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it as by a signal."""
        self._killed_by = self._killed_by or number
        self._scope.cancel()

    def grant_input(self, size: int) -> None:
        """This much of its input was read."""
        if not self._outbox.closed:
            self._outbox.send_control(wire.encode(wire.Credit("stdin", size), self._id))


def _start_failure(exc: OSError, name: str) -> wire.ExecFailed:
    number = exc.errno
    kinds = {FileNotFoundError: "not_found", PermissionError: "permission_denied"}
    return wire.ExecFailed(
        kind=kinds.get(type(exc), "other"),
        errno=number,
        message=exc.strerror or (os.strerror(number) if number else str(exc)),
        filename=os.fsdecode(exc.filename) if isinstance(exc.filename, str | bytes) else name,
    )


@final
class _Output(trio.abc.SendStream):
    """What the process writes, within the credit its host has given."""

    def __init__(self, process: ScriptedProcess, cls: type[wire.DataMessage], window: float) -> None:
        self._process = process
        self._cls = cls
        self._credit = window
        self._closed = False
        self._changed = trio.Event()

    def grant(self, size: int) -> None:
        self._credit += size
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._process.start()
        with flat_view(data) as view:
            start = 0
            while start < len(view):
                await self.wait_send_all_might_not_block()
                size = int(min(_SLICE, len(view) - start, self._credit))
                self._credit -= size
                await self._process.send(self._cls(bytes(view[start : start + size])))
                start += size

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._credit <= 0 and not self._closed:
            await self._changed.wait()
        if self._closed:
            raise trio.ClosedResourceError("this output was closed")

    async def aclose(self) -> None:
        self._closed = True
        self._wake()
        await trio.lowlevel.checkpoint()


@final
class _Input(trio.abc.ReceiveStream):
    """What the process reads."""

    def __init__(self, process: ScriptedProcess) -> None:
        self._process = process
        self._buffer = bytearray()
        self._eof = False
        self._closed = False
        self._changed = trio.Event()

    def put(self, data: bytes) -> None:
        if not data:
            self._eof = True
        elif self._closed:
            self._process.grant_input(len(data))  # nobody reads it, and nobody is to wait for that
        else:
            self._buffer += data
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        await self._process.start()
        while not (self._buffer or self._eof or self._closed):
            await self._changed.wait()
        if self._closed:
            raise trio.ClosedResourceError("this input was closed")
        data = bytes(self._buffer[: max_bytes or _RECEIVE_SIZE])
        del self._buffer[: len(data)]
        if data:
            self._process.grant_input(len(data))
        return data

    async def aclose(self) -> None:
        self._closed = True
        size = len(self._buffer)
        self._buffer.clear()
        if size:
            self._process.grant_input(size)
        self._wake()
        await trio.lowlevel.checkpoint()
