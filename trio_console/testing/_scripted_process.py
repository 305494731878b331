"""A command of a scripted guest, as the function that plays it sees it: the inside of a process.

This module must not know which function plays which command, nor how frames get to the host.
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

#: Bytes of input that a host may send before the command reads: the same as the real agent announces.
STDIN_WINDOW: Final = 1024 * 1024

#: The most bytes of output in a frame: the same as in the real agent.
_SLICE: Final = 128 * 1024

_RECEIVE_SIZE: Final = 64 * 1024

#: Signals whose default action does not end a process.
_HARMLESS: Final = frozenset(
    {
        *(signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT),
        *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    }
)

#: The most signals that are queued in the memory channel of `ScriptedProcess.signals`.
_MAX_SIGNALS: Final = 64


@final
class ScriptedProcess:
    """A command that the host has requested, as the function that plays it sees it. `ScriptedGuest` makes them.

    Attributes:
        args: the command, its name included.
        env: variables that the host has set.
        cwd: the requested working directory, or `None`.
        user: the requested user, or `None`.
        tty: whether it has a terminal.
        rows, cols: size of the terminal in characters; a resize changes them.
        pid: its process id, which is made up.
        stdin: a `trio.abc.ReceiveStream` of its input.
        stdout, stderr: a `trio.abc.SendStream` each for its output. Sending waits while the host does not read.
        returncode: the exit status; ``-N`` if signal N ended it; `None` while it runs, if it could not be started,
            and if the guest ended first.
    """

    def __init__(self, outbox: Outbox, session_id: int, request: wire.ExecRequest) -> None:
        self.args: Final = [request.cmd, *request.args]
        self.env: Final = dict(entry.split("=", 1) for entry in request.env if "=" in entry)
        self.cwd: Final = request.cwd
        self.user: Final = request.user
        self.tty: Final = request.tty
        self.rows = request.rows
        self.cols = request.cols
        self.pid: Final = 1000 + session_id
        self.returncode: int | None = None
        self._outbox = outbox
        self._id = session_id
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
        """Handle signals from now on: they do not end the process, and arrive on the returned memory channel.

        SIGKILL still ends it: the function that plays the process is then cancelled.
        """
        self._signals, receive = trio.open_memory_channel[int](_MAX_SIGNALS)
        return receive

    async def start(self) -> None:
        """Report the process as started, if it was not yet. The use of a stream, and the return, do so too.

        If cancelled, the host may have been told or not.
        """
        await trio.lowlevel.checkpoint()
        if not self._started:
            self._started = True
            await self._send(wire.ExecStarted(self.pid))

    # The guest's side

    async def _run(self, play: Callable[[ScriptedProcess], Awaitable[int | None]]) -> None:
        """Call the function that plays the process, and report its end. If cancelled, no end is reported.

        An exception of the function is raised, except for an `OSError` before the process was started.
        """
        status: int | None = None
        try:
            with self._scope:
                status = await play(self) or 0
        except OSError as exc:
            if self._started:
                raise
            await self._send(_start_failure(exc, self.args[0]))
            return
        await self.start()
        self.returncode = -self._killed_by if status is None else status
        if self.returncode < 0:
            await self._send(wire.ExecExited(code=-1, signal=-self.returncode))
        else:
            await self._send(wire.ExecExited(self.returncode))

    async def _send(self, message: wire.Message) -> None:
        """Queue a frame behind the earlier frames of this process. If cancelled, the frame was not queued."""
        try:
            await self._outbox.send_bulk(wire.encode(message, self._id))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.sleep_forever()  # the host has gone, so the guest is about to cancel this task

    def _on_message(self, message: wire.Message) -> None:
        """Act on a frame of the host for this process. Does not block."""
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
            # (A signal is lost if too many are queued, or if the test has closed the memory channel.)
            with suppress(trio.WouldBlock, trio.BrokenResourceError):
                self._signals.send_nowait(number)
        elif number not in _HARMLESS:
            self._kill(number)

    def _kill(self, number: int = signal.SIGKILL) -> None:
        """End the process as a signal would."""
        self._killed_by = self._killed_by or number
        self._scope.cancel()

    def _grant_input(self, size: int) -> None:
        """Grant the host credit for input that was read."""
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
    """An output stream of the process. It sends within the credit that the host has granted.

    If `send_all` is cancelled, a part of the data may have been sent. A cancelled `aclose` closes it all the same.
    """

    def __init__(self, process: ScriptedProcess, cls: type[wire.DataMessage], window: float) -> None:
        self._process = process
        self._cls = cls
        self._credit = window
        self._closed = False
        self._changed = trio.Event()

    def grant(self, size: int) -> None:
        """Add credit, in bytes, that the host has granted."""
        self._credit += size
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` in frames of up to 128 KiB, and wait for credit where there is none."""
        await self._process.start()
        with flat_view(data) as view:
            start = 0
            while start < len(view):
                await self.wait_send_all_might_not_block()
                size = int(min(_SLICE, len(view) - start, self._credit))
                self._credit -= size
                await self._process._send(self._cls(bytes(view[start : start + size])))
                start += size

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is some credit."""
        await trio.lowlevel.checkpoint()
        while self._credit <= 0 and not self._closed:
            await self._changed.wait()
        if self._closed:
            raise trio.ClosedResourceError("this output was closed")

    async def aclose(self) -> None:
        """Close this output; the host is not told."""
        self._closed = True
        self._wake()
        await trio.lowlevel.checkpoint()


@final
class _Input(trio.abc.ReceiveStream):
    """The input stream of the process.

    If `receive_some` is cancelled, no byte was taken. A cancelled `aclose` closes it all the same.
    """

    def __init__(self, process: ScriptedProcess) -> None:
        self._process = process
        self._buffer = bytearray()
        self._eof = False
        self._closed = False
        self._changed = trio.Event()

    def put(self, data: bytes) -> None:
        """Add bytes that the host has sent; ``b""`` is end of file."""
        if not data:
            self._eof = True
        elif self._closed:
            self._process._grant_input(len(data))  # dropped, and granted at once so that the host does not wait
        else:
            self._buffer += data
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Take at least one byte, and at most ``max_bytes`` (by default 64 KiB); ``b""`` at end of file."""
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
            self._process._grant_input(len(data))
        return data

    async def aclose(self) -> None:
        """Close this input; bytes that the host sends from now on are dropped."""
        self._closed = True
        size = len(self._buffer)
        self._buffer.clear()
        if size:
            self._process._grant_input(size)
        self._wake()
        await trio.lowlevel.checkpoint()
