"""A relay between a scripted agent, over a memory stream, and clients at its real socket."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import trio
from trio.testing import memory_stream_pair

from trio_console import _wire as wire
from trio_console._relay.serve import relaying
from trio_console._relay.server import RelayOptions, RelayServer
from trio_console._relay.socket import RelaySocket
from trio_console._session.boot import Booted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

M = TypeVar("M", bound=wire.Message)

#: Seconds any single wait in these tests may take; far beyond the times that are tested.
PATIENCE = 500.0

STAT = wire.FsRequest(wire.OpStat(path="/", follow_symlink=True))


class Peer:
    """Speaks frames over a stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.decoder = wire.FrameDecoder()

    async def send(self, message: wire.Message, id_: int = 0) -> None:
        await self.send_raw(wire.encode(message, id_))

    async def send_raw(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def receive(self) -> tuple[int, wire.Message] | None:
        """The next message and its id; `None` at the end."""
        with trio.fail_after(PATIENCE):
            while (frame := self.decoder.next_frame()) is None:
                data = await self.stream.receive_some(65536)
                if not data:
                    self.decoder.feed_eof()
                    return None
                self.decoder.feed(bytes(data))
        return frame.id, wire.decode(frame)

    async def expect(self, cls: type[M]) -> tuple[int, M]:
        """The next message, which must be of this type. The time of day may come before it."""
        got = await self.receive()
        while got is not None and isinstance(got[1], wire.ClockSync) and cls is not wire.ClockSync:
            got = await self.receive()
        assert got is not None, f"the stream ended instead of a {cls.__name__}"
        assert isinstance(got[1], cls), got
        return got[0], got[1]

    async def expect_eof(self) -> None:
        assert await self.receive() is None

    async def pending(self) -> list[tuple[int, wire.Message]]:
        """What arrives until nothing moves any more."""
        got: list[tuple[int, wire.Message]] = []

        async def collect() -> None:
            while (one := await self.receive()) is not None:
                got.append(one)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            await settle()
            nursery.cancel_scope.cancel()
        return got


class RawClient(Peer):
    """A client at the relay's socket."""

    ids: range
    greeting: bytes

    async def greet(self) -> None:
        """Take the relay's greeting."""
        got = b""
        with trio.fail_after(PATIENCE):
            while len(got) < 12 or len(got) < 12 + int.from_bytes(got[8:12], "big"):
                data = await self.stream.receive_some(65536)
                assert data, f"refused after {got!r}"
                got += bytes(data)
        size = 12 + int.from_bytes(got[8:12], "big")
        self.greeting = got[:size]
        self.ids = range(int.from_bytes(got[:4], "big"), int.from_bytes(got[4:8], "big"))
        self.decoder.feed(got[size:])

    async def leave(self) -> None:
        await self.stream.aclose()


class World:
    """See the module."""

    def __init__(self, server: RelayServer, agent: Peer, path: str) -> None:
        self.server = server
        self.agent = agent
        self.path = path

    async def dial(self) -> RawClient:
        with trio.fail_after(PATIENCE):
            return RawClient(await trio.open_unix_socket(self.path))

    async def connect(self) -> RawClient:
        client = await self.dial()
        await client.greet()
        return client

    async def finish_slot(self, kill: tuple[int, ...] = ()) -> None:
        """Do as an agent does when it hears that a client has gone, whose commands were these."""
        for id_ in kill:
            assert await self.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        await self.agent.expect(wire.ClientDisconnected)
        fence, _ = await self.agent.expect(wire.FsRequest)
        for id_ in kill:
            await self.agent.send(wire.ExecExited(-1), id_)
        await self.agent.send(wire.FsResponse(ok=True), fence)
        await settle()


async def settle() -> None:
    """Wait until nothing moves any more. Kernel buffers are looked at on the way."""
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked()


def ready_frame(window: int | None) -> wire.Frame:
    flow = wire.UNSET if window is None else wire.Flow(window)
    ready = wire.Ready(boot_time_ns=1, init_time_ns=2, ready_time_ns=3, agent_version="fake", flow=flow)
    decoder = wire.FrameDecoder()
    decoder.feed(wire.encode(ready))
    frame = decoder.next_frame()
    assert frame is not None
    return frame


@asynccontextmanager
async def serving(
    tmp_path: Path,
    *,
    window: int | None = 256 * 1024,
    ready: wire.Frame | None = None,
    options: RelayOptions | None = None,
    streams: tuple[trio.abc.Stream, trio.abc.Stream] | None = None,
) -> AsyncIterator[World]:
    """A relay whose agent has just said it was ready, and was told the time."""
    ours, theirs = streams or memory_stream_pair()
    frame = ready or ready_frame(window)
    message = wire.decode(frame)
    assert isinstance(message, wire.Ready)
    booted = Booted(message, frame, 7, wire.FrameDecoder())
    made = RelaySocket(tmp_path / "relay.sock")
    try:
        async with relaying(ours, booted, made, options or RelayOptions()) as server:
            agent = Peer(theirs)
            await agent.expect(wire.ClockSync)
            yield World(server, agent, made.path)
    finally:
        made.close()
        made.sock.close()
