"""Ways to start or attach a guest, and `open_guest`, which joins the channel and the session over it.

The ending is ordered and has one deadline, the grace: the guest is told to shut down; what it still says is
delivered; then its console is closed, its processes on this machine are ended by force if they still
run, and the workers are joined. Leaving takes no longer than the grace, whatever the guest does.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, final

import trio

from ._channel import SHORT_GRACE, open_console
from ._client._boot import boot, make_bootstrap
from ._client._connection import Connection
from ._client._guest import Guest
from ._devices import as_device
from ._leftovers import GUEST_MARK, kill_marked_processes
from ._lost import GuestLostError
from ._nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from ._devices import ConsoleDevice, GuestDevice

__all__ = ["CommandGuest", "GuestSpec", "ProcessGuest", "SocketGuest", "open_guest"]

#: Seconds for the whole orderly teardown.
DEFAULT_GRACE: Final = 5.0

#: Seconds of it that remain for what needs no answer from the guest: closing, killing, joining.
_FORCE_TIME: Final = 2 * SHORT_GRACE

#: Seconds for the orderly part when the leaving was cancelled.
_CANCELLED_GRACE: Final = 1.0

#: Seconds a guest has to become ready. Upstream's host waits 180 s, for a machine that boots.
DEFAULT_READY_TIMEOUT: Final = 60.0

#: The correlation ids of the first client, which is all a console without a relay has.
_IDS: Final = range(1, 33_554_431)

#: Bytes of a guest command's error output kept to explain its end.
_STDERR_TAIL: Final = 4096


@final
class Host:
    """A started guest as `open_guest` needs it: its console, and its process on this machine if it has one."""

    def __init__(self, device: GuestDevice, process: trio.Process | None = None, name: str = "") -> None:
        self.device = device
        self._name = name
        self._process = process
        self._tail = bytearray()
        self._tail_done = trio.Event()

    def keep_tail(self, data: bytes) -> None:
        self._tail += data
        del self._tail[:-_STDERR_TAIL]

    def end_tail(self) -> None:
        self._tail_done.set()

    async def explain(self) -> str:
        """Why the console ended, as far as can be told. May wait for the process: the caller sets the bound."""
        if self._process is None:
            return "the other end of the socket is gone"
        with trio.move_on_after(0.2):
            await self._process.wait()
            await self._tail_done.wait()
        code = self._process.returncode
        if code is None:
            what = f"{self._name} still runs"
        elif code < 0:
            what = f"{self._name} was killed by {_signal_name(-code)}"
        else:
            what = f"{self._name} exited with status {code}"
        said = bytes(self._tail).decode(errors="replace").strip()
        return f"{what}, and said: {said}" if said else what

    async def wait(self) -> None:
        if self._process is not None:
            await self._process.wait()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class GuestSpec(ABC):
    """A way to come to a guest; see `ProcessGuest`, `CommandGuest` and `SocketGuest`."""

    @abstractmethod
    def _launch(self) -> Any:
        """An async context manager that gives a `Host`, and on leaving ends what it started, by force."""


@final
class ProcessGuest(GuestSpec):
    """The agent in a child process of this program, on this machine.

    **It isolates nothing**: its commands run as this user, see these files and this network. It is for
    development, tests, and programs that want the same API for local and remote work.

    When it ends, every process of it that still runs is killed, also one that made itself a daemon; it
    is found by an environment variable (``TRIO_CONSOLE_GUEST``), so one that has cleared its environment is
    not found.

    Args:
        env: environment of the agent, and so of its commands; `None` is this program's.
        cwd: working directory of the agent, and so of its commands; `None` is this program's.
    """

    def __init__(self, *, env: Mapping[str, str] | None = None, cwd: str | os.PathLike[str] | None = None) -> None:
        self._env = env
        self._cwd = cwd

    def __repr__(self) -> str:
        return "ProcessGuest()"

    @asynccontextmanager
    async def _launch(self) -> AsyncIterator[Host]:
        mark = secrets.token_hex(16)
        env = {**(os.environ if self._env is None else self._env), GUEST_MARK: mark}
        ours, theirs = socket.socketpair()
        with theirs, _owned(ours) as device:
            # Its modules are found where this program's were, installed or not.
            code = f"import sys; sys.path[:] = {sys.path!r}; from trio_console.agent import main; sys.exit(main())"
            argv = [sys.executable, "-c", code, "--fd", str(theirs.fileno())]
            process = await trio.lowlevel.open_process(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env=env,
                cwd=self._cwd,
            )
            theirs.close()
            try:
                async with _watch(Host(device, process, "the agent"), process) as host:
                    yield host
            finally:
                # On a limiter of its own: this must not wait for threads of other people.
                limiter = trio.CapacityLimiter(1)
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(kill_marked_processes, mark, limiter=limiter)


@final
class CommandGuest(GuestSpec):
    """A command of this machine whose stdin and stdout are the guest's console.

    Such as ``["ssh", host, "python3", "-m", "trio_console.agent", "--stdio"]``, or the same behind ``bwrap`` or
    ``docker exec -i``. What it writes to stderr is kept to explain its end. When the guest
    ends, the command is given the rest of the grace, and then killed.

    Args:
        command: a sequence of strings or paths.
        env, cwd: as in `subprocess.Popen`.

    Raises:
        TypeError: ``command`` is one string.
        ValueError: it is empty.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(command, (str, bytes, os.PathLike)):
            raise TypeError(f"command must be a sequence of strings, not {type(command).__name__}")
        self._command = [os.fspath(part) for part in command]
        if not self._command:
            raise ValueError("command must not be empty")
        self._env = env
        self._cwd = cwd

    def __repr__(self) -> str:
        return f"CommandGuest({self._command!r})"

    @asynccontextmanager
    async def _launch(self) -> AsyncIterator[Host]:
        name = os.path.basename(self._command[0])
        with ExitStack() as theirs:
            their_in, our_out = os.pipe()
            theirs.callback(os.close, their_in)
            our_in, their_out = os.pipe()
            theirs.callback(os.close, their_out)
            with _owned((our_in, our_out)) as device:
                process = await trio.lowlevel.open_process(
                    self._command,
                    stdin=their_in,
                    stdout=their_out,
                    stderr=subprocess.PIPE,
                    env=self._env,
                    cwd=self._cwd,
                )
                theirs.close()
                async with _watch(Host(device, process, name), process) as host:
                    yield host


