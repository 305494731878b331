"""A relay's life: its socket, its server, and their ending.

The order of an ending: no more clients are accepted; the guest is told to shut down; its last frames are delivered
to the clients; the clients are disconnected; the socket's file is removed. After that the caller ends the console
and the guest's process. All steps together have one deadline, the grace.
"""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._forked import let_go_in_child, no_fork
from trio_console._relay.audit import AuditLog
from trio_console._relay.log import SessionLog
from trio_console._relay.options import Log, RelayOptions
from trio_console._relay.server import RelayServer
from trio_console._relay.socket import RelaySocket
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.nursery import hidden_nursery
from trio_console._trio.threads import NoThreadError, in_thread

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_console._console.stream import ConsoleStatistics
    from trio_console._relay.server import RelayStatistics, ServerOptions
    from trio_console._session.boot import Booted

__all__ = ["Relay", "listening", "prepared", "relaying"]

#: Seconds that removing the socket's file may take.
_REMOVAL_TIME: Final = 1.0


@final
class Relay:
    """A running relay, the value of ``nursery.start(serve_relay, ...)``."""

    def __init__(self, path: str, server: RelayServer, console: Callable[[], ConsoleStatistics | None]) -> None:
        self._path = path
        self._server = server
        self._console = console

    def __repr__(self) -> str:
        return f"<trio_console.Relay at {self._path!r}>"

    @property
    def path(self) -> str:
        """Where clients connect."""
        return self._path

    def statistics(self) -> RelayStatistics:
        """Clients, sessions, frames and bytes, and what was refused and dropped."""
        return self._server.statistics()

    def console_statistics(self) -> ConsoleStatistics | None:
        """What went through the guest's console; `None` if it is a stream of another kind than `ConsoleStream`."""
        return self._console()


@interrupt_safe
@asynccontextmanager
async def prepared(options: RelayOptions | None, *, attached: bool = False) -> AsyncIterator[ServerOptions]:
    """What a server needs of a caller's options: the logs are open for the time of a block."""
    options = options or RelayOptions()
    with ExitStack() as stack:
        # In threads: a file may be on a slow disk.
        session, audit = None, None
        if options.session_log is not None:
            log = _log_of(options.session_log)
            make = partial(SessionLog, log.path, max_bytes=log.max_bytes, backups=log.backups)
            session = stack.enter_context(closing(await in_thread("to open a log", make)))
        if options.audit_log is not None:
            log = _log_of(options.audit_log)
            make_audit = partial(AuditLog, log.path, max_bytes=log.max_bytes, backups=log.backups)
            audit = stack.enter_context(closing(await in_thread("to open a log", make_audit)))
        yield options._for_server(session, audit, attached=attached)


def _log_of(wanted: Log | str | os.PathLike[str]) -> Log:
    return wanted if isinstance(wanted, Log) else Log(wanted)


@interrupt_safe
@asynccontextmanager
async def listening(path: str | os.PathLike[str], options: ServerOptions) -> AsyncIterator[RelaySocket]:
    """A relay's socket for the time of a block; clients that come before it is served wait."""
    # In threads: the lock on the directory may be held by a process that is stopped.
    made = await in_thread("to make the relay's socket", partial(RelaySocket, path, options.socket_mode))
    try:
        yield made
    finally:
        try:
            remove = partial(_remove, made)
            await see_through(remove, grace=_REMOVAL_TIME, hurried=_REMOVAL_TIME)  # noqa: ASYNC102  (shields itself)
        finally:
            made.sock.close()


async def _remove(made: RelaySocket, patience: trio.CancelScope) -> None:
    with patience:
        try:
            await in_thread("to remove the relay's socket", made.close, abandon=True)
        except NoThreadError:
            made.close()  # here, although this may block for as long as the lock is waited for


@interrupt_safe
@asynccontextmanager
async def relaying(
    console: trio.abc.Stream,
    booted: Booted,
    made: RelaySocket,
    options: ServerOptions,
    explain: Callable[[], Awaitable[str]] | None = None,
) -> AsyncIterator[RelayServer]:
    """Serve clients for the time of a block.

    The tasks are shielded: when everything around is cancelled, the guest is still to be told, and clients are
    still to hear of it. Leaving the block stops them at once, so it is left when `RelayServer.wait_ended` has
    returned, or the time for that is over.
    """
    server = RelayServer(console, booted, options, explain)
    with no_fork():
        listener = let_go_in_child(made.sock.dup())
    with listener:
        listener.setblocking(False)
        async with hidden_nursery() as nursery:
            scope = trio.CancelScope(shield=True)

            @trio.lowlevel.enable_ki_protection
            async def run() -> None:
                with scope:
                    await server.run(listener)

            try:
                # `nursery.start` would not do: if it is cancelled, it waits for its task to end, and this task is
                # shielded from that cancellation.
                nursery.start_soon(run)
                await server.wait_serving()
                yield server
            finally:
                scope.cancel()
