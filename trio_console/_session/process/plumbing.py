"""Where a process's streams lead: to the user, into a list, to this program's own output, or nowhere."""

from __future__ import annotations

import errno
import os
import select
import subprocess
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import trio

from trio_console._errors import ProtocolError
from trio_console._session.process.input import StdinStream
from trio_console._session.receiving import IncomingStream
from trio_console._trio.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_console._session.process.session import ProcessSession
    from trio_console._session.receiving import Incoming

    #: To be run by a task, for as long as the stream is there.
    Job: TypeAlias = Callable[[], Awaitable[None]]

__all__ = ["attach_input", "attach_output"]


def attach_input(session: ProcessSession) -> Job | None:
    """Give the process its stdin; returns the job of feeding it, for when it runs."""
    stdin, tty = session.command.stdin, session.command.tty
    if stdin is None and tty:
        return None  # nobody types
    stream = StdinStream(session.input, tty=tty)
    if isinstance(stdin, int) and stdin == subprocess.PIPE:
        session.stdin = stream
        return None
    data = bytes(stdin) if isinstance(stdin, (bytes, bytearray, memoryview)) else b""
    if data or tty:  # whose end of file is a character, which a program that starts may drop
        return partial(_feed, stream, data)
    session.close_input()
    return None


def attach_output(session: ProcessSession) -> Iterator[Job]:
    """Give the process its stdout and stderr; yields the background jobs this needs."""
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

    A process that does not want it all is none of our business, as on this machine. But an agent that could not
    queue it (one without credit) has lost some, and then the result is wrong.
    """
    async with stdin:
        try:
            await stdin.send_all(data)
        except trio.BrokenResourceError as exc:
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.ENOSPC:
                raise


@trio.lowlevel.enable_ki_protection
async def _collect(stream: IncomingStream, into: list[bytes]) -> None:
    # What ended the process abnormally, or kept it from starting, is told to those who wait for it.
    try:
        async for chunk in stream:
            into.append(bytes(chunk))  # noqa: PERF401  (what has come must be there if this is cancelled)
    except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError, OSError):
        pass


@trio.lowlevel.enable_ki_protection
async def _pass_on(stream: IncomingStream, fd: int) -> None:
    """Write to this program's own descriptor, as a child process that had inherited it would."""
    # A thread may be stuck in the write for as long as nobody reads our output. It must not be one of those
    # that the rest of the program shares.
    limiter = trio.CapacityLimiter(1)
    purpose = f"to pass on a guest's output to descriptor {fd}"
    try:
        async for chunk in stream:
            await in_thread(purpose, partial(_write_all, fd, bytes(chunk)), limiter=limiter, abandon=True)
    except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError):
        pass
    except OSError:
        # Nobody reads our output (EPIPE), or there is none (EBADF). A child would be told by a signal; ours
        # writes on into nowhere, counted.
        await stream.aclose()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody made it non-blocking, which is for the open file, not for one process
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
