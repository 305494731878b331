"""One command: the session from its request to its exit.

A session begins with the start of the process, and the frame ``started``. Then four tasks run side by side: one
each for stdin, stdout and stderr, and the session's own, which waits for the exit of the process, the leader of
its group. After the exit the rest of the output is sent, and the zombie is reaped. If the session is ended before
the exit, the whole group is killed. The last frame is ``exited``.

Rules:

* Output is read only when there is credit for it and room in the outbox: a reader that pauses pauses its own
  process, because the process's pipe becomes full; it costs no memory here.
* The leader's zombie is kept until burial, so that the number of its process group cannot be another group's.
* Bytes that were in a pipe when the leader exited are delivered, however slow the reader is. A background child
  that holds the pipe open after that gets `DRAIN_GRACE` and no more.

This module must not know other sessions, nor how a child is made.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import math
import os
import signal
import termios
from functools import partial
from typing import Final, Protocol, final

import msgspec
import trio

from trio_console import _wire as wire
from trio_console.agent._inflow import Put
from trio_console.agent._process.spawn import Child, StartError, os_error_text
from trio_console.agent._process.stdin import StdinFeed
from trio_console.agent._session import SendCredit, Sender, Session

__all__ = ["LEGACY_STDIN_BUDGET", "STDIN_PATIENCE", "STDIN_WINDOW", "ExecSession", "Spawn"]

#: The window for stdin of a client that counts credit. It must last until the next grant comes: with a quarter of
#: it stdin was half as fast. If a client sends to a thousand commands that do not read, they hold 1 GiB at most.
STDIN_WINDOW: Final = 1024 * 1024

#: Bytes of stdin that are queued for a command whose client counts no credit: two of the largest frames.
LEGACY_STDIN_BUDGET: Final = 8 * 1024 * 1024

#: Seconds in which a command may take no stdin before more stdin of a client without credit is refused.
STDIN_PATIENCE: Final = 1.0

#: Seconds after the leader's exit in which other processes with its stdout may delay the report of the exit.
DRAIN_GRACE: Final = 0.25

#: Seconds to wait for a killed process. One that is in an uninterruptible system call is left after that.
_BURIAL_GRACE: Final = 2.0

#: Bytes that are read at once, and sent in one frame. Each frame costs the same turns of the loop here and on the
#: host, so this is a third faster than 64 KiB. Twice as many would be slower, because the allocator would get each
#: buffer from the kernel, and give it back.
_CHUNK: Final = 128 * 1024

#: Bytes that a pipe of the default size holds.
_PLAIN_PIPE: Final = 64 * 1024

#: The size to which a pipe is enlarged when its child has filled it: the most that an ordinary user may ask for.
#: So the child goes on writing while other tasks run. It is not done at the start, because a user may have only a
#: few large pipes.
_GROWN_PIPE: Final = 1024 * 1024

# A terminal does not tell how much it holds beyond its reader's 4 KiB; its other buffer takes 8 KiB.
_TTY_HOLDS: Final = 16 * 1024

_LAST_PLAIN_SIGNAL: Final = 31


class Spawn(Protocol):
    """Starts children without blocking the loop."""

    async def __call__(self, request: wire.ExecRequest, size: tuple[int, int]) -> Child:
        """Start a child; raises `StartError`. If cancelled, there is no child."""


@final
class _Output:
    """One stream of output."""

    __slots__ = ("_grown", "cls", "credit", "fd", "grace", "left", "name")

    def __init__(self, name: str, fd: int, cls: type[wire.DataMessage], window: int | None) -> None:
        self.name = name
        self.fd = fd
        self.cls = cls
        self.credit = SendCredit(window)
        self.grace = trio.CancelScope()
        self.left: float = math.inf  # bytes to deliver after the grace; set when the leader exits
        self._grown = False

    def grow(self) -> None:
        """Enlarge the pipe, once, because it was found full."""
        if not self._grown:
            self._grown = True
            # (This fails if it is a terminal, or if the user has no more large pipes: then it keeps its size.)
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _GROWN_PIPE)


@final
class ExecSession(Session):
    """The session of one command; see the module.

    Args:
        sender: sends the session's messages.
        session_id: the session's id.
        request: the request of the command.
        spawn: starts the child.
        stdin_window: the window that was announced to clients that count credit, in bytes.
    """

    __slots__ = (
        "_child",
        "_early_signals",
        "_exit",
        "_failure",
        "_feed",
        "_outputs",
        "_request",
        "_size",
        "_spawn",
    )

    kind = "exec"
    accepts = wire.accepted_in("exec")

    def __init__(
        self,
        sender: Sender,
        session_id: int,
        request: wire.ExecRequest,
        *,
        spawn: Spawn,
        stdin_window: int = STDIN_WINDOW,
        stdin_budget: int = LEGACY_STDIN_BUDGET,
        stdin_patience: float = STDIN_PATIENCE,
    ) -> None:
        super().__init__(sender, session_id)
        self._request = request
        self._spawn = spawn
        self._size = (request.rows, request.cols)
        self._early_signals: dict[int, None] = {}  # each once, in order
        self._child: Child | None = None
        self._outputs: dict[str, _Output] = {}
        self._exit: wire.ExecExited | None = None
        self._failure: wire.ExecFailed | None = None
        self._feed = StdinFeed(
            self,
            tty=request.tty,
            window=None if request.window is msgspec.UNSET else stdin_window,
            budget=stdin_budget,
            patience=stdin_patience,
        )

    # The session's own task

    async def run(self) -> None:
        """See `Session.run`."""
        in_order = False
        try:
            with self._scope:
                await self._live()
                in_order = True
        finally:
            self._feed.close()
            if self._child is not None:
                with trio.move_on_after(_BURIAL_GRACE, shield=True):
                    await self._still(self._child, kill=not in_order)
                self._exit = self._exit or self._child.status()
                self._child.reap()
        await self._say_last(self._last_word())

    async def _live(self) -> None:
        try:
            # Assigned at once: there is no checkpoint between the return of the spawn and this assignment.
            child = self._child = await self._spawn(self._request, self._size)
        except StartError as exc:
            self._failure = exc.failure
            return
        await trio.lowlevel.checkpoint_if_cancelled()  # the session may have been ended during the start
        self._send_now(wire.ExecStarted(child.pid))
        for number in self._early_signals:
            child.kill_group(number)
        child.resize(*self._size)
        self._make_outputs(child)
        async with trio.open_nursery() as nursery:
            feeding = trio.CancelScope()
            nursery.start_soon(self._feed_stdin, child, feeding)
            for output in self._outputs.values():
                nursery.start_soon(self._pump, output)
            await trio.lowlevel.wait_readable(child.exit_fd)
            self._exit = child.status()
            feeding.cancel()
            self._feed.close()
            self._begin_drain(child)

    def _make_outputs(self, child: Child) -> None:
        window = None if self._request.window is msgspec.UNSET else self._request.window
        # The streams are in the order of the descriptors; a terminal has only the first one.
        streams = wire.streams_of("exec", wire.Direction.AGENT_TO_HOST)
        assert len(child.outputs) == (1 if child.tty else len(streams)), "every output of a child has its stream"
        self._outputs = {
            name: _Output(name, fd, cls, window)
            for (cls, name), fd in zip(streams.items(), child.outputs, strict=False)
        }

    async def _feed_stdin(self, child: Child, scope: trio.CancelScope) -> None:
        with scope:
            await self._feed.run(child)

    def _begin_drain(self, child: Child) -> None:
        deadline = trio.current_time() + DRAIN_GRACE
        for output in self._outputs.values():
            output.left = _TTY_HOLDS if child.tty else _readable_bytes(output.fd)
            output.grace.deadline = deadline
        if self.muted:
            self._hurry()

    def _hurry(self) -> None:
        """Send the output that can be sent at once: the leader has exited, and the agent is about to end."""
        for output in self._outputs.values():
            output.grace.deadline = -math.inf
            output.credit.give_up()

    async def _pump(self, output: _Output) -> None:
        with output.grace:
            await self._deliver(output)
        if output.grace.cancelled_caught:
            await self._deliver_rest(output)

    async def _deliver(self, output: _Output) -> None:
        """Move output to the console until end of file. Cancelling it loses nothing."""
        full = False
        while True:
            if full:
                await trio.lowlevel.checkpoint()  # more may come, but other tasks run first
            else:
                # This wait comes before the first read as well, because a read reserves room, even if it finds no
                # bytes.
                await trio.lowlevel.wait_readable(output.fd)
            allowed = await output.credit.wait(_CHUNK)
            if not allowed:
                return
            data = await self._read(output, allowed)
            if data == b"":
                return
            full = data is not None and len(data) == allowed
            if data is not None and len(data) >= _PLAIN_PIPE:
                output.grow()

    async def _deliver_rest(self, output: _Output) -> None:
        """Deliver the bytes that were in the pipe when the leader exited, without waiting for more."""
        while output.left > 0:
            await trio.lowlevel.checkpoint()
            allowed = await output.credit.wait(min(_CHUNK, int(output.left)))
            if not allowed or not await self._read(output, allowed):
                return

    async def _read(self, output: _Output, allowed: int) -> bytes | None:
        """Read at most ``allowed`` bytes, and send them; ``None`` if there are none, ``b""`` at the end."""
        data = await self._pass_on(output.cls, allowed, partial(_read_some, output.fd))
        if data:
            output.credit.note_sent(len(data))
            output.left -= len(data)
            self._sender.activity.exec_output_bytes += len(data)
        return data

    async def _still(self, child: Child, *, kill: bool) -> None:
        """With ``kill``, end the whole group and wait for the leader."""
        if kill:
            child.kill_group(signal.SIGKILL)
            await trio.lowlevel.wait_readable(child.exit_fd)

    def _last_word(self) -> wire.Message:
        if self._failure is not None:
            assert self._child is None, "a session ends once: a command that was started has an exit"
            return self._failure
        if self._child is None:
            return wire.ExecFailed(kind="other", message="ended before it was started")
        return self._exit or wire.ExecExited(code=-1, signal=signal.SIGKILL)

    # The router's side

    async def receive(self, message: wire.Message) -> None:
        """See `Session.receive`."""
        match message:
            case wire.ExecStdin():
                await self._take_stdin(message.data)
            case wire.ExecSignal():
                self._signal(message.signal)
            case wire.ExecResize():
                self._size = (message.rows, message.cols)
                if self._child is not None:
                    self._child.resize(*self._size)
            case wire.Credit() if message.stream in self._outputs:
                self._outputs[message.stream].credit.grant(message.bytes)

    def shut_down(self) -> None:
        """See `Session.shut_down`: send SIGTERM, and no terminal frame."""
        self.mute()
        self._signal(signal.SIGTERM)
        if self._exit is not None:
            self._hurry()

    def _signal(self, number: int) -> None:
        if not 1 <= number <= _LAST_PLAIN_SIGNAL:
            return
        if self._child is None:
            self._early_signals[number] = None
        else:
            self._child.kill_group(number)

    async def _take_stdin(self, data: bytes) -> None:
        match await self._feed.put(data):
            case Put.OVER_WINDOW:
                text = "more stdin than the window allows"
                self.end(wire.Error("invalid_session", text, "core.exec.stdin"))
            case Put.FULL:
                text = f"stdin queue of {LEGACY_STDIN_BUDGET} bytes is full: the process is not reading"
                self._send_stdin_error(errno.ENOSPC, text)

    # Called by the feed

    def stdin_failed(self, exc: OSError) -> None:
        """Report that a chunk could not be written; the session goes on."""
        code = exc.errno or errno.EIO
        self._send_stdin_error(code, f"io error: {os_error_text(code)}")

    def stdin_granted(self, nbytes: int) -> None:
        """Grant the client credit for more input."""
        self._send_now(wire.Credit("stdin", nbytes))

    def _send_stdin_error(self, code: int, text: str) -> None:
        name = errno.errorcode.get(code)
        self._send_now(wire.ExecStdinError(errno=code, errno_name=name, message=text))


def _read_some(fd: int, nbytes: int) -> bytes | None:
    try:
        return os.read(fd, nbytes)
    except BlockingIOError:
        return None
    except OSError as exc:
        if exc.errno == errno.EIO:  # a terminal that no process has open any more
            return b""
        raise


def _readable_bytes(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
