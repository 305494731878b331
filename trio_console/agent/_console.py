"""The console as a stream: the agent's end, from a descriptor or a device.

Whatever it is, children must not inherit it, and no stray print may end up in it.

This module knows nothing of frames.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from typing import Final

import trio

__all__ = ["open_fd", "open_port", "open_stdio"]

#: Descriptors up to here are left to those who expect them to be what they always are.
_FIRST_FREE_FD: Final = 10

#: Seconds to wait for a host to open its end of a port.
_HOST_WAIT: Final = 60.0
_HOST_POLL: Final = 0.02


def open_stdio() -> trio.abc.Stream:
    """Take standard input and output. Input is then empty, and what is printed goes to standard error."""
    receive = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
    send = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
    empty = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return trio.StapledStream(trio.lowlevel.FdStream(send), trio.lowlevel.FdStream(receive))


def open_fd(fd: int) -> trio.abc.Stream:
    """Take a descriptor that is open for reading and writing.

    Raises:
        OSError: it is not open.
    """
    os.set_inheritable(fd, False)
    return trio.lowlevel.FdStream(fd)


def open_port(path: str) -> trio.abc.Stream:
    """Open a character device, and wait up to a minute for the host to open its end.

    Blocks; to be called before the loop runs. A virtio port without a host reads as if it were at its
    end, and an agent that believed it would take the whole guest down before the host came.

    Raises:
        OSError: the device cannot be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    if os.isatty(fd):
        _make_raw(fd)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + _HOST_WAIT
    while _no_host(poll.poll(0)) and time.monotonic() < deadline:
        time.sleep(_HOST_POLL)
    return trio.lowlevel.FdStream(fd)


def _no_host(events: list[tuple[int, int]]) -> bool:
    return any(event & select.POLLHUP and not event & select.POLLIN for _, event in events)


def _make_raw(fd: int) -> None:
    """A serial line would otherwise echo, translate line ends and act on control characters."""
    import tty  # here, because it is the rare case

    tty.setraw(fd)
