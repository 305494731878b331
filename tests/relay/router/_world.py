"""A relay between a scripted agent, over a memory stream, and clients at its real socket."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from trio.testing import memory_stream_pair

from tests.tools.limits import HANG
from tests.tools.peer import Peer, frame, ready_message, settle
from trio_console import _wire as wire
from trio_console._relay.serve import relaying
from trio_console._relay.server import RelayServer, ServerOptions
from trio_console._relay.socket import RelaySocket
from trio_console._session.boot import Booted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


class RawClient(Peer):
    """A client at the relay's socket."""

    ids: range
    greeting: bytes

    async def greet(self) -> None:
        """Take the relay's greeting."""
        got = b""
        with trio.fail_after(HANG):
            while len(got) < 12 or len(got) < 12 + int.from_bytes(got[8:12], "big"):
                data = await self.stream.receive_some(65536)
                assert data, f"refused after {got!r}"
                got += bytes(data)
        size = 12 + int.from_bytes(got[8:12], "big")
        self.greeting = got[:size]
        self.ids = range(int.from_bytes(got[:4], "big"), int.from_bytes(got[4:8], "big"))
        self.decoder.feed(got[size:])

    async def expect_farewell(self, reason: str) -> None:
        """The relay's last frame, and the end."""
        id_, message = await self.expect(wire.RelayLost)
        assert id_ in self.ids
        assert reason in message.reason
        await self.expect_eof()

    async def leave(self) -> None:
        await self.close()


class World:
    """See the module."""

    def __init__(self, server: RelayServer, agent: Peer, path: str) -> None:
        self.server = server
        self.agent = agent
        self.path = path

    async def dial(self) -> RawClient:
        with trio.fail_after(HANG):
            return RawClient(await trio.open_unix_socket(self.path))

    async def connect(self) -> RawClient:
        client = await self.dial()
        await client.greet()
        return client

    async def finish_slot(self, kill: tuple[int, ...] = ()) -> None:
        """Answer as an agent does when a client has gone that had these commands."""
        for id_ in kill:
            assert await self.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        await self.agent.expect(wire.ClientDisconnected)
        last_id, _ = await self.agent.expect(wire.FsData)
        for id_ in kill:
            await self.agent.send(wire.ExecExited(-1), id_)
        await self.agent.send(wire.FsResponse(ok=False), last_id)
        await settle()


@asynccontextmanager
async def serving(
    tmp_path: Path,
    *,
    window: int | None = 256 * 1024,
    ready: wire.Frame | None = None,
    options: ServerOptions | None = None,
    streams: tuple[trio.abc.Stream, trio.abc.Stream] | None = None,
    explain: Callable[[], Awaitable[str]] | None = None,
) -> AsyncIterator[World]:
    """A relay whose agent has just become ready and has got the time."""
    ours, theirs = streams or memory_stream_pair()
    said = ready or frame(ready_message(window))
    message = wire.decode(said)
    assert isinstance(message, wire.Ready)
    booted = Booted(message, said, wire.decode_envelope(said.body).version, wire.FrameDecoder())
    made = RelaySocket(tmp_path / "relay.sock")
    try:
        async with relaying(ours, booted, made, options or ServerOptions(), explain) as server:
            agent = Peer(theirs, overlooked=(wire.ClockSync,))
            await agent.expect(wire.ClockSync)
            yield World(server, agent, made.path)
    finally:
        made.close()
        made.sock.close()
