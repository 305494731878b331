"""This program's standard descriptors: reading and writing them, which may block for ever, and messages.

They are written with `os.write` and not through `sys.stdout`: a thread that blocks in the write holds no lock that
the end of the interpreter waits for, and the bytes do not depend on the locale.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from functools import partial
from typing import Final, final

import trio

from trio_console._cli.failures import OutputError
from trio_console._trio.threads import in_thread

__all__ = ["Output", "read_stdin", "say"]

_READ_SIZE: Final = 65536
_NAMES: Final = {1: "stdout", 2: "stderr"}


def say(message: object, *, patient: bool = True) -> None:
    """Write a message to stderr. If it cannot be written, there is no place left to say so.

    Args:
        message: the text.
        patient: wait while stderr takes no bytes; otherwise the message is dropped then.
    """
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    if patient or poll.poll(0):
        output = Output(2)
        with suppress(OSError):
            output.write_blocking(f"trio_console: {message}\n".encode(errors="backslashreplace"))


@final
class Output:
    """Writes to a standard descriptor.

    Attributes:
        written: the bytes that it has taken so far.
        busy: whether a write waits for it.
    """

    def __init__(self, fd: int) -> None:
        self._fd: Final = fd
        self._limiter: Final = trio.CapacityLimiter(1)
        self.written = 0
        self.busy = False

    async def write(self, data: bytes) -> None:
        """Write all of it, in a thread. If cancelled, the thread writes on until this program ends.

        Raises:
            OutputError: it cannot be written.
            RuntimeError: no thread could be started.
        """
        write = partial(self.write_blocking, data)
        name = _NAMES[self._fd]
        self.busy = True
        try:
            await in_thread(f"to write to {name}", write, limiter=self._limiter, abandon=True)
        except OSError as exc:
            raise OutputError(name, exc) from exc
        self.busy = False

    def write_blocking(self, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            try:
                size = os.write(self._fd, view)
            except BlockingIOError:  # another process that shares the open file has made it non-blocking
                select.select([], [self._fd], [])
            else:
                view = view[size:]
                self.written += size  # (one thread at a time writes to it)


async def read_stdin() -> bytes:
    """Read some bytes, in a thread; ``b""`` at end of file. If cancelled, the thread reads on until it has some.

    Raises:
        OSError: it cannot be read.
        RuntimeError: no thread could be started.
    """
    return await in_thread("to read stdin", _read_stdin, abandon=True)


def _read_stdin() -> bytes:
    while True:
        try:
            return os.read(0, _READ_SIZE)
        except BlockingIOError:  # another process that shares our stdin has made it non-blocking
            select.select([0], [], [])
