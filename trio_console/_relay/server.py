"""The relay's server: one task reads the agent's frames; three tasks and a cancel scope serve each client.

The router decides what to do with each frame. This module decides which task waits for what:

* If the agent counts credit, its reader never waits for a client. If it does not, the caller has chosen what
  happens when a client does not read: see `SlowClient`.
* A client's writer waits for its socket, its feeder waits for the agent's outbox, and its reader waits for these
  two. None of them waits for another client's task, but clients that send much take turns.
* While a client's writer sleeps, the agent's reader sends in its place: at the end of each turn, what the client's
  socket takes at once, to each client that has got frames in it. So most frames need no turn of a further task.
  The writer sends the rest.

A client is cut by cancelling its scope, which runs the same ending as when the client leaves.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, final

import msgspec
import trio

from trio_console import _wire as wire
from trio_console._addresses import peer_of
from trio_console._errors import ProtocolError
from trio_console._forked import let_go_in_child, no_fork, shut_down_at_the_end
from trio_console._relay.client import Batch, ClientTasks, patience, take
from trio_console._relay.door import Door, has_hung_up, keep_rates, ready_for
from trio_console._relay.log_writer import writing
from trio_console._relay.options import RelayStatistics, ServerOptions, SlowClient
from trio_console._relay.router import Router
from trio_console._relay.router.orders import Orders
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.lost import GuestLostError, explained
from trio_console._trio.reports import LoggedReports
from trio_console._trio.sockets import UnixStream, accept, enlarge_buffer
from trio_console._trio.turns import Costly, Line, Meter, Turn
from trio_console._wire.credit import Admitted
from trio_console._wire.ids import TRANSPORT_ID
from trio_console._wire.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_console._relay.router import Client
    from trio_console._session.boot import Booted

__all__ = ["RelayServer", "RelayStatistics", "ServerOptions", "SlowClient"]

#: Bytes sent to a client's socket, or read from it, at once.
_BATCH: Final = 64 * 1024

#: Bytes sent to a client's socket by the agent's reader: a read of a console is no more.
_BATCH_AT_ONCE: Final = 128 * 1024

#: Bytes of control frames for the agent above which clients are not read.
_CONTROL_BUDGET: Final = 64 * 1024

#: Frames of one client that are handled before a checkpoint, however little they cost.
_ROW: Final = 32

#: Commands of one client that the guest may have to start at a time. While it has so many, the client's next frame
#: waits for it, for so many seconds at most. A guest starts two commands at a time, whosever they are, and handles
#: all frames in their order: what a client asks for beyond that only waits there, in front of other clients' work.
_STARTS: Final = 4
_START_PATIENCE: Final = 0.1

#: Seconds between two readings of the clocks; as upstream's relay does, the guest is sent the time at least every
#: 60 s, and at once when the wall clock has jumped by 6 s against the monotonic clock.
_TICK: Final = 2.0
_CLOCK_SYNC: Final = 60.0
_CLOCK_JUMP: Final = 6.0

#: Seconds for the queued frames to reach the clients after the guest has gone.
_FAREWELL: Final = 1.0

#: Seconds for what a client has sent before it closed a connection to reach the guest, before the guest is told to
#: shut down.
_LAST_PROMISE_TIME: Final = 0.5

#: Characters of the reason for the clients, or some more, so that its frame is a small one.
_LONGEST_REASON: Final = 800

#: Seconds between attempts to accept when no descriptor is free.
_ACCEPT_PAUSE: Final = 0.1


@final
class RelayServer:
    """Serves clients until the guest is gone or `run` is cancelled.

    Args:
        console: the console's stream.
        booted: the guest.
        options: the caller's choices.
        explain: finds out why the guest is gone, in words, for its clients; see `explained`.
    """

    def __init__(
        self,
        console: trio.abc.Stream,
        booted: Booted,
        options: ServerOptions,
        explain: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        flow = booted.ready.flow
        self._console = console
        self._decoder = booted.decoder
        self._booted = booted
        self._options = options
        self._explain = explain
        self._limits = options.limits
        self._credited = flow is not wire.UNSET
        self._router = Router(
            flow if flow is not wire.UNSET else None, options.limits, booted.ready.features or (), options.rights
        )
        self._tasks: dict[Client, ClientTasks] = {}
        self._marked: dict[ClientTasks, None] = {}  # with frames of the turn that the agent's reader is in
        # A small budget, because the control frames of all clients wait behind those that one client sends in a
        # row.
        self._outbox = Outbox(console, control_budget=_CONTROL_BUDGET, admission=booted.admission())
        # This program's own client gets its slot first, before the clients that came while the guest was booting.
        self._own_client = self._router.connect(None) if options.attached else None
        self._log = LoggedReports("trio_console.relay")
        self._door = Door(self._router, options, self._log)
        self._router.observer = options.session_log
        self._router.auditor = options.audit_log
        self._line = Line()
        self._costly = Costly()
        self._relief = trio.Event()
        self._ending = trio.Event()  # the guest is to be told to shut down
        self._last_order = b""  # the frame that tells it
        self._ended = trio.Event()
        self._lost = False
        self._front = trio.CancelScope()
        self._reading = trio.CancelScope()
        self.shutdown_requested: Final = trio.Event()  # by a client
        self.reason = ""
        self._told = ""  # the reason for the clients
        self.cause: BaseException | None = None
        self._frames_from_agent = 0
        self._receiving = False
        self._served = 0
        self._cut = 0
        self._nursery: trio.Nursery | None = None
        self._serving = trio.Event()

    # Life

    @trio.lowlevel.enable_ki_protection
    async def run(self, listener: socket.socket) -> None:
        """Serve until the guest is gone; `reason` and `cause` then say why."""
        logs = [log for log in (self._options.session_log, self._options.audit_log) if log is not None]
        async with writing(logs):
            await self._run(listener)

    async def _run(self, listener: socket.socket) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._write_agent)
                nursery.start_soon(self._tell_shutdown)
                async with trio.open_nursery() as front:
                    front.start_soon(self._accept, listener)
                    front.start_soon(self._keep_time)
                    if self._options.idle_timeout is not None:
                        front.start_soon(
                            self._door.watch_idle, self._options.idle_timeout, self._tasks.values, self.cut
                        )
                    self._serving.set()
                    self.reason, self.cause = await self._read_agent()
                    front.cancel_scope.cancel()
                self._told = await self._find_reason()
                await self._say_farewell()
                nursery.cancel_scope.cancel()
        finally:
            self._ended.set()

    async def wait_serving(self) -> None:
        """Wait until clients are accepted."""
        await self._serving.wait()

    async def wait_ended(self) -> None:
        """Wait until the guest is gone and its clients were told."""
        await self._ended.wait()

    def progress(self) -> tuple[int, bool]:
        """How many frames have come from the guest, and whether this waits for more of its bytes."""
        return self._frames_from_agent, self._receiving

    def shut_down(self, grace: float | None = None) -> None:
        """Accept no more clients, and tell the guest to shut down, within so many seconds if that is known."""
        self.accept_no_more()
        self._order_shutdown(wire.encode(wire.Shutdown(wire.UNSET if grace is None else wire.guest_grace(grace))))

    def _order_shutdown(self, frame: bytes) -> None:
        """Have the guest told to shut down; the first order stays."""
        if not self._ending.is_set():
            self._last_order = frame
            self._ending.set()

    def accept_no_more(self) -> None:
        """Accept no more clients."""
        self._front.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _tell_shutdown(self) -> None:
        """Wait for an order to shut down; tell the guest, behind what clients rely on unless that takes long."""
        await self._ending.wait()
        with trio.move_on_after(_LAST_PROMISE_TIME):
            for tasks in list(self._tasks.values()):
                await self._keep_promises(tasks)
        if not self._outbox.closed:
            self._outbox.commit(self._last_order, 0)

    async def _keep_promises(self, tasks: ClientTasks) -> None:
        """Wait until the agent has got what a client sent before it closed its connections."""
        while tasks.client in self._tasks and self._owes(tasks):
            await tasks.wait_room()

    def _owes(self, tasks: ClientTasks) -> bool:
        return not self._outbox.closed and (tasks.feeding or self._router.owes(tasks.client))

    @interrupt_safe
    @asynccontextmanager
    async def attach(self) -> AsyncIterator[UnixStream]:
        """Connect a client in this program; yields the client's end of the connection.

        Raises:
            GuestLostError: the guest is gone.
        """
        assert self._nursery is not None, "clients come while the server runs"
        assert self._own_client is not None, "the client in this program attaches once"
        if self._ended.is_set():
            raise GuestLostError(self.reason) from self.cause
        client, self._own_client = self._own_client, None
        with no_fork():
            ours, theirs = map(let_go_in_child, socket.socketpair())
        enlarge_buffer(ours)
        stream = UnixStream(trio.socket.from_stdlib_socket(ours))
        self._door.note_own_client(client)
        self._nursery.start_soon(self._serve_client, stream, client)
        with trio.socket.from_stdlib_socket(theirs) as end, shut_down_at_the_end(end):
            yield UnixStream(end)

    async def _find_reason(self) -> str:
        if self._ending.is_set() or self._front.cancel_called:
            return "the guest was shut down"
        reason = self.reason if self._explain is None else await explained(self.reason, self._explain)
        if len(reason) <= _LONGEST_REASON:
            return reason
        # What a program has said last tells the most: the error at the end of a traceback.
        return f"{reason[: _LONGEST_REASON // 4]} ... {reason[-_LONGEST_REASON * 3 // 4 :]}"

    async def _say_farewell(self) -> None:
        """Deliver the queued frames to the clients after the guest has gone, and then end of file."""
        self._lost = True
        self._router.lose_agent()
        for tasks in self._tasks.values():
            tasks.output.set()
        with trio.move_on_after(_FAREWELL):
            while self._tasks:
                await self._wait_relief()

    @trio.lowlevel.enable_ki_protection
    async def _keep_time(self) -> None:
        offset = time.time() - trio.current_time()
        next_sync = trio.current_time()
        while True:
            now = trio.current_time()
            drift = time.time() - now - offset
            if now >= next_sync or abs(drift) >= _CLOCK_JUMP:
                offset += drift
                next_sync = now + _CLOCK_SYNC
                if not self._outbox.closed:
                    self._outbox.send_control(wire.encode(wire.ClockSync(time.time_ns())))
            for slot in self._router.tick(now):
                self._log.warning(
                    "slot %d is not used until the guest has ended its sessions: it did not in time", slot
                )
            self._log.tell()
            await trio.sleep(_TICK)

    # Clients

    @trio.lowlevel.enable_ki_protection
    async def _accept(self, listener: socket.socket) -> None:
        with self._front:
            await self._accept_all(listener)

    async def _accept_all(self, listener: socket.socket) -> None:
        assert self._nursery is not None, "clients come while the server runs"
        while True:
            try:
                stream = await accept(listener)
            except OSError as exc:
                self._log.warning("a client could not be accepted: %s", exc)
                await trio.sleep(_ACCEPT_PAUSE)
                continue
            self._nursery.start_soon(self._serve, stream)

    @trio.lowlevel.enable_ki_protection
    async def _serve(self, stream: UnixStream) -> None:
        with stream.socket, shut_down_at_the_end(stream.socket):
            client = await self._door.admit(peer_of(stream.socket))
            # (No checkpoint until the client is listed: if this were cancelled there, the slot would stay taken.)
            if client is not None:
                await self._serve_client(stream, client)

    @trio.lowlevel.enable_ki_protection
    async def _serve_client(self, stream: UnixStream, client: Client) -> None:
        with stream.socket, shut_down_at_the_end(stream.socket):
            self._served += 1
            tasks = self._tasks[client] = ClientTasks(client, stream, self._door.rates_for(client))
            try:
                with tasks.scope:
                    await self._talk(tasks)
            finally:
                if tasks.is_slow and tasks.scope.cancelled_caught and not tasks.was_cut and not self._lost:
                    self._note_cut(tasks, f"it has read nothing for {self._options.slow_client_timeout:g} s")
                del self._tasks[client]
                tasks.room.set()
                orders = self._router.disconnect(client, trio.current_time())
                self._door.note_leaving(client)
                # That it has gone is said behind its data that still waits for the console: the agent delivers
                # what was sent before a connection was closed.
                orders.behind = (orders.to_agent.pop(), *orders.behind)
                self._carry_out(orders)
                self._relief.set()

    async def _talk(self, tasks: ClientTasks) -> None:
        ids = tasks.client.ids
        try:
            await tasks.stream.send_all(
                struct.pack(">II", ids.start, ids.stop) + ready_for(tasks.client, self._booted)
            )
            with tasks.leaving:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_client, tasks)
                    nursery.start_soon(self._feed_agent, tasks)
                    await self._read_client(tasks)
                    await self._see_off(tasks)
                    nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client or the agent has gone

    async def _see_off(self, tasks: ClientTasks) -> None:
        """Deliver what a client that has gone relies on."""
        if self._owes(tasks):
            self._carry_out(self._router.kill_commands(tasks.client))  # at once: they do not wait for that
            with trio.move_on_after(patience()):
                await self._keep_promises(tasks)

    def cut(self, tasks: ClientTasks, why: str) -> None:
        """Disconnect a client."""
        if not tasks.scope.cancel_called:
            self._note_cut(tasks, why)
            tasks.scope.cancel()
        self._router.write_off(tasks.client)

    def _note_cut(self, tasks: ClientTasks, why: str) -> None:
        tasks.was_cut = True
        self._cut += 1
        self._log.warning("cut the client in slot %d: %s", tasks.client.slot, why)

    async def _read_client(self, tasks: ClientTasks) -> None:
        client, stream = tasks.client, tasks.stream
        decoder = wire.FrameDecoder()
        meter = Meter(self._line)
        try:
            while True:
                while not self._router.gate.may_read(client):
                    await tasks.wait_room_or_end()
                data = await stream.receive_some(_BATCH)
                if not data:
                    return  # an incomplete last frame is dropped
                tasks.hears = True
                meter.begin()
                decoder.feed(data)
                for number, frame in enumerate(decoder):
                    await self._wait_turn(tasks, meter, number, decoder.pending)
                    if wire.is_costly(frame):
                        meter.end(0)  # it has read the frame
                        await self._costly.run(partial(self._hear_client, client, frame))
                        meter.begin()
                    else:
                        self._hear_client(client, frame)
                        meter.end(len(frame.body))
                    if len(client.starting) >= _STARTS:
                        await self._wait_started(tasks)
                        meter.begin()
                tasks.hears = False
                tasks.last_active = trio.current_time()
        except ProtocolError as exc:
            self.cut(tasks, str(exc))

    async def _wait_turn(self, tasks: ClientTasks, meter: Meter, number: int, behind: int) -> None:
        """Wait until the next frame of a client may be handled, of which so many have been in this turn.

        ``behind``: bytes that were received after it.
        """
        if meter.is_over:
            meter.end(0)  # it has read the frame
            await meter.wait(behind)
            # It has much to say, which is to be written with what others say meanwhile, and not frame by frame.
            self._outbox.join_turn()
        elif number % _ROW == _ROW - 1:
            await trio.lowlevel.checkpoint()
            meter.begin()
        if not self._outbox.has_control_room:
            await self._outbox.wait_control_room()
            meter.begin()
        if tasks.rates:
            await keep_rates(tasks.rates, tasks.stream.socket, tasks.leave_soon)
            meter.begin()

    async def _wait_started(self, tasks: ClientTasks) -> None:
        """Wait until the guest has started some of a client's commands, for a moment at most.

        Then it is asked whether the client is still there: what it has asked for, and left, is not started.
        """
        with trio.move_on_after(_START_PATIENCE):
            while len(tasks.client.starting) >= _STARTS:
                await tasks.wait_room()
        if has_hung_up(tasks.stream.socket):
            tasks.client.has_left = True

    def _hear_client(self, client: Client, frame: wire.Frame) -> None:
        self._carry_out(self._router.from_client(client, frame))
        self._keep_bounds(client)

    @trio.lowlevel.enable_ki_protection
    async def _write_client(self, tasks: ClientTasks) -> None:
        try:
            await self._write_frames(tasks)
        except trio.BrokenResourceError:
            # The client has gone; its last frames may still have to be read.
            tasks.leave_soon()
            await trio.sleep_forever()

    async def _write_frames(self, tasks: ClientTasks) -> None:
        client, stream = tasks.client, tasks.stream
        while True:
            batch, tasks.begun = tasks.begun or take(client, _BATCH), None
            if batch is None:
                if self._lost:  # all queued frames were sent
                    free = next(id_ for id_ in reversed(client.ids) if id_ not in client.sessions)
                    await stream.send_all(wire.encode(wire.RelayLost(self._told), free))
                    tasks.scope.cancel()
                await tasks.wait_output()
                continue
            await stream.send_gathered(batch.rest)
            self._note_sent(tasks, batch)
            self._keep_bounds(client)
            if client.hurried or client.outgoing:
                await trio.lowlevel.checkpoint()  # a fast reader must not keep the other tasks from running

    def _send_at_once(self, tasks: ClientTasks) -> None:
        """Send a client its frames while its writer sleeps, which sends what the socket does not take now."""
        client = tasks.client
        batch = take(client, _BATCH_AT_ONCE)
        if batch is None:
            return
        # (A failure is the writer's as well: it tries again, and gets the error.)
        rest = tasks.stream.send_gathered_nowait(batch.rest)
        if rest:
            tasks.begun = Batch(batch.frames, rest)
            tasks.output.set()
            return
        self._note_sent(tasks, batch)
        if client.hurried or client.outgoing:
            tasks.output.set()

    def _note_sent(self, tasks: ClientTasks, batch: Batch) -> None:
        """Note that a client's socket has taken frames."""
        tasks.last_active = trio.current_time()
        self._carry_out(self._router.sent_to_client(tasks.client, batch.frames))
        tasks.set_prompt()
        tasks.room.set()
        self._relief.set()

    @trio.lowlevel.enable_ki_protection
    async def _feed_agent(self, tasks: ClientTasks) -> None:
        while True:
            frame = self._router.next_for_agent(tasks.client)
            self._keep_bounds(tasks.client)
            if frame is None:
                tasks.input = trio.Event()
                await tasks.input.wait()
                continue
            tasks.feeding = True
            try:
                await self._outbox.send_bulk(frame, wire.id_of(frame))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                # The guest is gone. The client may still have frames to read, so this task must not end its scope.
                tasks.room.set()
                await trio.sleep_forever()
            tasks.feeding = False
            tasks.last_active = trio.current_time()
            tasks.room.set()

    def _carry_out(self, orders: Orders, *, mark: bool = False) -> None:
        """Carry out the router's orders.

        Args:
            mark: only mark a client with new frames for its socket, if they may be sent at once.
        """
        if orders.shutdown:
            self._order_shutdown(orders.to_agent[-1])
            if not self._front.cancel_called:  # if it is, the guest is ended by the owner of this server
                self.shutdown_requested.set()
        elif not self._outbox.closed:
            for frame in orders.to_agent:
                self._outbox.send_control(frame)
            for frame in orders.behind:
                self._outbox.commit(frame, 0)
        if orders.busy is not None:
            self._wake(orders.busy, mark=mark)
        if orders.refused is not None:
            self._log.warning("%s", orders.refused)

    def _wake(self, client: Client, *, mark: bool = False) -> None:
        """Wake the tasks of a client for its new frames."""
        tasks = self._tasks.get(client)
        if tasks is not None:
            if client.outgoing or client.hurried:
                if mark and tasks.may_send_at_once:
                    self._marked[tasks] = None
                else:
                    tasks.output.set()
            if client.round:
                tasks.input.set()
            tasks.room.set()  # frames that waited for the agent may have been dropped, which makes room

    # The agent

    @trio.lowlevel.enable_ki_protection
    async def _write_agent(self) -> None:
        try:
            await self._outbox.run()
        except Exception as exc:  # noqa: BLE001  (the stream may be of any class)
            self._log.warning("writing to the console failed: %r", exc)
        # The last frames of the guest may still come, and then end of file.
        await trio.sleep(_FAREWELL)
        self._reading.cancel()

    async def _read_agent(self) -> tuple[str, BaseException | None]:
        with self._reading:
            return await self._read_frames()
        return "the guest takes no more bytes from its console", None

    async def _read_frames(self) -> tuple[str, BaseException | None]:
        costly = Costly()
        try:
            while True:
                await self._handle_frames(costly)
                self._receiving = True
                data = await self._console.receive_some()
                self._receiving = False
                if not data:
                    self._decoder.feed_eof()
                    return "the guest closed its console", None
                self._decoder.feed(bytes(data))
        except ProtocolError as exc:
            return f"the console is out of step ({exc})", exc
        except trio.BrokenResourceError as exc:
            return "the console broke", exc.__cause__ or exc
        except trio.ClosedResourceError:
            return "the console was closed on this side", None
        except Exception as exc:  # noqa: BLE001  (the stream may be of any class)
            return f"reading from the console failed: {exc!r}", exc

    async def _handle_frames(self, costly: Costly) -> None:
        """Handle the frames that have come, in turns: a guest's frames may be tiny, and of any number."""
        turn = Turn()
        try:
            for frame in self._decoder:
                if turn.is_over:
                    self._send_marked()
                    await turn.pause()
                if wire.is_costly(frame):
                    self._send_marked()
                    orders = await costly.run(partial(self._hear_agent, frame))
                else:
                    orders = self._hear_agent(frame)
                if orders.slot_freed:
                    self._door.note_free_slot()
                if orders.busy is not None:
                    await self._mind_queue(orders.busy)
        finally:
            self._send_marked()

    def _hear_agent(self, frame: wire.Frame) -> Orders:
        self._frames_from_agent += 1
        if frame.id == TRANSPORT_ID and self._hear_credit(frame):
            return Orders()
        orders = self._router.from_agent(frame)
        self._carry_out(orders, mark=True)
        return orders

    def _hear_credit(self, frame: wire.Frame) -> bool:
        """Note how much the agent admits over its console; returns whether the frame says that."""
        try:
            message = wire.decode(frame)
        except ProtocolError:
            return False
        return isinstance(message, wire.TransportCredit) and self._outbox.announce(
            Admitted(*msgspec.structs.astuple(message))
        )

    def _send_marked(self) -> None:
        """Send each client the frames that have come for it since the last call."""
        marked, self._marked = self._marked, {}
        for tasks in marked:
            if tasks.may_send_at_once:
                self._send_at_once(tasks)
            else:
                tasks.output.set()

    async def _mind_queue(self, client: Client) -> None:
        """Keep a client's queue within its bounds, after a frame of the agent for it."""
        if self._marked and self._is_over_budget(client):
            self._send_marked()
        if self._is_over_budget(client):
            tasks = self._tasks.get(client)
            if tasks is not None:
                await self._be_patient(tasks)
        else:
            self._keep_bounds(client)

    def _keep_bounds(self, client: Client) -> None:
        """Cut the clients for which too much is kept, after the frames or the windows of one have changed."""
        while (worst := self._router.gate.to_cut(client)) is not None:
            if self._marked:
                self._send_marked()  # it may be a client that reads, and was not sent its frames yet
                continue
            tasks = self._tasks.get(worst)
            if tasks is None:
                return  # the client in this program, which has not attached yet; this is asked again when it has
            self._cut_overflowing(tasks)

    def _is_over_budget(self, client: Client) -> bool:
        return not self._credited and client.account.queued > self._limits.client_budget

    def _cut_overflowing(self, tasks: ClientTasks) -> None:
        account = tasks.client.account
        self.cut(tasks, f"it does not read, and {account.kept} bytes are kept for it ({account.queued} queued)")

    async def _be_patient(self, tasks: ClientTasks) -> None:
        """Apply the policy to a client whose queue is over its budget, with an agent that counts no credit."""
        client, limits = tasks.client, self._limits
        if self._options.slow_client is SlowClient.DROP:
            before = self._router.books.dropped_bytes
            orders = self._router.drop_data(client)
            if orders is None:
                self.cut(tasks, "it does not read, and cannot be told that output of its commands is dropped")
                return
            self._carry_out(orders)
            dropped = self._router.books.dropped_bytes - before
            self._log.warning("dropped %d bytes for the client in slot %d: it does not read", dropped, client.slot)
            if client.account.queued > limits.client_budget:
                self._cut_overflowing(tasks)  # the rest is answers, which are never dropped
        elif self._options.slow_client is SlowClient.PAUSE:
            while client in self._tasks and client.account.queued > limits.client_budget:
                await self._wait_relief()
        else:
            if not tasks.is_slow:
                tasks.set_slow(self._options.slow_client_timeout)
            while self._router.books.relay.queued > limits.total_budget:
                await self._wait_relief()

    async def _wait_relief(self) -> None:
        self._relief = trio.Event()
        await self._relief.wait()

    def statistics(self) -> RelayStatistics:
        router, log, audit = self._router, self._options.session_log, self._options.audit_log
        return RelayStatistics(
            clients=len(self._tasks),
            sessions=sum(len(client.sessions) for client in router.clients),
            clients_served=self._served,
            clients_refused=self._door.refused,
            clients_cut=self._cut,
            slots_quarantined=router.slots.quarantined,
            slots_retired=router.slots.retired,
            frames_from_agent=self._frames_from_agent,
            frames_dropped=router.dropped_frames,
            frames_refused=router.refused_frames,
            bytes_queued=router.books.relay.queued,
            bytes_dropped=router.books.dropped_bytes,
            stalls=self._outbox.stalls,
            stalled=self._outbox.stalled,
            session_log=None if log is None else log.statistics(),
            audit_log=None if audit is None else audit.statistics(),
        )
