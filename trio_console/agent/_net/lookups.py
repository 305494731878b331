"""Look-ups of the addresses of hosts: in threads that clients share, so that slow names stop no other client's.

The C library makes a look-up, and it cannot be stopped: it keeps its thread, and its client's slot, until it
returns.

This module must not know sessions.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, final

import outcome
import trio

from trio_console._errors import without_frames
from trio_console._trio.threads import NoThreadError, in_thread
from trio_console.agent._shares import Share, Shares

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = ["Lookups", "dial"]

#: Look-ups at once, beside the first of each client; eight of them for one client.
_LOOKUPS: Final = 11

#: Seconds before the next address of a host is tried beside those before it.
_HEAD_START: Final = 0.25


@final
class Lookups:
    """See the module. The look-ups are tasks of ``nursery``."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._shares = Shares(_LOOKUPS)
        self._threads = trio.CapacityLimiter(math.inf)  # the shares are the limit

    def forget(self, client: int) -> None:
        """See `Shares.forget`."""
        self._shares.forget(client)

    async def addresses(self, client: int, host: str, port: int) -> list[str]:
        """The addresses of a host, in the order in which they are to be tried.

        If cancelled, the look-up goes on, and its result is dropped.

        Raises:
            OSError: the host is not known, or there is no thread for a look-up.
        """
        if _is_address(host):
            await trio.lowlevel.checkpoint()
            return [host]
        found: list[outcome.Outcome[list[str]]] = []
        done = trio.Event()
        share = self._shares.of(client)

        async def look_up() -> None:
            found.append(await outcome.acapture(self._look_up, share, host, port))
            done.set()

        self._nursery.start_soon(look_up)
        await done.wait()
        return found.pop().unwrap()  # (not kept: the traceback of an error leads to this frame)

    async def _look_up(self, share: Share, host: str, port: int) -> list[str]:
        call = partial(_find, host, port)
        try:
            async with self._shares.slot(share):
                return await in_thread("to look up a host", call, limiter=self._threads, abandon=True)
        except NoThreadError as exc:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from exc


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, host.partition("%")[0])
            return True
    return False


def _find(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    texts = (socket.getnameinfo(each[4], socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0] for each in found)
    return list(dict.fromkeys(texts))


async def dial(
    addresses: Sequence[str], port: int, piece: Callable[[], AbstractAsyncContextManager[object]]
) -> trio.SocketStream:
    """Connect to the first address that answers; each is tried a moment after the one before, or when that failed.

    Args:
        addresses: at least one.
        port: the port.
        piece: a block in which a connection is begun.

    Raises:
        OSError: that of the last attempt that failed.
    """
    if len(addresses) == 1:
        return await _attempt(addresses[0], port, piece)
    made: list[trio.SocketStream] = []
    errors: list[OSError] = []

    async def attempt(address: str, failed: trio.Event) -> None:
        try:
            stream = await _attempt(address, port, piece)
        except OSError as exc:
            errors.append(without_frames(exc))
            failed.set()
        else:
            made.append(stream)
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(_HEAD_START):
                    await failed.wait()
    except BaseException:
        for stream in made:
            stream.socket.close()
        raise
    for stream in made[1:]:
        stream.socket.close()
    if made:
        return made[0]
    raise errors.pop()  # (not kept: its traceback will lead to this frame)


async def _attempt(
    address: str, port: int, piece: Callable[[], AbstractAsyncContextManager[object]]
) -> trio.SocketStream:
    """Connect to an address; raises `OSError`."""
    async with piece():
        await trio.lowlevel.checkpoint()
        connection, code = _begin(address, port)
    try:  # (to leave a piece is no checkpoint, so there is no cancellation before this)
        if code == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(connection)
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        return trio.SocketStream(trio.socket.from_stdlib_socket(connection))
    except BaseException:
        connection.close()
        raise


def _begin(address: str, port: int) -> tuple[socket.socket, int]:
    """Begin to connect; returns the socket, and 0 or the number of the error, which may be EINPROGRESS."""
    # (Only this finds which interface an address names behind its percent sign. Nobody is asked for it.)
    [(family, kind, protocol, _, target), *_] = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        return connection, connection.connect_ex(target)
    except BaseException:
        connection.close()
        raise
