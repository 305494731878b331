"""Further virtio ports of a machine: streams between this program and programs in the guest.

Until it is opened here, a port leads nowhere, and the guest's kernel shows it as one without a host. Opening makes
a socket pair, of which QEMU gets one end as a descriptor, over its monitor. So there is no path or address that
another program could connect to, and one port can be opened any number of times, one after the other.

The end of the block is the end of the connection. QEMU closes both directions when it sees the end of one; so a
port is no stream that could be closed by halves. It does not tell this side that a program has closed the port.

This module must not know how the machine was started.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import socket
import termios
import warnings
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.machine.monitor import MonitorError
from trio_console._guests.machine.qemu import chardev_of
from trio_console._machine.welcome import PORT
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.lost import GuestLostError, explained
from trio_console._trio.sockets import UnixStream, enlarge_buffer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from trio_console._guests.machine.monitor import Monitor
    from trio_console._guests.supervisor import Tail

__all__ = ["Ports", "check_ports"]

#: A controller has 31 ports. The first of them can only be a terminal, and the next is the agent's.
_MOST: Final = 29

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)

#: Seconds for a program in the guest to take what was sent, when the block is left.
_LEAVE_TIME: Final = 5.0

#: Seconds between two looks whether it has: nothing tells.
_LOOK: Final = 0.02
_READ: Final = 256 * 1024

#: No bytes, as the kernel says it.
_NONE: Final = bytes(4)


def check_ports(names: Sequence[str]) -> tuple[str, ...]:
    """The names of further ports, if they can be such.

    Raises:
        TypeError: they are no sequence of strings.
        ValueError: a name is not valid, or is there twice, or there are too many.
    """
    if isinstance(names, (str, bytes)):
        raise TypeError(f"ports must be a sequence of names, not one: {names!r:.100}")
    checked = tuple(names)
    for number, name in enumerate(checked):
        if not isinstance(name, str):
            raise TypeError(f"the name of a port must be a string, not {name!r:.100}")
        if not _NAME.fullmatch(name):
            raise ValueError(
                "the name of a port must have 1 to 63 ASCII letters, digits, dots, underscores or hyphens, and "
                f"begin with a letter or digit: {name!r:.100}"
            )
        if name == PORT:
            raise ValueError(f"the port {PORT!r} is the agent's own")
        if name in checked[:number]:
            raise ValueError(f"the port {name!r} is there twice")
    if len(checked) > _MOST:
        raise ValueError(f"a machine can have {_MOST} further ports, not {len(checked)}")
    return checked


@final
class Ports:
    """The further ports of a machine that runs.

    Args:
        names: of the ports, in the order in which QEMU was told of them.
        monitor: QEMU's monitor; the conversation has begun.
        tail: QEMU.
    """

    def __init__(self, names: Sequence[str], monitor: Monitor, tail: Tail) -> None:
        self._numbers: Final = {name: number for number, name in enumerate(names)}
        self._monitor: Final = monitor
        self._tail: Final = tail
        self._open: Final[set[str]] = set()

    @interrupt_safe
    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[trio.abc.Stream]:
        """See `Guest.open_port`."""
        if name not in self._numbers:
            have = ", ".join(map(repr, self._numbers)) or "none"
            raise LookupError(f"this machine has no port {name!r:.100}; MicroVMGuest(ports=...) has named {have}")
        if name in self._open:
            raise trio.BusyResourceError(f"the port {name!r} is open already")
        self._open.add(name)
        try:
            with no_fork():
                ours, theirs = map(let_go_in_child, socket.socketpair())
            with trio.socket.from_stdlib_socket(ours) as sock:
                with theirs:
                    enlarge_buffer(ours)
                    enlarge_buffer(theirs)
                    await self._connect(name, theirs)
                stream = _PortStream(name, UnixStream(sock), self._tail)
                try:
                    yield stream
                finally:
                    ending = partial(_close, stream)
                    await see_through(ending, grace=math.inf)  # noqa: ASYNC102  (shields itself)
        finally:
            self._open.discard(name)

    async def _connect(self, name: str, theirs: socket.socket) -> None:
        """Let QEMU have the other end in the place of what the port had before, which is nothing, or has ended.

        If cancelled, QEMU may have it; then it sees at once that we have closed our end.
        """
        port = chardev_of(self._numbers[name])
        address = {"type": "fd", "data": {"str": port}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        error: MonitorError
        try:
            # (It keeps one descriptor for each name: one whose use was cancelled is replaced.)
            await self._monitor.give(port, theirs.fileno())
            await self._monitor.execute("chardev-change", id=port, backend=backend)
        except MonitorError as exc:
            error = exc
        else:
            return
        why = f"the port {name!r} cannot be opened: {error}"
        raise await self._tail.error(why, trio.BrokenResourceError) from error


@final
class _PortStream(trio.abc.Stream):
    """This side of an open port."""

    def __init__(self, name: str, inner: UnixStream, tail: Tail) -> None:
        self._name: Final = name
        self._inner: Final = inner
        self._tail: Final = tail
        self._closing = False

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`. What was sent may still wait to be taken. If cancelled, some was sent."""
        self._check_open()
        try:
            await self._inner.send_all(data)
        except trio.BrokenResourceError as exc:
            raise await self._gone() from exc

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        self._check_open()
        await self._inner.wait_send_all_might_not_block()

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`; it never returns without bytes. If cancelled, none are lost."""
        self._check_open()
        cause: trio.BrokenResourceError | None = None
        data = b""
        try:
            data = await self._inner.receive_some(max_bytes)
        except trio.BrokenResourceError as exc:
            cause = exc
        if not data:  # QEMU does not close the connection before us while it runs
            raise await self._gone() from cause
        return data

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close the port; see `Guest.open_port`. If cancelled, what was not taken is dropped."""
        self._closing = True
        try:
            if self._unread():
                await self._wait_taken()
        finally:
            self._inner.socket.close()
        await trio.lowlevel.checkpoint()

    async def _wait_taken(self) -> None:
        """Wait until a program has taken what was sent.

        The socket must not be closed before: QEMU would drop what it has not read. It sees the end of this
        direction behind the bytes, as the program does. What comes meanwhile is read, because a program that
        cannot write may not read either.
        """
        number = self._inner.socket.fileno()
        with suppress(OSError):
            self._inner.socket.shutdown(socket.SHUT_WR)
        with trio.move_on_after(_LEAVE_TIME):
            while self._unread():
                with suppress(BlockingIOError, ConnectionResetError):
                    os.read(number, _READ)
                await trio.sleep(_LOOK)
            return
        warnings.warn(
            f"no program in the guest took the bytes that were sent to the port {self._name!r} within "
            f"{_LEAVE_TIME:g} seconds after it was closed here: they are dropped",
            RuntimeWarning,
            stacklevel=1,
        )

    def _unread(self) -> bool:
        """Whether there is something that QEMU has not read. What it has read, the guest's kernel has."""
        number = self._inner.socket.fileno()
        return number >= 0 and fcntl.ioctl(number, termios.TIOCOUTQ, _NONE) != _NONE

    def _check_open(self) -> None:
        if self._closing:
            raise trio.ClosedResourceError(f"the port {self._name!r} was closed here")

    async def _gone(self) -> GuestLostError:
        """The error for a connection that QEMU has closed."""
        self._check_open()  # it does so when it has seen our end
        reason = f"the machine of the port {self._name!r} is gone"
        return GuestLostError(await explained(reason, self._tail.explain))


async def _close(stream: _PortStream, patience: trio.CancelScope) -> None:
    with patience:
        await stream.aclose()
