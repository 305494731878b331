"""The relay's body: one task for what the agent says, three and a cancel scope for each client.

What to do is the router's; here is who waits for what:

* The agent's reader never waits for a client of an agent that counts credit. For one that does not, the caller has
  chosen what happens when a client does not read: see `SlowClient`.
* A client's writer waits for its socket, its feeder for the agent's outbox, its reader for both to keep up. Each
  waits for nobody else's.

Clients are cut by cancelling their scope, which runs the same ending as their own leaving.
"""

from __future__ import annotations

import enum
import logging
import os
import socket
import struct
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _protocol as wire
from trio_console._errors import ProtocolError
from trio_console._outbox import Outbox
from trio_console._relay._router import Router, RouterLimits
from trio_console._relay._slots import MAX_CLIENTS
from trio_console._relay._socket import peer_uid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_console._client._boot import Booted
    from trio_console._relay._log import SessionLog, SessionLogStatistics
    from trio_console._relay._router import Client, Orders
    from trio_console._relay._session import Outgoing

__all__ = ["RelayOptions", "RelayServer", "RelayStatistics", "SlowClient"]

log: Final = logging.getLogger("trio_console.relay")

#: Bytes sent to a client's socket, or read from it, at once.
_BATCH: Final = 64 * 1024

#: Seconds between two looks at the clocks, as upstream's relay has them: sync at least every 60 s, and at once
#: when the wall clock has jumped by 6 s against the monotonic one.
_TICK: Final = 2.0
_CLOCK_SYNC: Final = 60.0
_CLOCK_JUMP: Final = 6.0

#: Seconds that what is queued for clients may take to reach them after the guest has gone.
_FAREWELL: Final = 1.0

#: Seconds between attempts to accept when there is no descriptor to be had.
_ACCEPT_PAUSE: Final = 0.1


class SlowClient(enum.Enum):
    """What happens when a client does not read, and the agent knows no credit.

    With an agent that counts credit this is never asked: such a client pauses its own processes.
    """

    #: Cut it after a time. Until then, others wait only once the total budget is used up.
    CUT = "cut"
    #: Stop reading from the guest: everybody waits for the slowest, and nothing is lost.
    PAUSE = "pause"
    #: Drop the data queued for it, and count it.
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """What the caller of `serve_relay` may choose.

    Attributes:
        limits: bounds.
        slow_client: the policy for agents without credit.
        slow_client_timeout: seconds before `SlowClient.CUT` cuts.
        allowed_uids: user ids of clients.
        session_log: where commands and what they say are recorded.
    """

    limits: RouterLimits = field(default_factory=RouterLimits)
    slow_client: SlowClient = SlowClient.CUT
    slow_client_timeout: float = 10.0
    allowed_uids: frozenset[int] = field(default_factory=lambda: frozenset({os.geteuid()}))
    session_log: SessionLog | None = None


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """A relay at one moment; totals since it began unless it says "now".

    Attributes:
        clients: connected now.
        sessions: open now, of all clients.
        clients_served: that got a slot.
        clients_refused: that found no slot, or were not allowed.
        clients_cut: that were disconnected by the relay.
        slots_quarantined: waiting for the guest's last word, now.
        slots_retired: given up, because it did not come in time.
        frames_from_agent: all of them.
        frames_dropped: of those, frames for ids that nobody has.
        frames_refused: from clients, answered here instead of being forwarded.
        bytes_queued: for clients, now.
        bytes_dropped: queued for, or sent by, clients that had gone or did not read.
        session_log: of the session log, or `None` if there is none.
    """

    clients: int
    sessions: int
    clients_served: int
    clients_refused: int
    clients_cut: int
    slots_quarantined: int
    slots_retired: int
    frames_from_agent: int
    frames_dropped: int
    frames_refused: int
    bytes_queued: int
    bytes_dropped: int
    session_log: SessionLogStatistics | None


@final
class _Link:
    """A client's tasks, as the rest of the server sees them."""

    def __init__(self, client: Client) -> None:
        self.client: Final = client
        self.scope: Final = trio.CancelScope()
        self.output = trio.Event()  # something for its socket
        self.input = trio.Event()  # something for the agent
        self.room = trio.Event()  # its reader may go on
        self.slow_since: float | None = None


