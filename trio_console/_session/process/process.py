"""One command in the guest: its session, and what the user holds of it."""

from __future__ import annotations

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
from trio_console._session.owner import Owner, owned
from trio_console._session.process.input import StdinStream
from trio_console._session.receiving import WINDOW, CreditAccount, IncomingStream, MergedAccounts, broken
from trio_console._trio.lost import GuestLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._session.process.command import Command

__all__ = ["GuestProcess"]

_OUTPUTS: Final[tuple[wire.StreamName, wire.StreamName]] = ("stdout", "stderr")

#: Kinds of a failed start for which the agent gave no errno, and the errno that says the same.
_KIND_ERRNO: Final = {
    "not_found": 2,
    "permission_denied": 1,
    "not_executable": 8,
    "out_of_memory": 12,
}


@final
@owned("resize")
class GuestProcess(Session):
    """A process in the guest, used as `trio.Process` is. `Guest.open_process` makes them.

    Attributes:
        args: the command as it was given.
        pid: its process id in the guest, which is also its process group's.
        stdin: a `trio.abc.SendStream`, or `None` if there is no pipe to it.
        stdout: a `trio.abc.ReceiveStream`, or `None` likewise; with a terminal, all output comes here.
        stderr: the same for its error output.
        stdio: `stdin` and `stdout` as one `trio.StapledStream`, if both are there.
    """

    def __init__(self, connection: Connection, command: Command) -> None:
        self._owner: Final = Owner()
        self.id = connection.new_id()
        self.args: Final = command.given
        self.pid = 0
        self.stdin: trio.abc.SendStream | None = None
        self.stdout: trio.abc.ReceiveStream | None = None
        self.stderr: trio.abc.ReceiveStream | None = None
        self.stdio: trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream] | None = None
        self._connection = connection
        self._command = command
        self._tty = command.tty
        self._returncode: int | None = None
        self._error: Exception | None = None
        self._heard_late: Callable[[], object] | None = None
        self._started = trio.Event()
        self._ended = trio.Event()
        flow = connection.ready.flow
        credited = flow is not wire.UNSET
        self._accounts = {
            name: CreditAccount(partial(self._grant, name)) if credited else None for name in _OUTPUTS
        }
        self._merged: MergedAccounts | None = None
        #: What `run_process` returns of the outputs, as far as it has come; `None` for one that is not captured.
        self.captured: list[bytes] | None = [] if command.capture_stdout else None
        self.captured_errors: list[bytes] | None = [] if command.capture_stderr else None
        self.output: Final = IncomingStream(self._accounts["stdout"], connection.note_discarded)
        self.error_output: Final = IncomingStream(self._accounts["stderr"], connection.note_discarded)
        self.input: Final = StdinStream(
            connection.outbox,
            self.id,
            window=flow.window if flow is not wire.UNSET else None,
            tty=command.tty,
        )

    def open(self) -> None:
        """Ask the guest to start it. Apart from the constructor: the guest hears of whole sessions only.

        Raises:
            OSError: the command is longer than a frame may be (``E2BIG``); nothing was sent.
            GuestLostError: nothing was sent.
        """
        command = self._command
        credited = self._connection.ready.flow is not wire.UNSET
        try:
            self._connection.open(self, command.request_with(WINDOW if credited else None))
        except ProtocolError as exc:
            raise OSError(errno.E2BIG, f"{os.strerror(errno.E2BIG)} ({exc})", command.name) from None

    def __repr__(self) -> str:
        if self._error is not None:
            state = f"failed: {self._error}"
        elif self._returncode is not None:
            state = f"exited with status {self._returncode}"
        else:
            state = f"running with guest pid {self.pid}"
        return f"<trio_console.GuestProcess {self.args!r}: {state}>"

    def _grant(self, name: wire.StreamName, size: int) -> None:
        self._connection.send(wire.Credit(stream=name, bytes=size), self.id)

    # The connection's side

    def on_message(self, message: wire.Message) -> None:
        match message:
            case wire.ExecStdout(data):
                self._put(self.output, "stdout", data)
            case wire.ExecStderr(data):
                self._put(self.error_output, "stderr", data)
            case wire.Credit(stream, size):
                if stream == "stdin":
                    self.input.grant(size)
            case wire.ExecStarted(pid):
                self.pid = pid
                self._started.set()
            case wire.ExecStdinError():
                self.input.fail(OSError(message.errno or 0, message.message))
            case wire.ExecExited():
                self._exited(message)
            case wire.ExecFailed():
                self._fail(_start_error(message, self._command))
            case wire.Error():
                self._kill_unheard()  # some agents refuse the frame and keep the process
                self._fail(
                    ProtocolError(
                        f"the guest's agent refused a frame of {self.args!r}: {message.message}",
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

    def _exited(self, message: wire.ExecExited) -> None:
        # A signal below 1 is none, and must not turn an abnormal end into status 0.
        number = message.signal
        self._returncode = message.code if number is wire.UNSET or number < 1 else -number
        self._end(BrokenPipeError("the process has exited"))
        if self._heard_late is not None:
            self._heard_late()

    def _put(self, stream: IncomingStream, name: wire.StreamName, data: bytes) -> None:
        if self._merged is not None:
            stream = self.output
            account = self._accounts[name]
            if account is not None:
                self._merged.note(account, len(data))
        stream.put(data)

    def on_error(self, error: Exception) -> None:
        if not isinstance(error, GuestLostError):
            self._kill_unheard()
        self._fail(error)

    def _kill_unheard(self) -> None:
        """The session cannot go on, so its process must not: nobody would ever hear of it again."""
        self._connection.send(wire.ExecSignal(signal.SIGKILL), self.id)
        # Nobody grants anything from here on, and the end is reported behind the output. What is left of that is
        # held by a relay, at most a window, or in the pipe.
        for name, account in self._accounts.items():
            if account is not None:
                self._grant(name, 2 * WINDOW)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._end(error, broken(error))

    def _end(self, input_error: Exception, output_error: Exception | None = None) -> None:
        self.input.end(input_error)
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
        """Wait until the process runs; raises what kept it from starting."""
        await self._started.wait()
        if self._error is not None:
            raise again(self._error)

    @property
    def has_tty(self) -> bool:
        """Whether it was given a terminal."""
        return self._tty

    def merge_output(self) -> None:
        """Read both outputs as one. Before anything can have come: in the turn in which the session was opened."""
        self._merged = MergedAccounts()
        if self.output.account is not None:
            self.output.account = self._merged
        self.error_output.end()

    @property
    def ended(self) -> bool:
        """Whether nothing more will be heard of this process."""
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        """Wait until nothing more will be heard of this process, whatever that was."""
        await self._ended.wait()

    def discard_output(self) -> None:
        """Nobody may be reading any more: what still comes is counted and dropped, so that it holds nothing up.

        Otherwise the agent would wait for somebody to read what was written, before it reports the exit.
        """
        self.output.let_go()
        self.error_output.let_go()

    def discard_unclaimed_output(self) -> None:
        """The same for streams the user does not hold: their readers have been cancelled."""
        if self.stdout is None:
            self.output.let_go()
        if self.stderr is None:
            self.error_output.let_go()

    def give_up(self, heard: Callable[[], object]) -> None:
        """The guest does not say how it ended; nobody waits any longer. Its id stays taken.

        Args:
            heard: called if the guest does say it after all.
        """
        self._heard_late = heard
        self._fail(GuestLostError(f"the guest did not confirm the end of {self.args!r}"))

    def close(self) -> None:
        """Close all streams."""
        self.input.close()
        self.output.close()
        self.error_output.close()

    # The user's side

    @property
    def returncode(self) -> int | None:
        """The exit status; ``-N`` if signal N ended it, `None` while it runs or if the guest was lost.

        An agent that does not tell signals apart reports -1 for all of them.
        """
        return self._returncode

    def poll(self) -> int | None:
        """The same as `returncode`; here because `subprocess.Popen` has it."""
        return self._returncode

    async def wait(self) -> int:
        """Wait until the process has exited, and all its output is here; return `returncode`.

        With a pipe for its output somebody must read it, or the wait may be for ever. Cancelling this leaves
        the process alone.

        Raises:
            trio_console.GuestLostError: the guest is gone, and how the process ended is not known.
            trio_console.ProtocolError: a side broke the protocol, which ended this session.
        """
        await trio.lowlevel.checkpoint()
        await self._ended.wait()
        if self._error is not None:
            raise again(self._error)
        assert self._returncode is not None
        return self._returncode

    def send_signal(self, sig: signal.Signals | int) -> None:
        """Send a signal to the process group, soon. Does nothing once the process has exited.

        From any thread and from a signal handler, as `terminate` and `kill`; does nothing once the trio run of the
        guest is over.

        Args:
            sig: its Linux number, whatever the host is; real-time signals cannot be sent.

        Raises:
            ValueError: not a signal between 1 and 31.
        """
        number = int(sig)
        if not 1 <= number <= 31:
            raise ValueError(f"signal {number} cannot be sent to a guest: only 1 to 31 can")
        self._owner.call(self._signal, number)

    def _signal(self, number: int) -> None:
        if not self.ended:
            self._connection.send(wire.ExecSignal(number), self.id)

    def terminate(self) -> None:
        """Send SIGTERM to the process group. From any thread."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process group. From any thread."""
        self.send_signal(9)

    def resize(self, rows: int, cols: int) -> None:
        """Change the size of the terminal, in characters.

        Raises:
            ValueError: the process has no terminal, or a size is not between 0 and 65535.
        """
        if not self._tty:
            raise ValueError("only a process opened with tty=True has a terminal to resize")
        resize = wire.ExecResize(rows, cols)
        wire.encode(resize)  # what does not fit its field is refused, not lost
        if not self.ended:
            self._connection.send(resize, self.id)


def _start_error(failed: wire.ExecFailed, command: Command) -> OSError:
    """The exception `subprocess` would have raised for the same failure."""
    filename = command.name if failed.filename is wire.UNSET else failed.filename
    number = failed.errno or _KIND_ERRNO.get(failed.kind)
    if number is None:
        # Three arguments, because a copy would lose a file name that was set as an attribute.
        return OSError(None, failed.message, filename)
    return OSError(number, f"{os.strerror(number)} (guest: {failed.message})", filename)


def completed(process: GuestProcess, check: bool) -> subprocess.CompletedProcess[bytes]:
    """What `run_process` returns, or the error it raises."""
    returncode = process.returncode
    assert returncode is not None
    stdout = None if process.captured is None else b"".join(process.captured)
    stderr = None if process.captured_errors is None else b"".join(process.captured_errors)
    if check and returncode:
        raise subprocess.CalledProcessError(returncode, process.args, output=stdout, stderr=stderr)
    return subprocess.CompletedProcess(process.args, returncode, stdout, stderr)
