"""The options of a relay, and its statistics."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trio_console._relay.router.limits import RouterLimits

if TYPE_CHECKING:
    from trio_console._relay.log import SessionLog, SessionLogStatistics

__all__ = ["RelayOptions", "RelayStatistics", "SlowClient"]


class SlowClient(enum.Enum):
    """What happens to a client that does not read, if the agent counts no credit.

    With an agent that counts credit this is not used: such a client pauses its own processes.
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
        attached: whether `RelayServer.attach` will be used: keeps a slot for that client.
        session_log: where commands and what they say are recorded.
    """

    limits: RouterLimits = field(default_factory=RouterLimits)
    slow_client: SlowClient = SlowClient.CUT
    slow_client_timeout: float = 10.0
    allowed_uids: frozenset[int] = field(default_factory=lambda: frozenset({os.geteuid()}))
    session_log: SessionLog | None = None
    attached: bool = False


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
        frames_dropped: of those, frames for ids that no client has.
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
