"""One client of a relay, as the relay's server serves it: what wakes its tasks, and how long they are patient.

The server's tasks for a client meet here: its reader, the feeder of the agent, its writer, and the agent's reader,
which sends in the writer's place while that sleeps. This module must not know what they send.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple, final

import trio

from trio_console._relay.door import LOOK_TIME, has_hung_up

if TYPE_CHECKING:
    from trio_console._relay.door import Rate
    from trio_console._relay.router import Client
    from trio_console._relay.router.session import Outgoing
    from trio_console._trio.gathering import Piece
    from trio_console._trio.sockets import UnixStream

__all__ = ["Batch", "ClientTasks", "patience", "take"]

#: Seconds for what a client has sent before it closed a connection to reach the guest, after the client has gone.
_PROMISE_TIME: Final = 5.0


def patience() -> float:
    """Seconds for which a client that has gone is still served."""
    return _PROMISE_TIME


class Batch(NamedTuple):
    """Frames that are being sent to a client, and the pieces of bytes of them that its socket has not taken."""

    frames: list[Outgoing]
    rest: list[Piece]


@final
class ClientTasks:
    """The tasks that serve one client: the events that wake them, and their scope."""

    def __init__(self, client: Client, stream: UnixStream, rates: tuple[Rate, ...]) -> None:
        self.client: Final = client
        self.stream: Final = stream
        self.rates: Final = rates
        self.scope: Final = trio.CancelScope()
        #: Ends the talk with it: its deadline is set when its socket takes no more frames, because it has gone.
        self.leaving: Final = trio.CancelScope()
        self.output = trio.Event()  # there are frames for its socket, and its writer is to send them
        # One party at a time sends to the socket: the writer, or, while it sleeps and nothing is begun, the
        # agent's reader. No checkpoint comes between the look at these two and the end of such a sending.
        self.writer_sleeps = False
        self.begun: Batch | None = None  # frames of which the socket has not taken all at once
        self.input = trio.Event()  # there are frames for the agent
        self.room = trio.Event()  # its reader may go on, or what it relies on was delivered
        self.was_cut = False
        self.last_active = trio.current_time()
        self.hears = False  # whether frames of it were received, and wait to be heard
        self.feeding = False  # whether a frame has been taken for the agent, and waits for room in its outbox

    @property
    def may_send_at_once(self) -> bool:
        """Whether frames may be sent by another task than its writer."""
        return self.writer_sleeps and self.begun is None

    async def wait_output(self) -> None:
        """Let the writer sleep until `output` is set."""
        self.output = trio.Event()
        self.writer_sleeps = True
        try:
            await self.output.wait()
        finally:
            self.writer_sleeps = False

    async def wait_room(self) -> None:
        """Wait until `room` is set once more."""
        if self.room.is_set():  # more than one task may wait: a new event would strand the others
            self.room = trio.Event()
        await self.room.wait()

    async def wait_room_or_end(self) -> None:
        """Wait for room, and look from time to time whether the client has gone: its socket is not read meanwhile.

        Its commands would otherwise live on for as long as the agent does not take what it has sent.
        """
        with trio.move_on_after(LOOK_TIME):
            await self.wait_room()
        if has_hung_up(self.stream.socket):
            self.leave_soon()

    def leave_soon(self) -> None:
        """End the talk with a client that has gone, after the time for its last frames."""
        self.leaving.deadline = min(self.leaving.deadline, trio.current_time() + _PROMISE_TIME)

    @property
    def is_slow(self) -> bool:
        """Whether its queue is over its budget, so that it is cut unless it reads before the deadline."""
        return self.scope.deadline != math.inf

    def set_slow(self, timeout: float) -> None:
        self.scope.deadline = trio.current_time() + timeout

    def set_prompt(self) -> None:
        if self.is_slow:  # (a new deadline is work for trio, also if it is the old one)
            self.scope.deadline = math.inf


def take(client: Client, limit: int) -> Batch | None:
    """Take frames for a client's socket; `None` if there are none."""
    frames = client.take(limit)
    return Batch(frames, [item.frame for item in frames]) if frames else None
