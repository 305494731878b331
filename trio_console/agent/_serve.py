"""Puts the agent together: one writer, one reader, and a nursery of sessions.

Only the outbox's task writes to the console, and only the router reads from it. When one of them ends, for any
reason, the nursery is cancelled, and each session ends its processes before its task returns.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import signal
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, final

import trio

from trio_console import _wire as wire
from trio_console._trio.threads import NoThreadError
from trio_console._version import __version__
from trio_console._wire.ids import slot_ids, slot_of, slots_in
from trio_console._wire.outbox import Outbox
from trio_console.agent._cgroups import open_cgroups
from trio_console.agent._files.handles import HANDLES_PER_CLIENT
from trio_console.agent._files.session import FsOpener
from trio_console.agent._files.shared import FILE_PATIENCE, Files
from trio_console.agent._held import Held, Holding
from trio_console.agent._net.lookups import Lookups, dial
from trio_console.agent._net.tcp import TcpSession
from trio_console.agent._process.background import Background, KillSession
from trio_console.agent._process.births import Births
from trio_console.agent._process.hunt import Hunt
from trio_console.agent._process.limits import FdHeadroom
from trio_console.agent._process.plan import ExecDefaults
from trio_console.agent._process.session import LEGACY_STDIN_BUDGET, STDIN_PATIENCE, STDIN_WINDOW, ExecSession
from trio_console.agent._process.sinks import Sinks
from trio_console.agent._process.spawn import Child, StartError, failure, os_error_text, spawn
from trio_console.agent._router import Ending, Router, log
from trio_console.agent._session import Activity, Sender, Session
from trio_console.agent._shares import Pace, Shares
from trio_console.agent._system.boot import BootError, BootTimes, FrameSource, boot
from trio_console.agent._system.machine import (
    ACTIVITY_DIR,
    Leaders,
    kill_remaining,
    reap_orphans,
    set_clock,
    write_activity,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trio_console.agent._router import Opener

__all__ = ["AgentOptions", "Lasting", "Settled", "serve_agent"]

_M = TypeVar("_M", bound=wire.Message)

AGENT_VERSION: Final = f"trio_console {__version__}"

#: Starts that may be under way at the same time, beside the first of each client; four of them for one client. (A
#: start may hang in the kernel.)
_STARTS: Final = 6

#: Of these, starts that are done at the same time: two keep both halves of a start busy, and more would only
#: wait for the interpreter, as all sessions do. And the seconds after which a start is taken for one that hangs.
_STARTS_AT_ONCE: Final = 2
_USUAL_START: Final = 0.05

#: Connections that are begun in a turn of the loop, whosever they are. (To begin one takes a quarter of a
#: millisecond, and a client may ask for hundreds at once.)
_CONNECTS_AT_ONCE: Final = 4

#: Descriptors: of a command (three pipes, and that of its exit), and while it is started (both ends of the pipes,
#: and those by which the child reports); of a connection, and while two addresses are tried.
_FDS_OF_CHILD: Final = 4
_FDS_OF_START: Final = 11
_FDS_OF_CONNECTION: Final = 2

#: Seconds for which a program that is open for writing is tried again, and between two attempts. Every process
#: that is started holds copies of its parent's descriptors until its exec. So a file that was written and closed
#: is still open for some milliseconds, or longer on a busy machine.
_BUSY_TIME: Final = 0.5
_BUSY_PAUSE: Final = 0.002

#: Whether commands have cgroups where that is possible. (For comparisons.)
_USES_CGROUPS: Final = True

#: Bytes of input that a session may send before it is granted more: as many as are in one frame, or a file is
#: written with at once. And bytes that are held for all sessions: one client alone may hold half of these, or a
#: thousand first parts.
_FIRST_INPUT: Final = 64 * 1024
_MOST_INPUT: Final = 128 * 1024 * 1024

_SHUTDOWN_GRACE: Final = 1.0
_KILL_GRACE: Final = 2.0

#: Seconds for the host to read what is still queued for it at the end.
_LAST_WORDS_TIME: Final = 1.0

#: Whole seconds for an agent's process to end, also if something hangs.
_LAST_DEADLINE: Final = 10


def _most_input() -> int:
    """Bytes of input that are held for all sessions: no more than an eighth of the machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Where a sandbox refuses the call for it, the C library makes up a number, which may be negative.
    return min(_MOST_INPUT, memory // 8) if memory > 0 else _MOST_INPUT


class Settled(NamedTuple):
    """What an agent is told before its boot.

    Attributes:
        user: the user of commands for which neither they nor the bootstrap name one; `None` for the agent's own.
        stays: whether the host may be followed by another one: with `False` there is no use of a `Lasting`.
    """

    user: str | None
    stays: bool


@final
@dataclass(frozen=True)
class AgentOptions:
    """How an agent behaves. Sizes are bytes, times are seconds.

    Attributes:
        stdin_window: input that a client with credit may send for one session before a grant: a command's stdin, a
            file that is written, a connection.
        first_input: of this, what may be sent before the first grant.
        most_input: input of clients with credit that is held at most; by default no more than an eighth of the
            memory.
        stdin_budget: input queued for one session of a client without credit.
        stdin_patience: how long a command or connection of such a client may take no input, before input is
            refused.
        file_patience: the same for a file.
        handles_per_client: the most files and directories that a client may have open (a number).
        shutdown_grace: how long commands have to end after SIGTERM.
        owns_process: whether the process is the agent's own. It then shuts down at SIGTERM, reaps orphans, kills
            every descendant that is left at the end, has cgroups for its commands where it may, and requests a
            SIGALRM in case the end takes too long. Only in the main thread.
        activity_dir: a directory. If it exists, the activity file (``heartbeat.json``) is written into it.
        user: the user of commands for which neither they nor the bootstrap name one; `None`, the default, for the
            agent's own.
        settle: called before the boot, when all else is there that the boot needs, and may block; its answer
            replaces ``user``. With `None`, the default, nothing is called.
    """

    stdin_window: int = STDIN_WINDOW
    first_input: int = _FIRST_INPUT
    most_input: int = field(default_factory=_most_input)
    stdin_budget: int = LEGACY_STDIN_BUDGET
    stdin_patience: float = STDIN_PATIENCE
    file_patience: float = FILE_PATIENCE
    handles_per_client: int = HANDLES_PER_CLIENT
    shutdown_grace: float = _SHUTDOWN_GRACE
    owns_process: bool = False
    activity_dir: str = ACTIVITY_DIR
    user: str | None = None
    settle: Callable[[], Settled] | None = None


@final
class Lasting:
    """What outlives a host, for an agent whose machine may get another one: see `serve_agent`.

    Attributes:
        births: has the cgroups of commands.
        sinks: descriptors that processes write to, and whose output is dropped, with the client of each.
        goes_on: whether the last host has gone, or has reset the agent, so that the next one is to be waited for.
        closed_at: when the console of such a host was closed, by trio's clock.
    """

    def __init__(self) -> None:
        self.births: Births | None = None
        self.sinks: list[tuple[int, int]] = []
        self.goes_on = False
        self.closed_at = -math.inf

    def close(self) -> None:
        """Close the descriptors, because there is no next host."""
        while self.sinks:
            os.close(self.sinks.pop()[0])


async def serve_agent(
    stream: trio.abc.Stream,
    *,
    options: AgentOptions | None = None,
    boot_time_ns: int | None = None,
    lasting: Lasting | None = None,
) -> Ending:
    """Run the agent at this end of ``stream``: boot, and then serve until the console or the guest ends.

    At the end, also if cancelled, the stream is closed and everything that commands have started was killed and
    waited for; with the option ``owns_process`` every other descendant of this process, too.

    Args:
        stream: the console.
        options: see `AgentOptions`; `None` for the defaults.
        boot_time_ns: when the agent began, in ns of the boot clock; `None`, the default, for now.
        lasting: makes the agent one whose host may be followed by another, for which it is called again, with the
            same `Lasting`. If the host has gone, or has reset the agent, then only what belongs to sessions that
            were under way was ended: processes that commands have left go on. `None`, the default, for one host.

    Returns:
        Why it ended.

    Raises:
        BootError: the host sent no valid bootstrap, or a bootstrap with settings that cannot be made.
    """
    options = options or AgentOptions()
    births = None if lasting is None else lasting.births
    if births is None:
        births = _births(options)
    agent = _Agent(stream, options, births, boot_time_ns or BootTimes.now(), lasting)
    goes_on = False
    try:
        ending = await agent.run()
        goes_on = agent.has_let_go
        return ending
    finally:
        agent.headroom.restore()
        if lasting is not None:
            lasting.births, lasting.goes_on = births, goes_on
        if not goes_on:
            with trio.move_on_after(_KILL_GRACE, shield=True):
                await births.end()
                await (kill_remaining() if options.owns_process else agent.kill_rest())
            if lasting is not None:
                lasting.close()


def _births(options: AgentOptions) -> Births:
    # (An agent that is a part of another program has no right to that program's cgroup.)
    return Births(open_cgroups() if _USES_CGROUPS and options.owns_process else None)


def _opener(cls: type[_M], make: Callable[[Sender, int, _M], Session | wire.Message]) -> Opener:
    """An opener for the router, of a function for one class of messages."""

    def open_(sender: Sender, session_id: int, message: wire.Message) -> Session | wire.Message:
        assert isinstance(message, cls), "an opener gets the message that it is registered for"
        return make(sender, session_id, message)

    return open_


def _slot_of(session_id: int) -> int:
    slot = slot_of(session_id)
    assert slot is not None, "the router opens sessions only with ids of clients"
    return slot


@final
class _Agent:
    def __init__(
        self,
        stream: trio.abc.Stream,
        options: AgentOptions,
        births: Births,
        boot_time_ns: int,
        lasting: Lasting | None,
    ) -> None:
        self.options = options
        self.has_let_go = False  # of all that belongs to its host, for the next one
        self.headroom = FdHeadroom()
        self._stream = stream
        self._lasting = lasting
        self._outbox = Outbox(stream)
        self._writing = trio.CancelScope()
        self._written = trio.Event()
        self._source = FrameSource(stream, self._outbox.end_turn)
        self._times = BootTimes(boot_time_ns, BootTimes.now())
        self._leaders = Leaders()
        self._births = births
        self._hunt = Hunt(f"{secrets.token_hex(8)}.", births, log)
        self._background = Background()
        self._sinks: Sinks | None = None
        self._lookups: Lookups | None = None
        self._starts = Shares(_STARTS)
        self._held = Held(options.most_input)
        self._pace = Pace(_STARTS_AT_ONCE, _USUAL_START)
        self._connects = Pace(_CONNECTS_AT_ONCE)
        self._defaults = ExecDefaults()
        self._serial = 0
        self._clients_gone: dict[int, int] = {}  # by slot
        self._commanders: set[str] = set()  # clients that have started commands
        self._is_init = os.getpid() == 1
        self._router: Router | None = None
        self._files = Files(
            handles_per_client=options.handles_per_client,
            has_room=self._has_room_for_handles,
            headroom=self.headroom,
        )

    async def run(self) -> Ending:
        outcome: Ending | BootError = Ending.CONSOLE_CLOSED
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, nursery.cancel_scope)
                try:
                    outcome = await self._boot_and_serve(nursery)
                except BootError as exc:
                    outcome = exc  # raised below, where no nursery wraps it
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # the console went away while it was being booted
                if not self.has_let_go:
                    self._set_last_deadline()
                await self._say_the_rest()
                if self.has_let_go:
                    await self._close_console()
                nursery.cancel_scope.cancel()
        finally:
            self._files.close()
            await trio.aclose_forcefully(self._stream)
        if isinstance(outcome, BootError):
            raise outcome
        return outcome

    async def kill_rest(self) -> None:
        """Kill what commands have left. (A process that is the agent's own finds it among its descendants.)"""
        if self._serial:
            await self._hunt.kill_rest()

    async def _close_console(self) -> None:
        """Close the console of a host that is to be followed by another.

        This is early, because the next host waits to see it, and what is left to be ended here takes a while.
        """
        # What this host still sends, or is still sent, is not the next one's.
        await self._source.wait_over()
        await trio.aclose_forcefully(self._stream)
        if self._lasting is not None:
            self._lasting.closed_at = trio.current_time()

    async def _say_the_rest(self) -> None:
        """Give the host a moment to read what is queued for it, such as the last output of commands."""
        self._outbox.close()
        with trio.move_on_after(_LAST_WORDS_TIME):
            await self._written.wait()

    def _set_last_deadline(self) -> None:
        """Bound the time of the end, because a start that hangs in the kernel cannot be cancelled."""
        if self.options.owns_process:
            signal.alarm(_LAST_DEADLINE)

    async def _write(self, everything: trio.CancelScope) -> None:
        with self._writing:
            await self._outbox.run()
        self._written.set()
        if self._lasting is None:
            everything.cancel()  # the host does not read any more

    async def _boot_and_serve(self, nursery: trio.Nursery) -> Ending:
        self._births.prepare()
        user = self.options.user
        if self.options.settle is not None:
            # (The root directory may change meanwhile, with the way to a cgroup that a thread just makes.)
            await self._births.wait_prepared()
            user, stays = self.options.settle()
            self._lasting = self._lasting if stays else None
        window, first = self.options.stdin_window, self.options.first_input
        self._defaults = await boot(
            self._source,
            self._outbox,
            times=self._times,
            agent_version=AGENT_VERSION,
            flow=wire.Flow(window, window - first) if first < window else wire.Flow(window),
            is_init=self._is_init,
            user=user,
            resets=self._lasting is not None,
        )
        sender = Sender(self._outbox, Activity())
        router = Router(
            self._source,
            sender,
            nursery,
            openers=self._openers(),
            forget_client=partial(self._forget_client, nursery),
            set_clock=set_clock if self._is_init else None,
            shutdown_grace=self.options.shutdown_grace,
            resets=self._lasting is not None,
        )
        self._router = router
        self._sinks = Sinks(nursery, self.headroom, None if self._lasting is None else self._lasting.sinks)
        self._lookups = Lookups(nursery)
        nursery.start_soon(self._hunt.run)
        nursery.start_soon(self._files.run)
        nursery.start_soon(write_activity, sender.activity, router.sessions, self.options.activity_dir)
        if self.options.owns_process:
            nursery.start_soon(reap_orphans, self._leaders)
            nursery.start_soon(self._obey_sigterm, router)
        ending = await router.run()
        # (A host may go in the middle of a frame: then the frames are out of step, too.)
        gone = ending is Ending.CONSOLE_CLOSED or self._source.is_over
        if self._lasting is not None and (gone or ending is Ending.RESET):
            await self._let_go(router, gone=gone)
        return ending

    async def _let_go(self, router: Router, *, gone: bool) -> None:
        """End what belongs to the host, which is not there any more, or wants that."""
        if gone:
            self._writing.cancel()  # a virtio port without a host takes nothing, and never says that it is ready
        await router.end_all()
        self.has_let_go = True

    async def _obey_sigterm(self, router: Router) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                router.shut_down()

    # Kinds of sessions

    def _openers(self) -> Mapping[type[wire.Message], Opener]:
        return {
            wire.ExecRequest: _opener(wire.ExecRequest, self._open_exec),
            wire.FsRequest: FsOpener(
                self._files,
                window=self._window,
                budget=self.options.stdin_budget,
                patience=self.options.file_patience,
            ),
            wire.TcpConnect: _opener(wire.TcpConnect, self._open_tcp),
            wire.KillBackground: _opener(wire.KillBackground, self._open_kill),
        }

    def _open_exec(self, sender: Sender, session_id: int, message: wire.ExecRequest) -> Session:
        assert self._sinks is not None, "sessions are opened by the router"
        return ExecSession(
            sender,
            session_id,
            message,
            spawn=partial(self._spawn, session_id),
            sinks=self._sinks,
            hunt=self._hunt,
            stdin_window=self._window(_slot_of(session_id)),
            stdin_budget=self.options.stdin_budget,
            stdin_patience=self.options.stdin_patience,
        )

    def _open_tcp(self, sender: Sender, session_id: int, message: wire.TcpConnect) -> Session | wire.Message:
        self._ensure_headroom()
        slot = _slot_of(session_id)
        if not self.headroom.claim(slot, _FDS_OF_CONNECTION):
            return wire.TcpFailed(f"connect {message.host[:255]}:{message.port}: {os_error_text(errno.EMFILE)}")
        return TcpSession(
            sender,
            session_id,
            message,
            window=self._window(slot),
            budget=self.options.stdin_budget,
            patience=self.options.stdin_patience,
            connect=partial(self._connect, slot),
            over=partial(self.headroom.release, slot, _FDS_OF_CONNECTION),
        )

    async def _connect(self, slot: int, host: str, port: int) -> trio.SocketStream:
        """Connect to a host for a client; raises as `dial`, or because the host is not known."""
        assert self._lookups is not None, "sessions are opened by the router"
        addresses = await self._lookups.addresses(slot, host, port)
        return await dial(addresses, port, partial(self._connects.piece, slot))

    def _open_kill(self, sender: Sender, session_id: int, message: wire.KillBackground) -> Session:
        # The mark has the client in it, so a client names only its own commands.
        wanted = self._background.wanted(self._hunt.mark_of(self._client(_slot_of(session_id)), message.command))
        return KillSession(sender, session_id, wanted, message.grace / 1000, self._hunt)

    def _window(self, slot: int) -> Holding:
        """The window of a session of a client, for a client that counts credit."""
        return Holding(self._held, slot, self.options.stdin_window, self.options.first_input)

    def _ensure_headroom(self, handles: int | None = None) -> None:
        """Raise the descriptor limit if the open and the new sessions and files need it."""
        assert self._router is not None, "sessions are opened by the router"
        count = self._files.handles.count if handles is None else handles
        sinks = 0 if self._sinks is None else self._sinks.count
        self.headroom.ensure(len(self._router.sessions) + 1 + sinks, count)

    def _has_room_for_handles(self, handles: int) -> bool:
        self._ensure_headroom(handles)
        return self.headroom.takes_handles(handles)

    def _client(self, slot: int) -> str:
        """The client that has a slot now, for the marks of its commands."""
        return f"{slot}-{self._clients_gone.get(slot, 0)}"

    def _forget_client(self, nursery: trio.Nursery, start: int, end: int) -> Callable[[], object]:
        """End what a client that has gone has left: its files, and then the processes of its commands.

        The latter by what is returned, because those that its sessions end need not be searched. (A range that is
        a part of a slot ends its sessions, but not all of the client.)
        """
        left: list[str] = []
        self._files.forget(start, end)
        for slot in slots_in(start, end):
            client, ids = self._client(slot), slot_ids(slot)
            if self._lookups is not None and start <= ids.start and ids.stop <= end:
                self._lookups.forget(slot)
            if client in self._commanders and start <= ids.start and ids.stop <= end:
                self._starts.forget(slot)
                self._commanders.remove(client)
                self._clients_gone[slot] = self._clients_gone.get(slot, 0) + 1
                left.append(client)

        def kill() -> None:
            for client in left:
                nursery.start_soon(self._hunt.kill_client, client, _KILL_GRACE)

        return kill

    async def _spawn(self, session_id: int, request: wire.ExecRequest, size: tuple[int, int]) -> Child:
        """Start a child; see `Spawn`."""
        self._serial += 1
        serial, slot = self._serial, _slot_of(session_id)
        client = self._client(slot)
        self._commanders.add(client)
        deadline = trio.current_time() + _BUSY_TIME
        while True:
            try:
                async with self._starts.slot(self._starts.of(slot)), self._pace.piece(slot):
                    child = await self._try_to_spawn(slot, request, size, self._hunt.mark_of(client, serial))
            except (OSError, NoThreadError) as exc:
                code = exc.errno if isinstance(exc, OSError) else None
                raise StartError(failure(request, OSError(code or errno.EAGAIN, "no room for a start"))) from exc
            except StartError as exc:
                if exc.failure.errno != errno.ETXTBSY or trio.current_time() >= deadline:
                    raise
            else:
                child.number = serial
                return child
            await trio.sleep(_BUSY_PAUSE)  # here, and not in the thread, which others wait for

    async def _try_to_spawn(self, slot: int, request: wire.ExecRequest, size: tuple[int, int], mark: str) -> Child:
        """Start a child in a thread, so that a slow file system does not stop other sessions."""
        self._ensure_headroom()
        if not self.headroom.claim(slot, _FDS_OF_START):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        kept = 0
        try:
            before = self.headroom.for_child()
            with self._leaders.starting():
                start = partial(spawn, request, size, self._defaults, before, mark)
                child = await self._births.run(mark, start)
                self._leaders.add(child.pid)
                child.on_reap = partial(self._note_reaped, slot, mark)
                kept = _FDS_OF_CHILD
            return child
        finally:
            self.headroom.release(slot, _FDS_OF_START - kept)

    def _note_reaped(self, slot: int, mark: str, pid: int, until: int) -> None:
        self._leaders.discard(pid)
        self.headroom.release(slot, _FDS_OF_CHILD)
        self._background.note(pid, mark, until)
        self._births.note_over(mark)
