"""A scripted agent at the other end of a memory stream, and guests that talk to one.

The script says what the agent does, frame by frame; nothing here needs a process or real time.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import trio
import trio.testing
from trio.testing import memory_stream_pair

from trio_console import _wire as wire
from trio_console._session.confirmations import Confirmations
from trio_console._session.connection import Connection
from trio_console._session.guest import Guest
from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

M = TypeVar("M", bound=wire.Message)

#: Seconds any single wait in these tests may take.
PATIENCE = 60.0

WINDOW = 1024 * 1024


async def nothing_known() -> str:
    await trio.lowlevel.checkpoint()
    return "nobody knows why"


class FakeAgent:
    """Speaks frames as it is told to."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._decoder = wire.FrameDecoder()

    async def send(self, message: wire.Message, id_: int = 0, *, version: int = 7) -> None:
        await self.send_raw(wire.encode(message, id_, version=version))

    async def send_raw(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def receive(self) -> tuple[int, wire.Message] | None:
        """The next message and its id; `None` once the client has closed."""
        with trio.fail_after(PATIENCE):
            while (frame := self._decoder.next_frame()) is None:
                data = await self.stream.receive_some(65536)
                if not data:
                    self._decoder.feed_eof()
                    return None
                self._decoder.feed(bytes(data))
        return frame.id, wire.decode(frame)

    async def expect(self, cls: type[M]) -> tuple[int, M]:
        """The next message, which must be of this type."""
        got = await self.receive()
        assert got is not None, f"the client closed the stream, instead of sending a {cls.__name__}"
        assert isinstance(got[1], cls), got
        return got[0], got[1]

    async def expect_start(self, pid: int = 7) -> int:
        """A command is requested, and started; returns its id."""
        id_, _ = await self.expect(wire.ExecRequest)
        await self.send(wire.ExecStarted(pid), id_)
        await trio.testing.wait_all_tasks_blocked()  # the client knows
        return id_

    async def receive_if_any(self) -> tuple[int, wire.Message] | None:
        """The next message, once all tasks have sent what they were about to; `None` if that was nothing."""
        got: tuple[int, wire.Message] | None = None

        async def receive() -> None:
            nonlocal got
            got = await self.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return got

    async def nothing_more(self) -> None:
        """Nothing comes, although all tasks have sent what they were about to."""
        assert await self.receive_if_any() is None

    async def close(self) -> None:
        await self.stream.aclose()

    async def serve(self, *, obey: tuple[int, ...] = (9, 15), seen: Any = None) -> None:
        """Start every command, end it at a signal, answer pings; record everything. Runs until the end."""
        while (got := await self.receive_for_ever()) is not None:
            id_, message = got
            if seen is not None:
                seen.append(got)
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

    async def receive_for_ever(self) -> tuple[int, wire.Message] | None:
        while (frame := self._decoder.next_frame()) is None:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._decoder.feed(bytes(data))
        return frame.id, wire.decode(frame)


class Talk:
    """A guest and the agent it talks to."""

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
    generation: int = 7,
    ids: range = range(1, 1000),
    grace: float = 5.0,
    streams: Callable[[], tuple[Any, Any]] = memory_stream_pair,
    explain: Any = nothing_known,
    patience: float = PATIENCE,
    watch: Callable[[Connection], Any] | None = None,
) -> AsyncIterator[Talk]:
    """A guest whose agent has just said it was ready. ``window=None`` is an agent that knows no credit."""
    ours, theirs = streams()
    ready = wire.Ready(
        boot_time_ns=1,
        init_time_ns=2,
        ready_time_ns=3,
        agent_version="fake",
        flow=wire.UNSET if window is None else wire.Flow(window),
    )
    connection = Connection(ours, wire.FrameDecoder(), ready, generation, ids, explain)
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
    """What became of a call that runs in the background."""

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
        with trio.fail_after(PATIENCE):
            await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.value


def begin(nursery: trio.Nursery, call: Callable[[], Any]) -> Result:
    """Start a call in the background."""
    result = Result(call)
    nursery.start_soon(result.run)
    return result
