"""The door of a relay: which clients get in, with what greeting, how fast each is read, and who is idle too long.

Each client that is turned away is logged and counted. The users that may connect are known from the start, so
there is a bounded number of rates.
"""

from __future__ import annotations

import math
import os
import select
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, final

import msgspec
import trio

from trio_console import _wire as wire
from trio_console._wire.ids import MAX_CLIENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trio_console._addresses import Peer
    from trio_console._relay.options import ServerOptions
    from trio_console._relay.router import Client, Router
    from trio_console._session.boot import Booted
    from trio_console._trio.reports import LoggedReports

__all__ = ["LOOK_TIME", "Door", "Rate", "keep_rates", "ready_for"]

#: Seconds that a new client waits for a slot in quarantine. (Clients give up after ten.)
_SLOT_PATIENCE: Final = 5.0

#: Seconds between two looks whether a client has gone whose frames are held back by its rate.
LOOK_TIME: Final = 1.0


@final
class Rate:
    """A number of frames in a second: as many at once, and then one after the other.

    Args:
        per_second: the number.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second: Final = per_second
        # The frames since then are counted. They are all paid for at the time `_since + _count / _per_second`.
        self._since = -math.inf
        self._count = 0

    def take(self, now: float) -> float:
        """Take one more frame; returns the time from which on it may be handled."""
        if self._since + self._count / self._per_second <= now:
            self._since, self._count = now, 0
        self._count += 1
        return max(now, self._since + self._count / self._per_second - 1)


def has_hung_up(sock: trio.socket.SocketType) -> bool:
    """Whether the other end of a connection is closed, also if bytes of it are still to be read."""
    poll = select.poll()
    poll.register(sock.fileno(), 0)  # (for a hang-up nothing has to be asked for)
    return bool(poll.poll(0))


def ready_for(client: Client, booted: Booted) -> bytes:
    """The agent's ready frame, as it came; for a client that may not shut the guest down, with a word more.

    Of a newer agent a client sees what this relay passes on: no generation beyond ours, and no capability of the
    newer ones. A client of that make would use them, and wait for answers that do not come.
    """
    ready = booted.ready
    is_newer = booted.generation > wire.GENERATION
    if "shutdown" in client.granted:
        if not is_newer:
            return wire.encode_again(booted.frame)
    else:
        ready = msgspec.structs.replace(ready, features=[*(ready.features or ()), wire.SHUTDOWN])
    if is_newer:
        ready = msgspec.structs.replace(ready, workload_transport_barrier_version=wire.UNSET)
    return wire.encode(ready, version=min(booted.generation, wire.GENERATION))


async def keep_rates(rates: Iterable[Rate], sock: trio.socket.SocketType, leave_soon: Callable[[], None]) -> None:
    """Wait until a client's next frame may be handled; not a checkpoint if that is now.

    A client that goes meanwhile has some seconds for the frames that it has sent, as for others that it relies on:
    ``leave_soon`` is called. Otherwise its commands would live on for as long as those frames last.
    """
    for rate in rates:
        time = rate.take(trio.current_time())
        while (now := trio.current_time()) < time:
            await trio.sleep_until(min(time, now + LOOK_TIME))
            if has_hung_up(sock):
                leave_soon()


class Visitor(Protocol):
    """A connected client, as the door knows it.

    Attributes:
        client: the client.
        last_active: when a frame last went in either direction.
        hears: whether frames of it were received that still wait for their turn.
    """

    @property
    def client(self) -> Client: ...

    last_active: float
    hears: bool


_V = TypeVar("_V", bound=Visitor)


@final
class Door:
    """See the module.

    Args:
        router: gives the slots.
        options: the caller's choices.
        log: where it reports.

    Attributes:
        refused: how many clients did not get in.
    """

    def __init__(self, router: Router, options: ServerOptions, log: LoggedReports) -> None:
        self._router: Final = router
        self._log: Final = log
        self._options: Final = options
        self._audit: Final = options.audit_log
        self._slot_waiters = 0
        self._slot_freed = trio.Event()
        per_second = options.user_frames_per_second
        self._user_rates: Final = {} if per_second is None else {uid: Rate(per_second) for uid in options.rights}
        self.refused = 0

    async def admit(self, peer: Peer) -> Client | None:
        """Give a process that has connected a slot; `None` if it does not get in."""
        if peer.uid not in self._options.rights:
            self._refuse(peer, f"only {sorted(self._options.rights)} may connect")
            return None
        client = self._router.connect(peer.uid) or await self._wait_slot(peer.uid)
        if client is None:
            limits = self._options.limits
            gate = self._router.gate
            if gate.lets_in(None) and not gate.lets_in(peer.uid):
                self._refuse(peer, f"its user has {limits.clients_per_user} clients already")
            else:
                self._refuse(peer, f"all {limits.clients} slots are taken")
        elif self._audit is not None:
            self._audit.connected(client.slot, peer.uid, peer.pid)
        return client

    def note_own_client(self, client: Client) -> None:
        """Note that this program's own client attaches."""
        if self._audit is not None:
            self._audit.connected(client.slot, os.geteuid(), os.getpid())

    def note_leaving(self, client: Client) -> None:
        """Note that a client has gone."""
        if self._audit is not None:
            self._audit.disconnected(client.slot)

    def _refuse(self, peer: Peer, why: str) -> None:
        self.refused += 1
        self._log.warning("refused a client of user %d: %s", peer.uid, why)
        if self._audit is not None:
            self._audit.not_admitted(peer.uid, peer.pid, why)

    async def _wait_slot(self, uid: int) -> Client | None:
        """Wait a few seconds for a slot in quarantine.

        Otherwise clients that come and go quickly, one for each command, would be refused while the guest is busy.
        """
        if self._slot_waiters < MAX_CLIENTS:
            self._slot_waiters += 1
            try:
                with trio.move_on_after(_SLOT_PATIENCE):
                    while self._router.may_get_slot(uid):
                        await self._slot_freed.wait()
                        client = self._router.connect(uid)
                        if client is not None:
                            return client
            finally:
                self._slot_waiters -= 1
        return None

    def note_free_slot(self) -> None:
        """Wake the clients that wait for a slot."""
        if self._slot_waiters:
            self._slot_freed.set()
            self._slot_freed = trio.Event()

    def rates_for(self, client: Client) -> tuple[Rate, ...]:
        """The rates at which a client is read: its own, and that of all clients of its user."""
        uid, per_second = client.account.uid, self._options.client_frames_per_second
        if uid is None:  # this program's own client
            return ()
        own = () if per_second is None else (Rate(per_second),)
        return own + tuple(rate for user, rate in self._user_rates.items() if user == uid)

    @trio.lowlevel.enable_ki_protection
    async def watch_idle(
        self, timeout: float, visitors: Callable[[], Iterable[_V]], cut: Callable[[_V, str], None]
    ) -> None:
        """Cut the clients that have had no session and sent no frame for so many seconds."""
        while True:
            now = trio.current_time()
            next_time = now + timeout
            for visitor in list(visitors()):
                if visitor.client.account.uid is None:  # this program's own client
                    continue
                if visitor.client.sessions or visitor.hears:
                    visitor.last_active = now
                due = visitor.last_active + timeout
                if due <= now:
                    cut(visitor, f"it has been idle for {timeout:g} s")
                else:
                    next_time = min(next_time, due)
            await trio.sleep_until(next_time)
