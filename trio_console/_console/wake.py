"""A doorbell between threads: a file descriptor that is readable while somebody has rung.

A `WakePipe` is an eventfd on Linux, a pipe where there is none or it is refused, and a socket pair on Windows,
where trio waits for sockets only. It carries no data and counts nothing: many rings before a `drain` are one.

Rules:

* Any thread and any signal handler may call `wake`; `drain` and `wait` belong to the one consumer; anybody may
  call `close`. A handler may run at any moment of any of these calls, and raise there.
* There is no lock, no counter of callers and no flag that has to be put back: a handler could find each of them
  half done, or leave it so. A call takes a reference to the bell and uses that; `close` says that the pipe is
  closed, rings, and drops the pipe's own reference. The last reference to go gives the descriptor back (see
  `_console.descriptor`), so its number is never recycled under a call.
* Whether ringing is worth a system call is not decided here; see `_console.ring`.

This module must not know what is announced by the wake-ups, nor import trio.
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

#: poll(2) takes its timeout as a C int of milliseconds; longer waits are made of several.
_LONGEST_POLL: Final = 1_000_000.0

#: How a system says that it does not know a call, or a sandbox that it does not allow it.
_REFUSED: Final = (errno.ENOSYS, errno.EPERM)

if sys.platform != "win32":

    @final
    class _PipeBell:
        """A pipe; a full one is readable, which is all that is wanted."""

        __slots__ = ("_owner", "_write_fd", "read_fd")

        def __init__(self) -> None:
            self._owner: Final = Descriptors(itertools.chain.from_iterable(itertools.starmap(os.pipe, [()])))
            self.read_fd, self._write_fd = self._owner.numbers
            os.set_blocking(self.read_fd, False)
            os.set_blocking(self._write_fd, False)

        def ring(self) -> None:
            if not self._owner.numbers:
                return  # as above
            try:  # noqa: SIM105  (as below)
                os.write(self._write_fd, b"\0")
            except BlockingIOError:
                pass

        def silence(self) -> None:
            if not self._owner.numbers:
                return
            try:
                while len(os.read(self.read_fd, 4096)) == 4096:
                    pass
            except BlockingIOError:
                pass


if sys.platform == "linux" and hasattr(os, "eventfd"):  # a Python for an old C library has none
    #: What rings a bell: writes a number to an eventfd, and returns 0 or raises.
    _eventfd_write: Callable[[int, int], object] = os.eventfd_write

    @functools.cache
    def _keep_lock_while_ringing() -> None:
        """Have bells rung by an `os.eventfd_write` that keeps the interpreter lock during the system call.

        Story: a producer publishes one chunk, finds the consumer asleep and rings. `os.eventfd_write` gives the
        lock away for the time of the call, and often the kernel runs the woken consumer first: it takes the lock,
        takes the one chunk, and is asleep again before the producer gets its turn to push the second, which rings
        again. Measured at 16 bytes: 80 chunks to a wake-up, in runs of one each, instead of a ring full. With
        the lock kept, the consumer gets it when the producer has filled the ring or has nothing to push.

        Nobody waits longer for it: writing to a non-blocking eventfd does not block. Where there is no ctypes,
        `os.eventfd_write` is right, too, and only slower.

        Called when the first bell is made, and not when this module is imported: some builds of libffi open a
        descriptor for good when ctypes is imported, and in a program that was started without standard output
        that would be number 1. So a program has the time to see to its standard descriptors.
        """
        global _eventfd_write  # looked up as it stands by every ring: a wrapper would cost a call
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
        """One descriptor both ways; it is given back with the last reference.

        Where the system refuses eventfds, making one gives a bell that is a pipe.
        """

        __slots__ = ("_owner", "read_fd")

        _owner: Descriptors
        read_fd: int

        def __new__(cls) -> Bell:
            # Decided here and not by a flag, so that ringing is one call of one class, whichever it is.
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
            if not self._owner.numbers:
                return  # a finalizer rings, of what was collected together with this: nobody can hear it
            # EAGAIN means the counter is at 2**64 - 2: readable, which is all that is wanted.
            try:
                if _eventfd_write(self.read_fd, 1):  # the C library's only returns that it failed
                    os.eventfd_write(self.read_fd, 1)  # says why: a wake-up that is lost unsaid is a hang
            except BlockingIOError:
                pass

        def silence(self) -> None:
            if not self._owner.numbers:
                return
            try:  # noqa: SIM105  (once for each wake-up: `suppress` takes longer than the call)
                os.eventfd_read(self.read_fd)
            except BlockingIOError:
                pass

elif sys.platform == "win32":

    @final
    class Bell:
        """A socket pair: trio and `select` wait only for sockets here."""

        __slots__ = ("_read", "_write", "read_fd")

        def __init__(self) -> None:
            self._read, self._write = socket.socketpair()
            self._read.setblocking(False)
            self._write.setblocking(False)
            self.read_fd = self._read.fileno()

        def ring(self) -> None:
            if self._write.fileno() < 0:
                return  # as above
            try:  # noqa: SIM105  (as above)
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
    """Stands for the bell of a pipe that was closed: whoever comes late may ring it."""

    __slots__ = ()

    read_fd: Final = -1

    def ring(self) -> None: ...

    def silence(self) -> None: ...


_NO_BELL: Final = _NoBell()


@final
class WakePipe:
    """A wake-up signal that threads can sleep on and event loops can watch.

    Readable (to poll, epoll, select and trio) from the first `wake` until the next `drain`. Usable
    as a context manager, which closes it. Collected unclosed, it gives its descriptor back, too.

    Every method may be interrupted by a signal handler that calls any method of the same pipe, or raises: the pipe
    stays usable, and what was interrupted by an exception can be called again.

    Raises:
        OSError: no descriptor could be made (``EMFILE``, ``ENFILE``).
    """

    __slots__ = ("__weakref__", "_bell", "_closed")

    def __init__(self) -> None:
        self._closed = False
        self._bell: Bell | _NoBell = Bell()

    def __repr__(self) -> str:
        return f"<WakePipe {'closed' if self._closed else f'fd={self._bell.read_fd}'}>"

    def fileno(self) -> int:
        """The descriptor to wait on, or -1 after `close`. It stays the pipe's: do not read or close it."""
        return -1 if self._closed else self._bell.read_fd

    @property
    def bell(self) -> Bell | _NoBell:
        """The descriptor's owner, for those who sleep on it by other means than `wait`.

        Held through the sleep, it keeps the number from being recycled, and `close` rings it: a sleeper wakes up,
        and looks at whatever flag was set before closing. After `close` its ``read_fd`` is -1.
        """
        return self._bell

    # In the next two, `self._bell` is looked at once; from then on the frame of the bell's method has the
    # reference. Story: we look and find the pipe open; another thread closes it; a third opens a file, and does
    # not get our number.

    def wake(self) -> None:
        """Make the descriptor readable; after `close`, nothing.

        From any thread and any signal handler, any number of times. One system call. Never blocks.
        """
        self._bell.ring()

    def drain(self) -> None:
        """Make the descriptor unreadable until the next `wake`. For the consumer only.

        Look for work *after* this, never before: what was published before a wake-up that this call
        swallows is then seen.
        """
        if not self._closed:  # what `close` has rung is for everybody who still sleeps
            self._bell.silence()

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until `wake` was called (before or during the wait).

        Does not drain. For threads; a trio task waits for `bell` with ``trio.lowlevel.wait_readable``.

        Args:
            timeout: seconds on the monotonic clock; `None` waits for ever, 0 only looks.

        Returns:
            `True` if signalled, `False` if the time ran out. `close` during the wait counts as a
            signal: look at whatever flag was set before closing.

        Raises:
            ValueError: the pipe was closed before the call.
        """
        # First the bell, then the look. Where the pipe is open then, it was a bell that we got, and `close` will
        # ring it. It stays in our hand for as long as we sleep.
        bell = self._bell
        if self._closed:
            raise ValueError("wait on a closed WakePipe: nobody can signal it any more")
        return _sleep_readable(bell.read_fd, timeout)

    def close(self) -> None:
        """Give the descriptor back; a thread in `wait`, and whoever holds the `bell`, wakes up.

        Idempotent, from any thread. A trio task that waits for the bare number of `fileno` must be told first,
        with ``trio.lowlevel.notify_closing``.
        """
        # Story: a thread is in poll(2) on this number. Closed under it, the poll would look at whatever file gets
        # the number next. So it is woken, and its reference is the last. It looks at the flag before it sleeps
        # again, so the flag comes first; the bell can be rung only while we have it, so dropping it comes last.
        # Each line may be repeated: a `close` that a signal handler's exception has ended is done again.
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
