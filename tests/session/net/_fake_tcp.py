"""An agent whose connections go to functions of the test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from tests.session._fake import WINDOW, FakeAgent, Talk, talking
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.abc import HalfCloseableStream


class Connected:
    """One connection of the agent: two tasks between frames and a stream."""

    def __init__(self, stream: HalfCloseableStream, credit: int | None) -> None:
        self.stream = stream
        self.credit = credit
        self.changed = trio.Event()
        self.send, self.receive = trio.open_memory_channel[wire.Message](float("inf"))

    def grant(self, size: int) -> None:
        assert self.credit is not None
        self.credit += size
        self.changed.set()

    async def take_credit(self) -> int:
        while self.credit is not None and self.credit <= 0:
            self.changed = trio.Event()
            await self.changed.wait()
        return 16 * 1024 if self.credit is None else min(16 * 1024, self.credit)


class TcpAgent:
    """An agent that connects to the ports in ``listeners``: functions that return the near end of a connection."""

    def __init__(self, agent: FakeAgent, window: int | None) -> None:
        self.listeners: dict[int, Any] = {}
        self.connected: dict[int, Connected] = {}
        self.requests: list[wire.TcpConnect] = []
        self.closed: list[int] = []
        self._agent = agent
        self._window = window

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            async for id_, message in self._agent:
                match message:
                    case wire.TcpConnect():
                        self.requests.append(message)
                        await self._connect(nursery, id_, message)
                    case wire.Credit():
                        if id_ in self.connected:
                            self.connected[id_].grant(message.bytes)
                    case wire.TcpData() | wire.TcpEof() | wire.TcpClose():
                        if isinstance(message, wire.TcpClose):
                            self.closed.append(id_)
                        if id_ in self.connected:
                            self.connected[id_].send.send_nowait(message)
            nursery.cancel_scope.cancel()

    async def _connect(self, nursery: trio.Nursery, id_: int, request: wire.TcpConnect) -> None:
        if request.port not in self.listeners:
            text = f"connect {request.host}:{request.port}: Connection refused (os error 111)"
            await self._agent.tell(wire.TcpFailed(text), id_)
            return
        credit = None if request.window is wire.UNSET else request.window
        live = self.connected[id_] = Connected(self.listeners[request.port](), credit)
        await self._agent.tell(wire.TcpConnected(), id_)
        nursery.start_soon(self._serve, id_, live)

    async def _serve(self, id_: int, live: Connected) -> None:
        async with live.stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._up, id_, live)
            try:
                await self._down(id_, live)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self._agent.tell(wire.TcpFailed("write: Broken pipe (os error 32)"), id_)
            nursery.cancel_scope.cancel()
        del self.connected[id_]

    async def _down(self, id_: int, live: Connected) -> None:
        async for message in live.receive:
            match message:
                case wire.TcpData(data):
                    await live.stream.send_all(data)
                    if self._window is not None:
                        await self._agent.tell(wire.Credit(stream="data", bytes=len(data)), id_)
                case wire.TcpEof():
                    await live.stream.send_eof()
                case _:
                    return

    async def _up(self, id_: int, live: Connected) -> None:
        while True:
            most = await live.take_credit()
            try:
                data = await live.stream.receive_some(most)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self._agent.tell(wire.TcpFailed("read: Connection reset by peer (os error 104)"), id_)
                return
            if not data:
                await self._agent.tell(wire.TcpEof(), id_)
                return
            if live.credit is not None:
                live.credit -= len(data)
            await self._agent.tell(wire.TcpData(bytes(data)), id_)


@asynccontextmanager
async def serving_tcp(*, window: int | None = WINDOW, **options: Any) -> AsyncIterator[tuple[Talk, TcpAgent]]:
    async with talking(window=window, **options) as talk:
        tcp = TcpAgent(talk.agent, window)
        talk.nursery.start_soon(tcp.run)
        yield talk, tcp
