"""The session of one command in the guest. Its user holds a `GuestProcess`."""

from __future__ import annotations

import enum
import errno
import os
import signal
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError, again
from trio_console._session.connection import Connection, Session
from trio_console._session.process.input import close_stdin, stdin_window
from trio_console._session.receiving import WINDOW, CreditAccount, Incoming, MergedAccounts, broken
from trio_console._session.sending import DataSender
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
    EXITED = enum.auto()
    FAILED = enum.auto()  # it could not be started, or how it ended is not known: there is an error
    EXITED_LATE = enum.auto()  # the exit was reported after that; the tasks that waited have got the error


PROCESS: Final = Steps(
    {
        ProcessState.STARTING: {ProcessState.RUNNING, ProcessState.EXITED, ProcessState.FAILED},
        ProcessState.RUNNING: {ProcessState.EXITED, ProcessState.FAILED},
        ProcessState.EXITED: set(),
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
        self.stdin: trio.abc.SendStream | None = None
        self.stdout: trio.abc.ReceiveStream | None = None
        self.stderr: trio.abc.ReceiveStream | None = None
        self.captured: list[bytes] | None = [] if command.capture_stdout else None
        self.captured_errors: list[bytes] | None = [] if command.capture_stderr else None
        self._connection = connection
        self._state = PROCESS.first
        self._heard_late: Callable[[], object] | None = None
        self._started = trio.Event()
        self._ended = trio.Event()
        flow = connection.ready.flow
        credited = flow is not wire.UNSET
        self._accounts = {
            name: CreditAccount(partial(self._grant, name)) if credited else None for name in _OUTPUTS
        }
        self._merged: MergedAccounts | None = None
        self.output: Final = Incoming(self._accounts["stdout"], connection.note_discarded)
        self.error_output: Final = Incoming(self._accounts["stderr"], connection.note_discarded)
        window = stdin_window(flow.window if flow is not wire.UNSET else None, tty=command.tty)
        self.input: Final = DataSender(connection.outbox, wire.ExecStdin, self.id, window)

    def open(self) -> None:
        """Request the start. Not in the constructor: the object is complete when the first frame comes.

        Raises:
            OSError: the command is longer than a frame may be (``E2BIG``). Nothing was sent.
            GuestLostError: the guest is gone. Nothing was sent.
        """
        credited = self._connection.ready.flow is not wire.UNSET
        try:
            self._connection.open(self, self.command.request_with(WINDOW if credited else None))
        except ProtocolError as exc:
            raise OSError(errno.E2BIG, f"{os.strerror(errno.E2BIG)} ({exc})", self.command.name) from None

    def __repr__(self) -> str:
        if self.error is not None:
            state = f"failed: {self.error}"
        elif self.returncode is not None:
            state = f"exited with status {self.returncode}"
        else:
            state = f"running with guest pid {self.pid}"
        return f"<trio_console.GuestProcess {self.command.given!r}: {state}>"

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
            case wire.ExecStarted(pid):
                self._start(pid)
            case wire.ExecStdinError():
                self.input.refuse(OSError(message.errno or 0, message.message))
            case wire.ExecExited():
                self._exit(message)
            case wire.ExecFailed():
                self._fail(_start_error(message, self.command))
                self._note_late_answer()
            case wire.Error():
                self._note_late_answer()
                self._kill_unheard()  # some agents refuse the frame and keep the process
                self._fail(
                    ProtocolError(
                        f"the guest's agent refused a frame of {self.command.given!r}: {message.message}",
                        kind=message.kind,
                        frame_id=self.id,
                        message_type=message.offending_type or None,
                    )
                )
            case _:
                self._kill_unheard()
                self._fail(
                    ProtocolError(
                        f"{wire.type_of(message).name} (id {self.id}) has no place in an exec session",
                        kind="invalid_session",
                        frame_id=self.id,
                        message_type=wire.type_of(message).name,
                    )
                )

    def _start(self, pid: int) -> None:
        if self._state is ProcessState.STARTING:  # an agent may report the start twice
            self._state = PROCESS.take(self._state, ProcessState.RUNNING)
        self.pid = pid
        self._started.set()

    def _exit(self, message: wire.ExecExited) -> None:
        late = self._state is ProcessState.FAILED
        self._state = PROCESS.take(self._state, ProcessState.EXITED_LATE if late else ProcessState.EXITED)
        assert self.returncode is None, "an exit status is told once"
        # A number below 1 is not a signal; as a signal, 0 would turn an abnormal end into status 0.
        number = message.signal
        self.returncode = message.code if number is wire.UNSET or number < 1 else -number
        assert self.returncode < 0 or self.returncode == message.code, "a missing exit is never 0"
        self._end(BrokenPipeError("the process has exited"))
        self._note_late_answer()

    def _note_late_answer(self) -> None:
        """Note that the guest has ended the session, after it was given up."""
        if self._heard_late is not None:
            self._heard_late()

    def _put(self, incoming: Incoming, name: wire.StreamName, data: bytes) -> None:
        if self._merged is not None:
            incoming = self.output
            account = self._accounts[name]
            if account is not None:
                self._merged.note(account, len(data))
        incoming.put(data)

    def on_error(self, error: Exception) -> None:
        if not isinstance(error, GuestLostError):
            self._kill_unheard()
        self._fail(error)

    def _kill_unheard(self) -> None:
        """Kill the process of a session that cannot go on, because its frames would not be read any more."""
        self._connection.send(wire.ExecSignal(signal.SIGKILL), self.id)
        # The agent reports the end behind the output, and this side grants no more credit after this. So enough is
        # granted now for the rest of the output: at most a window in a relay, and the bytes in the process's pipe.
        for name, account in self._accounts.items():
            if account is not None:
                self._grant(name, 2 * WINDOW)

    def _fail(self, error: Exception) -> None:
        if self.error is None:  # the first reason stays
            self._state = PROCESS.take(self._state, ProcessState.FAILED)
            self.error = error
            assert self.returncode is None, "every session ends once: one that has exited cannot fail"
        self._end(error, broken(error))

    def _end(self, input_error: Exception, output_error: Exception | None = None) -> None:
        self.input.stop(input_error)
        self.output.end(output_error)
        self.error_output.end(output_error)
        self._started.set()
        self._ended.set()

    @property
    def congested(self) -> bool:
        return self.output.congested or self.error_output.congested

    async def wait_relieved(self) -> None:
        await self.output.wait_relieved()
        await self.error_output.wait_relieved()

    # The client's side

    async def wait_started(self) -> None:
        """Wait until the process runs; raises the error if it could not be started. If cancelled, it goes on."""
        await self._started.wait()
        if self.error is not None:
            raise again(self.error)

    def merge_output(self) -> None:
        """Read both outputs as one. Called before the first checkpoint after `open`, so before output comes."""
        assert not self.output.bytes_received, "each byte of a window is always somewhere: none came unnoted"
        self._merged = MergedAccounts()
        if self.output.account is not None:
            self.output.account = self._merged
        self.error_output.end()

    @property
    def ended(self) -> bool:
        """Whether the session has ended: by an exit, or by an error."""
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        """Wait until the session has ended, by an exit or by an error. If cancelled, nothing changes."""
        await self._ended.wait()

    def send(self, message: wire.Message) -> None:
        """Send a message to the process, unless the session has ended."""
        if not self.ended:
            self._connection.send(message, self.id)

    def discard_output(self) -> None:
        """Drop and count all output that still comes, because its reader may have gone.

        Otherwise the agent would wait for credit for the output, and never report the exit.
        """
        self.output.let_go()
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
        self._fail(GuestLostError(f"the guest did not confirm the end of {self.command.given!r}"))

    def close_input(self) -> None:
        """Close its stdin, which is end of file for the process."""
        close_stdin(self.input, tty=self.command.tty)

    def close(self) -> None:
        """Close all streams."""
        self.close_input()
        self.output.close()
        self.error_output.close()

    def completed(self, check: bool) -> subprocess.CompletedProcess[bytes]:
        """The result of `run_process`; raises its error if ``check`` is true and the status is not 0."""
        # Every session ends once: by an exit, or with an error. The wait for the end has raised the error.
        assert self._state is ProcessState.EXITED, "only a process that has exited has a result"
        assert self.returncode is not None, "a missing exit is never 0"
        stdout = None if self.captured is None else b"".join(self.captured)
        stderr = None if self.captured_errors is None else b"".join(self.captured_errors)
        args, status = self.command.given, self.returncode
        if check and status:
            raise subprocess.CalledProcessError(status, args, output=stdout, stderr=stderr)
        return subprocess.CompletedProcess(args, status, stdout, stderr)


def _start_error(failed: wire.ExecFailed, command: Command) -> OSError:
    """The exception that `subprocess` raises for the same failure."""
    filename = command.name if failed.filename is wire.UNSET else failed.filename
    number = failed.errno or _KIND_ERRNO.get(failed.kind)
    if number is None:
        # The file name is passed as an argument, because a copy would lose it if it were set as an attribute.
        return OSError(None, failed.message, filename)
    return OSError(number, f"{os.strerror(number)} (guest: {failed.message})", filename)
