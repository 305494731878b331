"""Unix sockets as streams that take bytes in pieces, and without a moment at which a forked child would keep them.

(trio's own functions have a checkpoint between making a socket and returning it, at which another task may fork.)
"""

from __future__ import annotations

import operator
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._forked import let_go_in_child, no_fork
from trio_console._trio.gathering import DescriptorStream

if TYPE_CHECKING:
    import socket

__all__ = ["UnixStream", "accept", "connect_unix", "enlarge_buffer"]

#: Bytes of one read, when the caller names no number: a frame of data and the beginning of the next.
_READ: Final = 128 * 1024

#: Bytes of socket buffer that are asked for. (By default Linux allows an ordinary user 208 KiB, and doubles the
#: number it is given.) In the default buffer few frames of 128 KiB fit, and the others go in parts.
_BUFFER: Final = 256 * 1024


def enlarge_buffer(sock: socket.socket | trio.socket.SocketType) -> None:
    """Let a socket hold more bytes that were sent and not received, if that is allowed: it only helps."""
    with suppress(OSError):
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, _BUFFER)


@final
class UnixStream(DescriptorStream):
    """A connected Unix stream socket, for one task that sends and one that receives.

    Args:
        sock: the socket, which the stream owns.

    Attributes:
        socket: that socket.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        super().__init__("socket")
        self.socket: Final = sock

    def _send_fd(self) -> int:
        return self.socket.fileno()

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`.

        Args:
            max_bytes: the most bytes to return; with `None`, the default, 128 KiB.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes!r}")
        while True:
            # First the wait. It is the checkpoint that is due, and a peer that is about to answer has sent nothing
            # yet, so that a read before it would be in vain.
            await trio.lowlevel.wait_readable(self._open_fd())
            try:
                # (The stream may have been closed while this task slept: then there is no number.)
                return os.read(self._open_fd(), _READ if max_bytes is None else max_bytes)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise trio.BrokenResourceError(f"the socket cannot be read: {exc}") from exc

    async def aclose(self) -> None:
        self.socket.close()
        await trio.lowlevel.checkpoint()


async def connect_unix(path: str | bytes | os.PathLike[str]) -> UnixStream:
    """Connect to a Unix stream socket; if cancelled, nothing is left open."""
    with no_fork():
        sock = let_go_in_child(trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM))
    try:
        await sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return UnixStream(sock)


async def accept(listener: socket.socket) -> UnixStream:
    """The next connection of a non-blocking listening socket; if cancelled, it stays in the socket's queue.

    The buffer for what is sent to it is enlarged.

    Raises:
        OSError: as of ``accept(2)``.
    """
    await trio.lowlevel.checkpoint()
    while True:
        try:
            with no_fork():
                accepted = let_go_in_child(trio.socket.from_stdlib_socket(listener.accept()[0]))
        except BlockingIOError:
            await trio.lowlevel.wait_readable(listener)
        else:
            enlarge_buffer(accepted)
            return UnixStream(accepted)
