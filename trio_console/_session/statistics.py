"""What the sessions of a guest have moved, and for what they have waited: read by users, from any thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trio_console._console.stream import ConsoleStatistics

__all__ = ["GuestStatistics", "SessionStatistics", "StreamStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatistics:
    """One direction of bytes of a session, at one moment.

    Attributes:
        name: ``"stdin"``, ``"stdout"`` or ``"stderr"`` of a process; ``"sent"`` or ``"received"`` of a connection.
            (Without ``"stderr"``, if that is a terminal, or goes where stdout goes.)
        moved: bytes sent to the guest, or received from it, so far.
        waiting: of these, the bytes that were not read yet: here, if they were received; in the guest or on their
            way, if they were sent. (The guest tells of half a window at a time, and an agent that counts no credit
            of nothing: then it is 0.)
        stalls: how often a task that sends had to wait because the guest took no more. 0 for what is received.
        stalled: the seconds for which it waited so, without a wait that goes on.
    """

    name: str
    moved: int
    waiting: int
    stalls: int
    stalled: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatistics:
    """A process or a connection of a guest, at one moment.

    Attributes:
        kind: what it is.
        name: the command's first word, or the address that was connected to, as ``host:port``.
        streams: its directions.
    """

    kind: Literal["process", "connection"]
    name: str
    streams: tuple[StreamStatistics, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestStatistics:
    """A guest's session layer at one moment.

    Attributes:
        active_sessions: processes, connections and requests that have not ended.
        sessions: those of them that move bytes for as long as they like: processes and connections.
        frames_received: frames that came from the guest.
        frames_dropped: of those, frames that were dropped because their session had ended here.
        bytes_discarded: bytes that came for streams that were closed here.
        console: the channel below; `None` if the guest is reached through a relay, or over a stream of another
            kind than `ConsoleStream`.
    """

    active_sessions: int
    sessions: tuple[SessionStatistics, ...]
    frames_received: int
    frames_dropped: int
    bytes_discarded: int
    console: ConsoleStatistics | None
