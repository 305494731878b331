"""Connections that are full in both directions: trio's own checks, and what a sender learns of a break."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from tests.faults._guests import InProcessGuest
from tests.tools.limits import HANG
from trio_console import Guest, connect_guest, open_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: Looks in a row at which neither side takes a byte.
CLOGGED = 3


@asynccontextmanager
async def a_guest(kind: str, tmp_path: Path) -> AsyncIterator[Guest]:
    path = tmp_path / "agent.sock"
    if kind == "direct":
        async with open_guest(InProcessGuest()) as guest:
            yield guest
    else:
        async with open_guest(InProcessGuest(), relay_path=path), connect_guest(path) as guest:
            yield guest


def fill(peer: trio.SocketStream) -> bool:
    """Write to a socket as long as it takes bytes; returns whether it has taken some.

    The last bytes go one by one: a socket that has refused many still takes a few.
    """
    taken = False
    for data in (bytes(65536), b"x"):
        try:
            while True:
                os.write(peer.socket.fileno(), data)
                taken = True
        except BlockingIOError:
            pass
    return taken


async def clog(stream: trio.abc.HalfCloseableStream, peer: trio.SocketStream) -> None:
    """Fill both directions. (The agent and a relay run in this program, so trio knows when they wait.)"""
    looks = 0
    while looks < CLOGGED:
        looks += 1
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                nonlocal looks
                while True:
                    await stream.send_all(bytes(65536))
                    looks = 0

            nursery.start_soon(send)
            await wait_all_tasks_blocked(0.01)
            if fill(peer):
                looks = 0
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["direct", "relay"])
async def test_it_is_a_half_closeable_stream_when_it_is_clogged(kind: str, tmp_path: Path) -> None:
    async with a_guest(kind, tmp_path) as guest:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]

        async def make() -> Any:
            stream = await guest.open_tcp_stream("127.0.0.1", port)
            return stream, await listener.accept()

        async def make_clogged() -> Any:
            stream, peer = await make()
            await clog(stream, peer)
            return stream, peer

        async with listener:
            with trio.fail_after(HANG):
                await check_half_closeable_stream(make, make_clogged)


@pytest.mark.parametrize("kind", ["direct", "relay"])
async def test_who_sends_learns_of_a_reset_before_what_came_was_read(kind: str, tmp_path: Path) -> None:
    async with a_guest(kind, tmp_path) as guest:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            stream = await guest.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            peer = await listener.accept()
            await clog(stream, peer)
            with trio.fail_after(HANG):
                await trio.aclose_forcefully(peer)  # a reset, because it has unread bytes
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await stream.send_all(b"x")
                assert isinstance(caught.value.__cause__, ConnectionResetError)
                received = 0
                with pytest.raises(trio.BrokenResourceError):
                    while data := await stream.receive_some():
                        received += len(data)
            assert received >= 1024 * 1024  # a window at least: what had come is still there
            await stream.aclose()
