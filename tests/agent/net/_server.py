"""A server in the guest, and what its peers see."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.agent._host import Host

KIB = 1024
MIB = 1024 * 1024
STEP = (2**32 - 1) // 128


class Server:
    """A server in the guest."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self.port: int = listener.socket.getsockname()[1]

    async def accept(self) -> trio.SocketStream:
        with trio.fail_after(HANG):
            return await self._listener.accept()

    async def connect(self, host: Host, sid: int, **fields: Any) -> trio.SocketStream:
        """Connect as session ``sid``; return the other end."""
        await host.send(wire.TcpConnect("127.0.0.1", self.port, **fields), sid)
        peer = await self.accept()
        assert await host.receive(sid) == wire.TcpConnected()
        return peer


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield Server(listener)


async def read_exactly(peer: trio.SocketStream, size: int) -> bytes:
    data = b""
    with trio.fail_after(HANG):
        while len(data) < size:
            part = await peer.receive_some(size - len(data))
            assert part, "closed too early"
            data += part
    return data


async def read_end(peer: trio.SocketStream) -> bytes:
    """All bytes up to the end of file, which must be an orderly one."""
    data = b""
    with trio.fail_after(HANG):
        async for part in peer:
            data += part
    return data


async def is_reset(peer: trio.SocketStream) -> bool:
    """Whether the other side is gone, after all bytes that were still on their way."""
    with trio.fail_after(HANG):
        try:
            while await peer.receive_some(65536):
                pass
            while True:
                await peer.send_all(bytes(65536))
        except trio.BrokenResourceError:
            return True


async def ends_in_reset(peer: trio.SocketStream) -> bool:
    """Whether the bytes end in a reset, and not in an end of file."""
    with trio.fail_after(HANG):
        try:
            async for _ in peer:
                pass
        except trio.BrokenResourceError:
            return True
    return False


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port
