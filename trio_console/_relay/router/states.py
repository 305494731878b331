"""The states of a session and of a client of the relay, and the allowed steps between them."""

from __future__ import annotations

import enum
from typing import Final

from trio_console._states import Steps

__all__ = ["CLIENT", "SESSION", "ClientState", "SessionState"]


class SessionState(enum.Enum):
    """A session between a client and the agent."""

    #: Both sides may send frames.
    OPEN = enum.auto()
    #: The client has cancelled it, and only needs the terminal frame.
    GIVEN_UP = enum.auto()
    #: The client has closed it. The close is sent to the agent behind the data that is pending.
    CLOSING = enum.auto()
    #: The relay has told the client that it is over. Its id stays in use until the agent's terminal frame comes.
    ABANDONED = enum.auto()
    #: The agent has sent the terminal frame, which is held behind data.
    ENDED = enum.auto()
    #: The terminal frame is queued for the client's socket, and the id is free.
    LEAVING = enum.auto()
    #: No more frames come for it, and none are kept.
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
        # (A session that was given up has no held data, so its terminal frame is never held.)
        SessionState.GIVEN_UP: {
            SessionState.CLOSING,
            SessionState.ABANDONED,
            SessionState.LEAVING,
            SessionState.OVER,
        },
        # Only connections are closed. They are not abandoned: the agent is told at once, and sends no more frames.
        SessionState.CLOSING: {SessionState.LEAVING, SessionState.OVER},
        SessionState.ABANDONED: {SessionState.OVER},
        SessionState.ENDED: {SessionState.LEAVING, SessionState.OVER},
        SessionState.LEAVING: {SessionState.OVER},
        SessionState.OVER: set(),
    }
)


class ClientState(enum.Enum):
    """A client and its slot."""

    #: The client has the slot, and is served.
    CONNECTED = enum.auto()
    #: The client has gone, and the guest has not ended all its sessions yet.
    QUARANTINED = enum.auto()
    #: The guest has ended all its sessions: the slot may be given to another client.
    GONE = enum.auto()
    #: The guest has not ended them in time: the slot is not used until it has.
    RETIRED = enum.auto()


CLIENT: Final = Steps(
    {
        ClientState.CONNECTED: {ClientState.QUARANTINED},
        ClientState.QUARANTINED: {ClientState.GONE, ClientState.RETIRED},
        ClientState.GONE: set(),
        ClientState.RETIRED: {ClientState.GONE},
    }
)
