"""The session of one command in the guest. Its user holds a `GuestProcess`."""

from __future__ import annotations

import enum
import errno
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError, again, system_error
from trio_console._session.connection import Connection, Session
from trio_console._session.process.completed import CalledProcessError, CompletedProcess
from trio_console._session.process.input import close_stdin, stdin_window
from trio_console._session.receiving import WINDOW, CreditAccount, Incoming, MergedAccounts, broken
from trio_console._session.sending import DataSender
from trio_console._session.statistics import SessionStatistics
from trio_console._states import Steps
from trio_console._trio.lost import GuestLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._session.process.command import Command

__all__ = ["PROCESS", "ProcessSession", "ProcessState"]

_OUTPUTS: Final[tuple[wire.StreamName, wire.StreamName]] = ("stdout", "stderr")

#: The errno for each kind of failed start, if the agent gives no errno.
_KIND_ERRNO: Final = {
    "not_found": 2,
    "permission_denied": 1,
    "not_executable": 8,
    "out_of_memory": 12,
}


class ProcessState(enum.Enum):
    """The state of a process, as far as its guest has reported it."""

    STARTING = enum.auto()
    RUNNING = enum.auto()
    LEFT = enum.auto()  # it has exited, and streams of its output are still open
    EXITED = enum.auto()
    FAILED = enum.auto()  # it could not be started, or how it ended is not known: there is an error
    CUT = enum.auto()  # it has exited, and the rest of its output is lost: there is a status and an error
    EXITED_LATE = enum.auto()  # the exit was reported after that; the tasks that waited have got the error


PROCESS: Final = Steps(
    {
        ProcessState.STARTING: {ProcessState.RUNNING, ProcessState.LEFT, ProcessState.EXITED, ProcessState.FAILED},
        ProcessState.RUNNING: {ProcessState.LEFT, ProcessState.EXITED, ProcessState.FAILED},
        ProcessState.LEFT: {ProcessState.EXITED, ProcessState.CUT},
        ProcessState.EXITED: set(),
        ProcessState.CUT: set(),
        ProcessState.FAILED: {ProcessState.EXITED_LATE},
        ProcessState.EXITED_LATE: set(),
    }
)


