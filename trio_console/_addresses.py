"""Unix sockets: paths that are too long for an address, and the process at the other end of a connection."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trio

__all__ = ["LONGEST_ADDRESS", "Peer", "named_by_descriptor", "peer_of"]

#: Bytes of a path that fit a socket address on every system; Linux has room for 107.
_ADDRESS_SIZE: Final = 100

#: Bytes of a path that fit a socket address on Linux.
LONGEST_ADDRESS: Final = 107

_CREDENTIALS: Final = struct.Struct("3i")


class Peer(NamedTuple):
    """The process at the other end of a connection: its ids when it connected, or began to listen."""

    pid: int
    uid: int


@contextlib.contextmanager
def named_by_descriptor(path: str | bytes) -> Iterator[str | bytes]:
    """A name for a path that fits a socket address, however long the name of its directory is.

    Raises:
        OSError: the directory cannot be opened; ``ENAMETOOLONG``: the last part of the path alone is too long.
    """
    raw = os.fsencode(path)
    if len(raw) <= _ADDRESS_SIZE or raw.startswith(b"\0"):  # (Linux's abstract addresses are no paths)
        yield path
        return
    directory = os.open(os.path.dirname(path) or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = b"/proc/self/fd/%d/%s" % (directory, os.path.basename(raw))
        if len(name) > LONGEST_ADDRESS:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        yield name
    finally:
        os.close(directory)


def peer_of(sock: trio.socket.SocketType) -> Peer:
    """The process at the other end of a connected Unix socket."""
    pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)