@final
class RelayServer:
    """Serves clients until the guest is gone or `run` is cancelled.

    Args:
        channel: the console's stream.
        booted: the guest.
        options: the caller's choices.
    """

    def __init__(self, channel: trio.abc.Stream, booted: Booted, options: RelayOptions) -> None:
        flow = booted.ready.flow
        self._channel = channel
        self._decoder = booted.decoder
        frame = booted.frame
        self._ready = wire.encode_frame(frame.id, frame.flags, frame.body)
        self._options = options
        self._limits = options.limits
        self._credited = flow is not wire.UNSET
        self._router = Router(flow if flow is not wire.UNSET else None, options.limits)
        self._links: dict[Client, _Link] = {}
        self._outbox = Outbox(channel)
        self._relief = trio.Event()
        self._ended = trio.Event()
        self._lost = False
        self._front = trio.CancelScope()
        self.shutdown_requested: Final = trio.Event()  # by a client
        self.reason = ""
        self.cause: BaseException | None = None
        self._frames_from_agent = 0
        self._served = 0
        self._refused = 0
        self._cut = 0
        self._nursery: trio.Nursery | None = None

    # Life

    async def run(
        self, listener: trio.SocketListener, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the guest is gone; `reason` and `cause` then say why."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._outbox.run)
                if self._options.session_log is not None:
                    self._router.observer = self._options.session_log
                    nursery.start_soon(self._options.session_log.run)
                async with trio.open_nursery() as front:
                    front.start_soon(self._accept, listener)
                    front.start_soon(self._keep_time)
                    task_status.started()
                    self.reason, self.cause = await self._read_agent()
                    front.cancel_scope.cancel()
                await self._say_farewell()
                nursery.cancel_scope.cancel()
        finally:
            self._ended.set()

    async def wait_ended(self) -> None:
        """Wait until the guest is gone and its clients were told."""
        await self._ended.wait()

    def shut_down(self) -> None:
        """Accept nobody any more, and tell the guest to shut down."""
        self._front.cancel()
        if not self._outbox.closed:
            self._outbox.send_control(wire.encode(wire.Shutdown()))

    @asynccontextmanager
    async def attach(self) -> AsyncIterator[trio.SocketStream]:
        """A client's end, for a client in this program."""
        assert self._nursery is not None
        ours, theirs = socket.socketpair()
        self._nursery.start_soon(self._serve, trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as stream:
            yield stream

    async def _say_farewell(self) -> None:
        """The guest is gone: clients get what is queued for them, and then end of file."""
        self._lost = True
        for link in self._links.values():
            link.output.set()
        with trio.move_on_after(_FAREWELL):
            while self._links:
                await self._wait_relief()

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
                log.warning("slot %d is not used again: the guest did not finish with its ids in time", slot)
            await trio.sleep(_TICK)

    # Clients

    async def _accept(self, listener: trio.SocketListener) -> None:
        with self._front:
            await self._accept_all(listener)

    async def _accept_all(self, listener: trio.SocketListener) -> None:
        assert self._nursery is not None
        while True:
            try:
                stream = await listener.accept()
            except OSError as exc:
                log.warning("a client could not be accepted: %s", exc)
                await trio.sleep(_ACCEPT_PAUSE)
                continue
            uid = peer_uid(stream.socket)
            if uid not in self._options.allowed_uids:
                self._refused += 1
                log.warning(
                    "refused a client of user %d: only %s may connect", uid, sorted(self._options.allowed_uids)
                )
                await trio.aclose_forcefully(stream)
                continue
            self._nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            client = self._router.connect()
            if client is None:
                log.warning("refused a client: all %d slots are taken", MAX_CLIENTS)
                return
            self._served += 1
            link = self._links[client] = _Link(client)
            try:
                with link.scope:
                    await self._talk(link, stream)
            finally:
                del self._links[client]
                self._carry_out(self._router.disconnect(client, trio.current_time()))
                self._relief.set()

    async def _talk(self, link: _Link, stream: trio.SocketStream) -> None:
        ids = link.client.ids
        try:
            await stream.send_all(struct.pack(">II", ids.start, ids.stop) + self._ready)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_client, link, stream)
                nursery.start_soon(self._feed_agent, link)
                await self._read_client(link, stream)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it has gone, or the agent has

    def cut(self, link: _Link, why: str) -> None:
        """Disconnect a client."""
        if not link.scope.cancel_called:
            self._cut += 1
            log.warning("cut the client in slot %d: %s", link.client.slot, why)
            link.scope.cancel()

    async def _read_client(self, link: _Link, stream: trio.SocketStream) -> None:
        client = link.client
        decoder = wire.FrameDecoder()
        try:
            while True:
                while not self._router.may_read(client):
                    link.room = trio.Event()
                    await link.room.wait()
                data = await stream.receive_some(_BATCH)
                if not data:
                    decoder.feed_eof()
                    return
                decoder.feed(bytes(data))
                for frame in decoder:
                    self._carry_out(self._router.from_client(client, frame))
                    await self._outbox.wait_control_room()
        except ProtocolError as exc:
            self.cut(link, str(exc))

    async def _write_client(self, link: _Link, stream: trio.SocketStream) -> None:
        client = link.client
        while True:
            batch = self._router.next_for_client(client, _BATCH)
            if not batch:
                if self._lost:
                    link.scope.cancel()  # it has got everything there was
                link.output = trio.Event()
                await link.output.wait()
                continue
            await stream.send_all(_join(batch))
            self._carry_out(self._router.sent_to_client(client, batch))
            link.slow_since = None
            link.room.set()
            self._relief.set()

    async def _feed_agent(self, link: _Link) -> None:
        while True:
            frame = self._router.next_for_agent(link.client)
            if frame is None:
                link.input = trio.Event()
                await link.input.wait()
                continue
            await self._outbox.send_bulk(frame)
            link.room.set()

    def _carry_out(self, orders: Orders) -> None:
        if not self._outbox.closed:
            for frame in orders.to_agent:
                self._outbox.send_control(frame)
        if orders.shutdown:
            self.shutdown_requested.set()
        for client in orders.wake:
            link = self._links.get(client)
            if link is not None:
                link.output.set()
                link.input.set()

    # The agent

    async def _read_agent(self) -> tuple[str, BaseException | None]:
        try:
            while True:
                for frame in self._decoder:
                    self._frames_from_agent += 1
                    orders = self._router.from_agent(frame)
                    self._carry_out(orders)
                    for client in orders.wake:
                        await self._mind_queue(client)
                data = await self._channel.receive_some()
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

    async def _mind_queue(self, client: Client) -> None:
        """Keep what is queued for a client within its bounds."""
        link = self._links.get(client)
        if link is None:
            return
        if self._router.overflows(client) and self._options.slow_client is not SlowClient.PAUSE:
            self.cut(link, f"it does not read, and {client.outgoing_bytes} bytes are queued for it")
        elif not self._credited and client.outgoing_bytes > self._limits.client_budget:
            await self._be_patient(link)

    async def _be_patient(self, link: _Link) -> None:
        """A client's queue is over its budget, and the agent cannot be told."""
        client, limits = link.client, self._limits
        if self._options.slow_client is SlowClient.DROP:
            dropped = self._router.drop_data(client)
            log.warning("dropped %d bytes for the client in slot %d: it does not read", dropped, client.slot)
            return
        if self._options.slow_client is SlowClient.PAUSE:
            while link.client in self._links and client.outgoing_bytes > limits.client_budget:
                await self._wait_relief()
            return
        if link.slow_since is None:
            link.slow_since = trio.current_time()
            assert self._nursery is not None
            self._nursery.start_soon(self._cut_if_still_slow, link, link.slow_since)
        while self._router.queued_bytes > limits.total_budget:
            await self._wait_relief()

    async def _cut_if_still_slow(self, link: _Link, since: float) -> None:
        await trio.sleep_until(since + self._options.slow_client_timeout)
        if link.slow_since == since and link.client in self._links:
            self.cut(link, f"it has read nothing for {self._options.slow_client_timeout:g} s")

    async def _wait_relief(self) -> None:
        self._relief = trio.Event()
        await self._relief.wait()

    def statistics(self) -> RelayStatistics:
        router, log = self._router, self._options.session_log
        return RelayStatistics(
            clients=len(self._links),
            sessions=sum(len(client.sessions) for client in router.clients),
            clients_served=self._served,
            clients_refused=self._refused + router.refused_clients,
            clients_cut=self._cut,
            slots_quarantined=router.slots.quarantined,
            slots_retired=router.slots.retired,
            frames_from_agent=self._frames_from_agent,
            frames_dropped=router.dropped_frames,
            frames_refused=router.refused_frames,
            bytes_queued=router.queued_bytes,
            bytes_dropped=router.dropped_bytes + sum(client.dropped_bytes for client in router.clients),
            session_log=None if log is None else log.statistics(),
        )


def _join(batch: list[Outgoing]) -> bytes:
    return batch[0].frame if len(batch) == 1 else b"".join([item.frame for item in batch])
