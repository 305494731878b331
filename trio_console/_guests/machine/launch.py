"""One start of a machine: QEMU as a process of ours, until the machine has greeted and was told its settings."""

from __future__ import annotations

import os
import resource
import secrets
import socket
import subprocess
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.machine.jail import in_jail, jailed, memory_in_jail
from trio_console._guests.machine.monitor import Monitor
from trio_console._guests.machine.qemu import command, most_memory
from trio_console._guests.namespaces.advice import advised
from trio_console._guests.namespaces.inside import Inside, child_of
from trio_console._guests.supervisor import TheirEnds, attend, beyond_standard, start
from trio_console._guests.warden import guarded
from trio_console._machine.welcome import GREETING
from trio_console._processes import GUEST_MARK
from trio_console._trio.ending import see_through
from trio_console._trio.sockets import enlarge_buffer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio_console._guests.machine.qemu import Memory, Plan
    from trio_console._guests.supervisor import Tail

__all__ = ["NotBootedError", "Started", "run_machine"]

#: Seconds between two looks at a machine that says nothing.
_LOOK: Final = 5.0

#: Seconds of processor time that a machine may use while it says nothing: an emulated one has started after three
#: to five of them, so it is in a loop. The time of this machine would not do, because it goes on while others have
#: its processors. And the least share of it that a machine uses which has not stopped.
_SILENT_WORK: Final = 15.0
_STOPPED: Final = 0.01


class NotBootedError(Exception):
    """A machine did not start; the message has the last that it and QEMU have said."""


@final
class Started:
    """A machine whose QEMU runs.

    Attributes:
        console: our end of its console.
        monitor: QEMU's monitor.
        tail: QEMU, or bubblewrap around it, and the last that they and the machine's kernel have said.
        pid: the process id of QEMU.
    """

    def __init__(self, console: socket.socket, monitor: Monitor, tail: Tail, pid: int) -> None:
        self.console: Final = console
        self.monitor: Final = monitor
        self.tail: Final = tail
        self.pid: Final = pid

    async def hear_greeting(self) -> None:
        """Wait until the machine can be told its settings.

        Raises:
            NotBootedError: it has ended, or does not come so far.
        """
        await _hear_greeting(self.console, self.tail, self.pid)

    async def say(self, settings: bytes) -> None:
        """Tell the machine its settings.

        Raises:
            NotBootedError: it has ended.
        """
        await _say(self.console, settings, self.tail)


@final
class _Turn:
    """The right to start a machine. Only so many start at once as there are processors, or two.

    More would only hold each other up, until each of them takes longer than its host waits.
    """

    _free: Final[trio.lowlevel.RunVar[trio.Semaphore]] = trio.lowlevel.RunVar("trio_console.machines")

    def __init__(self) -> None:
        try:
            self._semaphore = self._free.get()
        except LookupError:
            self._semaphore = trio.Semaphore(max(2, os.cpu_count() or 1))
            self._free.set(self._semaphore)
        self._taken = False

    async def wait(self) -> None:
        """Wait for it; if cancelled, it was not got."""
        await self._semaphore.acquire()
        self._taken = True

    def give_up(self) -> None:
        """Let the next one have it, unless that was done."""
        if self._taken:
            self._taken = False
            self._semaphore.release()


@trio.lowlevel.enable_ki_protection
async def run_machine(
    plan: Plan, model: str, memory: Memory | None, talk: Callable[[Started], Awaitable[None]]
) -> None:
    """Start QEMU when it is its turn, and return when it has ended; if cancelled, or ``talk`` raises, end it.

    Args:
        plan: what is started.
        model: QEMU's name for the kind of machine.
        memory: a file for its memory; `None` for none.
        talk: what is said to the machine meanwhile. It runs protected from Ctrl-C.

    Raises:
        OSError: QEMU could not be started.
    """
    turn = _Turn()
    await turn.wait()
    try:
        await _run(plan, model, memory, turn, talk)
    finally:
        turn.give_up()


