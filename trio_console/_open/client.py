"""A client of a guest, which another process serves through a relay.

This module must not know how a guest is started.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from trio_console._addresses import named_by_descriptor
from trio_console._forked import shut_down_at_the_end
from trio_console._guests.host import CANCELLED_GRACE
from trio_console._open.defaults import DEFAULT_GRACE
from trio_console._relay.trust import check_server
from trio_console._session.attach import attach
from trio_console._session.confirmations import Confirmations
from trio_console._session.connection import Connection
from trio_console._session.guest import Guest
from trio_console._session.heartbeat import Heartbeat, check_heartbeat
from trio_console._trio.clocks import Stopwatch
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.lost import GuestLostError
from trio_console._trio.nursery import hidden_nursery
from trio_console._trio.sockets import connect_unix

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from trio_console._guests.host import Host
    from trio_console._trio.sockets import UnixStream

    Watch: TypeAlias = Callable[[], Awaitable[None]]

__all__ = ["attached", "connect_guest", "watches"]

#: Seconds for a relay to greet a client: the same as in upstream's clients.
_HANDSHAKE_TIMEOUT: Final = 10.0


@interrupt_safe
@asynccontextmanager
async def connect_guest(
    path: str | os.PathLike[str],
    *,
    server_uids: Collection[int] | None = None,
    grace: float = DEFAULT_GRACE,
    heartbeat: float | None = None,
) -> AsyncIterator[Guest]:
    """Connect to a guest that another process serves through a relay, and yield it.

    Leaving the block, also if cancelled, disconnects at once: the relay then kills the processes that this client
    has left running, and the guest goes on. (`Guest.shutdown` ends the guest for all its clients.) Only data of
    connections that the relay has not taken yet is waited for, at most for ``grace``, or a second if cancelled.

    Args:
        path: path of the relay's Unix socket. Any relay of the agent protocol can be used.
        server_uids: the user ids whose relays are trusted, because a relay sees all that its clients do. `None`,
            the default, takes a relay of this process's own user, of root, or of the owner of both the socket and
            its directory (if no other user can write to that).
        grace: seconds, by default 5, for the guest to confirm the ends of processes, as in `open_guest`.
        heartbeat: as in `open_guest`, except that the guest goes on and only this client leaves it.

    Raises:
        OSError: there is no relay at ``path``: `FileNotFoundError` or `ConnectionRefusedError`, with
            ``.filename``; `PermissionError`: a user who is not trusted listens there.
        GuestLostError: the relay refused this client, or did not greet it within 10 seconds.
        ProtocolError: the program that listens there is not a relay of this protocol.
        UnsupportedByPeer: ``heartbeat`` was given, and the agent is too old for pings.
        TypeError, ValueError: ``heartbeat`` is not valid. No connection was made.
    """
    check_heartbeat(heartbeat)
    name = os.fspath(path)
    stream = await _connect(name, server_uids)
    # (The stream is not closed by its `aclose`, because that is a checkpoint: a `Cancelled` raised there would
    # replace the exception with which the block is left, such as a KeyboardInterrupt.)
    with stream.socket, shut_down_at_the_end(stream.socket):
        connection = await attached(stream, partial(_explain_relay, name))
        force = partial(connection.lose, "the guest was shut down")
        guest = Guest(connection, confirmations=Confirmations(grace, connection.heard), force=force)
        async with hidden_nursery() as nursery:
            nursery.start_soon(connection.run, *watches(connection, heartbeat))
            try:
                yield guest
            finally:
                await _leave_relay(connection, grace)  # noqa: ASYNC102  (shields itself)


async def _connect(path: str, server_uids: Collection[int] | None) -> UnixStream:
    try:
        with named_by_descriptor(path) as name:
            stream = await connect_unix(name)
        try:
            check_server(stream.socket, path, server_uids)
        except BaseException:
            stream.socket.close()
            raise
    except OSError as exc:
        # (The error for a path that is too long has no errno.)
        error = type(exc)(exc.errno, exc.strerror or str(exc), path)
        error.add_note("(connecting to a relay)")
        raise error from exc
    return stream


async def attached(
    stream: UnixStream,
    explain: Callable[[], Awaitable[str]],
    cause: Callable[[], Exception | None] = lambda: None,
) -> Connection:
    """A client's connection to a relay, after the relay has greeted the client."""
    watch = Stopwatch()
    try:
        with trio.fail_after(_HANDSHAKE_TIMEOUT):
            attached = await attach(stream)
    except trio.TooSlowError:
        reason = f"the relay did not greet within {_HANDSHAKE_TIMEOUT:g} seconds{watch.note()}"
        raise GuestLostError(reason) from None
    except trio.BrokenResourceError as exc:
        if isinstance(exc, GuestLostError):
            raise
        raise GuestLostError("the relay broke the connection") from exc
    said = attached.decoder, attached.ready, attached.generation, attached.ids
    return Connection(stream, *said, explain, cause)


async def _explain_relay(path: str) -> str:
    await trio.lowlevel.checkpoint()
    return f"the relay at {path} closed the connection; its guest is gone, or it has cut this client"


async def _leave_relay(connection: Connection, grace: float) -> None:
    """End a connection to a relay, when the relay has got the bytes of connections that were closed.

    (If it has, this is not even a checkpoint.)
    """
    reason = "the connection to the relay was closed on this side"

    async def end(patience: trio.CancelScope) -> None:
        with patience:
            await connection.wait_delivered()
        connection.lose(reason)

    connection.leave()
    if connection.owes:
        await see_through(end, grace=grace, hurried=CANCELLED_GRACE)
    else:
        connection.lose(reason)


def watches(connection: Connection, seconds: float | None, host: Host | None = None) -> list[Watch]:
    """The background tasks that watch whether the guest is alive."""
    if seconds is None:
        return []
    if host is None:
        return [Heartbeat(connection, seconds).run]
    return [Heartbeat(connection, seconds, carried=host.carried, force=host.kill).run]
