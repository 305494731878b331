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
from trio_console._guests.machine.monitor import Monitor, field
from trio_console._guests.machine.qemu import AGENT, Memory, command, most_memory
from trio_console._guests.namespaces.advice import advised
from trio_console._guests.namespaces.inside import Inside, child_of
from trio_console._guests.supervisor import TheirEnds, attend, beyond_standard, start
from trio_console._guests.warden import guarded
from trio_console._machine.welcome import GREETING, pack
from trio_console._processes import GUEST_MARK
from trio_console._trio.ending import see_through
from trio_console._trio.sockets import enlarge_buffer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio_console._guests.machine.qemu import Plan
    from trio_console._guests.supervisor import Tail
    from trio_console._machine.welcome import Layout

__all__ = ["NotBootedError", "Started", "run_machine"]

#: Seconds between two looks at a machine that says nothing.
_LOOK: Final = 5.0

#: Seconds of processor time that a machine may use while it says nothing: an emulated one has started after three
#: to five of them, so it is in a loop. The time of this machine would not do, because it goes on while others have
#: its processors. And the least share of it that a machine uses which has not stopped.
_SILENT_WORK: Final = 15.0
_STOPPED: Final = 0.01

#: Seconds between two looks whether an agent has closed its console; and for it to do that, which takes a tenth.
_PAUSE: Final = 0.002
_LEAVING_TIME: Final = 60.0


class NotBootedError(Exception):
    """A machine did not start; the message has the last that it and QEMU have said."""


@final
class Started:
    """A machine whose QEMU runs.

    Attributes:
        console: our end of its console; a socket that is not connected if it has none.
        monitor: QEMU's monitor.
        tail: QEMU, or bubblewrap around it, and the last that they and the machine's kernel have said.
        pid: the process id of QEMU.
        memory: the memory with which it was started.
    """

    def __init__(
        self,
        console: socket.socket,
        monitor: Monitor,
        tail: Tail,
        pid: int,
        memory: Memory,
        stack: ExitStack,
    ) -> None:
        self.console = console
        self.monitor: Final = monitor
        self.tail: Final = tail
        self.pid: Final = pid
        self.memory: Final = memory
        self._stack: Final = stack  # left when the machine has ended

    async def hear_greeting(self) -> None:
        """Wait until the machine can be told its settings.

        Raises:
            NotBootedError: it has ended, or does not come so far.
        """
        await _hear_greeting(self.console, self.tail, self.pid)

    async def come_up(self, layout: Layout | None) -> None:
        """Wait until a machine that was just started can be told its settings, and saved.

        Args:
            layout: what its root directory is made of; `None` if that is its own.

        Raises:
            NotBootedError: it has ended, or does not come so far.
        """
        await self.hear_greeting()
        if layout is not None:
            await self.say(pack(layout))
            await self.hear_greeting()

    async def say(self, settings: bytes) -> None:
        """Tell the machine its settings.

        Raises:
            NotBootedError: it has ended.
        """
        await _say(self.console, settings, self.tail)

    async def attach(self) -> None:
        """Give the machine a new console, whose other end is `console` from then on.

        Raises:
            MonitorError: QEMU has ended, or refuses it.
        """
        ours, theirs = _pair(self._stack)
        with theirs:
            await self.monitor.give("console", theirs.fileno())
            address = {"type": "fd", "data": {"str": "console"}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            await self.monitor.execute("chardev-change", id="console", backend=backend)
        self.console = ours

    async def detach(self) -> None:
        """Let the machine have no console, so that its agent sees that its host has gone.

        Raises:
            MonitorError: QEMU has ended.
        """
        await self.monitor.execute("chardev-change", id="console", backend={"type": "null", "data": {}})
        self.monitor.events.clear()

    async def wait_left(self, *, loaded: bool) -> None:
        """Wait until the agent of a machine without a console has noticed that, and has closed it.

        The agent may open it again at once. But QEMU tells of each change, if only a second after the one before.
        Of a machine that was loaded it can be asked, too, which is quicker. (Of one from which a console was taken
        it says in any case that it is closed.)

        Args:
            loaded: whether the machine was loaded just now, and had a console when it was saved. Then QEMU tells
                first that the console is open, and before that it says that it is closed.

        Raises:
            MonitorError: QEMU has ended.
            NotBootedError: the agent has not closed it within a minute.
        """
        with trio.move_on_after(_LEAVING_TIME) as patience:
            await self._wait_closed(loaded=loaded)
        if patience.cancelled_caught:
            why = f"its agent has not let go of its console within {_LEAVING_TIME:g} seconds"
            raise NotBootedError(f"{why}; {await self.tail.explain()}")

    async def _wait_closed(self, *, loaded: bool) -> None:
        while True:
            found = await self.monitor.execute("query-chardev")  # (by which events are read as well)
            told = sum(map(_tells_of_agent, self.monitor.events))
            if told > loaded or (loaded and told and not _is_open(found)):
                return
            await trio.sleep(_PAUSE)


def _is_open(found: object) -> bool:
    """Whether the machine's agent has its console open, by QEMU's answer."""
    devices = found if isinstance(found, list) else []
    return any(field(each, "frontend-open") for each in devices if field(each, "label") == "console")


def _tells_of_agent(event: object) -> bool:
    """Whether the machine's agent has opened its console, or closed it."""
    return field(event, "event") == "VSERPORT_CHANGE" and field(event, "data", "id") == AGENT


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
    plan: Plan,
    model: str,
    memory: Memory,
    talk: Callable[[Started], Awaitable[None]],
    *,
    connected: bool = True,
) -> None:
    """Start QEMU when it is its turn, and return when it has ended; if cancelled, or ``talk`` raises, end it.

    Args:
        plan: what is started.
        model: QEMU's name for the kind of machine.
        memory: its memory.
        talk: what is said to the machine meanwhile. It runs protected from Ctrl-C.
        connected: whether it has a console from its start on; by default true.

    Raises:
        OSError: QEMU could not be started.
    """
    turn = _Turn()
    await turn.wait()
    try:
        await _run(plan, model, memory, turn, talk, connected=connected)
    finally:
        turn.give_up()


