"""The guest's end of a console as an object with blocking calls, for the worker threads.

`GuestDevice` is the contract; a connected socket, a descriptor or a pair of descriptors is adapted to it.

A blocking call that cannot be interrupted would keep its thread, and so the program, for ever. So the adapter
makes its descriptors non-blocking, and sleeps in poll(2) on the descriptor *and* on a bell that `close` rings.

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
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, final, runtime_checkable

from trio_console._console.descriptor import Descriptors
from trio_console._console.wake import Bell
from trio_console._forked import let_go_in_child

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ConsoleDevice", "FdDevice", "GuestDevice", "as_device", "close_quietly", "full_for_nobody"]

_log: Final = logging.getLogger("trio_console.console")


@runtime_checkable
class GuestDevice(Protocol):
    """A console's guest end, used by one reading and one writing thread at a time.

    An error is an `OSError`. It ends its direction, and becomes the cause of the error that the channel's user
    gets.
    """

    def read(self, max_bytes: int) -> bytes:
        """Block until bytes arrive; return at most ``max_bytes``, or ``b""`` at end of file and after `close`."""
        ...

    def write(self, data: memoryview, /) -> int:
        """Block until some bytes of ``data`` were taken, and return their number; 0 only after `close`."""
        ...

    def close_write(self) -> None:
        """Tell the guest that no more bytes come, if the device can do so. Called by the writing thread."""
        ...

    def close(self) -> None:
        """Release the device; blocked calls return or raise. From any thread, and more than once."""
        ...


def close_quietly(device: GuestDevice) -> None:
    """Close a device during the handling of another error: an exception of `close` is logged, and not raised."""
    try:
        device.close()
    except Exception as exc:  # noqa: BLE001  (the device may be the user's)
        _log.warning("%r: close() raised %r; the device may still be open: close() must release it", device, exc)


#: The kinds of console that `open_console` accepts.
ConsoleDevice: TypeAlias = "socket.socket | int | tuple[int, int] | GuestDevice"


def as_device(device: ConsoleDevice, *, by_tasks: bool = False) -> GuestDevice:
    """Take ownership of a console and adapt it to `GuestDevice`.

    After a `TypeError` or a `ValueError` the console is unchanged; after any other error it is closed.

    Args:
        device: the console.
        by_tasks: whether tasks are to move the bytes, if it has descriptors; see `FdDevice`.

    Raises:
        TypeError: ``device`` is of no kind that can be a console.
        ValueError: it is of such a kind, but a socket of another type than stream, a socket that is not connected,
            or a negative number.
        OSError: a descriptor is not open, or no descriptor could be made.
    """
    if isinstance(device, (socket.socket, int, tuple)):
        made = _of_descriptors(device)
        made.by_tasks = by_tasks
        return made
    if isinstance(device, GuestDevice):
        return device
    raise _cannot_be(device)


def _of_descriptors(device: socket.socket | int | tuple[int, int]) -> FdDevice:
    if isinstance(device, socket.socket):
        _check_class(device)
        return _take((device.fileno(),), giver=device)
    if isinstance(device, tuple):
        return _pair(device)
    if isinstance(device, bool):
        raise _cannot_be(device)
    if device < 0:
        raise ValueError(f"a console's descriptor must be 0 or more, not {device}")
    return _take((device,))


def _pair(device: tuple[int, int]) -> FdDevice:
    if len(device) != 2 or not all(isinstance(fd, int) and not isinstance(fd, bool) for fd in device):
        raise _cannot_be(device)
    read_fd, write_fd = device
    if read_fd < 0 or write_fd < 0:
        raise ValueError(f"a console's descriptor must be 0 or more, not {min(device)}")
    return _take((read_fd,) if read_fd == write_fd else (read_fd, write_fd))


def _take(numbers: tuple[int, ...], giver: socket.socket | None = None) -> FdDevice:
    """Make a device of one or two descriptors; ``giver`` is the socket to which the descriptor belongs."""
    # Owned before anything can fail. A number that is not open is not owned: another thread may open it next.
    owners = [Descriptors((fd,)) for fd in numbers if _is_open(fd)]
    try:
        for fd in numbers:
            _check(fd)
        bell = Bell()
        read_end = _End(owners[0])
        write_end = _End(owners[1], beside=read_end) if len(owners) == 2 else None
        device = FdDevice(bell, read_end, write_end)
    except (TypeError, ValueError):
        for owner in owners:
            owner.numbers.clear()  # refused: the descriptors stay open, and the caller's
        raise
    except BaseException:
        # Closed here, because the exception's traceback refers to this frame and may be kept.
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
    """Refuse a socket class with methods of its own: a console is read and written by number, without them."""
    for name in ("recv", "send"):
        if getattr(type(device), name) is not getattr(socket.socket, name):
            raise TypeError(
                f"a {type(device).__name__} cannot be a console device: its bytes are not those of its descriptor "
                f"(it has a {name}() of its own, as TLS sockets have). Pass an object with GuestDevice's methods."
            )


def _check(fd: int) -> None:
    """Raise if a descriptor cannot be a device; change nothing of it."""
    os.set_blocking(fd, os.get_blocking(fd))  # raises for a descriptor without that flag: one opened with O_PATH
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return
    blocking = os.get_blocking(fd)
    borrowed = socket.socket(fileno=fd)
    try:
        if borrowed.type != socket.SOCK_STREAM:
            raise ValueError(f"a console must be a stream socket, not a socket of type {borrowed.type!r}")
        if borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(
                "a console must be a connected socket, not a listening one: pass an accepted connection"
            )
        try:
            borrowed.getpeername()
        except OSError as exc:
            if exc.errno == errno.ENOTCONN:
                raise ValueError(
                    "a console must be a connected socket, and this one is not: connect it first"
                ) from exc
            raise
    finally:
        borrowed.detach()
        if os.get_blocking(fd) != blocking:  # `socket.setdefaulttimeout` has made it non-blocking
            os.set_blocking(fd, blocking)


@final
class _End:
    """One descriptor of a device, and the O_NONBLOCK flag that it had before.

    With the last reference to the end the flag is set back, and the descriptor is closed. The flag belongs to the
    open file and not to the number: another process that shares the open file, through `os.dup` or inheritance
    (such as the shell of a terminal), sees it non-blocking until it is set back.

    Args:
        owner: the descriptor's owner.
        beside: another end which may share the open file, as when both numbers are of one terminal. The first end
            then found the flag and sets it back. The second end refers to it, so that the flag is not set back
            while the second end may be in a call.
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
        # (In a forked child the number is that of /dev/null, so the child does not set back the parent's flag.)
        let_go_in_child(self, lambda end: (end.fd,))

    def __del__(self) -> None:
        if self._was_blocking and self._owner.numbers:  # otherwise the number may belong to another file by now
            with contextlib.suppress(OSError):  # the number was closed by other code
                os.set_blocking(self.fd, True)


