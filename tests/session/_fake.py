"""A scripted agent at the other end of a memory stream, and guests that talk to one.

The script says what the agent does, frame by frame. No process and no real time is needed.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
import trio.testing
from trio.testing import memory_stream_pair

from tests.tools.limits import HANG
from tests.tools.peer import Peer, ready_message, settle
from trio_console import _wire as wire
from trio_console._session.confirmations import Confirmations
from trio_console._session.connection import Connection
from trio_console._session.guest import Guest
from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_console._wire.credit import Admission

WINDOW = 1024 * 1024


async def nothing_known() -> str:
    await trio.lowlevel.checkpoint()
    return "nobody knows why"


class FakeAgent(Peer):
    """An agent whose every step is made by a test."""

    async def expect_start(self, pid: int = 7) -> int:
        """Wait for the request of a command, and report its start; returns its id."""
        id_, _ = await self.expect(wire.ExecRequest)
        await self.send(wire.ExecStarted(pid), id_)
        await trio.testing.wait_all_tasks_blocked()  # the client knows
        return id_

    async def serve(self, *, obey: tuple[int, ...] = (9, 15), seen: Any = None) -> None:
        """Start every command, end it at a signal, answer pings; record everything. Runs until the end."""
        async for id_, message in self:
            if seen is not None:
                seen.append((id_, message))
            match message:
                case wire.ExecRequest():
                    await self.send(wire.ExecStarted(100 + id_), id_)
                case wire.ExecSignal(number) if number in obey:
                    await self.send(wire.ExecExited(code=-1, signal=number), id_)
                case wire.Ping():
                    await self.send(wire.Pong(), id_)
                case wire.Shutdown():
                    await self.stream.aclose()
                    return
                case _:
                    pass


class Talk:
    """A guest, and the agent at its other end."""

    def __init__(self, guest: Guest, connection: Connection, agent: FakeAgent, nursery: trio.Nursery) -> None:
        self.guest = guest
        self.connection = connection
        self.agent = agent
        self.nursery = nursery
        self.forced = 0

    def force(self) -> None:
        self.forced += 1


@asynccontextmanager
async def talking(
    *,
    window: int | None = WINDOW,
    features: tuple[str, ...] = (),
    generation: int = 7,
    ids: range = range(1, 1000),
    grace: float = 5.0,
    streams: Callable[[], tuple[Any, Any]] = memory_stream_pair,
    explain: Any = nothing_known,
    patience: float = HANG,
    watch: Callable[[Connection], Any] | None = None,
    admission: Admission | None = None,
) -> AsyncIterator[Talk]:
    """A guest whose agent has just said it was ready. ``window=None`` is an agent that knows no credit."""
    ours, theirs = streams()
    said = wire.FrameDecoder(), ready_message(window, *features), generation
    connection = Connection(ours, *said, ids, explain, admission=admission)
    talk: Talk
    guest = Guest(connection, confirmations=Confirmations(grace, connection.heard), force=lambda: talk.force())
    with trio.fail_after(patience):
        async with hidden_nursery() as nursery:
            talk = Talk(guest, connection, FakeAgent(theirs), nursery)
            nursery.start_soon(connection.run, *(() if watch is None else (watch(connection),)))
            try:
                yield talk
            finally:
                connection.lose("the test is over")
                nursery.cancel_scope.cancel()


class Result:
    """The outcome of a call that runs in the background."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.done = trio.Event()
        self.value: Any = None
        self.error: BaseException | None = None
        self.scope = trio.CancelScope()
        self._call = call

    async def run(self) -> None:
        try:
            with self.scope:
                self.value = await self._call()
        except Exception as exc:
            self.error = exc
        self.done.set()

    async def wait(self) -> Any:
        with trio.fail_after(HANG):
            await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.value


async def at_once(talk: Talk, call: Callable[[], Any]) -> Any:
    """The outcome of a call that does not wait for the agent, such as one that is refused."""
    result = begin(talk.nursery, call)
    await settle()
    assert result.done.is_set(), "it waits for the agent"
    return await result.wait()


def begin(nursery: trio.Nursery, call: Callable[[], Any]) -> Result:
    """Start a call in the background."""
    result = Result(call)
    nursery.start_soon(result.run)
    return result
