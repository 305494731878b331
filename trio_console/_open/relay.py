"""A guest that is served to other processes.

It is loaded only for a guest that has a relay, because the relay is a quarter of all that is loaded.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_console._guests.host import Progress, booted_host, end, own_console, spec_of
from trio_console._open.defaults import DEFAULT_GRACE, DEFAULT_LAUNCH_TIMEOUT, DEFAULT_READY_TIMEOUT
from trio_console._relay.serve import Relay, listening, prepared, relaying
from trio_console._session.boot import make_bootstrap
from trio_console._session.confirmations import Confirmations
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.lost import GuestLostError, explained
from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Mapping

    from trio_console._console.devices import ConsoleDevice
    from trio_console._guests.host import Host
    from trio_console._guests.spec import GuestSpec
    from trio_console._relay.options import RelayOptions, ServerOptions
    from trio_console._relay.server import RelayServer
    from trio_console._relay.socket import RelaySocket
    from trio_console._session.guest import Guest

__all__ = ["listening", "prepared", "serve_relay", "serving", "tell_through_relay"]

#: Seconds for a guest to end after a client has told it to: the same as in upstream's host.
_SHUTDOWN_TIME: Final = 2.0


@trio.lowlevel.enable_ki_protection
async def serve_relay(
    what: GuestSpec | trio.abc.Stream | ConsoleDevice | None,
    path: str | os.PathLike[str],
    *,
    bootstrap: Mapping[str, Any] = MappingProxyType({}),
    launch_timeout: float = DEFAULT_LAUNCH_TIMEOUT,
    ready_timeout: float = DEFAULT_READY_TIMEOUT,
    grace: float = DEFAULT_GRACE,
    options: RelayOptions | None = None,
    task_status: trio.TaskStatus[Relay] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Boot a guest and serve it to other processes over a Unix socket, until cancelled or until the guest ends.

    For ``nursery.start``, which returns the `Relay` once clients are served. Up to 128 clients share the guest.
    Each has its own ids, and no client can read, stall or end the work of another. The call returns when a client
    has shut the guest down. If cancelled, it shuts the guest down within ``grace``.

    The socket has mode 0600, or 0666 if other users have rights, and its file is removed at the end. A socket file
    that a dead relay has left is replaced; the file of a running relay never is.

    Args:
        what: the guest, or its console, as for `open_guest`.
        path: path of the socket that is made for clients. Its directory belongs to this process's user or to root,
            and no other user may be able to write to it.
        bootstrap, launch_timeout, ready_timeout, grace: as for `open_guest`.
        options: who may connect, and what clients may do; by default ``RelayOptions()``.
        task_status: for ``nursery.start``.

    Raises:
        GuestLostError: the guest is gone; its clients were told.
        PermissionError: other users can write to the socket's directory.
        OSError: the socket could not be made (``EADDRINUSE``: a relay is listening there), a log could not be
            opened, or the guest could not be started or reached.
        ProtocolError, TypeError, ValueError: as for `open_guest`.
    """
    settings = make_bootstrap(bootstrap)
    spec = spec_of(what)
    async with (
        own_console(spec),
        prepared(options) as served,
        listening(path, served) as made,
        booted_host(spec, settings, launch_timeout, ready_timeout) as host,
        serving(host, made, served) as server,
    ):
        try:
            task_status.started(Relay(made.path, server, host.statistics))
            await server.wait_ended()
        finally:
            tell = partial(server.shut_down, grace)
            await end(tell, server.wait_ended, host, Confirmations(grace))  # noqa: ASYNC102  (shields itself)
        if not server.shutdown_requested.is_set():
            raise GuestLostError(await explained(server.reason, host.explain)) from (host.cause() or server.cause)


@interrupt_safe
@asynccontextmanager
async def serving(host: Host, made: RelaySocket, options: ServerOptions) -> AsyncIterator[RelayServer]:
    """Run a relay, and end the guest by force if a client has told it to shut down and it does not."""
    served = relaying(host.channel, host.booted, made, options, host.explain)
    async with served as server, hidden_nursery() as nursery:
        host.progress = lambda: Progress(*server.progress())
        nursery.start_soon(_enforce_shutdown, server, host)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


@trio.lowlevel.enable_ki_protection
async def _enforce_shutdown(server: RelayServer, host: Host) -> None:
    await server.shutdown_requested.wait()
    await trio.sleep(_SHUTDOWN_TIME)
    host.kill()
    await host.close_by_force()


def tell_through_relay(server: RelayServer, guest: Guest) -> None:
    """Accept no more clients, and tell the guest to shut down, behind all data that was sent to it."""
    if guest._connection.lost is None:
        server.accept_no_more()
        guest._tell_to_end()
    else:
        server.shut_down(guest._confirmations.grace)
