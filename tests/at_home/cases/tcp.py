"""Connections: what was sent arrives, and a peer can tell an end from a reset."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from tests.at_home.cases.streams import digest, read_all
from tests.at_home.places import InGuest, failed
from tests.at_home.table import case

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.at_home.places import Here

BIG = bytes(range(256)) * 3200


class Peer:
    """The other end of a connection, on this machine."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.listener = listener
        self.port = listener.socket.getsockname()[1]

    async def accept(self) -> trio.SocketStream:
        return await self.listener.accept()


@asynccontextmanager
async def listening() -> AsyncIterator[Peer]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield Peer(listener)


@asynccontextmanager
async def connected(here: Here) -> AsyncIterator[tuple[Any, trio.SocketStream]]:
    """A connection: this end, and the peer's."""
    async with listening() as peer:
        stream = await here.open_tcp_stream("127.0.0.1", peer.port)
        theirs = await peer.accept()
        async with stream, theirs:
            yield stream, theirs


async def received(stream: Any) -> object:
    """All that comes, and how it ends: with ``b""`` or an error."""
    data = []
    try:
        while chunk := await stream.receive_some():
            data.append(bytes(chunk))
    except Exception as exc:
        return digest(b"".join(data)), failed(exc)
    return digest(b"".join(data)), "end"


async def received_slowly(stream: trio.SocketStream) -> object:
    data = []
    while chunk := await stream.receive_some(20_000):
        data.append(bytes(chunk))
        await trio.sleep(0.002)
    return digest(b"".join(data))


@case("tcp endings")
async def what_was_sent_before_a_close_arrives(here: Here) -> object:
    async with connected(here) as (stream, theirs):
        async with trio.open_nursery() as nursery:
            got: list[object] = []

            async def read() -> None:
                got.append(await received(theirs))

            nursery.start_soon(read)
            await stream.send_all(BIG)
            await stream.aclose()
    return got


@case("tcp endings")
async def a_slow_peer_gets_all_that_was_sent_before_a_close(here: Here) -> object:
    async with connected(here) as (stream, theirs), trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(BIG)
            await stream.aclose()

        nursery.start_soon(send)
        got = await received_slowly(theirs)
    return got  # noqa: RET504  (a return in the nursery would wait for it all the same)


@case("tcp endings", alone=())
async def what_was_sent_arrives_though_the_program_ends(here: Here) -> object:
    async with listening() as peer, trio.open_nursery() as nursery:
        stream = await here.open_tcp_stream("127.0.0.1", peer.port)
        theirs = await peer.accept()

        async def send_and_leave() -> None:
            await stream.send_all(BIG)
            await stream.aclose()
            if isinstance(here, InGuest):
                await here.guest.shutdown()

        nursery.start_soon(send_and_leave)
        got = await received_slowly(theirs)
    return got  # noqa: RET504  (a return in the nursery would wait for it all the same)


@case("tcp endings")
async def an_end_of_file_leaves_the_other_direction_open(here: Here) -> object:
    async with connected(here) as (stream, theirs):
        await stream.send_all(b"question")
        await stream.send_eof()
        asked = await received(theirs)
        await theirs.send_all(b"answer")
        await theirs.aclose()
        return asked, await received(stream)


@case("tcp endings")
async def an_end_of_file_of_the_peer_leaves_this_direction_open(here: Here) -> object:
    async with connected(here) as (stream, theirs):
        await theirs.send_all(b"question")
        await theirs.send_eof()
        asked = await received(stream)
        await stream.send_all(b"answer")
        await stream.aclose()
        return asked, await received(theirs)


def reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@case("tcp endings")
async def a_reset_of_the_peer_is_an_error(here: Here) -> object:
    async with connected(here) as (stream, theirs):
        reset(theirs)
        return await received(stream)


@case("tcp endings")
async def sending_after_a_reset_is_an_error(here: Here) -> object:
    async with connected(here) as (stream, theirs):
        reset(theirs)
        with trio.fail_after(60):
            while True:
                if (sent := await here.result(stream.send_all, bytes(65536))) is not None:
                    return sent


@case("tcp endings")
async def a_closed_connection_is_closed(here: Here) -> object:
    async with connected(here) as (stream, _):
        await stream.aclose()
        await stream.aclose()
        return [
            await here.result(stream.send_all, b"x"),
            await here.result(stream.receive_some),
            await here.result(stream.send_eof),
        ]


@case("tcp endings")
async def after_an_end_of_file_nothing_can_be_sent(here: Here) -> object:
    async with connected(here) as (stream, _):
        await stream.send_eof()
        await stream.send_eof()
        return await here.result(stream.send_all, b"x")


@case("tcp endings", differs="attempts", in_guest=("ConnectionRefusedError", errno.ECONNREFUSED))
async def a_refused_connection_is_an_error(here: Here) -> object:
    async with listening() as peer:
        port = peer.port
    outcome = await here.result(here.open_tcp_stream, "127.0.0.1", port)
    return outcome[:2]


@case("tcp endings")
async def a_name_is_resolved(here: Here) -> object:
    async with listening() as peer:
        stream = await here.open_tcp_stream("localhost", peer.port)
        theirs = await peer.accept()
        async with stream, theirs:
            await stream.send_all(b"hello")
            await stream.aclose()
            return await read_all(theirs)


@case("tcp endings")
async def a_cancelled_receive_takes_nothing(here: Here) -> object:
    async with connected(here) as (stream, theirs):
        with trio.move_on_after(0.02) as scope:
            await stream.receive_some()
        await theirs.send_all(b"all of it")
        await theirs.aclose()
        return scope.cancelled_caught, await received(stream)


@case("twin signatures")
async def arguments_of_connections_are_checked_alike(here: Here) -> object:
    outcomes = []
    for host, port in ((None, 80), (7, 80), ("127.0.0.1", "80"), ("127.0.0.1", None), ("127.0.0.1", 1.5)):
        outcomes.append((await here.result(here.open_tcp_stream, host, port))[0])
    return outcomes


@case("twin signatures")
async def a_host_may_be_bytes(here: Here) -> object:
    async with listening() as peer:
        stream = await here.open_tcp_stream(b"127.0.0.1", peer.port)
        theirs = await peer.accept()
        async with stream, theirs:
            await stream.send_all(b"hello")
            await stream.aclose()
            return await read_all(theirs)


@case("twin signatures")
async def sizes_of_a_receive_are_checked_alike(here: Here) -> object:
    async with connected(here) as (stream, theirs):
        await theirs.send_all(b"hello")
        sizes: tuple[Any, ...] = (0, -1, 2, None)
        return [await here.result(stream.receive_some, size) for size in sizes]
