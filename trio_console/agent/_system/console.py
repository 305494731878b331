"""The agent's end of the console as a stream, made from descriptors or a device.

Child processes must not inherit it, and no stray print may be written to it.

This module must not know frames.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import termios
import time
from typing import TYPE_CHECKING, Any, Final, final

import trio

from trio_console._addresses import named_by_descriptor
from trio_console._standard import CLOSED_AT_START
from trio_console._trio.gathering import DescriptorStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["accept_unix", "accept_vsock", "is_cooked", "open_fd", "open_port", "open_stdio"]

#: Descriptors up to this number are not used, because programs expect the standard descriptors there.
_FIRST_FREE_FD: Final = 10

#: Seconds to wait for a host to open its end of a port.
_HOST_WAIT: Final = 60.0
_HOST_POLL: Final = 0.02


@final
class _Console(DescriptorStream):
    """One descriptor for both directions, or two."""

    def __init__(
        self,
        receive: trio.lowlevel.FdStream,
        send: trio.lowlevel.FdStream,
        restore: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__("console")
        self._receive = receive
        self._send = send
        self._restore = restore  # called before the descriptors are closed

    def _send_fd(self) -> int:
        return self._send.fileno()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        # (It begins with a turn of the other tasks. What comes in that turn comes in the same read: with a read at
        # once, many clients got a tenth fewer answers in a second, and a single one got its answer no sooner.)
        return await self._receive.receive_some(max_bytes)

    async def aclose(self) -> None:
        self._restore()
        try:
            await self._send.aclose()
        finally:
            await self._receive.aclose()


def open_stdio() -> trio.abc.Stream:
    """Take over standard input and output. Input is then empty, and printed text goes to standard error.

    Raises:
        OSError: one of the two is closed.
    """
    if CLOSED_AT_START & {0, 1}:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    receive = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
    send = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
    empty = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    # (Both may be the same terminal, so the settings are read before they are changed.)
    former = {fd: termios.tcgetattr(fd) for fd in (receive, send) if os.isatty(fd)}
    for fd in former:
        _make_raw(fd)

    def restore() -> None:
        # It may be the terminal of a person, who has started the agent by hand.
        for fd, settings in former.items():
            _set_terminal(fd, settings)
        former.clear()

    return _Console(trio.lowlevel.FdStream(receive), trio.lowlevel.FdStream(send), restore)


def open_fd(fd: int) -> trio.abc.Stream:
    """Take over a descriptor that is open for reading and writing.

    Raises:
        OSError: the descriptor is not open.
    """
    os.set_inheritable(fd, False)
    if os.isatty(fd):
        _make_raw(fd)
    return _both_ways(fd)


def open_port(path: str) -> trio.abc.Stream:
    """Open a character device, and wait up to a minute for the host to open its end.

    It blocks, so it must be called before the event loop runs. A virtio port without a host reads as if it were at
    end of file; without this wait the agent would shut the whole guest down before the host comes.

    Raises:
        OSError: the device cannot be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    if os.isatty(fd):
        _make_raw(fd)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + _HOST_WAIT
    while _no_host(poll.poll(0)) and time.monotonic() < deadline:
        time.sleep(_HOST_POLL)
    return _both_ways(fd)


def accept_unix(path: str) -> trio.abc.Stream:
    """Listen on a Unix socket that only this user can reach, and wait for a host, as long as it takes.

    It blocks, so it must be called before the event loop runs. The socket has its name when it can be connected
    to; it serves one host, and is removed when that has come. One that an agent has left that was killed is
    replaced.

    Raises:
        OSError: the socket cannot be made, or another program listens there.
    """
    with named_by_descriptor(path) as name, socket.socket(socket.AF_UNIX) as listener:
        new = os.fsencode(name) + b".%d" % os.getpid()
        umask = os.umask(0o177)
        try:
            listener.bind(new)
        finally:
            os.umask(umask)
        try:
            listener.listen(1)
            if _is_taken(name):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
            os.rename(new, name)
        except BaseException:
            os.unlink(new)
            raise
        try:
            return _accept(listener)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def _is_taken(name: str | bytes) -> bool:
    """Whether there is something that may not be replaced: no socket, or one on which a program listens."""
    try:
        if not stat.S_ISSOCK(os.lstat(name).st_mode):
            return True
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(name) != errno.ECONNREFUSED


def accept_vsock(port: int) -> trio.abc.Stream:
    """Listen on a port of this virtual machine's own socket to its host, and wait for the host, as `accept_unix`.

    Raises:
        OSError: there is no such socket, or another program has the port.
    """
    with socket.socket(socket.AF_VSOCK) as listener:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(1)
        return _accept(listener)


def _accept(listener: socket.socket) -> trio.abc.Stream:
    host, _ = listener.accept()
    return open_fd(host.detach())


def _both_ways(fd: int) -> trio.abc.Stream:
    stream = trio.lowlevel.FdStream(fd)
    return _Console(stream, stream)


def _no_host(events: list[tuple[int, int]]) -> bool:
    return any(event & select.POLLHUP and not event & select.POLLIN for _, event in events)


def is_cooked(fd: int) -> bool:
    """Whether a descriptor is a terminal that changes or keeps bytes on their way."""
    return os.isatty(fd) and bool(termios.tcgetattr(fd)[3] & termios.ICANON)


def _make_raw(fd: int) -> None:
    """Set a terminal to raw mode; otherwise it would echo, and act on line ends and control characters."""
    import tty  # here, because it is the rare case

    with _not_stopped():
        # At once, and not behind a flush, which would drop what the host has sent already.
        tty.setraw(fd, termios.TCSANOW)


def _set_terminal(fd: int, settings: list[Any]) -> None:
    with contextlib.suppress(termios.error), _not_stopped():  # the host may be gone
        termios.tcsetattr(fd, termios.TCSANOW, settings)


@contextlib.contextmanager
def _not_stopped() -> Iterator[None]:
    """Let a process in the background change its terminal, for which the kernel would stop it."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
