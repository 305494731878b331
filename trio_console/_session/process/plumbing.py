"""Where a process's streams lead: to the user, into a list, to this program's own output, or nowhere."""

from __future__ import annotations

import errno
import os
import select
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_console._errors import ProtocolError
from trio_console._trio.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_console._session.process.command import Command, Input
    from trio_console._session.process.input import StdinStream
    from trio_console._session.process.process import GuestProcess
    from trio_console._session.receiving import IncomingStream

__all__ = ["attach_input", "attach_output", "feed"]


def attach_input(process: GuestProcess, stdin: Input) -> bytes | None:
    """Give the process its stdin; returns bytes that are to be fed by a task."""
    if stdin is None and process.has_tty:
        return None  # nobody types
    if isinstance(stdin, int) and stdin == subprocess.PIPE:
        process.stdin = process.input
        return None
    data = bytes(stdin) if isinstance(stdin, (bytes, bytearray, memoryview)) else b""
    if data or process.has_tty:  # whose end of file is a character, which a program that starts may drop
        return data
    process.input.close()
    return None


def attach_output(process: GuestProcess, command: Command) -> Iterator[Callable[[], Awaitable[None]]]:
    """Give the process its stdout and stderr; yields the background jobs this needs."""
    if command.stderr == subprocess.STDOUT:
        process.merge_output()
    else:
        job = _attach(process.error_output, command.stderr, process.captured_errors, 2)
        if job is None and command.stderr == subprocess.PIPE:
            process.stderr = process.error_output
        if job is not None:
            yield job
    job = _attach(process.output, command.stdout, process.captured, 1)
    if job is None and command.stdout == subprocess.PIPE:
        process.stdout = process.output
    if job is not None:
        yield job
    if process.stdin is not None and process.stdout is not None:
        process.stdio = trio.StapledStream(process.stdin, process.stdout)


def _attach(
    stream: IncomingStream, target: int | None, captured: list[bytes] | None, own_fd: int
) -> Callable[[], Awaitable[None]] | None:
    if captured is not None:
        return partial(_collect, stream, captured)
    if target is None:
        return partial(_pass_on, stream, own_fd)
    if target == subprocess.DEVNULL:
        stream.close()
    return None


@trio.lowlevel.enable_ki_protection
async def feed(stdin: StdinStream, data: bytes) -> None:
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
        stream.close()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody made it non-blocking, which is for the open file, not for one process
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
