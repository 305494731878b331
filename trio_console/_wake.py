"""A doorbell between threads: a file descriptor that is readable while somebody has rung.

A `WakePipe` is an eventfd on Linux, a pipe where there is none and a socket pair on Windows, where trio waits for
sockets only. It carries no data and counts nothing: many rings before a `drain` are one.

Rules:

* Any thread may call `wake`; `drain` and `wait` belong to the one consumer; anybody may call `close`.
* A descriptor number is recycled the moment it is closed. So the close happens under the lock that every
  `wake` holds, and while the consumer is in `wait` or `drain` it is put off until the consumer has left.
* Whether ringing is worth a system call is not decided here; see `_ring`.

This module must not know what is announced by the wake-ups, nor import trio.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, final

from ._build import FREE_THREADED

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["WakePipe"]

#: poll(2) takes its timeout as a C int of milliseconds; longer waits are made of several.
_LONGEST_POLL: Final = 1_000_000.0

if sys.platform == "linux" and hasattr(os, "eventfd"):  # a Python for an old C library has none

    def _eventfd_write_without_handover() -> Callable[[int, int], object]:
        """`os.eventfd_write`, but one that keeps the interpreter lock during the system call.

        Story: a producer publishes one chunk, finds the consumer asleep and rings. `os.eventfd_write` gives the
        lock away for the time of the call, and often the kernel runs the woken consumer first: it takes the lock,
        takes the one chunk, and is asleep again before the producer gets its turn to push the second, which rings
        again. Measured at 16 bytes: 80 chunks to a wake-up, in runs of one each, instead of a ring full. With
        the lock kept, the consumer gets it when the producer has filled the ring or has nothing to push.

        Nobody waits longer for it: writing to a non-blocking eventfd does not block. Where there is no ctypes,
        `os.eventfd_write` is right, too, and only slower.
        """
        try:
            import ctypes

            function = ctypes.PyDLL(None).eventfd_write  # of the C library; a PyDLL keeps the lock
            function.argtypes = (ctypes.c_int, ctypes.c_uint64)
            function.restype = ctypes.c_int
        except (ImportError, OSError, AttributeError):
            return os.eventfd_write
        return function

    _eventfd_write: Final = _eventfd_write_without_handover()

    class _Bell:
        """One descriptor both ways."""

        __slots__ = ("read_fd",)

        def __init__(self) -> None:
            self.read_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

        def ring(self) -> None:
            # EAGAIN means the counter is at 2**64 - 2: readable, which is all that is wanted.
            with contextlib.suppress(BlockingIOError):
                if _eventfd_write(self.read_fd, 1):  # the C library's only returns that it failed
                    os.eventfd_write(self.read_fd, 1)  # says why: a wake-up that is lost unsaid is a hang

        def silence(self) -> None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.read_fd)

        def close(self) -> None:
            os.close(self.read_fd)

elif sys.platform == "win32":

    class _Bell:
        """A socket pair: trio and `select` wait only for sockets here."""

        __slots__ = ("_read", "_write", "read_fd")

        def __init__(self) -> None:
            self._read, self._write = socket.socketpair()
            self._read.setblocking(False)
            self._write.setblocking(False)
            self.read_fd = self._read.fileno()

        def ring(self) -> None:
            with contextlib.suppress(BlockingIOError):
                self._write.send(b"\0")

        def silence(self) -> None:
            with contextlib.suppress(BlockingIOError):
                while len(self._read.recv(4096)) == 4096:
                    pass

        def close(self) -> None:
            self._read.close()
            self._write.close()

else:

    class _Bell:  # type: ignore[no-redef]
        """A pipe; a full one is readable, which is all that is wanted."""

        __slots__ = ("_write_fd", "read_fd")

        def __init__(self) -> None:
            self.read_fd, self._write_fd = os.pipe()
            os.set_blocking(self.read_fd, False)
            os.set_blocking(self._write_fd, False)

        def ring(self) -> None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._write_fd, b"\0")

        def silence(self) -> None:
            with contextlib.suppress(BlockingIOError):
                while len(os.read(self.read_fd, 4096)) == 4096:
                    pass

        def close(self) -> None:
            os.close(self.read_fd)
            os.close(self._write_fd)


@final
class WakePipe:
    """A wake-up signal that threads can sleep on and event loops can watch.

    Readable (to poll, epoll, select and trio) from the first `wake` until the next `drain`. Usable
    as a context manager, which closes it. Collected unclosed, it closes itself: nobody can hold
    the descriptor then.

    Raises:
        OSError: no descriptor could be made (``EMFILE``, ``ENFILE``).
    """

    __slots__ = ("__weakref__", "_bell", "_closed", "_draining", "_lock", "_released", "_sleepers", "rung")

    #: A hint for consumers who did not sleep and want to save the system call of a needless `drain`: if the
    #: descriptor is readable, this is true, or a thread in `wake` is about to make it true.
    rung: bool

    def __init__(self) -> None:
        self._bell = _Bell()
        self._lock = threading.Lock()
        self._sleepers = 0
        self._draining = False
        self._closed = False
        self._released = False
        self.rung = False

    def __repr__(self) -> str:
        return f"<WakePipe {'closed' if self._closed else f'fd={self._bell.read_fd}'}>"

    def fileno(self) -> int:
        """The descriptor to wait on, or -1 after `close`. It stays the pipe's: do not read or close it."""
        return -1 if self._closed else self._bell.read_fd

    def wake(self) -> None:
        """Make the descriptor readable. From any thread, any number of times; after `close`, nothing.

        One system call. Never blocks.
        """
        # The lock is held across the system call because of this story: we look and find the pipe open;
        # another thread closes it; a third opens a file and gets the number; we write into that file.
        # The consumer's drain() does not take it, so a waker that loses the interpreter
        # lock inside the call never holds up the thread it has just woken.
        with self._lock:
            if not self._closed:
                # Before the ring: the consumer may run before that call has returned to us, and would poll
                # a readable descriptor in circles until we are scheduled again. After it too: `drain` clears
                # before it silences, so any interleaving leaves the flag set too long (one needless
                # drain) and never clear for good beside a readable descriptor.
                self.rung = True
                self._bell.ring()
                self.rung = True

    def drain(self) -> None:
        """Make the descriptor unreadable until the next `wake`. For the consumer only.

        Look for work *after* this, never before: what was published before a wake-up that this call
        swallows is then seen.
        """
        self.rung = False
        if FREE_THREADED:
            # The two flags below do not do here: we might look at the one before others see the other. And a
            # waker has no interpreter lock to lose, so it holds this one no longer than its system call takes.
            with self._lock:
                if not self._closed:
                    self._bell.silence()
            return
        # Told without the lock, see `wake`. Story: we look and find the pipe open; another thread closes it;
        # a third gets the number; we read that file's bytes. So we say that we are here, then look; `close`
        # says that it is closed, then looks. Whatever the order, we see the one or it sees the other.
        self._draining = True
        if not self._closed:
            self._bell.silence()
        self._draining = False
        if self._closed:
            with self._lock:
                self._release_if_left()

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until `wake` was called (before or during the wait).

        Does not drain. For threads; a trio task waits with ``trio.lowlevel.wait_readable(self.fileno())``.

        Args:
            timeout: seconds on the monotonic clock; `None` waits for ever, 0 only looks.

        Returns:
            `True` if signalled, `False` if the time ran out. `close` during the wait counts as a
            signal: look at whatever flag was set before closing.

        Raises:
            ValueError: the pipe was closed before the call.
        """
        with self._lock:
            if self._closed:
                raise ValueError("wait on a closed WakePipe: nobody can signal it any more")
            self._sleepers += 1
        try:
            return _sleep_readable(self._bell.read_fd, timeout)
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._sleepers -= 1
            self._release_if_left()

    def _release_if_left(self) -> None:
        """With the lock held: give the descriptor back, once, if it is closed and nobody uses it."""
        if self._closed and not (self._sleepers or self._draining or self._released):
            self._released = True
            self._bell.close()

    def close(self) -> None:
        """Give the descriptor back; a thread in `wait` wakes up. Idempotent, from any thread.

        A trio task waiting for the descriptor must be told first, with
        ``trio.lowlevel.notify_closing``.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # Story: a thread is in poll(2) on this number. Closed under it, the poll would look at whatever
            # file gets the number next. So it is woken and closes on its way out.
            if self._sleepers:
                self._bell.ring()
            self._release_if_left()

    def __enter__(self) -> WakePipe:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):  # no attribute: there was no descriptor to be had
            self.close()


def _sleep_readable(fd: int, timeout: float | None) -> bool:
    """poll(2) for reading with a deadline on the monotonic clock, however often it is interrupted."""
    if sys.platform == "win32":
        return bool(select.select([fd], [], [], timeout)[0])
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if timeout is None:
        return bool(poller.poll())
    deadline = time.monotonic() + timeout
    left = timeout
    while True:
        # Rounded up: a wait of 0.4 ms must not become a busy loop of waits of 0 ms.
        if poller.poll(-(-max(0.0, min(left, _LONGEST_POLL)) * 1000 // 1)):
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
