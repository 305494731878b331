"""The relay's bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["ClientLimits", "RouterLimits"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """The most that a client of a relay may have at a time. `None`, the default, is the relay's own bound.

    Args:
        sessions: open sessions: commands, operations on files, connections and pings; by default 4000, the most.
        queued_bytes: bytes of output that the relay may have to keep for clients that do not read, at least 8 KiB;
            by default 8 MiB. A client that has more streams than that is enough for gets 4 KiB for each further
            one.

    Raises:
        ValueError: a bound is below 1.
    """

    sessions: int | None = None
    queued_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            bound = getattr(self, name)
            if bound is not None and bound < 1:
                raise ValueError(f"{name} must be at least 1, or None, not {bound!r}")


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """The relay's bounds, in bytes unless said otherwise.

    Attributes:
        largest_window: the largest window of a stream from the agent.
        rest_divisor: a number: the rest of the budgets is divided by it, and all windows of a new session together
            are at most the result. So later sessions get smaller windows, but still get some.
        least_window: the window of a stream that is opened when the client's or the total budget is used up.
        client_budget: the windows of one client together. With an agent without credit: the bytes queued for a
            client above which the slow-client policy applies.
        total_budget: the same for all clients together.
        pending_budget: the bytes of a client that wait for the agent, above which the client is not read.
        answers_budget: the bytes queued for a client beyond its budget (at least two of the largest frames), above
            which it is cut.
        slice: the largest piece of data forwarded to the agent at once.
        sessions: a number: the most sessions of a client. An agent may have a bound of its own: ours takes 4096
            file requests, and the relay makes one more when the client has gone.
        quarantine: seconds for the guest to end all sessions of a client that has gone.
    """

    # A window must last until the next grant comes; but a ping waits behind the bytes of the window. With an
    # eighth of this window a stream was a third as fast; a ping beside it waits twice as long as on an idle relay.
    largest_window: int = 1024 * 1024
    rest_divisor: int = 4
    least_window: int = 4 * 1024
    client_budget: int = 8 * 1024 * 1024
    total_budget: int = 64 * 1024 * 1024
    pending_budget: int = 1024 * 1024
    answers_budget: int = 16 * 1024 * 1024
    slice: int = 64 * 1024
    sessions: int = 4000
    quarantine: float = 60.0
