"""The guest's end of a console as blocking calls: what worker threads read from and write to.

`GuestDevice` is the contract; a connected socket, a descriptor or a pair of descriptors is adapted to it.

A blocking call that nobody can interrupt would keep its thread, and the program, for ever. So the adapter
makes its descriptors non-blocking and sleeps in poll(2) on the descriptor *and* on a bell that `close` rings.

This module must not know what the bytes mean, nor import trio.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import sys
from typing import Final, Protocol, TypeAlias, final, runtime_checkable

from trio_console._console.descriptor import Descriptors
from trio_console._console.wake import Bell
from trio_console._forked import let_go_in_child

__all__ = ["ConsoleDevice", "GuestDevice", "as_device", "close_quietly"]

_log: Final = logging.getLogger("trio_console.console")


@runtime_checkable
class GuestDevice(Protocol):
    """A console's guest end, used by one reading and one writing thread at a time.

    Errors are `OSError`; they end the direction concerned, and tell the channel's user why.
    """

    def read(self, max_bytes: int) -> bytes:
        """Block until there is something, at most ``max_bytes``; ``b""`` at end of file and after `close`."""
        ...

    def write(self, data: memoryview, /) -> int:
        """Block until some of ``data`` was taken, and tell how many bytes; 0 only after `close`."""
        ...

    def close_write(self) -> None:
        """Tell the guest that nothing more comes, if the device can say so. Called by the writing thread."""
        ...

    def close(self) -> None:
        """Release the device. From any thread; calls that are blocked return or raise. Idempotent."""
        ...


def close_quietly(device: GuestDevice) -> None:
    """Close a device behind whatever has happened: what it raises is logged, and takes the place of nothing."""
    try:
        device.close()
    except Exception as exc:  # noqa: BLE001  (a device of the user's)
        _log.warning("%r: close() raised %r; it is to release the device, and may have not", device, exc)


#: What `open_console` takes.
ConsoleDevice: TypeAlias = "socket.socket | int | tuple[int, int] | GuestDevice"


def as_device(device: ConsoleDevice) -> GuestDevice:
    """Take ownership of what the caller gave as a console.

    After a `TypeError` or a `ValueError` it is as it was; after any other error it is closed.

    Raises:
        TypeError: it is nothing that can be a console.
        ValueError: it can be none as it is: a socket that is no stream or not connected, a negative number.
        OSError: a descriptor that is not open; no descriptor could be made.
    """
    if isinstance(device, socket.socket):
        _check_class(device)
        return _take((device.fileno(),), giver=device)
    if isinstance(device, int) and not isinstance(device, bool):
        if device < 0:
            raise ValueError(f"{device} is no file descriptor")
        return _take((device,))
    if isinstance(device, tuple):
        return _pair(device)
    if isinstance(device, GuestDevice):
        return device
    raise _cannot_be(device)


def _pair(device: tuple[int, int]) -> GuestDevice:
    if len(device) != 2 or not all(isinstance(fd, int) and not isinstance(fd, bool) for fd in device):
        raise _cannot_be(device)
    read_fd, write_fd = device
    if read_fd < 0 or write_fd < 0:
        raise ValueError(f"{min(device)} is no file descriptor")
    return _take((read_fd,) if read_fd == write_fd else (read_fd, write_fd))


def _take(numbers: tuple[int, ...], giver: socket.socket | None = None) -> GuestDevice:
    """Make a device of one or two descriptors; ``giver`` is the socket whose number it is."""
    # Owned before anything can fail. A number that is not open is nobody's, and may be another thread's next.
    owners = [Descriptors((fd,)) for fd in numbers if _is_open(fd)]
    try:
        for fd in numbers:
            _check(fd)
        bell = Bell()
        read_end = _End(owners[0])
        write_end = _End(owners[1], beside=read_end) if len(owners) == 2 else None
        device = _FdDevice(bell, read_end, write_end)
    except (TypeError, ValueError):
        for owner in owners:
            owner.numbers.clear()  # refused: they stay the caller's, and open
        raise
    except BaseException:
        # The traceback has this frame, and somebody may keep it: closed they are now.
        owners.clear()
        if giver is not None:
            giver.detach()
        raise
    if giver is not None:
        giver.detach()
    return device


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _cannot_be(device: object) -> TypeError:
    return TypeError(
        "a console device is a connected socket, a file descriptor, a (read_fd, write_fd) pair or an object "
        f"with the methods of GuestDevice, not {device!r:.100}"
    )


def _check_class(device: socket.socket) -> None:
    """A console is read and written by its number, past the methods of the socket."""
    for name in ("recv", "send"):
        if getattr(type(device), name) is not getattr(socket.socket, name):
            raise TypeError(
                f"a {type(device).__name__} cannot be a console device: its bytes are not those of its descriptor "
                f"(it has a {name}() of its own, as TLS sockets have). Give an object with GuestDevice's methods."
            )


def _check(fd: int) -> None:
    """Look at a descriptor, and change nothing of it. What this passes can be a device."""
    os.set_blocking(fd, os.get_blocking(fd))  # not of every descriptor: one opened with O_PATH has no flag
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return
    blocking = os.get_blocking(fd)
    borrowed = socket.socket(fileno=fd)
    try:
        if borrowed.type != socket.SOCK_STREAM:
            raise ValueError(f"a console is a byte stream, not a socket of type {borrowed.type!r}")
        if borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("a console is a connected socket, not one that listens")
        try:
            borrowed.getpeername()
        except OSError as exc:
            if exc.errno == errno.ENOTCONN:
                raise ValueError("a console is a connected socket, and this one is not connected") from exc
            raise
    finally:
        borrowed.detach()
        if os.get_blocking(fd) != blocking:  # a default timeout for sockets has changed it
            os.set_blocking(fd, blocking)


@final
class _End:
    """One descriptor of a device, and its flag as we found it; both are put back with the last reference.

    The flag belongs to what was opened, not to the number: whoever has it open, too, through `os.dup` or
    inheritance (the shell, of a terminal), sees it non-blocking meanwhile, and as it was afterwards.

    Args:
        owner: of the descriptor.
        beside: an end whose flag may be the same one: of two numbers for one terminal, the first finds the flag
            and puts it back. It is kept, so that this is not done while the other may be in a call.
    """

    __slots__ = ("__weakref__", "_beside", "_owner", "_was_blocking", "fd", "is_master")

    def __init__(self, owner: Descriptors, beside: _End | None = None) -> None:
        self._was_blocking = False
        self._owner = owner
        self._beside = beside
        (self.fd,) = owner.numbers
        self.is_master = _is_pty_master(self.fd)
        self._was_blocking = os.get_blocking(self.fd)
        os.set_blocking(self.fd, False)
        # (In the child the flag that is put back is that of /dev/null, and not the one that the parent has, too.)
        let_go_in_child(self, lambda end: (end.fd,))

    def __del__(self) -> None:
        if self._was_blocking and self._owner.numbers:  # else the number may be somebody else's
            with contextlib.suppress(OSError):  # closed by somebody else
                os.set_blocking(self.fd, True)


def _is_pty_master(fd: int) -> bool:
    """Linux only: elsewhere the end of a terminal is end of file, and no error."""
    status = os.fstat(fd)
    return sys.platform == "linux" and stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(5, 2)


@final
class _FdDevice:
    """One or two descriptors, owned from now on.

    They are non-blocking until they are given back, see `_End`.

    A call takes a reference to the end that it uses, and `close` drops the device's own: the last to go closes the
    number, so it is never recycled under a system call. (Why that needs no lock, and no count: see
    `_console.descriptor`.)
    """

    def __init__(self, bell: Bell, read_end: _End, write_end: _End | None = None) -> None:
        self._closed = False
        self._read_end: _End | None = read_end
        self._write_end: _End | None = write_end or read_end
        self._is_pair = write_end is not None
        self._bell: Bell | None = bell  # rung once, by close(), and never silenced

    # A frame lives as long as the traceback of an exception that went through it, and a lane keeps the exception
    # of its device. So each of these lets go of the end itself.

    def read(self, max_bytes: int) -> bytes:
        end = self._read_end
        hung_up = 0
        try:
            # Set first by `close`: where it is not set now, we have got an end.
            while end is not None and not self._closed:
                try:
                    return os.read(end.fd, max_bytes)
                except BlockingIOError:
                    if hung_up == 2:
                        break
                    hung_up = hung_up + 1 if self._sleep(end.fd, select.POLLIN) else 0
                except OSError as exc:
                    if self._closed_meanwhile():
                        break  # which has shut the socket down
                    if end.is_master and exc.errno == errno.EIO:
                        break  # nobody has the terminal open any more
                    raise
            return b""
        finally:
            del end

    def write(self, data: memoryview, /) -> int:
        end = self._write_end
        hung_up = 0
        try:
            while end is not None and not self._closed:
                try:
                    return os.write(end.fd, data)
                except BlockingIOError:
                    if hung_up == 2:
                        raise BrokenPipeError(
                            errno.EPIPE, "nobody has the console's other end open, and it takes no more"
                        ) from None
                    hung_up = hung_up + 1 if self._sleep(end.fd, select.POLLOUT) else 0
                except OSError as exc:
                    if self._closed_meanwhile():
                        break  # as above
                    if end.is_master and exc.errno == errno.EIO:
                        raise BrokenPipeError(
                            errno.EPIPE, "nobody has the console's terminal open any more"
                        ) from exc
                    raise
            return 0
        finally:
            del end

    def close_write(self) -> None:
        # No descriptor is needed for it, not even for a moment: where there is none left, a guest that was not
        # told the end would wait for it for ever.
        end = self._write_end
        try:
            if end is None:
                return
            if not _shut_down(end.fd, socket.SHUT_WR) and self._is_pair:
                self._write_end = None  # and with this call's the last reference goes
            # One descriptor both ways that is no socket (a serial port) has no such message.
        finally:
            del end

    def close(self) -> None:
        # Each step may be done twice: by two threads, or again after an exception from a signal handler. The flag
        # comes before the bell, since whoever is woken looks at it.
        self._closed = True
        # A child that a library in C has forked may have copies: the guest is to hear of the end all the same. It
        # loses nothing that was written. (The number is open while we hold its end. In a child that Python has
        # forked it is the null device's, and nothing is shut down.)
        for end in (self._read_end, self._write_end):
            if end is not None:
                with contextlib.suppress(OSError):  # closed by somebody else
                    _shut_down(end.fd, socket.SHUT_RDWR)
        if (bell := self._bell) is not None:
            bell.ring()
        self._read_end = self._write_end = self._bell = None

    def _closed_meanwhile(self) -> bool:
        return self._closed

    def _sleep(self, fd: int, events: int) -> bool:
        """Wait until ``fd`` is ready or the device is closed.

        Returns:
            Whether nobody is at the other end, and ``fd`` not ready. poll(2) does not wait then, so a call that
            would have blocked must not be tried for ever. Once proves nothing: a terminal may have been opened
            again, and the next call have found it full. At the second time nobody was there, and nothing moved.
        """
        bell = self._bell
        if bell is None:
            return False  # closed meanwhile
        try:
            poller = select.poll()
            poller.register(fd, events)
            poller.register(bell.read_fd, select.POLLIN)
            for ready, event in poller.poll():
                if ready == fd and event & select.POLLNVAL:
                    raise OSError(errno.EBADF, "the console's descriptor was closed by somebody else")
                if ready == fd and not event & events:
                    return True
            return False
        finally:
            del bell


def _shut_down(fd: int, how: int) -> bool:
    """Shut a socket down; `False` if it is none."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    borrowed = socket.socket(fileno=fd)
    try:
        with contextlib.suppress(OSError):  # ENOTCONN: the guest has closed its end already
            borrowed.shutdown(how)
    finally:
        borrowed.detach()
    return True