@final
class SocketGuest(GuestSpec):
    """A guest whose console is a Unix stream socket, such as a QEMU chardev.

    A console is booted once in the life of its agent, so whoever opens it owns the guest: leaving
    `open_guest` shuts the guest down. To share one, put a relay between.

    Args:
        path: of the socket.
    """

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        self._path = os.fspath(path)

    def __repr__(self) -> str:
        return f"SocketGuest({self._path!r})"

    @asynccontextmanager
    async def _launch(self) -> AsyncIterator[Host]:
        sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        with sock:
            try:
                await sock.connect(self._path)
            except OSError as exc:
                # (A path that is too long comes without an errno.)
                why = f"{exc.strerror or exc} (connecting to the guest's console)"
                raise type(exc)(exc.errno, why, self._path) from exc
            with _owned(socket.socket(fileno=sock.detach())) as device:
                yield Host(device)


@asynccontextmanager
async def attached_host(device: ConsoleDevice) -> AsyncIterator[Host]:
    """A guest that somebody else has started and will end."""
    port = as_device(device)
    try:
        yield Host(port)
    finally:
        port.close()


@contextmanager
def _owned(ends: socket.socket | tuple[int, int]) -> Iterator[GuestDevice]:
    """Our end of a console, as a device; closed at the latest when the block is left, however it is left."""
    try:
        device = as_device(ends)
    except BaseException:
        if isinstance(ends, tuple):
            for fd in ends:
                os.close(fd)
        else:
            ends.close()
        raise
    try:
        yield device
    finally:
        device.close()


