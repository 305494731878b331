"""The guest's end of a console as blocking calls: what worker threads read from and write to.

`GuestDevice` is the contract; a connected socket, a descriptor or a pair of descriptors is adapted to it.

A blocking call that nobody can interrupt would keep its thread, and the program, for ever. So the adapter
makes its descriptors non-blocking and sleeps in poll(2) on the descriptor *and* on a bell that `close` rings.

This module must not know what the bytes mean, nor import trio.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import threading
from typing import Protocol, TypeAlias, final, runtime_checkable

from ._wake import WakePipe

__all__ = ["ConsoleDevice", "GuestDevice", "as_device"]


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


#: What `open_console` takes.
ConsoleDevice: TypeAlias = "socket.socket | int | tuple[int, int] | GuestDevice"


def as_device(device: ConsoleDevice) -> GuestDevice:
    """Take ownership of what the caller gave as a console.

    Raises:
        TypeError: it is nothing that can be a console.
        ValueError: a socket that is no stream.
        OSError: a descriptor that is not open.
    """
    if isinstance(device, socket.socket):
        if device.type != socket.SOCK_STREAM:
            raise ValueError(f"a console is a byte stream, not a socket of type {device.type!r}")
        fd = device.fileno()
        adapted = _FdDevice(fd, fd)
        device.detach()
        return adapted
    if isinstance(device, int):
        return _FdDevice(device, device)
    if isinstance(device, tuple) and len(device) == 2:
        return _FdDevice(*device)
    if isinstance(device, GuestDevice):
        return device
    raise TypeError(
        "a console device is a connected socket, a file descriptor, a (read_fd, write_fd) pair or an object "
        f"with the methods of GuestDevice, not {type(device).__name__}"
    )


@final
class _FdDevice:
    """One or two descriptors, owned from now on.

    They become non-blocking; a descriptor that is shared with another process through `os.dup` or
    inheritance is non-blocking there too.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._is_socket = stat.S_ISSOCK(os.fstat(write_fd).st_mode)
        self._bell = WakePipe()  # rung once, by close(), and never drained
        self._lock = threading.Lock()
        self._calls = 0
        self._closed = False

    def read(self, max_bytes: int) -> bytes:
        closed = self._enter()
        try:
            while not closed:
                try:
                    return os.read(self._read_fd, max_bytes)
                except BlockingIOError:
                    closed = self._sleep(self._read_fd, select.POLLIN)
            return b""
        finally:
            self._leave()

    def write(self, data: memoryview, /) -> int:
        closed = self._enter()
        try:
            while not closed:
                try:
                    return os.write(self._write_fd, data)
                except BlockingIOError:
                    closed = self._sleep(self._write_fd, select.POLLOUT)
            return 0
        finally:
            self._leave()

    def close_write(self) -> None:
        closed = self._enter()
        try:
            if not closed:
                self._half_close()
        finally:
            self._leave()

    def _half_close(self) -> None:
        if self._is_socket:
            # The number is only borrowed: a duplicate could not be had when descriptors are short, and the
            # guest would wait for ever for the end that it was not told.
            end = socket.socket(fileno=self._write_fd)
            try:
                with contextlib.suppress(OSError):  # ENOTCONN: the guest has closed its end already
                    end.shutdown(socket.SHUT_WR)
            finally:
                end.detach()
        elif self._write_fd != self._read_fd:
            # The number stays ours, on /dev/null, until close(): the bookkeeping is then the same.
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self._write_fd, inheritable=False)
            os.close(null)
        # One descriptor both ways that is no socket (a serial port) has no such message.

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._bell.wake()
            if not self._calls:
                self._release()

    # Around every use of the descriptors, so that close() never recycles a number under a system call: the
    # thread that leaves last closes them.

    def _enter(self) -> bool:
        with self._lock:
            self._calls += 1
            return self._closed

    def _leave(self) -> None:
        with self._lock:
            self._calls -= 1
            if self._closed and not self._calls:
                self._release()

    def _release(self) -> None:
        """Close the descriptors, once: the last call out, or `close` if there was none."""
        fds, self._read_fd, self._write_fd = {self._read_fd, self._write_fd}, -1, -1
        for fd in fds - {-1}:
            with contextlib.suppress(OSError):  # EIO of a dying device: there is nobody left to tell
                os.close(fd)
        self._bell.close()

    def _sleep(self, fd: int, events: int) -> bool:
        """Wait until ``fd`` is ready; `True` if the device was closed meanwhile."""
        poller = select.poll()
        poller.register(fd, events)
        poller.register(self._bell.fileno(), select.POLLIN)
        for ready, event in poller.poll():
            if ready == fd and event & select.POLLNVAL:
                raise OSError(errno.EBADF, "the console's descriptor was closed by somebody else")
        return self._closed
