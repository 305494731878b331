"""The relay's bounds."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from trio_console._wire.ids import MAX_CLIENTS

__all__ = ["NO_BOUND", "ClientLimits", "Numbers", "RouterLimits"]

NO_BOUND: Final = sys.maxsize


class Numbers(NamedTuple):
    """Numbers of things in the guest that are bounded for a client and for a user.

    Attributes:
        sessions: open commands, connections, and requests for files. (The close of a file is none, so that it is
            never refused, and neither is a ping.)
        processes: commands whose end the guest has not told.
        handles: open files and directories, and those that are being opened.
    """

    sessions: int = 0
    processes: int = 0
    handles: int = 0


_NO_BOUNDS: Final = Numbers(NO_BOUND, NO_BOUND, NO_BOUND)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """The most that a client of a relay, or all clients of a user together, may have at a time.

    `None`, the default, is no bound but the relay's own, which are for one client: 4000 open sessions, pings among
    them, and 8 MiB of queued bytes. (The agent's own bound is 1024 open files and directories.)

    Args:
        sessions: open commands and connections, and operations on files that are under way. One too many is
            refused with ``EAGAIN``.
        processes: commands that have not ended; those of a client that has gone count until the guest has told
            their ends. One too many is refused with ``EAGAIN``.
        handles: open files and directories. One too many is refused with ``EMFILE``.
        queued_bytes: bytes of output that the relay may have to keep because a client does not read, at least
            8192. A stream that is opened when they are used up gets a window of 4 KiB.
        frames_per_second: frames from clients. They may send as many at once; then the relay reads them more
            slowly, and refuses nothing.

    Raises:
        ValueError: a bound is below 1, or ``queued_bytes`` below 8192.
    """

    sessions: int | None = None
    processes: int | None = None
    handles: int | None = None
    queued_bytes: int | None = None
    frames_per_second: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            bound = getattr(self, name)
            least = _LEAST_QUEUED_BYTES if name == "queued_bytes" else 1
            if bound is not None and bound < least:
                raise ValueError(f"{name} must be at least {least}, or None, not {bound!r}")

    @property
    def numbers(self) -> Numbers:
        """The bounds of what is counted."""
        bounds = (self.sessions, self.processes, self.handles)
        return Numbers(*(NO_BOUND if bound is None else bound for bound in bounds))


#: The smallest budget of bytes.
_LEAST_QUEUED_BYTES: Final = 8 * 1024


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
        user_budget: the same for all clients of a user together.
        total_budget: the same for all clients together.
        pending_budget: the bytes of a client that wait for the agent, above which the client is not read.
        answers_budget: the bytes kept for a client beyond its budget (at least two of the largest frames), above
            which it is cut.
        least_answers: the bytes kept for a client beyond its windows for which it is never cut, whatever is kept
            for others; at most ``answers_budget``. What is more is its excess.
        total_answers: the excess of all clients together, above which one of the user with most of it is cut.
        slice: the largest piece of data forwarded to the agent at once.
        sessions: a number: the most ids that a client may use at a time. An agent may have a bound of its own:
            ours takes 4096 file requests, and the relay makes one more when the client has gone.
        client: the bounds of what a client may have in the guest; this program's own client has none.
        user: the same for all clients of a user together.
        clients: a number: the most clients at a time.
        clients_per_user: a number: the most slots of a user's clients, also of clients that have gone, as long as
            the guest has not ended their sessions.
        quarantine: seconds for the guest to end all sessions of a client that has gone.
    """

    # A window must last until the next grant comes; but a ping waits behind the bytes of the window. With an
    # eighth of this window a stream was a third as fast; a ping beside it waits twice as long as on an idle relay.
    largest_window: int = 1024 * 1024
    rest_divisor: int = 4
    least_window: int = 4 * 1024
    client_budget: int = 8 * 1024 * 1024
    user_budget: int = NO_BOUND
    total_budget: int = 64 * 1024 * 1024
    pending_budget: int = 1024 * 1024
    answers_budget: int = 16 * 1024 * 1024
    least_answers: int = 256 * 1024
    total_answers: int = 64 * 1024 * 1024
    slice: int = 64 * 1024
    sessions: int = 4000
    client: Numbers = _NO_BOUNDS
    user: Numbers = _NO_BOUNDS
    clients: int = MAX_CLIENTS
    clients_per_user: int = MAX_CLIENTS
    quarantine: float = 60.0
