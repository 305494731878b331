"""A command in the guest, as its user sees it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._session.owner import Owner, owned

if TYPE_CHECKING:
    from trio_console._session.process.command import CommandLine
    from trio_console._session.process.session import ProcessSession

__all__ = ["GuestProcess"]


@final
@owned("resize")
class GuestProcess:
    """A process in the guest, used like a `trio.Process`. `Guest.open_process` makes them.

    `wait` and `resize` are for tasks of the guest's trio run. The methods that send a signal, `poll` and the
    properties may be used in any thread.
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
        """The command, as it was passed to `Guest.open_process`."""
        return self._session.command.given

    @property
    def pid(self) -> int:
        """Its process id in the guest, which is also its process group's."""
        return self._session.pid

    @property
    def stdin(self) -> trio.abc.SendStream | None:
        """A stream to its standard input, or `None` if there is no pipe to it.

        Closing the stream is end of file; a process with a terminal gets the end-of-transmission character
        instead.
        """
        return self._session.stdin

    @property
    def stdout(self) -> trio.abc.ReceiveStream | None:
        """A stream of its standard output, or `None` if there is no pipe. With a terminal it has all output."""
        return self._session.stdout

    @property
    def stderr(self) -> trio.abc.ReceiveStream | None:
        """A stream of its error output, or `None` if there is no pipe."""
        return self._session.stderr

    @property
    def stdio(self) -> trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream] | None:
        """`stdin` and `stdout` as one stream, or `None` if one of them is `None`."""
        return self._stdio

    @property
    def returncode(self) -> int | None:
        """The exit status; ``-N`` if signal N ended it, `None` while it runs or if the guest was lost.

        An agent that does not distinguish signals reports -1 for all of them.
        """
        return self._session.returncode

    def poll(self) -> int | None:
        """The same as `returncode`, as in `subprocess.Popen`."""
        return self._session.returncode

    async def wait(self) -> int:
        """Wait until the process has exited; return `returncode`. If cancelled, the process goes on.

        Its streams may go on, and what it wrote before its exit can still be read. (An agent that does not tell
        the exit by itself tells it behind all output. Then, if the output goes to a pipe, a task must read it.)

        Raises:
            trio_console.GuestLostError: the guest is gone, and how the process ended is not known.
            trio_console.ProtocolError: a side broke the protocol, which ended this session.
            ChildProcessError: another process in the guest has taken the status, so it is not known.
        """
        await trio.lowlevel.checkpoint()
        await self._session.wait_left()
        return self._session.status()

    def send_signal(self, sig: signal.Signals | int) -> None:
        """Send a signal to the process group, soon. Does nothing once the process has exited.

        It may be called from any thread and from a signal handler, like `terminate` and `kill`. It does nothing
        once the guest's trio run is over.

        Args:
            sig: the signal's number in Linux, whatever system the host is; real-time signals cannot be sent.

        Raises:
            ValueError: ``sig`` is not between 1 and 31.
        """
        number = int(sig)
        if number == 0:
            return  # as on this machine: nothing is sent, and there is no error
        if not 1 <= number <= 31:
            raise ValueError(f"signal {number} cannot be sent to a guest: only 1 to 31, and 0, which does nothing")
        self._owner.call(self._session.signal, number)

    def terminate(self) -> None:
        """Send SIGTERM to the process group. From any thread."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process group. From any thread."""
        self.send_signal(9)

    def resize(self, rows: int, cols: int) -> None:
        """Change the size of the terminal.

        Args:
            rows, cols: the new size in characters.

        Raises:
            ValueError: the process has no terminal, or a size is not between 0 and 65535.
        """
        if not self._session.command.tty:
            raise ValueError("only a process opened with tty=True has a terminal to resize")
        resize = wire.ExecResize(rows, cols)
        wire.encode(resize)  # raises ValueError for a size that does not fit its field
        self._session.send(resize)
