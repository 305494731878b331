"""Connecting and accepting without a moment at which a forked child would keep the connection.

trio's own functions have a checkpoint between making a socket and returning it, at which another task may fork.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_console._forked import let_go_in_child, no_fork

if TYPE_CHECKING:
    import os
    import socket

__all__ = ["accept", "connect_unix"]


async def connect_unix(path: str | bytes | os.PathLike[str]) -> trio.SocketStream:
    """Connect to a Unix stream socket; if cancelled, nothing is left open."""
    with no_fork():
        sock = let_go_in_child(trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM))
    try:
        await sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def accept(listener: socket.socket) -> trio.SocketStream:
    """The next connection of a non-blocking listening socket; if cancelled, it stays in the socket's queue.

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
            return trio.SocketStream(accepted)
