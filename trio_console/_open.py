"""Opening a guest, connecting to one, and serving one: this module joins the console with the frames.

An ending always has the same order, and one deadline, the grace: the guest is told to shut down; its last frames
are delivered; its console is closed; its processes on this machine are killed if they still run; the console's
workers are joined. Leaving takes no longer than the grace, whatever the guest does.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from trio_console._addresses import named_by_descriptor
from trio_console._forked import shut_down_at_the_end
from trio_console._guests.host import CANCELLED_GRACE, Progress, booted_host, end, own_console, spec_of
from trio_console._guests.machine.guest import MicroVMGuest, Template
from trio_console._guests.machine.launch import NotBootedError
from trio_console._guests.machine.monitor import MonitorError
from trio_console._guests.machine.saved.prepared import discard, keep, new_place
from trio_console._guests.machine.saved.template import save
from trio_console._relay.options import RelayOptions
from trio_console._relay.serve import Relay, listening, prepared, relaying
from trio_console._relay.trust import check_server
from trio_console._session.attach import attach
from trio_console._session.boot import make_bootstrap
from trio_console._session.confirmations import Confirmations
from trio_console._session.connection import Connection
from trio_console._session.guest import Guest
from trio_console._session.heartbeat import Heartbeat, check_heartbeat
from trio_console._session.reset import reset
from trio_console._trio.clocks import Stopwatch
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.lost import GuestLostError, explained
from trio_console._trio.nursery import hidden_nursery
from trio_console._trio.sockets import connect_unix
from trio_console._trio.threads import NoThreadError, in_thread
from trio_console._wire.ids import slot_ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
    from contextlib import AbstractAsyncContextManager

    from trio_console._console.devices import ConsoleDevice
    from trio_console._guests.host import Host
    from trio_console._guests.machine.guest import Making
    from trio_console._guests.spec import GuestSpec
    from trio_console._relay.options import ServerOptions
    from trio_console._relay.server import RelayServer
    from trio_console._relay.socket import RelaySocket
    from trio_console._trio.sockets import UnixStream

    Watch: TypeAlias = Callable[[], Awaitable[None]]

__all__ = ["connect_guest", "make_template", "open_guest", "run_guest", "serve_relay"]

#: Seconds for the whole orderly ending.
DEFAULT_GRACE: Final = 5.0

#: Seconds until a guest has a console.
DEFAULT_LAUNCH_TIMEOUT: Final = 60.0

#: Seconds for a guest to become ready. Upstream's host waits 180 s, because it boots a machine.
DEFAULT_READY_TIMEOUT: Final = 60.0

#: Seconds for the machine to start, and, if there is none of its kind yet, for the one of which it is a clone.
_LAUNCH_TIME: Final = 300.0

#: Seconds for a relay to greet a client: the same as in upstream's clients.
_HANDSHAKE_TIMEOUT: Final = 10.0

#: Seconds for a guest to end after a client has told it to: the same as in upstream's host.
_SHUTDOWN_TIME: Final = 2.0

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
            wanted = prepared(relay_options or RelayOptions(), attached=True)
            options = await stack.enter_async_context(wanted)
            made = await stack.enter_async_context(listening(relay_path, options))
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
            server = await stack.enter_async_context(_serving(host, made, options))
            stream = await stack.enter_async_context(server.attach())
            connection = await _attached(stream, host.explain, host.cause)
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
            tell, wait_ended = partial(_tell_through_relay, server, guest), server.wait_ended
        async with hidden_nursery() as nursery:
            nursery.start_soon(connection.run, *_watches(connection, heartbeat, host))
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
        connection = await _attached(stream, partial(_explain_relay, name))
        force = partial(connection.lose, "the guest was shut down")
        guest = Guest(connection, confirmations=Confirmations(grace, connection.heard), force=force)
        async with hidden_nursery() as nursery:
            nursery.start_soon(connection.run, *_watches(connection, heartbeat))
            try:
                yield guest
            finally:
                await _leave_relay(connection, grace)  # noqa: ASYNC102  (shields itself)


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
        prepared(options or RelayOptions()) as served,
        listening(path, served) as made,
        booted_host(spec, settings, launch_timeout, ready_timeout) as host,
        _serving(host, made, served) as server,
    ):
        try:
            task_status.started(Relay(made.path, server, host.statistics))
            await server.wait_ended()
        finally:
            tell = partial(server.shut_down, grace)
            await end(tell, server.wait_ended, host, Confirmations(grace))  # noqa: ASYNC102  (as above)
        if not server.shutdown_requested.is_set():
            raise GuestLostError(await explained(server.reason, host.explain)) from (host.cause() or server.cause)


async def make_template(
    spec: MicroVMGuest, prepare: Callable[[Guest], Awaitable[object]], *, name: str | None = None
) -> Template:
    """Prepare a machine, and keep it as it is then: guests of the template go on from there.

    What ``prepare`` has written is in every guest, and what it has started and left in order runs in every one: an
    interpreter that has imported all that it needs, or a server. The sessions of ``prepare`` end with it, and
    nothing of its host is in a guest's environment: not the ``env`` of ``spec``, nor its user.

    If it fails or is cancelled, nothing is left behind. A program that is killed meanwhile leaves a directory,
    which the next call removes, or ``trio-console vm prune``.

    Args:
        spec: the machine, with ``Root.MINIMAL`` or a path for its root, and without shares: what is mounted of
            this machine cannot be saved. It may itself go on from a `Template`.
        prepare: an async function that is given the guest.
        name: with it, the template is kept until ``trio-console vm prune``, and `Template.load` finds it; another
            one of that name is no longer found then. `None`, the default, for one that ends with this program.

    Returns:
        The template. Any task may use it, any number of times.

    Raises:
        TypeError, ValueError: an argument is not valid, or the machine cannot be saved. Nothing was done.
        GuestLostError: the machine was lost, or could not be saved; the message says why.
        OSError, RuntimeError: as for `open_guest`, or there is no room for it.
        Exception: what ``prepare`` has raised.
    """
    if not isinstance(spec, MicroVMGuest):
        raise TypeError(f"a template is made of a MicroVMGuest, not of {spec!r:.100}")
    if name is not None and not (isinstance(name, str) and name):
        raise ValueError(f"the name of a template must be a string that is not empty, not {name!r:.100}")
    making = spec._to_make()
    place = await in_thread("for a template", new_place)
    try:
        making.place = place
        async with open_guest(making, launch_timeout=_LAUNCH_TIME) as guest:
            await prepare(guest)
            await _save(making, guest)
        made = partial(keep, place, making.kind, making.root, name)
        return Template(await in_thread("for a template", made), name)
    except BaseException:
        with trio.CancelScope(shield=True):
            try:
                await in_thread("for a template", partial(discard, place))
            except NoThreadError:
                discard(place)
        raise


# The parts of these functions


async def _save(making: Making, guest: Guest) -> None:
    """Let the agent wait for another host, and save the machine then."""
    machine = making.machine
    await reset(guest._connection)
    try:
        await machine.detach()
        await machine.wait_left(loaded=False)
        await machine.attach()
        await machine.hear_greeting()
        await save(machine, making.place)
    except (NotBootedError, MonitorError) as exc:
        raise GuestLostError(f"the machine could not be kept: {exc}") from exc


@interrupt_safe
@asynccontextmanager
async def _serving(host: Host, made: RelaySocket, options: ServerOptions) -> AsyncIterator[RelayServer]:
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


def _watches(connection: Connection, seconds: float | None, host: Host | None = None) -> list[Watch]:
    """The background tasks that watch whether the guest is alive."""
    if seconds is None:
        return []
    if host is None:
        return [Heartbeat(connection, seconds).run]
    return [Heartbeat(connection, seconds, carried=host.carried, force=host.kill).run]


def _tell_through_relay(server: RelayServer, guest: Guest) -> None:
    """Accept no more clients, and tell the guest to shut down, behind all data that was sent to it."""
    if guest._connection.lost is None:
        server.accept_no_more()
        guest._tell_to_end()
    else:
        server.shut_down(guest._confirmations.grace)


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


async def _attached(
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
