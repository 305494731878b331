"""The relay's router decides what happens to each frame, without I/O, clock or event loop; the server does it."""

from __future__ import annotations

from trio_console._relay.router.clients import Client
from trio_console._relay.router.limits import RouterLimits
from trio_console._relay.router.mind import Router
from trio_console._relay.router.orders import Orders

__all__ = ["Client", "Orders", "Router", "RouterLimits"]
