"""The relay's Unix socket: made so that nobody else can use it, and removed so that nobody else's is.

* In a directory that others may write, anybody could put a socket of his own in its place: refused.
* It is mode 0600 from the moment it exists: on Linux the mode of a bound socket's file is the mode the
  unbound socket had.
* A socket that a dead relay has left is replaced, a live one never: looking and replacing are done under a lock
  on the directory, and so is removing.

Blocking calls, bounded except for the lock, which is held for these few calls only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trio

__all__ = ["RelaySocket", "peer_uid"]

#: Connections the kernel queues before they are accepted: all clients at once, and some to be refused.
_BACKLOG: Final = 256


@final
class RelaySocket:
    """A listening Unix socket with a name of its own.

    Args:
        path: where it is to be.

    Raises:
        PermissionError: the directory may be written by others.
        FileExistsError: there is something at the path that is no socket.
        OSError: ``EADDRINUSE``: a relay is listening there; or what the system says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Final = os.path.abspath(os.fspath(path))
        self._name = os.path.basename(self.path)
        self._directory = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mode = os.fstat(self._directory).st_mode
            if mode & stat.S_IWOTH:
                raise PermissionError(
                    errno.EPERM,
                    f"others may write the directory (mode {stat.S_IMODE(mode):04o}), and so take the socket's "
                    "place: use one of your own",
                    os.path.dirname(self.path),
                )
            with self._locked():
                self._clear_the_way()
                self.sock: Final = self._bind()
                self._identity = self._identify()
        except BaseException:
            os.close(self._directory)
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._directory, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._directory, fcntl.LOCK_UN)

    @property
    def _short_path(self) -> str:
        """A path that fits a socket address, however long the real one is."""
        return f"/proc/self/fd/{self._directory}/{self._name}"

    def _identify(self) -> tuple[int, int]:
        found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        return found.st_dev, found.st_ino

    def _clear_the_way(self) -> None:
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise FileExistsError(errno.EEXIST, "there is something else where the socket should be", self.path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._short_path)
            except ConnectionRefusedError:
                os.unlink(self._name, dir_fd=self._directory)  # whoever listened there is dead
                return
            except BlockingIOError:
                pass  # its queue is full, so it is alive
        raise OSError(errno.EADDRINUSE, "a relay is listening there already", self.path)

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(self._short_path)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Remove the socket's file, if it is still this one's. The socket itself belongs to who listens on it."""
        if self._directory < 0:
            return
        with self._locked(), contextlib.suppress(OSError):
            if self._identify() == self._identity:
                os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)
        self._directory = -1


def peer_uid(sock: trio.socket.SocketType) -> int:
    """The user id of the process at the other end of a connected Unix socket, as it was when it connected."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)
