"""The relay's Unix socket: made so that nobody else can use it, and removed so that nobody else's is.

* In a directory that others may write, anybody could put a socket of his own in its place: refused.
* It is mode 0600 from the moment it exists: on Linux the mode of a bound socket's file is the mode the
  unbound socket had.
* A socket that a dead relay has left is replaced, a live one never: looking and replacing are done under a lock
  on the directory, and so is removing.
* Who may read the directory may lock it and keep it so: the lock is waited for a short time only.
* A path may be longer than a socket address: directories are named by a descriptor.

Blocking calls, all of them bounded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING, Final, final

from trio_console._forked import let_go_in_child

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trio

__all__ = ["RelaySocket", "named_by_descriptor", "peer_uid"]

#: Connections the kernel queues before they are accepted: all clients at once, and some to be refused.
_BACKLOG: Final = 256

#: Bytes of a path that fit a socket address on every system; Linux has room for 107.
_ADDRESS_SIZE: Final = 100

#: Seconds to wait for the lock, which relays hold for a few calls only; and between attempts.
_LOCK_TIME: Final = 2.0
_LOCK_PAUSE: Final = 0.02


@contextlib.contextmanager
def named_by_descriptor(path: str) -> Iterator[str]:
    """A name for a path that fits a socket address, however long the directory's own is."""
    if len(os.fsencode(path)) <= _ADDRESS_SIZE:
        yield path
        return
    directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)


@final
class RelaySocket:
    """A listening Unix socket with a name of its own.

    Args:
        path: where it is to be.

    Raises:
        PermissionError: the directory may be written by others.
        FileExistsError: there is something at the path that is no socket.
        OSError: ``EADDRINUSE``: a relay is listening there; ``ENAMETOOLONG``: the last part of the path is longer
            than about 80 bytes; ``EWOULDBLOCK``: somebody holds a lock on the directory; or what the system says.
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
        deadline = time.monotonic() + _LOCK_TIME
        while True:
            try:
                fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    why = "somebody holds a lock on the directory"
                    raise BlockingIOError(exc.errno, why, os.path.dirname(self.path)) from None
            time.sleep(_LOCK_PAUSE)
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
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name, dir_fd=self._directory)  # whoever listened there is dead
                return
            except FileNotFoundError:
                return  # removed meanwhile
            except BlockingIOError:
                pass  # its queue is full, so it is alive
        raise OSError(errno.EADDRINUSE, "a relay is listening there already", self.path)

    def _bind(self) -> socket.socket:
        sock = let_go_in_child(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            os.fchmod(sock.fileno(), 0o600)
            self._bind_to(sock)
            sock.listen(_BACKLOG)
        except BaseException:
            sock.close()
            raise
        return sock

    def _bind_to(self, sock: socket.socket) -> None:
        try:
            sock.bind(self._short_path)
        except OSError as exc:
            if exc.errno is None:  # it does not fit an address, says Python without a number
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), self.path) from None
            raise

    def close(self) -> None:
        """Remove the socket's file, if it is still this one's. The socket itself belongs to who listens on it."""
        if self._directory < 0:
            return
        try:
            with contextlib.suppress(OSError), self._locked():
                if self._identify() == self._identity:
                    os.unlink(self._name, dir_fd=self._directory)
        finally:
            os.close(self._directory)
            self._directory = -1


def peer_uid(sock: trio.socket.SocketType) -> int:
    """The user id of the process at the other end of a connected Unix socket, as it was when it connected."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)