@asynccontextmanager
async def _watch(host: Host, process: trio.Process) -> AsyncIterator[Host]:
    """Read a guest process's error output, and end the process when the block is left."""
    assert process.stderr is not None
    async with hidden_nursery() as nursery:
        nursery.start_soon(_keep_tail, host, process.stderr)
        try:
            yield host
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()


async def _keep_tail(host: Host, stderr: trio.abc.ReceiveStream) -> None:
    async with stderr:
        with suppress(trio.BrokenResourceError):
            async for data in stderr:
                host.keep_tail(bytes(data))
        host.end_tail()


@asynccontextmanager
async def open_guest(
    spec: GuestSpec | None = None,
    *,
    bootstrap: Mapping[str, Any] = MappingProxyType({}),
    ready_timeout: float = DEFAULT_READY_TIMEOUT,
    grace: float = DEFAULT_GRACE,
) -> AsyncIterator[Guest]:
    """Start a guest, or attach to one, and use it for the time of a block.

    Leaving the block shuts the guest down and takes no longer than ``grace``, whatever the guest does; when
    cancelled, about a second.

    Args:
        spec: the guest: a `ProcessGuest` (also if `None`), which **isolates nothing**, a `CommandGuest` or a
            `SocketGuest`.
        bootstrap: what the guest is to be, by the field names of the agent protocol: ``user``, ``default_cwd``,
            ``default_env``, ``rlimits`` and others. An agent refuses what it cannot do.
        ready_timeout: seconds the guest has to become ready.
        grace: seconds for the whole teardown, and for each wait for the guest to confirm the end of a process.

    Raises:
        OSError: the guest could not be started or reached.
        GuestLostError: it ended before it was ready, or was not ready in time; says why.
        ProtocolError: what came over its console is not the agent protocol.
        TypeError, ValueError: the arguments make no sense; nothing was started.
    """
    if spec is None:
        spec = ProcessGuest()
    elif not isinstance(spec, GuestSpec):
        raise TypeError(f"spec must be a ProcessGuest, CommandGuest or SocketGuest, not {type(spec).__name__}")
    what = make_bootstrap(bootstrap)
    async with (
        spec._launch() as host,
        open_console(host.device, grace=SHORT_GRACE) as channel,
        hidden_nursery() as nursery,
    ):
        connection = await _connect(host, channel, what, ready_timeout)
        guest = Guest(connection, grace=grace, force=host.kill, console=channel.statistics)
        nursery.start_soon(connection.run)
        try:
            yield guest
        finally:
            await _end(guest, connection, channel, host, grace)
            nursery.cancel_scope.cancel()


async def _connect(host: Host, channel: trio.abc.Stream, bootstrap: Any, ready_timeout: float) -> Connection:
    try:
        with trio.fail_after(ready_timeout):
            booted = await boot(channel, bootstrap)
    except trio.TooSlowError:
        raise GuestLostError(f"the guest was not ready within {ready_timeout:g} seconds") from None
    except trio.BrokenResourceError as exc:
        reason = exc.reason if isinstance(exc, GuestLostError) else "the console broke before the guest was ready"
        raise GuestLostError(f"{reason}: {await host.explain()}") from exc.__cause__
    return Connection(channel, booted.decoder, booted.ready, booted.generation, _IDS, host.explain)


async def _end(guest: Guest, connection: Connection, channel: trio.abc.Stream, host: Host, grace: float) -> None:
    """The orderly part of the teardown."""
    if trio.current_effective_deadline() == -math.inf:
        grace = min(grace, _CANCELLED_GRACE)
    try:
        with trio.CancelScope(shield=True), trio.move_on_after(max(0.0, grace - _FORCE_TIME)):
            await guest.shutdown()
            # End of file on its console is what ends a guest that cannot be told, or does not listen to frames.
            await channel.aclose()
            await host.wait()
    finally:
        if connection.lost is None:
            connection.lose("the guest did not shut down in time and was ended by force")
