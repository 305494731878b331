"""The host's check whether a silent guest is still there.

After ``seconds`` of silence the guest is pinged; after the same time again it is lost. Any byte that comes ends
the silence.

This program itself must never be the cause of a guest's loss. So silence is not the time between two moments, but
the sum of short naps. A nap counts for no longer than it was planned, and only if the connection waited for bytes
before and after it. If the program sleeps, is stopped, or is in a debugger, all that time is one late nap. With
`autojump_clock` naps take no time, because they are measured by the machine's clock.

A ping may wait behind other bytes: in the outbox behind the frame that is being written, and in a console's ring
behind all bytes that are queued there. Until the ping has left them, every byte that leaves also ends the silence.
(Not later: otherwise a stopped guest would count as alive as long as its buffers have room.)
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._session.connection import Connection, Session
from trio_console._trio.reports import LoggedReports

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._wire.outbox import Outbox

__all__ = ["Heartbeat", "check_heartbeat"]

_log: Final = LoggedReports("trio_console.client")

#: The most seconds of a nap. Each nap is one turn of the event loop, and a guest may be lost three naps too late.
_NAP: Final = 0.25


def check_heartbeat(seconds: float | None) -> None:
    """Refuse an argument that cannot be a heartbeat.

    Raises:
        TypeError: ``seconds`` is not a number or `None`.
        ValueError: ``seconds`` is not above 0, or not finite.
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
        seconds: seconds of silence before a ping, and again before the guest is given up.
        carried: returns how many bytes the carrier of the connection (a console's ring) has accepted, and how many
            have left it; two equal numbers if that is not known.
        force: called when the guest was given up, to end its process.
        clock: returns the time in seconds.

    Raises:
        trio_console.UnsupportedByPeer: the agent is too old for pings.
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
        self._waits = False  # whether a ping was sent, and no byte has come since

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Watch until the guest is gone. A background task of `Connection.run`, which ends it."""
        while self._connection.lost is None:
            await self._listen(min(self._nap, self._seconds - self._silence))
            if self._silence >= self._seconds:
                self._act()

    async def _listen(self, seconds: float) -> None:
        """Take a nap, and add it to the silence, or end the silence."""
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
        """Whether silence counts now: the reader waits for bytes, and no task waits for the guest's end."""
        return self._connection.waits_for_bytes and not self._connection.awaits_end

    def _act(self) -> None:
        if not self._waits:
            if self._ping is None or self._ping.done:
                self._ping = _Ping(self._connection.new_id(), self._connection.outbox, self._carried)
                self._connection.open(self._ping, wire.Ping())
            # (If an earlier ping is not answered yet, although other bytes came, its answer is waited for.)
            self._ping.sent()
            self._silence = 0.0
            self._waits = True
            return
        self._connection.lose(
            f"the guest is silent: no byte came for {2 * self._seconds:g} seconds, and for the last "
            f"{self._seconds:g} a ping was not answered (heartbeat={self._seconds:g})"
        )
        try:
            self._force()
        except Exception:  # noqa: BLE001  (logged)
            _log.exception("a silent guest could not be ended by force")


@final
class _Ping(Session):
    """A ping that was sent and perhaps not answered yet."""

    def __init__(self, session_id: int, outbox: Outbox, carried: Callable[[], tuple[int, int]]) -> None:
        self.id = session_id
        self.done = False
        self._outbox = outbox
        self._carried = carried
        self._in_outbox = 0  # the outbox has written the ping when it has written this many control bytes
        self._in_carrier: int | None = (
            None  # the same number for the carrier, once the outbox has written the ping
        )
        self._position = (0, 0)

    def on_message(self, message: wire.Message) -> None:
        self.done = True  # an answer, or a refusal

    def on_error(self, error: Exception) -> None:
        self.done = True

    def sent(self) -> None:
        """Note that the ping was queued now."""
        self._in_outbox = self._outbox.control_queued
        self._in_carrier = None
        self._position = self._where()

    def _where(self) -> tuple[int, int]:
        return self._outbox.written, self._carried()[1]

    def is_leaving(self) -> bool:
        """Whether the ping, or bytes before it, have left since the last call."""
        before, self._position = self._position, self._where()
        if self._in_carrier is None:
            if self._outbox.control_written >= self._in_outbox:
                self._in_carrier = self._carried()[0]
            return self._position != before
        return before[1] < self._in_carrier and self._position[1] != before[1]
