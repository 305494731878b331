"""Devices for tests of `open_console`, guests behind them, and functions that fill both."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
import trio.testing

from tests.tools.limits import HANG
from tests.tools.streams import fill
from trio_console._console.channel import open_console
from trio_console._console.devices import FdDevice, as_device
from trio_console._console.polled import PolledStream, open_polled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from trio_console._console.backend import ConsoleSharedState
    from trio_console._console.stream import ConsoleStream


class SocketDevice:
    """A user's device: an object with the blocking methods, around a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.blocked_writing = False
        self.closed = threading.Event()

    def read(self, max_bytes: int) -> bytes:
        return self.sock.recv(max_bytes)

    def write(self, data: memoryview, /) -> int:
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.blocked_writing = True
        try:
            return self.sock.send(data)
        finally:
            self.blocked_writing = False

    def close_write(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.closed.set()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


#: The device behind each console's state. The device knows whether its writer sleeps.
DEVICES: weakref.WeakKeyDictionary[ConsoleSharedState, Any] = weakref.WeakKeyDictionary()


def by_socket() -> tuple[Any, trio.abc.HalfCloseableStream]:
    ours, theirs = socket.socketpair()
    return ours, trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


def by_descriptor() -> tuple[Any, trio.abc.HalfCloseableStream]:
    ours, guest = by_socket()
    return ours.detach(), guest


def by_object() -> tuple[Any, trio.abc.HalfCloseableStream]:
    ours, guest = by_socket()
    return SocketDevice(ours), guest


def by_pipes() -> tuple[Any, trio.abc.HalfCloseableStream]:
    to_guest, to_host = os.pipe(), os.pipe()
    guest = trio.StapledStream(trio.lowlevel.FdStream(to_host[1]), trio.lowlevel.FdStream(to_guest[0]))
    return (to_host[0], to_guest[1]), guest


@asynccontextmanager
async def open_by_tasks(device: Any, **options: Any) -> AsyncIterator[PolledStream]:
    """As `open_console`, with tasks in place of the threads."""
    port = as_device(device)
    assert isinstance(port, FdDevice)
    async with open_polled(port, **options) as stream:
        yield stream


#: What moves the bytes. A test that has one of these, or a `Kind`, holds for both.
OPENERS: list[Any] = [open_console, open_by_tasks]


class Kind(NamedTuple):
    """A device, and what moves its bytes."""

    make: Callable[[], tuple[Any, trio.abc.HalfCloseableStream]]
    open: Callable[..., AbstractAsyncContextManager[Any]]

    def __str__(self) -> str:
        return self.make.__name__ + ("-tasks" if self.open is open_by_tasks else "")


BY_THREADS = [Kind(make, open_console) for make in (by_socket, by_descriptor, by_object, by_pipes)]
BY_TASKS = [Kind(make, open_by_tasks) for make in (by_socket, by_descriptor, by_pipes)]
KINDS = [*BY_THREADS, *BY_TASKS]


async def serve(kind: Kind, device: Any, task_status: Any, **options: Any) -> None:
    """Hold a console open until it is closed."""
    async with kind.open(device, **options) as channel:
        task_status.started(channel)
        await channel._wait_closed()


#: Bytes that are sent at once to fill a console.
BLOCK = bytes(1024)


async def clog_out(channel: ConsoleStream | PolledStream) -> None:
    """Send until nothing moves any more: the ring, the worker's hand and the kernel's buffer are full."""
    if isinstance(channel, PolledStream):
        await fill(channel, BLOCK)  # something is queued only while the kernel's buffer is full
        return
    device = DEVICES[channel._shared]
    while not getattr(device, "blocked_writing", False):
        await fill(channel, BLOCK)
    # From here on the worker sleeps until the guest reads.
    await fill(channel, BLOCK)


async def clog(channel: ConsoleStream | PolledStream, guest: trio.abc.SendStream) -> None:
    """The same, both ways."""
    await clog_out(channel)
    if isinstance(channel, PolledStream):
        await fill(guest, BLOCK)
        return
    ring = channel._shared._tx.ring
    while ring.fits(ring.max_bytes) or not ring._room_armed:
        await fill(guest, BLOCK)
    # From here on the worker sleeps until the host receives.
    await fill(guest, BLOCK)


class ScriptedDevice:
    """A device that returns or raises the given results, and then blocks until it is closed."""

    def __init__(self, *reads: bytes | Exception, write_error: Exception | None = None) -> None:
        self._reads = list(reads)
        self._write_error = write_error
        self.written = b""
        self.closed = threading.Event()
        self.close_error: Exception | None = None

    def read(self, max_bytes: int) -> bytes:
        if self._reads:
            answer = self._reads.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        self.closed.wait(HANG)
        return b""

    def write(self, data: memoryview, /) -> int:
        if self._write_error is not None:
            raise self._write_error
        self.written += data[:3]
        return min(3, len(data))

    def close_write(self) -> None:
        pass

    def close(self) -> None:
        self.closed.set()
        if self.close_error is not None:
            raise self.close_error
