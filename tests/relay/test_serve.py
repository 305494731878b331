"""A relay's life: what is begun is ended, also when it is cancelled at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.testing import memory_stream_pair

from trio_console import _protocol as wire
from trio_console._client._boot import Booted
from trio_console._relay._serve import relaying
from trio_console._relay._server import RelayOptions
from trio_console._relay._socket import RelaySocket

from ._world import ready_frame, settle

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_relay_that_is_cancelled_before_it_has_started_ends(tmp_path: Path) -> None:
    frame = ready_frame(None)
    ready = wire.decode(frame)
    assert isinstance(ready, wire.Ready)
    booted = Booted(ready, frame, 7, wire.FrameDecoder())
    ours, theirs = memory_stream_pair()
    made = RelaySocket(tmp_path / "relay.sock")
    ended = False

    async def begin_and_end() -> None:
        nonlocal ended
        with trio.CancelScope() as scope:
            scope.cancel()
            async with relaying(ours, booted, made, RelayOptions()):
                await trio.lowlevel.checkpoint()
        ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin_and_end)
        await settle()
        try:
            assert ended
        finally:
            await theirs.aclose()  # which ends it whatever happens
    made.close()
    made.sock.close()
