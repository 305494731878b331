"""Ways to start or attach a guest: what a `GuestSpec` starts, it also ends, by force if need be.

This module must not know what is said over the console; ``_open`` joins it with those who do.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import warnings
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import trio

from trio_console._console.devices import as_device, close_quietly
from trio_console._forked import let_go_in_child
from trio_console._guests.leftovers import GUEST_MARK, kill_marked_processes
from trio_console._trio.clocks import within
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.nursery import hidden_nursery
from trio_console._trio.threads import NoThreadError, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from trio_console._console.devices import ConsoleDevice, GuestDevice
    from trio_console._guests.leftovers import Leftovers

__all__ = ["CommandGuest", "GuestSpec", "Host", "ProcessGuest", "SocketGuest", "attached_host"]

#: Seconds for a process to be gone after SIGKILL. It takes milliseconds, but for the memory of a large one; and
#: one in an uninterruptible system call cannot be ended by anything.
_KILL_TIME: Final = 1.0

#: Seconds for what a guest has left behind to be found and killed. (Half of it is what the search takes at most.)
_SCAN_TIME: Final = 2.0

#: Bytes of a guest command's error output kept to explain its end.
_STDERR_TAIL: Final = 4096


@final
class Host:
    """A started guest as `open_guest` needs it: its console, and its process on this machine if it has one."""

    def __init__(self, device: GuestDevice, process: trio.Process | None = None, name: str = "") -> None:
        self.device = device
        self.name: Final = name
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
            what = f"{self.name} still runs"
        elif code < 0:
            what = f"{self.name} was killed by {_signal_name(-code)}"
        else:
            what = f"{self.name} exited with status {code}"
        said = bytes(self._tail).decode(errors="replace").strip()
        return f"{what}, and said: {said}" if said else what

    async def wait(self) -> None:
        if self._process is not None:
            await self._process.wait()

    @property
    def has_process(self) -> bool:
        """Whether `send_signal` reaches anybody."""
        return self._process is not None

    def send_signal(self, number: int) -> None:
        """Send its process a signal, if it has one that still runs. From any thread."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


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


#: Bytes of socket buffer asked for in each direction. (Linux gives an ordinary user 208 KiB of them by default,
#: and doubles what it gives.) With a buffer that nobody asked for, a GiB of output took a fourth more of this
#: process's time, 1.57 s instead of 1.26, in runs that vary by a fifth.
_SOCKET_BUFFER: Final = 256 * 1024


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

    @interrupt_safe
    @asynccontextmanager
    async def _launch(self) -> AsyncIterator[Host]:
        mark = secrets.token_hex(16)
        env = {**(os.environ if self._env is None else self._env), GUEST_MARK: mark}
        ours, theirs = map(let_go_in_child, socket.socketpair())
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        with theirs, _owned(ours) as device, _TheirEnds() as ends, ends.error_pipe() as stderr:
            # Its modules are found where this program's were, installed or not.
            code = f"import sys; sys.path[:] = {sys.path!r}; from trio_console.agent import main; sys.exit(main())"
            argv = [sys.executable, "-c", code, "--fd", str(theirs.fileno())]
            process = await _start(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=ends.numbers[0],
                pass_fds=(theirs.fileno(),),
                env=env,
                cwd=self._cwd,
            )
            theirs.close()
            ends.close()
            try:
                async with _watch(Host(device, process, "the agent"), process, stderr) as host:
                    yield host
            finally:
                kill = partial(_kill_left_behind, mark)
                await see_through(kill, grace=math.inf, hurried=math.inf)  # noqa: ASYNC102  (shields itself)


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

    @interrupt_safe
    @asynccontextmanager
    async def _launch(self) -> AsyncIterator[Host]:
        name = os.path.basename(self._command[0])
        with _TheirEnds() as theirs:
            with _owned(theirs.console()) as device, theirs.error_pipe() as stderr:
                their_in, their_out, their_err = theirs.numbers
                process = await _start(
                    self._command,
                    stdin=their_in,
                    stdout=their_out,
                    stderr=their_err,
                    env=self._env,
                    cwd=self._cwd,
                )
                theirs.close()
                async with _watch(Host(device, process, name), process, stderr) as host:
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

    @interrupt_safe
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


@interrupt_safe
@asynccontextmanager
async def attached_host(device: ConsoleDevice) -> AsyncIterator[Host]:
    """A guest that somebody else has started and will end."""
    port = as_device(device)
    try:
        yield Host(port)
    finally:
        close_quietly(port)


