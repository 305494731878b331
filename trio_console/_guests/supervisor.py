"""A process of this machine that carries a guest's console: its pipes, its error output, and its end.

`ProcessGuest`, `CommandGuest` and `SocketGuest` share this code. This module must not know what the process is.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import warnings
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import trio

from trio_console._console.devices import as_device
from trio_console._forked import let_go_in_child, no_fork
from trio_console._trio.clocks import within
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.nursery import hidden_nursery
from trio_console._trio.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from trio_console._console.devices import GuestDevice
    from trio_console._guests.spec import Host

__all__ = ["TheirEnds", "beyond_standard", "owned", "start", "watch"]

#: Seconds for a process to be gone after SIGKILL. It takes milliseconds, and longer only if much memory has to be
#: freed. A process in an uninterruptible system call cannot be ended at all.
_KILL_TIME: Final = 1.0

_LAST_STANDARD_FD: Final = 2


def beyond_standard(end: socket.socket) -> socket.socket:
    """The same socket under a number that is not a standard descriptor's, so that a child can keep the number.

    (A program that has closed its own standard descriptors gets their numbers for what it opens next.)
    """
    if end.fileno() > _LAST_STANDARD_FD:
        return end
    with end:
        with no_fork():
            number = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _LAST_STANDARD_FD + 1)
            return let_go_in_child(socket.socket(fileno=number))


@contextmanager
def owned(take: Callable[[], socket.socket | tuple[int, int]]) -> Iterator[GuestDevice]:
    """Our end of a console, as a device; it is closed when the block is left, if it was not closed before.

    Args:
        take: makes that end, or only returns it.
    """
    assert trio.lowlevel.currently_ki_protected(), "no Ctrl-C comes between a descriptor and its owner"
    with no_fork():
        ends = take()
        try:
            device = as_device(ends)
        except (TypeError, ValueError):
            if isinstance(ends, tuple):
                for fd in ends:
                    os.close(fd)
            else:
                ends.close()
            raise  # (After any other error `as_device` has closed them.)
    try:
        yield device
    finally:
        device.close()


@final
class TheirEnds:
    """The ends of pipes for a process that is about to start; closed after its start, or when the block is left.

    A child that this program forks before that closes its copies of them. Otherwise we would not see end of file
    when the process ends.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        let_go_in_child(self, lambda ends: ends.numbers)

    def __enter__(self) -> TheirEnds:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        # Removed before it is closed: a child forked in between must not close a number that is another file's.
        while self.numbers:
            os.close(self.numbers.pop())

    def console(self) -> tuple[int, int]:
        """Make two pipes; keep the process's ends (to read from, to write to), and return ours (likewise)."""
        their_in, our_out = os.pipe()
        self.numbers.append(their_in)
        try:
            our_in, their_out = os.pipe()
        except OSError:
            os.close(our_out)
            raise
        self.numbers.append(their_out)
        return our_in, our_out

    @contextmanager
    def error_pipe(self) -> Iterator[trio.abc.ReceiveStream]:
        """Make a pipe, keep its writing end, and yield the reading end."""
        with no_fork():
            reading, writing = os.pipe()
            self.numbers.append(writing)
            # Forked children close their copy of the reading end: it would not be read, and a guest that writes
            # many errors would block.
            stream = let_go_in_child(trio.lowlevel.FdStream(reading))
        try:
            yield stream
        finally:
            stream.close()

    @contextmanager
    def text_pipe(self) -> Iterator[Callable[[str], Awaitable[None]]]:
        """Make a pipe, keep its reading end, and yield a function that writes a text to it, and closes it."""
        with no_fork():
            reading, writing = os.pipe()
            self.numbers.append(reading)
            stream = let_go_in_child(trio.lowlevel.FdStream(writing))

        @trio.lowlevel.enable_ki_protection
        async def tell(text: str) -> None:
            with suppress(trio.BrokenResourceError):  # the process has ended; its console tells of it
                await stream.send_all(text.encode())
            stream.close()

        try:
            yield tell
        finally:
            stream.close()


async def start(command: list[str], **options: Any) -> trio.Process:
    """Start a process in a POSIX session of its own.

    So signals for this program's process group, such as those that a terminal sends, are for this program alone,
    which ends its guests in order if it ends.
    """
    try:
        return await trio.lowlevel.open_process(command, start_new_session=True, **options)
    except RuntimeError as exc:  # trio starts processes in threads
        raise NoThreadError("to start the guest's process") from exc


@interrupt_safe
@asynccontextmanager
async def watch(
    host: Host,
    process: trio.Process,
    stderr: trio.abc.ReceiveStream,
    tell: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Host]:
    """Read a guest process's error output, and end the process when the block is left.

    Args:
        host: the guest.
        process: its process.
        stderr: what the process says.
        tell: gives the process what it is to read first, meanwhile.
    """
    # The reading is shielded, and ended only here: a guest that is shutting down may still write errors, and must
    # not block in the write.
    reading = trio.CancelScope(shield=True)
    async with hidden_nursery() as nursery:
        nursery.start_soon(_keep_tail, host, stderr, reading)
        if tell is not None:
            nursery.start_soon(tell)
        try:
            yield host
        finally:
            host.kill()
            reap = partial(_reap, host, process, reading)
            await see_through(reap, grace=math.inf, hurried=math.inf)  # noqa: ASYNC102  (shields itself)


@trio.lowlevel.enable_ki_protection
async def _keep_tail(host: Host, stderr: trio.abc.ReceiveStream, reading: trio.CancelScope) -> None:
    with reading:
        async with stderr:
            with suppress(trio.BrokenResourceError):
                async for data in stderr:
                    host.keep_tail(bytes(data))
            host.end_tail()


async def _reap(host: Host, process: trio.Process, reading: trio.CancelScope, patience: trio.CancelScope) -> None:
    """Wait for a process that was killed. If it does not end in time, warn, and leave it to the system."""
    with patience:
        await within(_KILL_TIME, process.wait)
    reading.cancel()
    if process.returncode is None:
        warnings.warn(
            f"{host.name} (process {process.pid}) was killed but did not end within {_KILL_TIME:g} second: it "
            "may be in an uninterruptible system call. It is left running",
            RuntimeWarning,
            stacklevel=1,
        )
