"""Connects a process's streams: to the user, to a list, to this program's own output, or to nothing."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import threading
import warnings
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, final

import trio

from trio_console._errors import ProtocolError
from trio_console._session.process.input import StdinStream
from trio_console._session.receiving import IncomingStream
from trio_console._trio.clocks import within
from trio_console._trio.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_console._session.process.command import Input
    from trio_console._session.process.session import ProcessSession
    from trio_console._session.receiving import Incoming

    #: A function for a background task, which ends with its stream.
    Job: TypeAlias = Callable[[], Awaitable[None]]

__all__ = ["attach_input", "attach_output"]

#: Seconds for the last write of a cancelled copy. A descriptor that is read takes a chunk in milliseconds.
_LAST_WRITE: Final = 0.2


def attach_input(session: ProcessSession) -> Job | None:
    """Connect the process's stdin; returns the job that feeds it, to be started once the process runs."""
    stdin, tty = session.command.stdin, session.command.tty
    if stdin is None and tty:
        return None  # a terminal on which nothing is typed
    stream = StdinStream(session.input, tty=tty)
    if isinstance(stdin, int) and stdin == subprocess.PIPE:
        session.stdin = stream
        return None
    data = bytes(stdin) if isinstance(stdin, (bytes, bytearray, memoryview)) else b""
    if data or tty:  # a terminal's end of file is a character, which a starting program may discard
        return partial(_feed, stream, data)
    if not session.tells_ends or (stdin is not None and not _is_devnull(stdin)):
        session.close_input()
    return None


def _is_devnull(stdin: Input) -> bool:
    return isinstance(stdin, int) and stdin == subprocess.DEVNULL


def attach_output(session: ProcessSession) -> Iterator[Job]:
    """Connect the process's stdout and stderr; yields the background jobs that are needed."""
    command = session.command
    if command.stderr == subprocess.STDOUT:
        session.merge_output()
    elif command.stderr == subprocess.PIPE:
        session.stderr = IncomingStream(session.error_output)
    else:
        yield from _jobs(session.error_output, command.stderr, session.captured_errors, 2)
    if command.stdout == subprocess.PIPE:
        session.stdout = IncomingStream(session.output)
    else:
        yield from _jobs(session.output, command.stdout, session.captured, 1)


def _jobs(incoming: Incoming, target: int | None, captured: list[bytes] | None, own_fd: int) -> Iterator[Job]:
    if captured is not None:
        yield partial(_collect, IncomingStream(incoming), captured)
    elif target is None:
        yield partial(_pass_on, IncomingStream(incoming), own_fd)
    else:
        incoming.close()  # DEVNULL


@trio.lowlevel.enable_ki_protection
async def _feed(stdin: StdinStream, data: bytes) -> None:
    """Send all the input, then end of file.

    A process need not read all its input, as on this machine. But if an agent without credit could not queue the
    input, some of it is lost and the result would be wrong, so that error is raised.
    """
    async with stdin:
        try:
            await stdin.send_all(data)
        except trio.BrokenResourceError as exc:
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.ENOSPC:
                raise


@trio.lowlevel.enable_ki_protection
async def _collect(stream: IncomingStream, into: list[bytes]) -> None:
    # An error that ended the process, or kept it from starting, is raised by the wait for the process.
    try:
        async for chunk in stream:
            into.append(bytes(chunk))  # noqa: PERF401  (if this is cancelled, the chunks that have come must be in the list)
    except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError, OSError):
        pass


@trio.lowlevel.enable_ki_protection
async def _pass_on(stream: IncomingStream, fd: int) -> None:
    """Write the stream to a descriptor of this program, as if a child process had inherited it."""
    # A thread may be blocked in the write for as long as our output is not read, so it must not take a thread of
    # trio's default limiter.
    limiter = trio.CapacityLimiter(1)
    purpose = f"to copy a guest's output to descriptor {fd}"
    writer = _Writer(fd)
    try:
        async for chunk in stream:
            await in_thread(purpose, partial(writer.write, bytes(chunk)), limiter=limiter, abandon=True)
    except trio.Cancelled:
        with trio.CancelScope(shield=True):
            await writer.leave()
        raise
    except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError):
        pass
    except OSError:
        # The reader of our output has gone (EPIPE), or the descriptor is closed (EBADF). A child of this machine
        # would get a signal; a process in the guest writes on, and its output is dropped and counted.
        await stream.aclose()


@final
class _Writer:
    """Writes to a descriptor of this program in threads, one after the other.

    A write cannot be stopped, so a cancelled one is left to its thread. The task and the thread meet under a lock:
    the thread notes its end and then looks for a waiting task, the task begins to wait and then looks for the end.
    Whichever comes second sees the other, so no wake-up is missed.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock: Final = threading.Lock()
        self._busy = False
        self._wake: Callable[[], object] | None = None

    def write(self, data: bytes) -> None:
        """Write all; runs in a thread."""
        self._busy = True  # (A call that was cancelled before it began is not stuck.)
        try:
            _write_all(self._fd, data)
        finally:
            with self._lock:
                self._busy = False
                if self._wake is not None:
                    self._wake()

    async def leave(self) -> None:
        """Leave a write to its thread. If it does not end at once, because the descriptor takes nothing, warn."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def wake() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        with self._lock:
            if not self._busy:
                return
            self._wake = wake
        if not await _ends_soon(done):
            warnings.warn(
                f"this program's descriptor {self._fd} takes no bytes, so a thread that copies a guest's output "
                "to it is stuck. It is abandoned; the rest is written when the descriptor is read again",
                RuntimeWarning,
                stacklevel=1,
            )


async def _ends_soon(done: trio.Event) -> bool:
    await within(_LAST_WRITE, done.wait)
    return done.is_set()


def _write_all(fd: int, data: bytes) -> None:
    if not os.get_inheritable(fd):
        # A child would not have it. The standard descriptor was closed, and another file has got its number.
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # another process that shares the open file has made it non-blocking
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
