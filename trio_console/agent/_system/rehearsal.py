"""The first host of an agent in a machine of its own: this program itself, which lets it do what hosts ask for.

Much is made when it is used first: by Python's libraries, such as what they know of a message's fields, and by
the kernel, such as the pages of a program. What was made before a machine is saved need not be made in its clones.

This module must not know how the agent is served, nor sessions.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from trio_console import _wire as wire
from trio_console.agent._system.boot import FrameSource

__all__ = ["rehearse"]

#: The ids of the sessions.
_COMMAND: Final = 1001
_FILE: Final = 1002

_WINDOW: Final = 64 * 1024


async def rehearse(stream: trio.abc.Stream) -> None:
    """Be the host of an agent: boot it, let it run a command and look at a file, and go.

    Whether that works is not asked: an answer that says no has the same parts. If the agent ends, this does.
    """
    source = FrameSource(stream)
    async with stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(wire.encode(wire.Bootstrap()))
            await source.next_frame()  # it has looked at the bootstrap
            await stream.send_all(wire.encode(wire.InitAck()))
            await source.next_frame()  # it is ready
            command = wire.ExecRequest("true", window=_WINDOW, ends=wire.ExecEnds(0))
            await _ask(stream, source, command, _COMMAND)
            await _ask(stream, source, wire.FsRequest(wire.OpStat("/", follow_symlink=True)), _FILE)


async def _ask(stream: trio.abc.Stream, source: FrameSource, request: wire.Message, session: int) -> None:
    """Send a request, and wait for the end of its session."""
    await stream.send_all(wire.encode(request, session))
    while (frame := await source.next_frame()) is not None:
        if frame.id == session and wire.type_of(wire.decode(frame)).place is wire.Place.ENDS:
            return
