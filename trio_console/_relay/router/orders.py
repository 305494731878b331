"""What the relay's mind wants the server to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_console._relay.router.clients import Client

__all__ = ["Orders"]


@dataclass(slots=True)
class Orders:
    """What the server is to do now.

    Attributes:
        to_agent: control frames to send, in order.
        behind: frames to send behind all data that was handed over for the agent before.
        wake: a client that has got something to send, to its socket or to the agent.
        shutdown: a client has asked the guest to shut down, which it will.
        slot_freed: a client that found no slot may try again.
    """

    to_agent: list[bytes] = field(default_factory=list)
    behind: tuple[bytes, ...] = ()
    wake: Client | None = None
    shutdown: bool = False
    slot_freed: bool = False
