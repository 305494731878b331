"""The actions that the router orders from the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_console._relay.router.clients import Client

__all__ = ["Orders"]


@dataclass(slots=True)
class Orders:
    """The actions for the server.

    Attributes:
        to_agent: control frames to send to the agent, in order.
        behind: frames to send to the agent behind all data that was queued for it before.
        busy: a client with new frames, for its socket or for the agent.
        shutdown: whether a client has told the guest to shut down.
        slot_freed: whether a slot became free, so that a waiting client may try again.
        refused: what is to be logged of a request that was refused.
    """

    to_agent: list[bytes] = field(default_factory=list)
    behind: tuple[bytes, ...] = ()
    busy: Client | None = None
    shutdown: bool = False
    slot_freed: bool = False
    refused: str | None = None
