"""The end of an agent's host, told by a message: the agent then waits for another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from trio_console import _wire as wire
from trio_console._errors import UnsupportedByPeer, again
from trio_console._session.connection import Question
from trio_console._trio.lost import GuestLostError

if TYPE_CHECKING:
    from trio_console._session.connection import Connection

__all__ = ["reset"]

#: Seconds for all sessions of a guest to end. Each takes milliseconds, unless its processes hang in the kernel.
_RESET_TIME: Final = 60.0


async def reset(connection: Connection) -> None:
    """Have the agent end all sessions, and forget its settings; the caller closes the console then.

    Only the console's owner can do that. If cancelled, the agent does it all the same.

    Raises:
        GuestLostError: the guest is gone, or its sessions have not ended within a minute.
        UnsupportedByPeer: this agent has one host.
    """
    if wire.RESETS not in (connection.ready.features or ()):
        raise UnsupportedByPeer("this guest's agent has one host, and ends with it")
    call = Question(connection.new_id())
    connection.open(call, wire.Reset(call.id))
    with trio.move_on_after(_RESET_TIME):
        await call.done.wait()
    if call.error is not None:
        raise again(call.error)
    if call.reply is None:
        raise GuestLostError(f"the guest's sessions have not ended within {_RESET_TIME:g} seconds")
