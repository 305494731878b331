"""One command: the session from its request to its exit.

A session begins with the start of the process, and the frame ``started``. Then four tasks run side by side: one
each for stdin, stdout and stderr, and the session's own, which waits for the exit of the process, the leader of
its group. After the exit the rest of the output is sent (the drain), and the zombie is reaped. If the session is
ended before the exit, everything that the command has started is killed. The last frame is ``exited``.

Rules:

* Output is read only when there is credit for it and room in the outbox: a reader that pauses pauses its own
  process, because the process's pipe becomes full; it costs no memory here.
* The leader's zombie is kept until burial, so that the number of its process group cannot be another group's.
* After the leader's exit a stream that somebody still holds is delivered on, until it ends, or until it was silent
  for the drain that the client has asked for (`DRAIN_GRACE` if it has not asked). Silence counts only while the
  client could take bytes, so a slow reader loses nothing.
* Whoever still holds a stream then keeps it: the agent reads on, and drops the bytes (`Sinks`).
* A client that asks for it is told the end of each stream, and the exit while streams are open.
* A session that is ended by force ends everything that its command has started, and says how many processes it
  could not end (`Hunt`).

This module must not know other sessions, nor how a child is made.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import math
import os
import select
import signal
import termios
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, final

import msgspec
import trio

from trio_console import _wire as wire
from trio_console._trio.turns import Trickle
from trio_console._wire.ids import slot_of
from trio_console.agent._inflow import Put
from trio_console.agent._process.spawn import Child, StartError, os_error_text
from trio_console.agent._process.stdin import StdinFeed
from trio_console.agent._session import SendCredit, Sender, Session

if TYPE_CHECKING:
    from trio_console.agent._held import Holding
    from trio_console.agent._process.hunt import Hunt
    from trio_console.agent._process.sinks import Sinks

__all__ = ["LEGACY_STDIN_BUDGET", "STDIN_PATIENCE", "STDIN_WINDOW", "ExecSession", "Spawn"]

#: The window for stdin of a client that counts credit. It must last until the next grant comes: with a quarter of
#: it stdin was half as fast.
STDIN_WINDOW: Final = 1024 * 1024

#: Bytes of stdin that are queued for a command whose client counts no credit: two of the largest frames.
LEGACY_STDIN_BUDGET: Final = 8 * 1024 * 1024

#: Seconds in which a command may take no stdin before more stdin of a client without credit is refused.
STDIN_PATIENCE: Final = 1.0

#: Seconds of silence after the leader's exit for which a stream that is still held is read, for a client that has
#: not said how many.
DRAIN_GRACE: Final = 0.25

#: Seconds to wait for a killed process. One that is in an uninterruptible system call is left after that.
_BURIAL_GRACE: Final = 2.0

#: Seconds for the first look at all processes, before the group of a command is killed in any case. It takes some
#: milliseconds; but a process whose memory hangs in the kernel may hang it for two tenths of a second, until it is
#: left out (`Looks`).
_LOOK_TIME: Final = 0.5

#: Seconds within which the ends of a command's streams and its exit count as one: a process that exits closes its
#: streams a moment earlier, which is some milliseconds where the processor is emulated. So a command that just
#: ends costs no frame but ``exited``.
_TOGETHER: Final = 0.01

#: Bytes of a stream from which on the exit is told by a frame of its own all the same. A relay holds ``exited``
#: behind output for which its client has granted no credit, and the client may wait for the exit without reading.
#: This is less than a client's window, below which a relay holds nothing.
_HELD_SIZE: Final = 64 * 1024

#: Seconds between two looks at a terminal that no process has open.
_TTY_POLL: Final = 0.05

#: Seconds between two looks for an exit that cannot be waited for.
_EXIT_POLL: Final = 0.01

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

    __slots__ = (
        "_grown",
        "cls",
        "credit",
        "fd",
        "held",
        "left",
        "living",
        "name",
        "over",
        "sent",
        "silence",
        "trickle",
    )

    def __init__(
        self, name: wire.StreamName, fd: int, cls: type[wire.DataMessage], window: int | None, trickle: Trickle
    ) -> None:
        self.name = name
        self.fd = fd
        self.cls = cls
        self.credit = SendCredit(window)
        self.living = trio.CancelScope()  # ends when the leader exits
        self.silence = trio.CancelScope()  # a wait for bytes after that
        self.left: float = math.inf  # bytes to deliver after the exit
        self.trickle: Final = trickle
        self.sent = 0  # bytes
        self.over = False  # whether its delivery is over
        self.held = False  # whether somebody has it open when its delivery is over
        self._grown = False

    def waiting(self) -> int:
        """The bytes that can be read without waiting; of a terminal, at least as many."""
        return max(_readable_bytes(self.fd), _TTY_HOLDS if os.isatty(self.fd) else 0)

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
        sinks: take the output that is not read any more.
        hunt: ends what the command has started.
        stdin_window: the window of a client that counts credit.
    """

    __slots__ = (
        "_alive",
        "_child",
        "_done",
        "_doomed",
        "_drain",
        "_early_signals",
        "_ends",
        "_exit",
        "_failure",
        "_feed",
        "_hunt",
        "_kill_grace",
        "_last_output",
        "_late",
        "_left_told",
        "_outputs",
        "_outputs_open",
        "_outputs_over",
        "_request",
        "_sinks",
        "_size",
        "_spawn",
        "_status_lost",
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
        sinks: Sinks,
        hunt: Hunt,
        stdin_window: Holding,
        stdin_budget: int = LEGACY_STDIN_BUDGET,
        stdin_patience: float = STDIN_PATIENCE,
    ) -> None:
        super().__init__(sender, session_id)
        self._request = request
        self._spawn = spawn
        self._sinks = sinks
        self._hunt = hunt
        self._ends = request.ends is not msgspec.UNSET  # whether the client wants to be told of each end
        self._drain = _drain_seconds(request)
        self._kill_grace: float | None = None  # seconds, if everything is to be killed
        self._doomed = False  # whether that is to be done as soon as the leader has exited
        self._status_lost = False  # whether somebody else has reaped the leader
        self._late = False  # whether the client has gone during the start
        self._left_told = False  # whether the client was told the exit by itself
        self._alive: int | wire.UnsetType = wire.UNSET  # processes that were killed and have not ended
        self._outputs_open = 0
        self._last_output = -math.inf  # when bytes came last, after the exit
        self._outputs_over = trio.Event()
        self._done = trio.Event()  # the leader has exited, and the outputs are over
        self._size = (request.rows, request.cols)
        self._early_signals: dict[int, None] = {}  # each once, in order
        self._child: Child | None = None
        self._outputs: dict[str, _Output] = {}
        self._exit: wire.ExecExited | None = None
        self._failure: wire.ExecFailed | None = None
        self._feed = StdinFeed(
            self.stdin_granted,
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
                # (Also an end that came when there was nothing to wait for any more is one.)
                in_order = not self._scope.cancel_called
        finally:
            self._feed.close()
            if self._child is not None:
                # If the agent itself ends, or the client has gone, then all that is left is searched at once, by
                # others. (But not what has started after that.)
                searched = self._late or not (self.departed or trio.current_effective_deadline() == -math.inf)
                try:
                    if not in_order:
                        with trio.CancelScope(shield=True):
                            await self._kill_all(self._child, searched=searched)  # bounded by its grace
                finally:
                    self._exit = self._exit or self._status(self._child)
                    self._child.reap()
        if any(output.sent >= _HELD_SIZE for output in self._outputs.values()):
            self._tell_left()
        await self._say_last(self._last_word())

    async def _live(self) -> None:
        try:
            # Assigned at once: there is no checkpoint between the return of the spawn and this assignment.
            child = self._child = await self._spawn(self._request, self._size)
        except StartError as exc:
            self._failure = exc.failure
            return
        # The words of the request may be long, and the command may run for as long as it likes.
        self._request = msgspec.structs.replace(self._request, cmd="", args=[], env=[])
        await trio.lowlevel.checkpoint_if_cancelled()  # the session may have been ended during the start
        if not self.ended:  # said also while the guest shuts down: without it the output would be nobody's
            self._sender.send(wire.ExecStarted(child.pid, child.number if self._ends else wire.UNSET), self.id)
        for number in self._early_signals:
            child.kill_group(number)
        child.resize(*self._size)
        self._make_outputs(child)
        async with trio.open_nursery() as nursery:
            feeding = trio.CancelScope()
            if not self._feed.end_at_once(child):
                nursery.start_soon(self._feed_stdin, child, feeding)
            for output in self._outputs.values():
                nursery.start_soon(self._pump, child, output)
            await trio.lowlevel.wait_readable(child.exit_fd)
            self._exit = self._status(child)
            if self._doomed:
                self.end()
            feeding.cancel()
            self._feed.close()
            child.let_go_of_terminal()
            self._begin_drain(child)
            await self._tell_exit()

    def _make_outputs(self, child: Child) -> None:
        window = None if self._request.window is msgspec.UNSET else self._request.window
        # The streams are in the order of the descriptors; a terminal has only the first one.
        streams = wire.streams_of("exec", wire.Direction.AGENT_TO_HOST)
        assert child.outputs.keys() <= set(streams.values()), "every output of a child has its stream"
        self._outputs = {
            name: _Output(name, child.outputs[name], cls, window, Trickle(self._sender.alone))
            for cls, name in streams.items()
            if name in child.outputs
        }
        self._outputs_open = len(self._outputs)
        if not self._outputs:
            self._outputs_over.set()

    async def _feed_stdin(self, child: Child, scope: trio.CancelScope) -> None:
        with scope:
            await self._feed.run(child, self.stdin_failed)

    def _begin_drain(self, child: Child) -> None:
        self._last_output = trio.current_time()
        for output in self._outputs.values():
            if self._drain == 0 and not output.over:
                output.left = output.waiting()
            output.living.cancel()
        if self.muted:
            self._hurry()

    async def _tell_exit(self) -> None:
        """Tell the client of the exit, if it wants to know and the streams do not end at the same time."""
        # (To wait for what has come already would be a turn of the loop, and a short command has none to spare.)
        if self._ends and self._exit is not None and not self._outputs_over.is_set():
            with trio.move_on_after(_TOGETHER) as patience:
                await self._outputs_over.wait()
            if patience.cancelled_caught:
                self._tell_left()
        if not self._outputs_over.is_set():
            await self._outputs_over.wait()
        self._done.set()

    def _tell_left(self) -> None:
        """Tell the client of the exit by itself, once, if it wants to know."""
        wants = self._ends and self._ending is None and not (self.muted or self.departed)
        if wants and self._exit is not None and not self._left_told:
            self._left_told = True
            self._sender.send(wire.ExecLeft(self._exit.code, self._exit.signal), self.id)

    def _under_way(self) -> list[_Output]:
        """The outputs that are delivered. The descriptors of others may be closed, and their numbers others'."""
        return [output for output in self._outputs.values() if not output.over]

    def _hurry(self) -> None:
        """Send the output that can be sent at once: the leader has exited, and the agent is about to end."""
        for output in self._under_way():
            output.left = min(output.left, output.waiting())
            output.credit.give_up()

    def _release(self) -> None:
        """Deliver what has been written, and no more: the client reads no more. What comes is dropped."""
        for output in self._under_way():
            output.left = min(output.left, output.waiting())
            output.living.cancel()
            output.silence.cancel()

    async def _pump(self, child: Child, output: _Output) -> None:
        """Deliver one stream: to its end, or as long as somebody waits for it."""
        ended = False
        with output.living:
            ended = await self._deliver(output)
        if not ended:
            ended = await self._deliver_on(child, output)
        output.over, output.held = True, not ended
        if output.held:
            with contextlib.suppress(OSError):  # no descriptor is left: a terminal is hung up with its session
                slot = slot_of(self.id)
                assert slot is not None, "a session has the id of a client"
                self._sinks.take(child.give_away(output.fd), slot)
        self._outputs_open -= 1
        if not self._outputs_open:
            self._outputs_over.set()
        if ended and self._ends:
            await self._tell_end(output)

    async def _tell_end(self, output: _Output) -> None:
        """Tell the client of the end of a stream, unless the session ends at the same time."""
        if self._done.is_set():
            return
        with trio.move_on_after(_TOGETHER) as patience:
            await self._done.wait()
        if patience.cancelled_caught:
            await self._sender.reserve_small()
            if self.ended:
                self._sender.release_small()
            else:
                self._sender.commit_small(wire.ExecStreamEnded(output.name), self.id)

    async def _deliver(self, output: _Output) -> bool:
        """Move output to the console; returns whether it has ended. Cancelling it loses nothing."""
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
                return False
            data = await self._read(output, allowed)
            if data == b"":
                return True
            full = data is not None and len(data) == allowed
            if data is not None:
                if len(data) >= _PLAIN_PIPE:
                    output.grow()
                if not full:  # (what is as large as the client lets it be would not grow)
                    await output.trickle.rest(len(data))

    async def _deliver_on(self, child: Child, output: _Output) -> bool:
        """Move the output of a command whose leader has exited; returns whether it has ended.

        Returns also if there was silence, or enough was delivered, or the credit was given up.
        """
        while output.left > 0:
            await trio.lowlevel.checkpoint()
            waiting = _poll(output.fd)
            if waiting & select.POLLIN:
                allowed = await output.credit.wait(int(min(_CHUNK, output.left)))
                if not allowed:
                    return False
                data = await self._read(output, allowed)
                # (Somebody has it open, and may go on like this; and it is not cut by what the client takes.)
                if data and len(data) < allowed and not waiting & select.POLLHUP:
                    await output.trickle.rest(len(data))
                self._last_output = trio.current_time()
            elif waiting and not (child.tty and await self._hunt.any_left(child.wanted())):
                if not _poll(output.fd) & select.POLLIN:  # the last process may have written during the look
                    return True
            elif not await self._wait_in_silence(output, ended=bool(waiting)):
                break
        return _poll(output.fd) == select.POLLHUP

    def _client_takes(self) -> bool:
        """Whether the client could take a byte of each stream that goes on."""
        return all(output.over or output.credit.may_send(1) for output in self._outputs.values())

    async def _wait_in_silence(self, output: _Output, *, ended: bool) -> bool:
        """Wait for more bytes; returns false once the silence has lasted for too long.

        It is the silence of all streams. And it is the command's only if the client could have taken bytes.
        """
        while output.left > 0 and not output.credit.given_up:
            with trio.CancelScope(deadline=self._last_output + self._drain) as output.silence:
                if ended:  # a terminal that no process has open: the kernel does not tell when one opens it again
                    await trio.sleep(_TTY_POLL)
                else:
                    await trio.lowlevel.wait_readable(output.fd)
                return True
            if not self._client_takes():
                self._last_output = trio.current_time()
            elif trio.current_time() >= self._last_output + self._drain:
                return False
        return False

    async def _read(self, output: _Output, allowed: int) -> bytes | None:
        """Read at most ``allowed`` bytes, and send them; ``None`` if there are none, ``b""`` at the end."""
        data = await self._pass_on(output.cls, allowed, partial(_read_some, output.fd))
        if data:
            output.credit.note_sent(len(data))
            output.sent += len(data)
            output.left -= len(data)
            self._sender.activity.exec_output_bytes += len(data)
        return data

    async def _kill_all(self, child: Child, *, searched: bool) -> None:
        """Kill the whole command, or only its group, and wait until it has ended."""
        grace = _BURIAL_GRACE if self._kill_grace is None else self._kill_grace
        deadline = trio.current_time() + grace
        if searched:
            # The hunt looks first and kills then, and so does not lose the children of the leader, which has them
            # while it lives.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._kill_group_soon, child)
                self._alive = await self._hunt.kill(child.wanted(), grace)
                nursery.cancel_scope.cancel()
        child.kill_group(signal.SIGKILL)
        with trio.move_on_at(deadline):
            try:
                await trio.lowlevel.wait_readable(child.exit_fd)
            except OSError:  # the system has no memory for that
                while self._status(child) is None and not self._status_lost:  # noqa: ASYNC110
                    await trio.sleep(_EXIT_POLL)

    async def _kill_group_soon(self, child: Child) -> None:
        """Kill the group if the look for all other processes takes long."""
        await trio.sleep(_LOOK_TIME)
        child.kill_group(signal.SIGKILL)

    def _last_word(self) -> wire.Message:
        if self._failure is not None:
            assert self._child is None, "a session ends once: a command that was started has an exit"
            return self._failure
        if self._child is None:
            return wire.ExecFailed(kind="other", message="ended before it was started")
        if self._exit is None:
            return wire.Error(*self._no_exit())
        held = [output.name for output in self._outputs.values() if output.held]
        if self._ends and (held or self._alive is not wire.UNSET):
            return msgspec.structs.replace(self._exit, held=held or wire.UNSET, alive=self._alive)
        return self._exit

    def _status(self, child: Child) -> wire.ExecExited | None:
        try:
            return child.status()
        except ChildProcessError:
            self._status_lost = True
            return None

    def _no_exit(self) -> tuple[str, str]:
        """Kind and text of the error in place of an exit: a status is never invented."""
        assert self._child is not None, "only a command that was started has an exit"
        if self._status_lost:
            return (
                "exit_unknown",
                f"process {self._child.pid} has ended, but its status was taken by another process",
            )
        return "not_confirmed", f"process {self._child.pid} has not ended after SIGKILL: it may still run"

    # The router's side

    async def receive(self, message: wire.Message) -> None:
        """See `Session.receive`."""
        match message:
            case wire.ExecStdin():
                for output in self._outputs.values():
                    output.trickle.note_asked()
                await self._take_stdin(message.data)
            case wire.ExecSignal():
                self._signal(message.signal)
            case wire.ExecResize():
                self._size = (message.rows, message.cols)
                if self._child is not None:
                    self._child.resize(*self._size)
            case wire.Credit() if message.stream in self._outputs:
                self._outputs[message.stream].credit.grant(message.bytes)
            case wire.ExecRelease():
                self._release()
            case wire.ExecKill():
                self._kill_grace = message.grace / 1000
                # Before the exit a kill that is to come after it is only noted. The exit is noted in the same turn
                # in which `_live` looks for such a kill, so one of the two sees the other.
                if message.after_exit is True and self._exit is None:
                    self._doomed = True
                else:
                    self.end()

    def depart(self) -> None:
        """See `Session.depart`. A start cannot be stopped, and may hang: nobody waits for that."""
        if self._child is None and not self.muted:
            self._late = True
            self._sender.commit_unreserved(self._ending or self._last_word(), self.id)
            self.let_go_of_id()
        super().depart()

    def shut_down(self, grace: float | None) -> None:
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
                text = "stdin queue is full: the process is not reading enough, or others of its client"
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


def _drain_seconds(request: wire.ExecRequest) -> float:
    if request.ends is msgspec.UNSET:
        return DRAIN_GRACE
    return math.inf if request.ends.drain is None else request.ends.drain / 1000


def _read_some(fd: int, nbytes: int) -> bytes | None:
    try:
        return os.read(fd, nbytes)
    except BlockingIOError:
        return None
    except OSError as exc:
        if exc.errno == errno.EIO:  # a terminal that no process has open any more
            return b""
        raise


def _poll(fd: int) -> int:
    """What a descriptor is ready for: bytes to read, its end, both or none."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    events = poll.poll(0)
    return events[0][1] if events else 0


def _readable_bytes(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
