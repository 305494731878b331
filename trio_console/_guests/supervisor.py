"""A process of this machine that carries a guest's console: its pipes, its error output, and its end.

`ProcessGuest`, `CommandGuest` and `SocketGuest` share this code. This module must not know what the process is.
"""

from __future__ import annotations

import fcntl
import math
import os
import signal
import socket
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, final

import trio

from trio_console._console.devices import as_device
from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.spec import GuestHost
from trio_console._trio.clocks import within
from trio_console._trio.ending import see_through
from trio_console._trio.lost import GuestLostError, explained
from trio_console._trio.nursery import hidden_nursery
from trio_console._trio.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_console._console.devices import GuestDevice

__all__ = [
    "Ours",
    "ProcessHost",
    "Tail",
    "TheirEnds",
    "Workers",
    "attend",
    "beyond_standard",
    "check_workers",
    "start",
    "watch",
]

#: What moves a guest's bytes on this side.
Workers: TypeAlias = Literal["threads", "tasks"]

#: Seconds for a process to be gone after SIGKILL. It takes milliseconds, and longer only if much memory has to be
#: freed. A process in an uninterruptible system call cannot be ended at all.
_KILL_TIME: Final = 1.0

#: Seconds for what a process has said last to come, when it has ended.
_TAIL_TIME: Final = 0.2

#: Bytes of a process's error output that are kept to explain its end.
_STDERR_TAIL: Final = 4096

_LAST_STANDARD_FD: Final = 2

#: Above this is the exit status that stands for a signal.
_BY_SIGNAL: Final = 128


def check_workers(workers: Workers) -> Workers:
    """Raise if ``workers`` is none of the two words; return it."""
    if workers not in ("threads", "tasks"):
        raise ValueError(f'workers must be "threads" or "tasks", not {workers!r:.100}')
    return workers


def beyond_standard(end: socket.socket) -> socket.socket:
    """The same socket under a number that is not a standard descriptor's, so that a child can keep the number.

    (A program that has closed its own standard descriptors gets their numbers for what it opens next.)
    """
    if end.fileno() > _LAST_STANDARD_FD:
        return end
    with end:
        with no_fork():
            number = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _LAST_STANDARD_FD + 1)
            return let_go_in_child(socket.socket(fileno=number))


@final
class Ours:
    """Our end of a console, as a device: closed when the block is left, unless it was handed over by then.

    Args:
        take: makes that end, or only returns it.
        workers: what is to move its bytes.
    """

    def __init__(self, take: Callable[[], socket.socket | tuple[int, int]], workers: Workers = "threads") -> None:
        assert trio.lowlevel.currently_ki_protected(), "no Ctrl-C comes between a descriptor and its owner"
        with no_fork():
            ends = take()
            try:
                self.device: Final = as_device(ends, by_tasks=workers == "tasks")
            except (TypeError, ValueError):
                if isinstance(ends, tuple):
                    for fd in ends:
                        os.close(fd)
                else:
                    ends.close()
                raise  # (After any other error `as_device` has closed them.)
        self._handed_over = False

    def hand_over(self, host: GuestHost, task_status: trio.TaskStatus[GuestHost]) -> None:
        """Tell the library of a guest that has this console, which is the library's from then on."""
        task_status.started(host)
        self._handed_over = True

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        if not self._handed_over:
            self.device.close()


@final
class TheirEnds:
    """The ends of pipes for a process that is about to start; closed after its start, or when the block is left.

    A child that this program forks before that closes its copies of them. Otherwise we would not see end of file
    when the process ends.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        let_go_in_child(self, lambda ends: ends.numbers)

    def __enter__(self) -> TheirEnds:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        # Removed before it is closed: a child forked in between must not close a number that is another file's.
        while self.numbers:
            os.close(self.numbers.pop())

    def console(self) -> tuple[int, int]:
        """Make two pipes; keep the process's ends (to read from, to write to), and return ours (likewise)."""
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
        """Make a pipe, keep its writing end, and yield the reading end."""
        with no_fork():
            reading, writing = os.pipe()
            self.numbers.append(writing)
            # Forked children close their copy of the reading end: it would not be read, and a guest that writes
            # many errors would block.
            stream = let_go_in_child(trio.lowlevel.FdStream(reading))
        try:
            yield stream
        finally:
            stream.close()

    @contextmanager
    def text_pipe(self) -> Iterator[Callable[[str], Awaitable[None]]]:
        """Make a pipe, keep its reading end, and yield a function that writes a text to it, and closes it."""
        with no_fork():
            reading, writing = os.pipe()
            self.numbers.append(reading)
            stream = let_go_in_child(trio.lowlevel.FdStream(writing))

        @trio.lowlevel.enable_ki_protection
        async def tell(text: str) -> None:
            with suppress(trio.BrokenResourceError):  # the process has ended; its console tells of it
                await stream.send_all(text.encode())
            stream.close()

        try:
            yield tell
        finally:
            stream.close()


async def start(command: list[str], **options: Any) -> trio.Process:
    """Start a process in a POSIX session of its own.

    So signals for this program's process group, such as those that a terminal sends, are for this program alone,
    which ends its guests in order if it ends.
    """
    try:
        return await trio.lowlevel.open_process(command, start_new_session=True, **options)
    except RuntimeError as exc:  # trio starts processes in threads
        raise NoThreadError("to start the guest's process") from exc


