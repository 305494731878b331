"""A pair of console streams for tests, which checks at its end that every byte is accounted for."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from tests.tools.conserved import check_conserved
from tests.tools.limits import HANG
from trio_console.testing import console_stream_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_console._console.stream import ConsoleStream, LaneStream


def check_at_rest(host: ConsoleStream) -> None:
    """Every byte is accounted for, and no task waits."""
    check_conserved(host)
    now = host.statistics()
    assert (now.tasks_waiting_send, now.tasks_waiting_receive) == (0, 0)


@asynccontextmanager
async def pair(**limits: int) -> AsyncIterator[tuple[ConsoleStream, LaneStream]]:
    """A pair that is closed at the end, and whose bytes are then all accounted for."""
    host, guest = console_stream_pair(**limits)
    with trio.fail_after(HANG):
        try:
            yield host, guest
        finally:
            await trio.aclose_forcefully(host)
            await trio.aclose_forcefully(guest)
    check_at_rest(host)