@trio.lowlevel.enable_ki_protection
async def _run(
    plan: Plan, model: str, memory: Memory | None, turn: _Turn, talk: Callable[[Started], Awaitable[None]]
) -> None:
    mark = secrets.token_hex(16)
    with no_fork():
        pairs = [tuple(map(let_go_in_child, socket.socketpair())) for _ in range(2)]
    with ExitStack() as stack:
        for pair in pairs:
            for end in pair:
                stack.enter_context(end)
                enlarge_buffer(end)
        (console, _), (control, _) = pairs
        theirs = [stack.enter_context(beyond_standard(end)) for _, end in pairs]
        ends = stack.enter_context(TheirEnds())
        stderr, news = [stack.enter_context(ends.error_pipe()) for _ in range(2)]
        their_err, their_news = ends.numbers
        numbers = [end.fileno() for end in theirs]
        inside = Inside(mark)
        async with guarded(mark, whole=True) as guard:
            process = await start(
                _command(plan, model, memory, numbers, their_news, mark),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=their_err,
                pass_fds=numbers if plan.jail is None else [*numbers, their_news],
                env={**os.environ, GUEST_MARK: mark},
                cwd="/",
            )
            guard(process.pid)
            for end in theirs:
                end.close()
            ends.close()
            tails: list[Tail] = []
            monitor = Monitor(stack.enter_context(trio.socket.from_stdlib_socket(control)))

            @trio.lowlevel.enable_ki_protection
            async def tell() -> None:
                (tail,) = tails
                pid = process.pid
                if plan.jail is not None:
                    pid = await _learn(inside, news, tail)
                    guard(pid)
                _bound(pid, most_memory(plan))
                await talk(Started(console, monitor, tail, pid))
                turn.give_up()

            try:
                await attend(process, "QEMU", stderr, tails.append, tell, wrapped=plan.jail is not None)
            finally:
                if plan.jail is not None:
                    await see_through(inside.end)  # noqa: ASYNC102  (shields itself)


def _command(
    plan: Plan, model: str, memory: Memory | None, numbers: Sequence[int], news: int, mark: str
) -> list[str]:
    """The command that starts QEMU, in its jail if it is to have one."""
    console, monitor = numbers
    if plan.jail is None:
        return command(plan, model, console, monitor=monitor, memory=memory)
    inside = None if memory is None else memory_in_jail(memory)
    made = command(in_jail(plan), model, console, monitor=monitor, memory=inside)
    return [*jailed(plan.jail, plan, memory, news, mark), *made]


def _bound(pid: int, most: int) -> None:
    """Let QEMU have no more memory of its own than that: what it asks for beyond ends it."""
    with suppress(ProcessLookupError):
        hard = resource.prlimit(pid, resource.RLIMIT_DATA)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))


async def _learn(inside: Inside, news: trio.abc.ReceiveStream, tail: Tail) -> int:
    """Wait until bubblewrap has started QEMU; its process id."""
    pid = await child_of(news)
    if pid is None or not inside.learn(pid):
        raise NotBootedError(advised(await tail.explain(), out_of_memory=False))
    return pid


async def _hear_greeting(sock: socket.socket, tail: Tail, pid: int) -> None:
    left = len(GREETING)
    while left:
        await _wait_readable(sock, tail, pid)
        try:
            data = sock.recv(left, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            data = b""
        if not data:
            raise NotBootedError(await tail.explain())
        left -= len(data)


async def _wait_readable(sock: socket.socket, tail: Tail, pid: int) -> None:
    """Wait for bytes of a machine that works, or says something on its serial console."""
    heard, worked = tail.heard, _worked(pid)
    while True:
        before = _worked(pid)
        with trio.move_on_after(_LOOK):
            await trio.lowlevel.wait_readable(sock)
            return
        now = _worked(pid)
        if heard != tail.heard:
            heard, worked = tail.heard, now
        elif now - before < _STOPPED * _LOOK:
            raise NotBootedError(f"it has stopped; {await tail.explain()}")
        elif now - worked >= _SILENT_WORK:
            raise NotBootedError(f"it said nothing in {now - worked:.0f} seconds of work; {await tail.explain()}")


def _worked(pid: int) -> float:
    """Seconds of processor time that a process has used; 0 of one that has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _say(sock: socket.socket, data: bytes, tail: Tail) -> None:
    rest = memoryview(data)
    while rest:
        await trio.lowlevel.wait_writable(sock)
        try:
            rest = rest[sock.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            continue
        except OSError as exc:
            raise NotBootedError(await tail.explain()) from exc
