"""The relay's bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["DEFAULT_CLIENT_BUDGET", "RouterLimits"]

DEFAULT_CLIENT_BUDGET: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """Bounds, in bytes unless said otherwise.

    Attributes:
        window: for each stream from the agent, sent ahead of the client's socket.
        share: a session's windows together take one part in so many (a number) of what is left of the budgets, so
            that one which is opened later has less, but something.
        least_window: the same for streams opened when the client's or the total budget is used up.
        client_budget: windows of one client together; and what may be queued for a client of an agent
            without credit before the slow-client policy applies.
        total_budget: the same for all clients together.
        pending_budget: what a client may have sent that the agent does not take yet.
        answers_budget: what may be queued for a client beyond its budget (at least two of the largest frames)
            before it is cut.
        slice: largest piece of data forwarded at once to the agent.
        sessions: a client's sessions at once (a number). An agent may have a bound of its own: ours takes 4096
            file requests, and one more is made when the client has gone.
        quarantine: seconds the guest has to finish with a slot whose client has gone.
    """

    # What is in flight is also what a ping waits behind, and what lasts until the next grant has come round. With
    # an eighth of this a stream was a third as fast; a ping beside it waits twice as long as on an idle relay.
    window: int = 1024 * 1024
    share: int = 4
    least_window: int = 4 * 1024
    client_budget: int = DEFAULT_CLIENT_BUDGET
    total_budget: int = 64 * 1024 * 1024
    pending_budget: int = 1024 * 1024
    answers_budget: int = 16 * 1024 * 1024
    slice: int = 64 * 1024
    sessions: int = 4000
    quarantine: float = 60.0
