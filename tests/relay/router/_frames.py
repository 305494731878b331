"""A router with one or two clients, driven and checked with messages."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tests.tools.peer import frame, said
from trio_console import _wire as wire
from trio_console._relay.router import Orders, Router
from trio_console._relay.router.limits import RouterLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_console._relay.router import Client
    from trio_console._relay.router.rights import Rights

KIB = 1024
WINDOW = 64 * KIB
SMALL = RouterLimits(
    largest_window=16 * KIB,
    rest_divisor=1,
    least_window=1 * KIB,
    client_budget=64 * KIB,
    total_budget=128 * KIB,
    pending_budget=32 * KIB,
    answers_budget=64 * KIB,
    least_answers=16 * KIB,
    total_answers=128 * KIB,
    slice=4 * KIB,
    sessions=100,
    quarantine=60.0,
)


class Table:
    """A router whose input and output are messages."""

    def __init__(
        self,
        *,
        window: int | None = WINDOW,
        features: tuple[str, ...] = (wire.EXEC_ENDS,),
        rights: Mapping[int, Rights] = MappingProxyType({}),
        **limits: Any,
    ) -> None:
        flow = None if window is None else wire.Flow(window)
        self.router = Router(flow, replace(SMALL, **limits), features, rights)

    def connect(self, uid: int | None = 0) -> Client:
        client = self.router.connect(uid)
        assert client is not None
        return client

    def client_says(self, client: Client, message: wire.Message, id_: int) -> Orders:
        return self.router.from_client(client, frame(message, id_))

    def agent_says(self, message: wire.Message, id_: int) -> Orders:
        return self.router.from_agent(frame(message, id_))

    def to_agent(self, client: Client, orders: Orders | None = None) -> list[tuple[int, wire.Message]]:
        """The messages for the agent now: the control frames of the orders, and then all data of a client."""
        got = list(orders.to_agent) if orders is not None else []
        while (data := self.router.next_for_agent(client)) is not None:
            got.append(data)
        return said(got)

    def to_client(self, client: Client) -> list[tuple[int, wire.Message]]:
        """The messages that the client's socket would get now. They count as not taken, so nothing is granted."""
        return said(item.frame for item in client.take(1 << 40))

    def client_reads(
        self, client: Client
    ) -> tuple[list[tuple[int, wire.Message]], list[tuple[int, wire.Message]]]:
        """Let the client's socket take all frames; returns these, and the grants that the agent gets."""
        got, orders = [], Orders()
        while batch := client.take(1 << 40):
            got += [item.frame for item in batch]
            orders.to_agent += self.router.sent_to_client(client, batch).to_agent
        return said(got), said(orders.to_agent)

    def open(self, client: Client, request: wire.Message, offset: int = 0) -> int:
        """Open a session; returns its id."""
        id_ = client.ids[offset]
        self.client_says(client, request, id_)
        return id_