def _is_pty_master(fd: int) -> bool:
    """Whether ``fd`` is a terminal's master side, on Linux: elsewhere a terminal's end is plain end of file."""
    status = os.fstat(fd)
    return sys.platform == "linux" and stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(5, 2)


@final
class FdDevice:
    """A device of one or two descriptors, which it owns. They are non-blocking until they are closed, see `_End`.

    Threads call the methods of `GuestDevice`, which block. A task of trio calls those whose names end in ``_now``,
    and sleeps by the descriptors' numbers; then no thread calls anything.

    Attributes:
        by_tasks: whether tasks are to move its bytes where there is a choice; see `_console.opened`.

    Each call takes a reference to the end that it uses, and `close` drops the device's own references. The last
    reference closes the number, so it is never reused during a system call. (`_console.descriptor` says why that
    needs no lock and no counter.)
    """

    def __init__(self, bell: Bell, read_end: _End, write_end: _End | None = None) -> None:
        self.by_tasks = False
        self._closed = False
        self._read_end: _End | None = read_end
        self._write_end: _End | None = write_end or read_end
        self._is_pair = write_end is not None
        self._reads_master = self._read_end.is_master
        self._writes_master = self._write_end.is_master
        self._bell: Bell | None = bell  # rung by close(), and never silenced

    # Each of the next methods deletes its reference to the end before it returns or raises. Otherwise an exception
    # would keep the end open: a lane keeps its device's exception, whose traceback refers to the method's frame.

    def read(self, max_bytes: int) -> bytes:
        end = self._read_end
        hung_up = 0
        try:
            # `close` sets the flag before it drops the ends: if the flag is not set now, ``end`` is not `None`.
            while end is not None and not self._closed:
                try:
                    return _read(end.fd, max_bytes, of_master=end.is_master)
                except BlockingIOError:
                    if hung_up == 2:
                        break
                    hung_up = hung_up + 1 if self._sleep(end.fd, select.POLLIN) else 0
                except OSError:
                    if self._closed_meanwhile():
                        break  # `close` has shut the socket down, which failed the read
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
                    return _write(end.fd, [data], to_master=end.is_master)
                except BlockingIOError:
                    if hung_up == 2:
                        raise full_for_nobody() from None
                    hung_up = hung_up + 1 if self._sleep(end.fd, select.POLLOUT) else 0
                except OSError:
                    if self._closed_meanwhile():
                        break  # `close` has shut the socket down, which failed the write
                    raise
            return 0
        finally:
            del end

    # For the one task that moves the bytes of a direction, and for no thread. After `close` the numbers are -1.

    @property
    def read_fd(self) -> int:
        return -1 if self._read_end is None else self._read_end.fd

    @property
    def write_fd(self) -> int:
        return -1 if self._write_end is None else self._write_end.fd

    def read_now(self, max_bytes: int) -> bytes:
        """Read what has come; ``b""`` at end of file. `BlockingIOError` if there is nothing."""
        return _read(self.read_fd, max_bytes, of_master=self._reads_master)

    def write_now(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Write some bytes of the pieces, and return their number. `BlockingIOError` if there is no room."""
        return _write(self.write_fd, pieces, to_master=self._writes_master)

    def has_hung_up(self, fd: int, events: int) -> bool:
        """Whether the other end has hung up, and ``fd`` is not ready for ``events``; see `_sleep`."""
        poller = select.poll()
        poller.register(fd, events)
        return any(not event & events for _, event in poller.poll(0))

    # For both

    def close_write(self) -> None:
        # This must not open a descriptor, not even for a moment: when a program has none left, this would fail,
        # and the guest would wait for the end for ever.
        end = self._write_end
        try:
            if end is None:
                return
            if not _shut_down(end.fd, socket.SHUT_WR) and self._is_pair:
                self._write_end = None  # the last reference but ``end``, so the descriptor is closed on return
            # A single descriptor that is not a socket (a serial port) has no way to say that no more bytes come.
        finally:
            del end

    def close(self) -> None:
        # Each step may run twice: in two threads, or again after an exception from a signal handler. The flag is
        # set before the bell is rung, because a woken thread checks the flag.
        self._closed = True
        # Shut down, because a child forked by a C library may have copies of the descriptors, and the guest must
        # see the end all the same. The guest still gets all bytes written. (The number stays open while we hold
        # its end. In a child forked by Python the number is that of the null device, and nothing is shut down.)
        for end in (self._read_end, self._write_end):
            if end is not None:
                with contextlib.suppress(OSError):  # the number was closed by other code
                    _shut_down(end.fd, socket.SHUT_RDWR)
        if (bell := self._bell) is not None:
            bell.ring()
        self._read_end = self._write_end = self._bell = None

    def _closed_meanwhile(self) -> bool:
        return self._closed

    def _sleep(self, fd: int, events: int) -> bool:
        """Wait until ``fd`` is ready or the device is closed.

        Returns:
            `True` if the other end has hung up and ``fd`` is not ready. poll(2) then returns at once, so the
            caller must not repeat its call for ever. One such result proves nothing: a terminal may have been
            opened again in between, and the next call may have found it full. After the second one in a row the
            caller gives up.
        """
        bell = self._bell
        if bell is None:
            return False  # the device was closed in between
        try:
            poller = select.poll()
            poller.register(fd, events)
            poller.register(bell.read_fd, select.POLLIN)
            for ready, event in poller.poll():
                if ready == fd and event & select.POLLNVAL:
                    raise OSError(errno.EBADF, "the console's descriptor was closed by other code of this program")
                if ready == fd and not event & events:
                    return True
            return False
        finally:
            del bell


def _read(fd: int, max_bytes: int, *, of_master: bool) -> bytes:
    try:
        return os.read(fd, max_bytes)
    except OSError as exc:
        if of_master and exc.errno == errno.EIO:
            return b""  # no program has the terminal open any more
        raise


def _write(fd: int, pieces: Sequence[bytes | memoryview], *, to_master: bool) -> int:
    try:
        return os.write(fd, pieces[0]) if len(pieces) == 1 else os.writev(fd, pieces)
    except OSError as exc:
        if to_master and exc.errno == errno.EIO:
            raise BrokenPipeError(errno.EPIPE, "no program has the console's terminal open any more") from exc
        raise


def full_for_nobody() -> BrokenPipeError:
    """The error for a write that would wait for ever: see `FdDevice.has_hung_up`."""
    return BrokenPipeError(errno.EPIPE, "no program has the console's other end open, and its buffer is full")


def _shut_down(fd: int, how: int) -> bool:
    """Shut a socket down; returns `False` if ``fd`` is not a socket."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    borrowed = socket.socket(fileno=fd)
    try:
        with contextlib.suppress(OSError):  # ENOTCONN: the guest has closed its end already
            borrowed.shutdown(how)
    finally:
        borrowed.detach()
    return True
