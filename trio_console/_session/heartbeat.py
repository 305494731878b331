"""Whether a guest that says nothing is still there.

After ``seconds`` of silence a ping goes out; after as many more the guest is lost. Any byte that comes is life.

What must never kill a guest is this program: so silence is not measured between two moments, but added up from
short naps. Each counts for no longer than it was meant to be, and only if the connection waited for bytes before
and after it. A program that sleeps, is stopped, or stands in a debugger makes one late nap of all that;
`autojump_clock` makes naps that take no time, and they are measured with the machine's clock.

A ping can be behind other bytes: in the outbox, behind the frame that is being written; in the ring of a console,
behind all that was put there before. Until the guest's carrier has taken it, every byte that it takes is life too.
(Later not: a guest that was stopped would live as long as its buffers have room.)
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._session.connection import Connection, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._wire.outbox import Outbox

__all__ = ["Heartbeat", "check_heartbeat"]

_log: Final = logging.getLogger("trio_console.client")

#: Seconds of a nap, at most. Each is one turn of the loop, and three of them are what a guest may live too long.
_NAP: Final = 0.25


def check_heartbeat(seconds: float | None) -> None:
    """Refuse what is no heartbeat.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 0, or not finite.
    """
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"heartbeat must be a number of seconds or None, not {seconds!r}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"heartbeat must be a finite number of seconds above 0, or None, not {seconds!r}")


@final
class Heartbeat:
    """Watches a connection, and ends it when the guest is gone.

    Args:
        seconds: of silence before a ping, and again before the guest is given up.
        carried: bytes that what carries the connection has accepted, and those that have left it; equal where that
            is not known.
        force: called when the guest was given up, to end what is left of it.
        clock: in seconds.

    Raises:
        trio_console.UnsupportedByPeer: the agent is older than pings.
    """

    def __init__(
        self,
        connection: Connection,
        seconds: float,
        *,
        carried: Callable[[], tuple[int, int]] = lambda: (0, 0),
        force: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        connection.check_supported(wire.Ping)
        self._connection = connection
        self._seconds = seconds
        self._carried = carried
        self._force = force
        self._clock = clock
        self._nap = min(seconds / 4, _NAP)
        self._silence = 0.0
        self._heard = connection.bytes_received
        self._ping: _Ping | None = None
        self._waits = False  # for the answer, or another byte

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Watch until the guest is gone. For `Connection.run`, which ends it."""
        while self._connection.lost is None:
            await self._listen(min(self._nap, self._seconds - self._silence))
            if self._silence >= self._seconds:
                self._act()

    async def _listen(self, seconds: float) -> None:
        """Nap, and add to the silence what was heard of it."""
        waited = self._waits_for_life()
        began = self._clock()
        await trio.sleep(seconds)
        if self._connection.bytes_received != self._heard:
            self._heard = self._connection.bytes_received
            self._silence = 0.0
            self._waits = False
        elif self._waits and self._ping is not None and self._ping.is_leaving():
            self._silence = 0.0
        elif waited and self._waits_for_life():
            self._silence += min(self._clock() - began, seconds)

    def _waits_for_life(self) -> bool:
        """Whether bytes are waited for; not from a guest that was told to end, while that is waited for."""
        return self._connection.waits_for_bytes and not self._connection.awaits_end

    def _act(self) -> None:
        if not self._waits:
            if self._ping is None or self._ping.done:
                self._ping = _Ping(self._connection.new_id(), self._connection.outbox, self._carried)
                self._connection.open(self._ping, wire.Ping())
            # (If one is not answered yet, although other bytes came, its answer is what is waited for.)
            self._ping.sent()
            self._silence = 0.0
            self._waits = True
            return
        self._connection.lose(
            f"the guest is silent: nothing came for {2 * self._seconds:g} seconds, and for the last "
            f"{self._seconds:g} a ping was not answered (heartbeat={self._seconds:g})"
        )
        try:
            self._force()
        except Exception:  # noqa: BLE001  (logged)
            _log.exception("a silent guest could not be ended by force")


@final
class _Ping(Session):
    """A ping on its way."""

    def __init__(self, id_: int, outbox: Outbox, carried: Callable[[], tuple[int, int]]) -> None:
        self.id = id_
        self.done = False
        self._outbox = outbox
        self._carried = carried
        self._in_outbox = 0  # control bytes that are written when this is
        self._in_carrier: int | None = None  # the same of the carrier, once it was written
        self._position = (0, 0)

    def on_message(self, message: wire.Message) -> None:
        self.done = True  # whatever it says

    def on_error(self, error: Exception) -> None:
        self.done = True

    def sent(self) -> None:
        """It was queued."""
        self._in_outbox = self._outbox.control_queued
        self._in_carrier = None
        self._position = self._where()

    def _where(self) -> tuple[int, int]:
        return self._outbox.written, self._carried()[1]

    def is_leaving(self) -> bool:
        """Whether bytes before it, or itself, have left since the last call."""
        before, self._position = self._position, self._where()
        if self._in_carrier is None:
            if self._outbox.control_written >= self._in_outbox:
                self._in_carrier = self._carried()[0]
            return self._position != before
        return before[1] < self._in_carrier and self._position[1] != before[1]