@trio.lowlevel.enable_ki_protection
async def _run(
    plan: Plan,
    model: str,
    memory: Memory,
    turn: _Turn,
    talk: Callable[[Started], Awaitable[None]],
    *,
    connected: bool,
) -> None:
    mark = secrets.token_hex(16)
    with ExitStack() as stack:
        pairs = [_pair(stack) for _ in range(2)]
        (console, _), (control, _) = pairs
        theirs = [stack.enter_context(beyond_standard(end)) for _, end in pairs]
        ends = stack.enter_context(TheirEnds())
        stderr, news = [stack.enter_context(ends.error_pipe()) for _ in range(2)]
        their_err, their_news = ends.numbers
        numbers = [end.fileno() for end in theirs]
        inside = Inside(mark)
        async with guarded(mark, whole=True) as guard:
            process = await start(
                _command(plan, model, memory, numbers, their_news, mark, connected=connected),
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
                await talk(Started(console, monitor, tail, pid, memory, stack))
                turn.give_up()

            try:
                wrapped = plan.jail is not None
                await attend(process, "QEMU", stderr, tails.append, tell, kill_inside=inside.kill, wrapped=wrapped)
            finally:
                if plan.jail is not None:
                    await see_through(inside.end)  # noqa: ASYNC102  (shields itself)


def _command(
    plan: Plan, model: str, memory: Memory, numbers: Sequence[int], news: int, mark: str, *, connected: bool
) -> list[str]:
    """The command that starts QEMU, in its jail if it is to have one."""
    console, monitor = numbers[0] if connected else None, numbers[1]
    if plan.jail is None:
        return command(plan, model, console, monitor=monitor, memory=memory)
    made = command(in_jail(plan), model, console, monitor=monitor, memory=memory_in_jail(memory))
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


def _pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, which are closed with the stack at the latest."""
    with no_fork():
        ours, theirs = map(let_go_in_child, socket.socketpair())
    for end in (ours, theirs):
        stack.enter_context(end)
        enlarge_buffer(end)
    return ours, theirs


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
