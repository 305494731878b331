"""A doorbell between threads: a file descriptor that becomes readable when it is rung, until it is drained.

A `WakePipe` is an eventfd on Linux; a pipe where the system has no eventfds or refuses them; and a socket pair on
Windows, where trio can only wait for sockets. It carries no data and counts nothing: many rings before a `drain`
have the effect of one.

Rules:

* Any thread and any signal handler may call `wake` and `close`. Only the one consumer may call `drain` and `wait`.
  A signal handler may run at any moment of any of these calls, and raise there.
* There is no lock, no counter of callers and no flag that is set and later reset: a handler could find each of
  them half done, or leave it half done. Instead each call takes a reference to the bell and uses that; `close`
  marks the pipe as closed, rings the bell, and drops the pipe's own reference. The descriptor is closed when the
  last reference goes (see `_console.descriptor`), so its number is never reused during a call.
* The decision whether a ring is needed is made in `_console.ring`, because a ring is a system call.

This module must not know why it is rung, nor import trio.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import select
import socket
import sys
import time
from typing import TYPE_CHECKING, Final, final

from trio_console._console.descriptor import Descriptors

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Bell", "WakePipe"]

#: The longest single poll(2), in seconds: it takes its timeout as milliseconds in a C int. A longer wait polls
#: repeatedly.
_LONGEST_POLL: Final = 1_000_000.0

#: Errors of a system that does not know a call, and of a sandbox that forbids it.
_REFUSED: Final = (errno.ENOSYS, errno.EPERM)

if sys.platform != "win32":

    @final
    class _PipeBell:
        """A pipe, rung by writing a byte to it. A full pipe need not take the byte: it is readable already."""

        __slots__ = ("_owner", "_write_fd", "read_fd")

        def __init__(self) -> None:
            self._owner: Final = Descriptors(itertools.chain.from_iterable(itertools.starmap(os.pipe, [()])))
            self.read_fd, self._write_fd = self._owner.numbers
            os.set_blocking(self.read_fd, False)
            os.set_blocking(self._write_fd, False)

        def ring(self) -> None:
            """Make the descriptor readable. Never blocks."""
            if not self._owner.numbers:
                return  # closed by the garbage collector, see `Bell.ring`
            try:  # noqa: SIM105  (see `Bell.silence`)
                os.write(self._write_fd, b"\0")
            except BlockingIOError:
                pass

        def silence(self) -> None:
            """Make the descriptor unreadable until the next ring. Never blocks."""
            if not self._owner.numbers:
                return
            try:
                while len(os.read(self.read_fd, 4096)) == 4096:
                    pass
            except BlockingIOError:
                pass


if sys.platform == "linux" and hasattr(os, "eventfd"):  # a Python for an old C library has none
    #: The function that rings a bell: it writes a number to an eventfd, and returns 0 or raises.
    _eventfd_write: Callable[[int, int], object] = os.eventfd_write

    @functools.cache
    def _keep_lock_while_ringing() -> None:
        """Replace `os.eventfd_write` by a function that keeps the interpreter lock during the system call.

        What would happen otherwise: a producer publishes one chunk, finds the consumer asleep, and rings.
        `os.eventfd_write` releases the lock during the call, and often the kernel runs the woken consumer first.
        The consumer takes the lock, takes the one chunk, and is asleep again before the producer can push a second
        chunk, which rings again. Measured with chunks of 16 bytes: 80 chunks for each wake-up, in runs of one
        chunk, instead of a full ring for each wake-up. When the lock is kept, the consumer gets it after the
        producer has filled the ring or has no more chunks.

        No thread waits longer because of this: a write to a non-blocking eventfd does not block. Without ctypes,
        `os.eventfd_write` stays in use, which is correct and only slower.

        Called when the first bell is made, and not when this module is imported: some builds of libffi open a
        descriptor for good when ctypes is imported. In a program that was started without standard output that
        descriptor would get number 1. So a program can open its standard descriptors first.
        """
        global _eventfd_write  # every ring reads the global itself: a wrapper function would cost a call
        try:
            import ctypes

            function = ctypes.PyDLL(None).eventfd_write  # of the C library; a PyDLL keeps the lock
            function.argtypes = (ctypes.c_int, ctypes.c_uint64)
            function.restype = ctypes.c_int
        except (ImportError, OSError, AttributeError):
            return
        _eventfd_write = function

    @final
    class Bell:
        """An eventfd: one descriptor for both ends, closed with the last reference.

        On a system that refuses eventfds, ``Bell()`` returns a `_PipeBell`.
        """

        __slots__ = ("_owner", "read_fd")

        _owner: Descriptors
        read_fd: int

        def __new__(cls) -> Bell:
            # The class is chosen here, once, and not by a flag at each ring: so a ring is one call in both cases.
            _keep_lock_while_ringing()
            try:
                owner = Descriptors(map(os.eventfd, (0,), (os.EFD_NONBLOCK | os.EFD_CLOEXEC,)))
            except OSError as exc:
                if exc.errno not in _REFUSED:
                    raise
                return _PipeBell()  # type: ignore[return-value]  # it has the same methods
            bell = super().__new__(cls)
            bell._owner = owner
            (bell.read_fd,) = owner.numbers
            return bell

        def ring(self) -> None:
            """Make the descriptor readable. Never blocks."""
            if not self._owner.numbers:
                # A finalizer rings, and the garbage collector has closed this bell together with the finalizer's
                # object. No thread can be asleep on it.
                return
            # EAGAIN means that the counter is at 2**64 - 2, so the descriptor is readable already.
            try:
                if _eventfd_write(self.read_fd, 1):  # the C library's function only returns that it failed
                    os.eventfd_write(self.read_fd, 1)  # raises the reason: a wake-up lost silently would be a hang
            except BlockingIOError:
                pass

        def silence(self) -> None:
            """Make the descriptor unreadable until the next ring. Never blocks."""
            if not self._owner.numbers:
                return
            try:  # noqa: SIM105  (runs once for each wake-up, and `suppress` takes longer than the call)
                os.eventfd_read(self.read_fd)
            except BlockingIOError:
                pass

elif sys.platform == "win32":

    @final
    class Bell:
        """A socket pair: on Windows trio and `select` can only wait for sockets."""

        __slots__ = ("_read", "_write", "read_fd")

        def __init__(self) -> None:
            self._read, self._write = socket.socketpair()
            self._read.setblocking(False)
            self._write.setblocking(False)
            self.read_fd = self._read.fileno()

        def ring(self) -> None:
            if self._write.fileno() < 0:
                return  # closed by the garbage collector
            try:  # noqa: SIM105  (runs once for each wake-up)
                self._write.send(b"\0")
            except BlockingIOError:
                pass

        def silence(self) -> None:
            if self._read.fileno() < 0:
                return
            try:
                while len(self._read.recv(4096)) == 4096:
                    pass
            except BlockingIOError:
                pass

        def __del__(self) -> None:
            if hasattr(self, "_read"):
                self._read.close()
                self._write.close()

else:
    Bell = _PipeBell  # type: ignore[misc, assignment]


@final
class _NoBell:
    """Takes the place of the bell when a pipe is closed, so that a late call can ring it without effect."""

    __slots__ = ()

    read_fd: Final = -1

    def ring(self) -> None: ...

    def silence(self) -> None: ...


_NO_BELL: Final = _NoBell()


@final
class WakePipe:
    """A wake-up signal that threads can sleep on and event loops can watch.

    Its descriptor is readable (to poll, epoll, select and trio) from the first `wake` until the next `drain`. As a
    context manager it is closed when the block is left. If it is garbage-collected without having been closed, its
    descriptor is closed too.

    `wake` and `close` may be called from any thread, `drain` and `wait` from one thread at a time. A signal
    handler may interrupt any method, and may call any method of the same pipe, or raise: the pipe stays usable,
    and a call that was ended by the handler's exception can be repeated.

    Raises:
        OSError: no descriptor could be made (``EMFILE``, ``ENFILE``).
    """

    __slots__ = ("__weakref__", "_bell", "_closed")

    def __init__(self) -> None:
        self._closed = False
        # The object that a sleeper waits on. While it is referred to, the number of its descriptor is not reused.
        # `close` rings it: the sleeper wakes up and checks the flag that was set before `close`. After `close` the
        # bell's ``read_fd`` is -1.
        self._bell: Bell | _NoBell = Bell()

    def __repr__(self) -> str:
        return f"<WakePipe {'closed' if self._closed else f'fd={self._bell.read_fd}'}>"

    def fileno(self) -> int:
        """The descriptor to wait on, or -1 after `close`. The pipe owns it: do not read or close it."""
        return -1 if self._closed else self._bell.read_fd

    # `wake` and `drain` read `self._bell` once. From then on the frame of the bell's method holds a reference. So
    # if another thread closes the pipe after our read, and a third thread opens a file, the file does not get our
    # number.

    def wake(self) -> None:
        """Make the descriptor readable; does nothing after `close`.

        May be called from any thread and any signal handler, any number of times. One system call. Never blocks.
        """
        self._bell.ring()

    def drain(self) -> None:
        """Make the descriptor unreadable until the next `wake`. For the consumer only. Never blocks.

        Look for work *after* this call, never before: work that was published before a wake-up which this call
        removes is then seen.
        """
        if not self._closed:  # the ring of `close` must stay, for every thread that still sleeps
            self._bell.silence()

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until `wake` was called, before or during the wait. Does not drain.

        This is for threads; a trio task waits for the descriptor of its bell with ``trio.lowlevel.wait_readable``.

        A `wake` in a signal handler ends the wait of the main thread, but for one case, which every blocking call
        of Python has: the handler of a signal that arrives just before the thread sleeps runs when the sleep ends
        for another reason.

        Args:
            timeout: seconds on the monotonic clock; `None` waits for ever, 0 only looks.

        Returns:
            `True` if `wake` or `close` was called, `False` if the time ran out. After `True`, check the flag that
            was set before `close`.

        Raises:
            ValueError: the pipe was closed before the call.
        """
        # The bell is read before the flag. If the pipe is open at the flag's read, the bell is a real one, and a
        # later `close` will ring it. We hold it for as long as we sleep.
        bell = self._bell
        if self._closed:
            raise ValueError("wait() on a closed WakePipe would never return: check for the end before waiting")
        assert bell.read_fd >= 0, "a pipe that is open after its bell was read had its bell"
        return _sleep_readable(bell.read_fd, timeout)

    def close(self) -> None:
        """Close the pipe; each thread in `wait`, and each sleeper that holds its bell, wakes up.

        Idempotent; may be called from any thread. A trio task that waits for the bare number of `fileno` must be
        told before, with ``trio.lowlevel.notify_closing``.
        """
        # A thread may be in poll(2) on this number. If the number were closed now, the poll would watch the file
        # that gets the number next. So the thread is woken, and the descriptor is closed when the thread drops its
        # reference. The thread checks the flag before it sleeps again, so the flag is set first. The bell can be
        # rung only while we have it, so it is dropped last. Each line may run twice: a `close` that was ended by a
        # signal handler's exception is called again.
        self._closed = True
        self._bell.ring()
        self._bell = _NO_BELL

    def __enter__(self) -> WakePipe:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _sleep_readable(fd: int, timeout: float | None) -> bool:
    """Poll for reading until a deadline on the monotonic clock; an interrupted poll is repeated."""
    if sys.platform == "win32":
        return bool(select.select([fd], [], [], timeout)[0])
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if timeout is None:
        return bool(poller.poll())
    deadline = time.monotonic() + timeout
    left = timeout
    while True:
        # Rounded up to whole milliseconds: a wait of 0.4 ms must not become a busy loop of waits of 0 ms.
        if poller.poll(-(-max(0.0, min(left, _LONGEST_POLL)) * 1000 // 1)):
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
