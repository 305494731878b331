"""What a session, and a client, of the relay can be, and which state may follow which."""

from __future__ import annotations

import enum
from typing import Final

from trio_console._states import Steps

__all__ = ["CLIENT", "SESSION", "ClientState", "SessionState"]


class SessionState(enum.Enum):
    """A session between a client and the agent."""

    #: Both sides may say anything.
    OPEN = enum.auto()
    #: The client has cancelled it: it wants nothing more but the terminal frame.
    GIVEN_UP = enum.auto()
    #: The client has closed it, and wants nothing more either; the agent is told behind the data that is pending.
    CLOSING = enum.auto()
    #: The client was told that it is over, and the agent is yet to say so: its id is in use until then.
    ABANDONED = enum.auto()
    #: The agent has said its last, and the terminal frame is held behind data.
    ENDED = enum.auto()
    #: The terminal frame is queued for the client's socket, and the id is free.
    LEAVING = enum.auto()
    #: Nobody will say or keep anything of it.
    OVER = enum.auto()


SESSION: Final = Steps(
    {
        SessionState.OPEN: {
            SessionState.GIVEN_UP,
            SessionState.CLOSING,
            SessionState.ABANDONED,
            SessionState.ENDED,
            SessionState.LEAVING,
            SessionState.OVER,
        },
        # (Of one whose client wants nothing more, nothing is held that its terminal frame could be held behind.)
        SessionState.GIVEN_UP: {
            SessionState.CLOSING,
            SessionState.ABANDONED,
            SessionState.LEAVING,
            SessionState.OVER,
        },
        # Only connections are closed. Those are not abandoned: the agent is told at once, and says nothing more.
        SessionState.CLOSING: {SessionState.LEAVING, SessionState.OVER},
        SessionState.ABANDONED: {SessionState.OVER},
        SessionState.ENDED: {SessionState.LEAVING, SessionState.OVER},
        SessionState.LEAVING: {SessionState.OVER},
        SessionState.OVER: set(),
    }
)


class ClientState(enum.Enum):
    """A client, and what its slot is used for."""

    #: It has the slot, and is served.
    CONNECTED = enum.auto()
    #: It has gone, and the guest is yet to say its last words about the slot.
    QUARANTINED = enum.auto()
    #: The guest has: the slot may be somebody else's.
    GONE = enum.auto()
    #: The guest has not, in the time it had: the slot is nobody's any more.
    RETIRED = enum.auto()


CLIENT: Final = Steps(
    {
        ClientState.CONNECTED: {ClientState.QUARANTINED},
        ClientState.QUARANTINED: {ClientState.GONE, ClientState.RETIRED},
        ClientState.GONE: set(),
        ClientState.RETIRED: set(),
    }
)
