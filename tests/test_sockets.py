"""Unix sockets as streams: a whole stream of trio's, that takes bytes in pieces."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trio_console._trio.sockets import UnixStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def make_pair() -> tuple[UnixStream, UnixStream]:
    one, other = (UnixStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    return one, other


async def make_clogged_pair() -> tuple[UnixStream, UnixStream]:
    one, other = await make_pair()
    for end in (one, other):
        while end.send_gathered_nowait([bytes(65536)]) == []:
            pass
    return one, other


@pytest.fixture
async def ends() -> AsyncIterator[tuple[UnixStream, UnixStream]]:
    one, other = await make_pair()
    async with one, other:
        yield one, other


async def test_it_is_a_stream_as_trio_has_them() -> None:
    await trio.testing.check_two_way_stream(make_pair, make_clogged_pair)


async def test_pieces_arrive_in_order_and_whole(ends: tuple[UnixStream, UnixStream]) -> None:
    ours, theirs = ends
    # More than a socket takes at once, more pieces than a system call takes, and some that are empty.
    pieces = [b"", b"first", os.urandom(3_000_000), *[b"%d," % n for n in range(3000)], b"", b"last"]

    async def send() -> None:
        await ours.send_gathered(list(pieces))
        await ours.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        got = b"".join([chunk async for chunk in theirs])
    assert got == b"".join(pieces)


async def test_what_the_socket_does_not_take_at_once_is_left(ends: tuple[UnixStream, UnixStream]) -> None:
    ours, theirs = ends
    with trio.testing.assert_no_checkpoints():
        assert ours.send_gathered_nowait([b"two ", b"pieces"]) == []
    assert await theirs.receive_some() == b"two pieces"
    data = os.urandom(3_000_000)
    left = ours.send_gathered_nowait([data, b"end"])
    assert 0 < sum(map(len, left)) < len(data) + 3
    assert ours.send_gathered_nowait([b"more"]) == [b"more"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_gathered, left)
        got = b""
        while len(got) < len(data) + 3:
            got += await theirs.receive_some()
    assert got == data + b"end"


async def test_what_cannot_be_sent_any_more_is_left(ends: tuple[UnixStream, UnixStream]) -> None:
    ours, theirs = ends
    await theirs.aclose()
    assert ours.send_gathered_nowait([b"gone"]) == [b"gone"]
    with pytest.raises(trio.BrokenResourceError):
        await ours.send_gathered([b"gone"])
    await ours.aclose()
    assert ours.send_gathered_nowait([b"closed"]) == [b"closed"]
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_gathered([b"closed"])


async def test_a_peer_that_goes_without_reading_breaks_the_stream(ends: tuple[UnixStream, UnixStream]) -> None:
    ours, theirs = ends
    await ours.send_all(b"not read")
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await ours.receive_some()
    assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_a_cancelled_receive_has_taken_nothing(ends: tuple[UnixStream, UnixStream]) -> None:
    ours, theirs = ends
    await ours.send_all(b"a request")
    with trio.CancelScope() as scope:
        scope.cancel()
        await theirs.receive_some()
    assert scope.cancelled_caught
    assert await theirs.receive_some(2) == b"a "
    assert await theirs.receive_some() == b"request"


async def test_a_receive_that_was_woken_for_nothing_waits_again(ends: tuple[UnixStream, UnixStream]) -> None:
    ours, theirs = ends
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await theirs.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        os.write(ours.socket.fileno(), b"for another reader")
        # (The kernel has woken the task's descriptor; what it was woken for is taken before the task runs.)
        assert os.read(theirs.socket.fileno(), 100) == b"for another reader"
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        await ours.send_all(b"for it")
    assert got == [b"for it"]
