"""The relay's Unix socket: other users cannot replace it, and another program's socket is never removed.

* A directory that other users can write is refused, because they could put a socket of theirs in its place.
* The socket has at most its mode from the moment it exists: on Linux the file of a bound socket gets the mode that
  the unbound socket had, less the umask. With mode 0600 only processes of this user can connect.
* The socket gets its name when it listens already, so a client that finds the file can connect.
* A socket file that a dead relay has left is replaced, and the file of a running relay never is. The check and the
  replacement are done under a lock on the directory, and so is the removal.
* A program that can read the directory can hold that lock for ever, so the lock is waited for only a short time.
* A path may be longer than a socket address, so the directory is named by a descriptor.

All calls block for a bounded time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import socket
import stat
import time
from typing import TYPE_CHECKING, Final, final

from trio_console._addresses import LONGEST_ADDRESS
from trio_console._forked import let_go_in_child, no_fork
from trio_console._relay.trust import check_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RelaySocket"]

log: Final = logging.getLogger("trio_console.relay")

#: Connections that the kernel queues before they are accepted: all clients at once, and some that are refused.
_BACKLOG: Final = 256

#: The directory with this process's descriptors, by which a directory is named; a sandbox may have no ``/proc``.
_DESCRIPTORS: Final = "/proc/self/fd"

#: Seconds to wait for the lock, which a relay holds only for a few calls; and seconds between attempts.
_LOCK_TIME: Final = 2.0
_LOCK_PAUSE: Final = 0.02


@final
class RelaySocket:
    """A listening Unix socket, and its file.

    Args:
        path: path of the socket's file.
        mode: its mode.

    Raises:
        PermissionError: other users can write to the directory.
        FileExistsError: there is a file at the path that is not a socket.
        OSError: ``EADDRINUSE``: a relay is listening there; ``ENAMETOOLONG``: the last part of the path is longer
            than about 80 bytes; ``EWOULDBLOCK``: another program holds a lock on the directory; or another error
            of the system.
    """

    def __init__(self, path: str | os.PathLike[str], mode: int = 0o600) -> None:
        self.path: Final = os.path.abspath(os.fspath(path))
        self._name = os.path.basename(self.path)
        self._mode = mode
        self._lockable = True
        with no_fork():
            self._directory = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            # A lock belongs to the open file, so a forked child would keep it when its parent has died.
            let_go_in_child(self, lambda made: (made._directory,))
        try:
            check_directory(self._directory, os.path.dirname(self.path))
            with self._locked():
                self._clear_the_way()
                self.sock: Final = self._bind()
                self._identity = self._identify()
        except BaseException:
            self._close_directory()
            raise

    def _close_directory(self) -> None:
        # Forgotten before it is closed: a child forked in between must not close a number that is another file's.
        directory, self._directory = self._directory, -1
        os.close(directory)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        locked = self._lock()
        try:
            yield
        finally:
            if locked:
                fcntl.flock(self._directory, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        """Lock the directory; returns `False` if it cannot be locked, in some file systems and sandboxes."""
        deadline = time.monotonic() + _LOCK_TIME
        directory = os.path.dirname(self.path)
        while self._lockable:
            try:
                fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    why = "another program holds a lock on the directory"
                    raise BlockingIOError(exc.errno, why, directory) from None
                time.sleep(_LOCK_PAUSE)
            except OSError as exc:
                self._lockable = False  # said once
                log.warning(
                    "%s cannot be locked: start no two relays there at the same moment (%s)", directory, exc
                )
            else:
                return True
        return False

    def _address(self, name: str) -> str:
        """A path of a file in the directory; if there is ``/proc``, it fits a socket address in any case."""
        if os.path.isdir(_DESCRIPTORS):
            return f"{_DESCRIPTORS}/{self._directory}/{name}"
        return os.path.join(os.path.dirname(self.path), name)

    def _identify(self) -> tuple[int, int]:
        found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        return found.st_dev, found.st_ino

    def _clear_the_way(self) -> None:
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is not a socket: remove it", self.path)
        with no_fork():
            probe = let_go_in_child(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        with probe:
            probe.setblocking(False)
            try:
                probe.connect(self._address(self._name))
            except ConnectionRefusedError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name, dir_fd=self._directory)  # the program that listened there is dead
                return
            except FileNotFoundError:
                return  # the file was removed in between
            except BlockingIOError:
                pass  # its queue is full, so a program listens there
        raise OSError(errno.EADDRINUSE, "a relay is listening there already", self.path)

    def _bind(self) -> socket.socket:
        hidden = f".{secrets.token_hex(8)}"
        if any(len(os.fsencode(self._address(name))) > LONGEST_ADDRESS for name in (self._name, hidden)):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), self.path)
        with no_fork():
            sock = let_go_in_child(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            os.fchmod(sock.fileno(), self._mode)
            sock.bind(self._address(hidden))
            try:
                os.chmod(hidden, self._mode, dir_fd=self._directory)
                sock.listen(_BACKLOG)
                self._publish(hidden)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(hidden, dir_fd=self._directory)
                raise
        except BaseException:
            sock.close()
            raise
        return sock

    def _publish(self, hidden: str) -> None:
        """Give the socket's file its name. What another program has put there meanwhile is not replaced."""
        directory = self._directory
        try:
            os.link(hidden, self._name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except FileExistsError as exc:
            raise FileExistsError(exc.errno, "another program has just put a file there", self.path) from None
        except OSError:  # a file system without hard links
            os.rename(hidden, self._name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            os.unlink(hidden, dir_fd=directory)

    def close(self) -> None:
        """Remove the socket's file, if it is still the file of this socket. The listener closes the socket."""
        if self._directory < 0:
            return
        try:
            with contextlib.suppress(OSError), self._locked():
                if self._identify() == self._identity:
                    os.unlink(self._name, dir_fd=self._directory)
        finally:
            self._close_directory()
