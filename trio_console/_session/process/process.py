"""What the user holds of a command in the guest."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._errors import again
from trio_console._session.owner import Owner, owned

if TYPE_CHECKING:
    from trio_console._session.process.command import CommandLine
    from trio_console._session.process.session import ProcessSession

__all__ = ["GuestProcess"]


@final
@owned("resize")
class GuestProcess:
    """A process in the guest, used as `trio.Process` is. `Guest.open_process` makes them.

    Its `wait` and `resize` are for tasks of the trio run of its guest; what sends a signal may be called from
    anywhere, and what tells something, too.
    """

    def __init__(self, session: ProcessSession) -> None:
        self._owner: Final = Owner()
        self._session = session
        stdin, stdout = session.stdin, session.stdout
        self._stdio = None if stdin is None or stdout is None else trio.StapledStream(stdin, stdout)

    def __repr__(self) -> str:
        return repr(self._session)

    @property
    def args(self) -> CommandLine:
        """The command as it was given."""
        return self._session.command.given

    @property
    def pid(self) -> int:
        """Its process id in the guest, which is also its process group's."""
        return self._session.pid

    @property
    def stdin(self) -> trio.abc.SendStream | None:
        """A stream to its standard input, or `None` if there is no pipe to it.

        Closing it is end of file. To a process with a terminal the end-of-transmission character is sent for it.
        """
        return self._session.stdin

    @property
    def stdout(self) -> trio.abc.ReceiveStream | None:
        """A stream of its standard output, or `None` if there is no pipe. With a terminal, all output is here."""
        return self._session.stdout

    @property
    def stderr(self) -> trio.abc.ReceiveStream | None:
        """The same for its error output."""
        return self._session.stderr

    @property
    def stdio(self) -> trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream] | None:
        """`stdin` and `stdout` as one stream, if both are there."""
        return self._stdio

    @property
    def returncode(self) -> int | None:
        """The exit status; ``-N`` if signal N ended it, `None` while it runs or if the guest was lost.

        An agent that does not tell signals apart reports -1 for all of them.
        """
        return self._session.returncode

    def poll(self) -> int | None:
        """The same as `returncode`; here because `subprocess.Popen` has it."""
        return self._session.returncode

    async def wait(self) -> int:
        """Wait until the process has exited, and all its output is here; return `returncode`.

        With a pipe for its output somebody must read it, or the wait may be for ever. Cancelling this leaves
        the process alone.

        Raises:
            trio_console.GuestLostError: the guest is gone, and how the process ended is not known.
            trio_console.ProtocolError: a side broke the protocol, which ended this session.
        """
        await trio.lowlevel.checkpoint()
        await self._session.wait_ended()
        if self._session.error is not None:
            raise again(self._session.error)
        assert self._session.returncode is not None, "a missing exit is never 0"
        return self._session.returncode

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
        self._owner.call(self._session.send, wire.ExecSignal(number))

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
        if not self._session.command.tty:
            raise ValueError("only a process opened with tty=True has a terminal to resize")
        resize = wire.ExecResize(rows, cols)
        wire.encode(resize)  # what does not fit its field is refused, not lost
        self._session.send(resize)