@dataclass(frozen=True, eq=False)
class ProcessHost(GuestHost):
    """A guest that is carried by a process of this machine."""

    process: trio.Process = field(kw_only=True)
    #: Whether its guest waits for another host when its console is closed.
    outlives_console: bool = field(default=False, kw_only=True)


@trio.lowlevel.enable_ki_protection
async def watch(
    process: trio.Process,
    name: str,
    console: GuestDevice,
    stderr: trio.abc.ReceiveStream,
    started: Callable[[GuestHost], None],
    tell: Callable[[], Awaitable[None]] | None = None,
    *,
    kill_inside: Callable[[], object] | None = None,
) -> None:
    """Tell that a process carries a guest, and wait for its end; if cancelled, end it.

    Args:
        process: it was started just now.
        name: of the process, for messages.
        console: our end of its console.
        stderr: our end of its error output.
        started: is told of it.
        tell: gives the process what it is to read first, meanwhile.
        kill_inside: see `Tail`.
    """

    def begun(tail: Tail) -> None:
        started(ProcessHost(console, tail.kill, tail.explain, process=process))

    await attend(process, name, stderr, begun, tell, kill_inside=kill_inside)


@trio.lowlevel.enable_ki_protection
async def attend(
    process: trio.Process,
    name: str,
    stderr: trio.abc.ReceiveStream,
    begun: Callable[[Tail], None],
    tell: Callable[[], Awaitable[None]] | None = None,
    *,
    kill_inside: Callable[[], object] | None = None,
    wrapped: bool = False,
) -> None:
    """Read the error output of a process until it ends; if cancelled, or if ``tell`` raises, end it.

    Args:
        process: it was started just now.
        name: of the process, for messages.
        stderr: our end of its error output.
        begun: is told by whom the output is kept.
        tell: is run meanwhile.
        kill_inside, wrapped: see `Tail`.
    """
    tail = Tail(process, name, kill_inside=kill_inside, wrapped=wrapped)
    # The reading is shielded, and ended only here: a guest that is shutting down may still write errors, and must
    # not block in the write.
    reading = trio.CancelScope(shield=True)
    async with hidden_nursery() as nursery:
        nursery.start_soon(tail.keep, stderr, reading)
        if tell is not None:
            nursery.start_soon(tell)
        try:
            begun(tail)
            await process.wait()
        finally:
            tail.kill()
            reap = partial(_reap, tail, reading)
            await see_through(reap, grace=math.inf, hurried=math.inf)  # noqa: ASYNC102  (shields itself)


@final
class Tail:
    """A process, and the last that it has said on its error output.

    Args:
        process: it was started just now.
        name: of the process, for messages.
        kill_inside: kills what the process has started that is out of its group and may live on without it.
        wrapped: whether it runs in another one, which is the one that was started, and exits with its status, or
            with 128 and the number of the signal that has killed it.

    Attributes:
        heard: how many bytes it has said so far.
    """

    def __init__(
        self,
        process: trio.Process,
        name: str,
        *,
        kill_inside: Callable[[], object] | None = None,
        wrapped: bool = False,
    ) -> None:
        self._kill_inside = kill_inside
        self._wrapped = wrapped
        self.process: Final = process
        self.name: Final = name
        self.heard = 0
        self._said = bytearray()
        self._ended = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def keep(self, stderr: trio.abc.ReceiveStream, reading: trio.CancelScope) -> None:
        with reading:
            async with stderr:
                with suppress(trio.BrokenResourceError):
                    async for data in stderr:
                        assert not self._ended.is_set(), "what a guest has said is complete when its end is told"
                        self._said += data
                        self.heard += len(data)
                        del self._said[:-_STDERR_TAIL]
                self._ended.set()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    def kill(self) -> None:
        """Kill the process with its whole process group, which it leads, and what is inside. From any thread."""
        # Its number is the group's, and no other process can get it before the process is reaped.
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        if self._kill_inside is not None:
            self._kill_inside()

    async def error(self, what: str, otherwise: Callable[[str], Exception]) -> Exception:
        """The error for something that was not done: the guest is lost if the process has ended.

        Args:
            what: says what was not done.
            otherwise: makes the error, of all that is known in words, if the process runs.
        """
        why = await explained(what, self.explain)
        return otherwise(why) if self.process.returncode is None else GuestLostError(why)

    async def explain(self) -> str:
        """How the process has ended, and what it has said last. Waits for its end for up to 0.2 seconds."""
        with trio.move_on_after(_TAIL_TIME):
            await self.process.wait()
            await self._ended.wait()
        code = self.process.returncode
        if code is not None and code > _BY_SIGNAL and self._wrapped:
            code = _BY_SIGNAL - code
        if code is None:
            what = f"{self.name} still runs"
        elif code < 0:
            what = f"{self.name} was killed by {_signal_name(-code)}"
        else:
            what = f"{self.name} exited with status {code}"
        said = bytes(self._said).decode(errors="replace").strip()
        return f"{what}, and said: {said}" if said else what


async def _reap(tail: Tail, reading: trio.CancelScope, patience: trio.CancelScope) -> None:
    """Wait for a process that was killed. If it does not end in time, warn, and leave it to the system."""
    process = tail.process
    with patience:
        await within(_KILL_TIME, process.wait)
        # What it has started may hold its error output for ever.
        await within(_TAIL_TIME, tail.wait_ended)
    reading.cancel()
    if process.returncode is None:
        warnings.warn(
            f"{tail.name} (process {process.pid}) was killed but did not end within {_KILL_TIME:g} second: it "
            "may be in an uninterruptible system call. It is left running",
            RuntimeWarning,
            stacklevel=1,
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
