"""Connections at the end of a guest: what was sent before arrives, or the peer sees a reset."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import Guest, ProcessGuest, connect_guest, open_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SIZE = 800_000

#: A peer's receive buffer: far less than is sent, so most of it waits somewhere on the way.
SMALL = 16 * 1024


@asynccontextmanager
async def a_guest(kind: str, tmp_path: Path, grace: float = 5.0) -> AsyncIterator[Guest]:
    """A guest; with "client" it outlives the block, which only a client of its relay leaves."""
    path = tmp_path / "agent.sock"
    async with AsyncExitStack() as outer:
        if kind == "client":
            await outer.enter_async_context(open_guest(ProcessGuest(), relay_path=path))
            opened = connect_guest(path, grace=grace)
        else:
            opened = open_guest(ProcessGuest(), relay_path=path if kind == "owner" else None, grace=grace)
        async with opened as guest:
            yield guest


@pytest.fixture(params=["direct", "owner", "client"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def listener() -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


async def connect(guest: Guest, listener: socket.socket) -> tuple[trio.abc.HalfCloseableStream, trio.SocketStream]:
    stream = await guest.open_tcp_stream("127.0.0.1", listener.getsockname()[1])
    with listener:
        peer, _ = listener.accept()
    return stream, trio.SocketStream(trio.socket.from_stdlib_socket(peer))


async def read_all(peer: trio.SocketStream) -> bytes:
    with trio.fail_after(HANG):
        async with peer:
            return b"".join([bytes(part) async for part in peer])


async def test_all_that_was_sent_before_the_close_arrives_after_the_guest_was_left(
    kind: str, listener: socket.socket, tmp_path: Path
) -> None:
    data = os.urandom(SIZE)
    async with trio.open_nursery() as nursery:

        async def compare(peer: trio.SocketStream) -> None:
            await trio.sleep(0.3)  # so the guest is left while most of the bytes are still under way
            assert await read_all(peer) == data

        async with a_guest(kind, tmp_path) as guest:
            stream, peer = await connect(guest, listener)
            await stream.send_all(data)
            await stream.aclose()
            nursery.start_soon(compare, peer)


async def test_a_connection_that_is_open_when_the_guest_is_left_is_closed_behind_what_was_sent(
    kind: str, listener: socket.socket, tmp_path: Path
) -> None:
    data = os.urandom(SIZE)
    async with trio.open_nursery() as nursery:

        async def compare(peer: trio.SocketStream) -> None:
            await trio.sleep(0.3)
            assert await read_all(peer) == data

        async with a_guest(kind, tmp_path) as guest:
            stream, peer = await connect(guest, listener)
            await stream.send_all(data)
            nursery.start_soon(compare, peer)


async def test_what_only_the_kernel_has_left_arrives_when_the_agent_is_gone(
    listener: socket.socket, tmp_path: Path
) -> None:
    data = os.urandom(40_000)  # more than the buffer of the peer, and less than that and the one of the agent
    async with a_guest("direct", tmp_path) as guest:
        stream, peer = await connect(guest, listener)
        await stream.send_all(data)
        await stream.aclose()
    assert await read_all(peer) == data


@pytest.mark.parametrize("kind", ["direct", "owner"])
async def test_what_a_peer_does_not_take_in_time_ends_in_a_reset(
    kind: str, listener: socket.socket, tmp_path: Path
) -> None:
    with trio.fail_after(HANG):
        async with a_guest(kind, tmp_path, grace=1.0) as guest:
            stream, peer = await connect(guest, listener)
            await stream.send_all(bytes(SIZE))
            await stream.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await read_all(peer)


async def test_an_agent_that_is_killed_resets_its_connections(listener: socket.socket, tmp_path: Path) -> None:
    async with a_guest("direct", tmp_path) as guest:
        stream, peer = await connect(guest, listener)
        await stream.send_all(b"a part")
        assert await peer.receive_some() == b"a part"
        done = await guest.run_process(["sh", "-c", "echo $PPID"], capture_stdout=True)
        os.kill(int(done.stdout), signal.SIGKILL)
        with pytest.raises(trio.BrokenResourceError):
            await read_all(peer)
