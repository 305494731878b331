"""A guest that is started, or whose console other code has."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_console._guests.host import Progress, booted_host, end, own_console, spec_of
from trio_console._open.client import attached, watches
from trio_console._open.defaults import DEFAULT_GRACE, DEFAULT_LAUNCH_TIMEOUT, DEFAULT_READY_TIMEOUT
from trio_console._session.boot import make_bootstrap
from trio_console._session.confirmations import Confirmations
from trio_console._session.connection import Connection
from trio_console._session.guest import Guest
from trio_console._session.heartbeat import check_heartbeat
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.nursery import hidden_nursery
from trio_console._wire.ids import slot_ids

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from trio_console._console.devices import ConsoleDevice
    from trio_console._guests.spec import GuestSpec
    from trio_console._relay.options import RelayOptions
    from trio_console._relay.server import RelayServer

__all__ = ["open_guest", "run_guest"]

#: The correlation ids of the first client. A console without a relay has only this client.
_IDS: Final = slot_ids(0)


@interrupt_safe
@asynccontextmanager
async def open_guest(
    what: GuestSpec | trio.abc.Stream | ConsoleDevice | None = None,
    *,
    bootstrap: Mapping[str, Any] = MappingProxyType({}),
    relay_path: str | os.PathLike[str] | None = None,
    relay_options: RelayOptions | None = None,
    launch_timeout: float = DEFAULT_LAUNCH_TIMEOUT,
    ready_timeout: float = DEFAULT_READY_TIMEOUT,
    grace: float = DEFAULT_GRACE,
    heartbeat: float | None = None,
) -> AsyncIterator[Guest]:
    """Start a guest or attach to one, yield it, and shut it down when the block is left.

    Leaving the block takes no longer than ``grace``, whatever the guest does. If cancelled, leaving shuts the
    guest down as well, within about a second.

    Args:
        what: the guest: a `ProcessGuest` (also for `None`, the default), which **isolates nothing**, a
            `CommandGuest`, a `SocketGuest`, or another `GuestSpec`. Or its console, if other code has started it
            and ends it: any `trio.abc.Stream` (a `ConsoleStream` whose backend a VMM's threads drive, a
            `trio.SocketStream`), or a device as for `open_console`, which gets two threads. This owns the console
            from the call on, and closes it.
        bootstrap: settings of the guest, by the field names of the agent protocol: ``user``, ``default_cwd``,
            ``default_env`` (a mapping, too), ``rlimits`` and others; by default none. An agent refuses a setting
            that it cannot make.
        relay_path: path of a Unix socket on which the guest is served to other processes at the same time; `None`,
            the default, for no socket. They connect with `connect_guest`.
        relay_options: what these processes may do; by default ``RelayOptions()``.
        launch_timeout: seconds, by default 60, until the guest has a console.
        ready_timeout: seconds, by default 60, from then on for the guest to become ready.
        grace: seconds, by default 5, for the whole ending, and for the guest to confirm the ends of processes. A
            guest that confirms nothing costs one grace in total, for all its processes and its own end. A guest
            that sends other frames gets 0.2 seconds more for each process, so that a stuck process does not use up
            the time of the others.
        heartbeat: seconds of silence after which the guest is pinged. After the same time again without any byte
            from it, the guest is lost and ended by force. `None`, the default, for never. Time in which this
            program was stopped, did not run its tasks, or did not read does not count. But the number must be
            larger than the time that bytes spend in the buffers of a slow connection.

    Raises:
        OSError: the guest could not be started or reached, or the relay's socket could not be made.
        RuntimeError: no thread could be started: the start of a process needs one, and a console two, unless its
            guest has tasks for `workers`.
        GuestLostError: the guest ended before it was ready, or was not ready in time. The message says why.
        Exception: what a `GuestSpec` of the user has raised before it had started its guest.
        ProtocolError: the bytes that came over the console violate the agent protocol.
        UnsupportedByPeer: ``heartbeat`` was given, and the agent is too old for pings. The guest was ended.
        TypeError, ValueError: an argument is not valid. Nothing was started, and a console is unchanged.
    """
    check_heartbeat(heartbeat)
    opening = {
        "bootstrap": bootstrap,
        "launch_timeout": launch_timeout,
        "ready_timeout": ready_timeout,
        "grace": grace,
        "heartbeat": heartbeat,
    }
    if relay_path is None and relay_options is not None:
        raise ValueError("relay_options are for a relay: give relay_path, too")
    settings = make_bootstrap(bootstrap)
    spec = spec_of(what)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(own_console(spec))
        # The socket is made first, so that a client that connects before the guest is ready waits.
        made = None
        if relay_path is not None:
            from trio_console._open import relay  # only here, because it is a quarter of all that is loaded

            options = await stack.enter_async_context(relay.prepared(relay_options, attached=True))
            made = await stack.enter_async_context(relay.listening(relay_path, options))
        opened = booted_host(spec, settings, launch_timeout, ready_timeout)
        host = await stack.enter_async_context(opened)
        server: RelayServer | None = None
        if made is None:
            booted = host.booted
            told = host.explain, host.cause
            said = booted.decoder, booted.ready, booted.generation
            connection = Connection(host.channel, *said, _IDS, *told, booted.admission())
            host.progress = lambda: Progress(connection.heard(), connection.waits_for_bytes)
        else:
            server = await stack.enter_async_context(relay.serving(host, made, options))
            stream = await stack.enter_async_context(server.attach())
            connection = await attached(stream, host.explain, host.cause)
        confirmations = Confirmations(grace, connection.heard)
        guest = Guest(
            connection,
            confirmations=confirmations,
            force=host.kill,
            console=host.statistics,
            machine=host.machine,
            open_port=host.open_port,
            fork=None if host.fork is None else partial(_copies, host.fork, opening),
        )
        tell, wait_ended = guest._tell_to_end, connection.wait_ended
        if server is not None:
            tell, wait_ended = partial(relay.tell_through_relay, server, guest), server.wait_ended
        async with hidden_nursery() as nursery:
            nursery.start_soon(connection.run, *watches(connection, heartbeat, host))
            try:
                yield guest
            finally:
                # `connection.run` is shielded: only `lose` ends it, also when this raises.
                try:
                    await end(tell, wait_ended, host, confirmations)  # noqa: ASYNC102  (shields itself)
                finally:
                    note = confirmations.note()
                    connection.lose(f"the guest did not shut down in time and was ended by force{note}")


@interrupt_safe
@asynccontextmanager
async def _copies(
    fork: Callable[[int], AbstractAsyncContextManager[list[GuestSpec]]], opening: Mapping[str, Any], count: int
) -> AsyncIterator[list[Guest]]:
    """Make copies of a machine, and open all of them at the same time."""
    guests: list[Guest] = []
    over = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def hold(spec: GuestSpec, task_status: trio.TaskStatus[Guest]) -> None:
        async with open_guest(spec, **opening) as guest:
            task_status.started(guest)
            await over.wait()

    @trio.lowlevel.enable_ki_protection
    async def start(holding: trio.Nursery, spec: GuestSpec, errors: list[Exception], all_: trio.Nursery) -> None:
        try:
            guests.append(await holding.start(lambda task_status: hold(spec, task_status)))
        except Exception as exc:  # noqa: BLE001  (the first is raised)
            errors.append(exc)
            all_.cancel_scope.cancel()

    async with hidden_nursery() as holding:
        errors: list[Exception] = []
        async with fork(count) as specs, trio.open_nursery() as starting:
            for spec in specs:
                starting.start_soon(start, holding, spec, errors, starting)
        if errors:
            raise errors[0]
        yield guests
        over.set()  # (an exception of the block ends them by a cancellation)


@trio.lowlevel.enable_ki_protection
async def run_guest(
    what: GuestSpec | trio.abc.Stream | ConsoleDevice | None = None,
    *,
    bootstrap: Mapping[str, Any] = MappingProxyType({}),
    relay_path: str | os.PathLike[str] | None = None,
    relay_options: RelayOptions | None = None,
    launch_timeout: float = DEFAULT_LAUNCH_TIMEOUT,
    ready_timeout: float = DEFAULT_READY_TIMEOUT,
    grace: float = DEFAULT_GRACE,
    heartbeat: float | None = None,
    task_status: trio.TaskStatus[Guest] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a guest in a task, for programs that have no block for it: ``guest = await nursery.start(run_guest)``.

    It returns when `Guest.shutdown` was called, and the guest is gone. If cancelled, it shuts the guest down, as
    `open_guest` does.

    Args:
        what, bootstrap, relay_path, relay_options, launch_timeout, ready_timeout, grace, heartbeat: as for
            `open_guest`.
        task_status: for ``nursery.start``, which returns the `Guest` when it is ready.

    Raises:
        GuestLostError: the guest is gone, and `Guest.shutdown` was not called: it was lost, or a client of its
            relay has shut it down. The reason says which.
        OSError, RuntimeError, ProtocolError, UnsupportedByPeer, TypeError, ValueError: as for `open_guest`.
    """
    opened = open_guest(
        what,
        bootstrap=bootstrap,
        relay_path=relay_path,
        relay_options=relay_options,
        launch_timeout=launch_timeout,
        ready_timeout=ready_timeout,
        grace=grace,
        heartbeat=heartbeat,
    )
    async with opened as guest:
        task_status.started(guest)
        lost = await guest.wait_lost()
    if not guest._was_shut_down:
        raise lost