@final
class ProcessSession(Session):
    """The frames from and to one process.

    Attributes:
        command: the command that it runs.
        pid: its process id in the guest, 0 before it was started.
        returncode: as `GuestProcess.returncode`.
        error: the error that its user gets in place of an exit status.
        lost_output: the error for output that a relay has dropped.
        input: sends its stdin.
        output, error_output: the bytes that have come from its stdout and stderr.
        captured, captured_errors: the chunks that `run_process` will return; `None` if they are not captured.
        stdin, stdout, stderr: the streams that its user holds, or `None`.
    """

    def __init__(self, connection: Connection, command: Command) -> None:
        self.id = connection.new_id()
        self.command: Final = command
        self.pid = 0
        self.returncode: int | None = None
        self.error: Exception | None = None
        self.lost_output: trio.BrokenResourceError | None = None
        self.stdin: trio.abc.SendStream | None = None
        self.stdout: trio.abc.ReceiveStream | None = None
        self.stderr: trio.abc.ReceiveStream | None = None
        self.captured: list[bytes] | None = [] if command.capture_stdout else None
        self.captured_errors: list[bytes] | None = [] if command.capture_stderr else None
        self._connection = connection
        self._state = PROCESS.first
        self._heard_late: Callable[[], object] | None = None
        self._started = trio.Event()
        self._has_run = False  # whether its start was reported
        self._killed_unheard = False
        self._left = trio.Event()  # it has exited, or the session has ended
        self._ended = trio.Event()
        #: Whether the agent tells the exit and the end of each stream by itself, and kills all of a command.
        self.tells_ends: Final = wire.EXEC_ENDS in (connection.ready.features or ())
        #: Whether another process still held the output when the session ended.
        self.output_open = False
        #: How many processes of the command the guest was told to end, and could not.
        self.alive = 0
        self._command: int | None = None  # the guest's number of the command, if it has told one
        flow = connection.ready.flow
        self._credited: Final = flow is not wire.UNSET
        #: Of both outputs, if the agent counts credit. Empty behind the end, because they refer to this object.
        self._accounts = {name: CreditAccount(partial(self._grant, name)) for name in _OUTPUTS if self._credited}
        self._merged: MergedAccounts | None = None
        self.output: Final = Incoming(self._accounts.get("stdout"), connection.note_discarded)
        self.error_output: Final = Incoming(self._accounts.get("stderr"), connection.note_discarded)
        window, held_back = (flow.window, flow.held_back) if flow is not wire.UNSET else (None, 0)
        window = stdin_window(window, tty=command.tty)
        self.input: Final = DataSender(connection.outbox, wire.ExecStdin, self.id, window, held_back)

    def open(self) -> None:
        """Request the start. Not in the constructor: the object is complete when the first frame comes.

        Raises:
            OSError: the command is longer than a frame may be (``E2BIG``). Nothing was sent.
            GuestLostError: the guest is gone. Nothing was sent.
        """
        credited = self._connection.ready.flow is not wire.UNSET
        request = self.command.request_with(WINDOW if credited else None, ends=self.tells_ends)
        try:
            self._connection.open(self, request)
        except ProtocolError as exc:
            raise system_error(errno.E2BIG, str(exc), self.command.name) from None

    def __repr__(self) -> str:
        if self.error is not None:
            state = f"failed: {self.error}"
        elif self.returncode is not None:
            state = f"exited with status {self.returncode}"
        else:
            state = f"running with guest pid {self.pid}"
        return f"<trio_console.GuestProcess {self.command.given!r}: {state}>"

    def statistics(self) -> SessionStatistics:
        streams = [self.input.statistics("stdin"), self.output.statistics("stdout")]
        if not self.command.tty and self._merged is None:
            streams.append(self.error_output.statistics("stderr"))
        return SessionStatistics(kind="process", name=self.command.name, streams=tuple(streams))

    def _grant(self, name: wire.StreamName, size: int) -> None:
        self._connection.send(wire.Credit(stream=name, bytes=size), self.id)

    # The connection's side

    def on_message(self, message: wire.Message) -> None:
        match message:
            case wire.ExecStdout(data):
                self._put(self.output, "stdout", data)
            case wire.ExecStderr(data):
                self._put(self.error_output, "stderr", data)
            case wire.Credit():
                self.input.grant(message)
            case wire.ExecStarted(pid, command):
                self._start(pid)
                self._command = None if command is wire.UNSET else command
            case wire.ExecStdinError():
                self.input.refuse(system_error(message.errno, message.message))
            case wire.ExecLeft():
                self._leave(message)
            case wire.ExecStreamEnded(name) | wire.ExecDropped(name):
                self._end_stream(name, lossy=isinstance(message, wire.ExecDropped))
            case wire.ExecExited():
                self._exit(message)
            case _:
                self._fail(self._why_ended(message))
                if wire.type_of(message).place is wire.Place.ENDS:
                    self._note_late_answer()

    def _why_ended(self, message: wire.Message) -> Exception:
        """The error for a message that ends the session without an exit."""
        match message:
            case wire.ExecFailed():
                return _start_error(message, self.command)
            case wire.Error(kind="exit_unknown"):
                return ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD), self.command.name)
            case wire.Error(kind="not_confirmed"):
                return GuestLostError(f"the guest could not end {self.command.given!r}: {message.message}")
        self._kill_unheard()  # some agents refuse the frame and keep the process
        if isinstance(message, wire.Error):
            text = f"the guest's agent refused a frame of {self.command.given!r}: {message.message}"
            kind, about = message.kind, message.offending_type or None
        else:
            about, kind = wire.type_of(message).name, "invalid_session"
            text = f"{about} (id {self.id}) has no place in an exec session"
        return ProtocolError(text, kind=kind, frame_id=self.id, message_type=about)

    def _start(self, pid: int) -> None:
        if self._state is ProcessState.STARTING:  # an agent may report the start twice
            self._state = PROCESS.take(self._state, ProcessState.RUNNING)
        self.pid = pid
        self._has_run = True
        self._started.set()

    def _exit(self, message: wire.ExecExited) -> None:
        if self._state is not ProcessState.CUT:
            late = self._state is ProcessState.FAILED
            self._state = PROCESS.take(self._state, ProcessState.EXITED_LATE if late else ProcessState.EXITED)
        if self.returncode is None:  # it was not told before
            self.returncode = _returncode(message.code, message.signal)
        self.output_open = bool(message.held)
        if message.alive is not wire.UNSET:
            self.alive = message.alive
            self._command = None  # all of it was killed
        self._end(BrokenPipeError("the process has exited"))
        self._note_late_answer()

    def _note_late_answer(self) -> None:
        """Note that the guest has ended the session, after it was given up."""
        if self._heard_late is not None:
            self._heard_late()

    def _leave(self, message: wire.ExecLeft) -> None:
        """The process has exited; its streams go on."""
        if self._state in (ProcessState.STARTING, ProcessState.RUNNING):
            self._state = PROCESS.take(self._state, ProcessState.LEFT)
            assert self.returncode is None, "an exit status is told once"
            self.returncode = _returncode(message.code, message.signal)
            self.input.stop(BrokenPipeError("the process has exited"))
            self._started.set()
            self._left.set()

    def _end_stream(self, name: wire.StreamName, *, lossy: bool) -> None:
        """No more of a stream comes: it has ended, or a relay has dropped some, and says so in the place of it."""
        if name not in _OUTPUTS:
            return
        incoming = self.error_output if name == "stderr" else self.output
        if not lossy:
            incoming.end()
            return
        self.lost_output = trio.BrokenResourceError(
            f"the relay dropped {name} of {self.command.given!r}: this program did not read it in time"
        )
        incoming = self.output if self._merged is not None else incoming
        incoming.end(self.lost_output)

    def _put(self, incoming: Incoming, name: wire.StreamName, data: bytes) -> None:
        if self._merged is not None:
            incoming = self.output
            account = self._accounts.get(name)
            if account is not None:
                self._merged.note(account, len(data))
        incoming.put(data)

    def on_error(self, error: Exception) -> None:
        if not isinstance(error, GuestLostError):
            self._kill_unheard()
        self._fail(error)

    def _kill_unheard(self) -> None:
        """Kill the process of a session that cannot go on, because its frames would not be read any more.

        Only once: the guest may break the protocol again and again, and not read these frames.
        """
        if self._killed_unheard:
            return
        self._connection.send(wire.ExecSignal(signal.SIGKILL), self.id)
        # The agent reports the end behind the output, and this side grants no more credit after this. So enough is
        # granted now for the rest of the output: at most a window in a relay, and the bytes in the process's pipe.
        if self._credited:
            for name in _OUTPUTS:
                self._grant(name, 2 * WINDOW)
        self._killed_unheard = True

    def _fail(self, error: Exception) -> None:
        if self.error is None:  # the first reason stays
            known = self._state is ProcessState.LEFT
            self._state = PROCESS.take(self._state, ProcessState.CUT if known else ProcessState.FAILED)
            self.error = error
            assert known == (self.returncode is not None), "an exit status is told once"
        self._end(error, broken(error))

    def _end(self, input_error: Exception, output_error: Exception | None = None) -> None:
        self.input.stop(input_error)
        self.output.end(output_error)
        self.error_output.end(output_error)
        self._accounts.clear()
        self._started.set()
        self._left.set()
        self._ended.set()

    @property
    def congested(self) -> bool:
        return self.output.congested or self.error_output.congested

    async def wait_relieved(self) -> None:
        await self.output.wait_relieved()
        await self.error_output.wait_relieved()

    # The client's side

    async def wait_started(self) -> None:
        """Wait until the process runs; raises the error if it could not be started. If cancelled, it goes on.

        A process that has started and failed before this task runs has not failed to start: it may have output.
        """
        await self._started.wait()
        if not self._has_run:
            self.check()

    def merge_output(self) -> None:
        """Read both outputs as one. Called before the first checkpoint after `open`, so before output comes.

        They are one already, if the agent has made them so.
        """
        assert not self.output.bytes_received, "each byte of a window is always somewhere: none came unnoted"
        if self.tells_ends:
            self.error_output.end()
            return
        self._merged = MergedAccounts()
        if self.output.account is not None:
            self.output.account = self._merged
        self.error_output.end()

    @property
    def left(self) -> bool:
        """Whether the process has exited, or the session has ended with an error."""
        return self._left.is_set()

    async def wait_left(self) -> None:
        """Wait until the process has exited, or the session has ended. If cancelled, nothing changes."""
        await self._left.wait()

    @property
    def ended(self) -> bool:
        """Whether the session has ended: by an exit and the ends of all streams, or by an error."""
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        """Wait until the session has ended, by an exit or by an error. If cancelled, nothing changes."""
        await self._ended.wait()

    def send(self, message: wire.Message) -> None:
        """Send a message to the process, unless the session has ended."""
        if not self.ended:
            self._connection.send(message, self.id)

    def signal(self, number: int) -> None:
        """Send a signal to the process group, unless the process has exited."""
        if not self.left:
            self.send(wire.ExecSignal(number))

    def kill_all(self, grace: float) -> None:
        """Kill the process, and everything that it has started if the agent can do that.

        Args:
            grace: seconds for the guest to confirm it.
        """
        if self.tells_ends:
            self.send(wire.ExecKill(wire.guest_grace(grace)))
        else:
            self.send(wire.ExecSignal(signal.SIGKILL))

    def kill_rest(self, grace: float) -> None:
        """Have everything killed that the process has started, as soon as it has exited.

        Does nothing if the agent cannot do that.

        Args:
            grace: seconds for the guest to confirm it.
        """
        if self.tells_ends:
            self.send(wire.ExecKill(wire.guest_grace(grace), after_exit=True))

    def kill_of_background(self, grace: float) -> wire.KillBackground | None:
        """The request to kill what the command has left, now that its session is over.

        `None` if there is nothing to kill, or if the agent does not know the request.

        Args:
            grace: seconds for the guest to confirm it.
        """
        number, self._command = self._command, None
        return None if number is None else wire.KillBackground(number, wire.guest_grace(grace))

    def spare_background(self) -> None:
        """Let what the command has left live on."""
        self._command = None

    def status(self) -> int:
        """The exit status, as soon as it is known; raises the error of a session that has ended without it."""
        if self._state is not ProcessState.CUT:
            self.check()
        assert self.returncode is not None, "a missing exit is never 0"
        return self.returncode

    def check(self) -> None:
        """Raise the error with which the session has ended, if it has."""
        if self.error is not None:
            raise again(self.error)

    def discard_output(self) -> None:
        """Drop and count all output that still comes, because its reader may have gone.

        Otherwise the agent would wait for credit for the output, and never report the exit.
        """
        self.output.let_go()
        self.error_output.let_go()

    def discard_claimed_output(self) -> None:
        """`discard_output` for the streams that the user holds."""
        if self.stdout is not None:
            self.output.let_go()
        if self.stderr is not None:
            self.error_output.let_go()

    def discard_unclaimed_output(self) -> None:
        """`discard_output` for the streams that the user does not hold: their readers have been cancelled."""
        if self.stdout is None:
            self.output.let_go()
        if self.stderr is None:
            self.error_output.let_go()

    def give_up(self, heard: Callable[[], object]) -> None:
        """Wait no longer for the guest to report the end. The session's id stays in use.

        Args:
            heard: called if the guest ends the session later: with the exit, or with an error.
        """
        self._heard_late = heard
        self._command = None  # the guest was told to kill it all, whenever it hears that
        self._fail(GuestLostError(f"the guest did not confirm the end of {self.command.given!r}"))

    def close_input(self) -> None:
        """Close its stdin, which is end of file for the process."""
        close_stdin(self.input, tty=self.command.tty)

    def close(self) -> None:
        """Close all streams."""
        self.close_input()
        self.output.close()
        self.error_output.close()

    def completed(self, check: bool) -> CompletedProcess:
        """The result of `run_process`; raises its error if ``check`` is true and the status is not 0."""
        # Every session ends once: by an exit, or with an error. The wait for the end has raised the error.
        assert self._state is ProcessState.EXITED, "only a process that has exited has a result"
        assert self.returncode is not None, "a missing exit is never 0"
        stdout = None if self.captured is None else b"".join(self.captured)
        stderr = None if self.captured_errors is None else b"".join(self.captured_errors)
        args: Any = self.command.given
        status = self.returncode
        if check and status:
            error = CalledProcessError(status, args, output=stdout, stderr=stderr)
            error.output_open = self.output_open
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame
        result = CompletedProcess(args, status, stdout, stderr)
        result.output_open = self.output_open
        return result


def _returncode(code: int, number: int | wire.UnsetType) -> int:
    # A number below 1 is not a signal; as a signal, 0 would turn an abnormal end into status 0.
    status = code if number is wire.UNSET or number < 1 else -number
    assert status < 0 or status == code, "a missing exit is never 0"
    return status


def _start_error(failed: wire.ExecFailed, command: Command) -> Exception:
    """The exception that `subprocess` raises for the same failure."""
    if failed.stage == wire.USER_STAGE:
        return LookupError(failed.message)
    filename = command.name if failed.filename is wire.UNSET else command.read_name(failed.filename)
    number = failed.errno or _KIND_ERRNO.get(failed.kind)
    words = failed.message if number is None else f"(in the guest: {failed.message})"
    error = system_error(number, words, filename)
    if number == errno.EAGAIN:
        error.add_note(
            "the guest, or a user or a container in it, has all the processes and threads that it may have: end "
            "some, or raise the limit (`ulimit -u`, or `pids.max` of the cgroup)"
        )
    return error
