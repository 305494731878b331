"""The relay's mind decides what becomes of every frame. No I/O, no clock, no event loop: the server acts."""

from __future__ import annotations

from trio_console._relay.router.clients import Client
from trio_console._relay.router.limits import DEFAULT_CLIENT_BUDGET, RouterLimits
from trio_console._relay.router.mind import Orders, Router

__all__ = ["DEFAULT_CLIENT_BUDGET", "Client", "Orders", "Router", "RouterLimits"]