@contextmanager
def _owned(ends: socket.socket | tuple[int, int]) -> Iterator[GuestDevice]:
    """Our end of a console, as a device; closed at the latest when the block is left, however it is left."""
    try:
        device = as_device(ends)
    except (TypeError, ValueError):
        if isinstance(ends, tuple):
            for fd in ends:
                os.close(fd)
        else:
            ends.close()
        raise  # (After any other error it has closed them.)
    try:
        yield device
    finally:
        device.close()


@final
class _TheirEnds:
    """The ends of pipes that a process is given when it starts; closed then, or when the block is left.

    A child that is forked meanwhile lets go of them, or it would keep us from the end of what the process writes.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        let_go_in_child(self, lambda ends: ends.numbers)

    def __enter__(self) -> _TheirEnds:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        # Forgotten first: a child that is forked in between must not let go of somebody else's descriptor.
        while self.numbers:
            os.close(self.numbers.pop())

    def console(self) -> tuple[int, int]:
        """Make two pipes, keep their ends (to read from, to write to), and return ours (likewise)."""
        their_in, our_out = os.pipe()
        self.numbers.append(their_in)
        try:
            our_in, their_out = os.pipe()
        except OSError:
            os.close(our_out)
            raise
        self.numbers.append(their_out)
        return our_in, our_out

    @contextmanager
    def error_pipe(self) -> Iterator[trio.abc.ReceiveStream]:
        """Make a pipe, keep its end to write to, and give the other."""
        reading, writing = os.pipe()
        self.numbers.append(writing)
        # A reader that is left and does not read would have a guest that complains stuck in a write.
        stream = let_go_in_child(trio.lowlevel.FdStream(reading))
        try:
            yield stream
        finally:
            stream.close()


@interrupt_safe
@asynccontextmanager
async def _watch(host: Host, process: trio.Process, stderr: trio.abc.ReceiveStream) -> AsyncIterator[Host]:
    """Read a guest process's error output, and end the process when the block is left."""
    # Shielded, and ended only here: a guest that is shutting down may still have something to say, and must not
    # get stuck saying it.
    reading = trio.CancelScope(shield=True)
    async with hidden_nursery() as nursery:
        nursery.start_soon(_keep_tail, host, stderr, reading)
        try:
            yield host
        finally:
            process.kill()
            reap = partial(_reap, host, process, reading)
            await see_through(reap, grace=math.inf, hurried=math.inf)  # noqa: ASYNC102  (shields itself)


async def _start(command: list[str], **options: Any) -> trio.Process:
    try:
        return await trio.lowlevel.open_process(command, **options)
    except RuntimeError as exc:  # trio starts processes in threads
        raise NoThreadError("to start the guest's process") from exc


async def _reap(host: Host, process: trio.Process, reading: trio.CancelScope, patience: trio.CancelScope) -> None:
    """Wait for a process that was killed; one that does not die is left to the system, loudly."""
    with patience:
        await within(_KILL_TIME, process.wait)
    reading.cancel()
    if process.returncode is None:
        warnings.warn(
            f"{host.name} (process {process.pid}) was killed and did not end within {_KILL_TIME:g} second, as one "
            "in an uninterruptible call; it is left behind",
            RuntimeWarning,
            stacklevel=1,
        )


async def _kill_left_behind(mark: str, patience: trio.CancelScope) -> None:
    search = partial(kill_marked_processes, mark)
    result: Leftovers | None = None

    async def look() -> None:
        nonlocal result
        try:
            # Abandoned if need be: looking at a process may take as long as what that process does in the kernel.
            result = await in_thread("to look for processes that a guest has left", search, abandon=True)
        except NoThreadError:
            result = search()  # here, although this blocks everything else for a moment

    with patience:
        await within(_SCAN_TIME, look)
    if result is None or result.left:
        which = "processes of a guest" if result is None else f"the processes {sorted(result.left)} of a guest"
        warnings.warn(f"{which} were killed and may still run", RuntimeWarning, stacklevel=1)


@trio.lowlevel.enable_ki_protection
async def _keep_tail(host: Host, stderr: trio.abc.ReceiveStream, reading: trio.CancelScope) -> None:
    with reading:
        async with stderr:
            with suppress(trio.BrokenResourceError):
                async for data in stderr:
                    host.keep_tail(bytes(data))
            host.end_tail()
