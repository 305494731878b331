"""The agent's end of the console: pieces are written whole, however many bytes the system takes at a time."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trio_console._trio.gathering import GatheringStream
from trio_console.agent._system import console as _console

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[trio.abc.Stream, socket.socket]]:
    ours, theirs = socket.socketpair()
    with theirs:
        yield _console.open_fd(ours.detach()), theirs


async def read_all(sock: socket.socket) -> bytes:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock.dup()))
    async with stream:
        return b"".join([bytes(chunk) async for chunk in stream])


async def test_pieces_arrive_in_order_and_whole(ends: tuple[trio.abc.Stream, socket.socket]) -> None:
    console, theirs = ends
    assert isinstance(console, GatheringStream)
    # More than a socket takes at once, more pieces than a system call takes, and some that are empty.
    pieces = [b"", b"first", os.urandom(3_000_000), *[b"%d," % n for n in range(3000)], b"", b"last"]
    got: list[bytes] = []

    async def collect() -> None:
        got.append(await read_all(theirs))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        await console.send_gathered(list(pieces))
        await console.send_all(memoryview(b"whole"))
        await console.aclose()
    assert got == [b"".join([*pieces, b"whole"])]


@pytest.mark.parametrize("taken", [1, 2, 3, 4, 5, 6])
async def test_a_write_that_is_cut_anywhere_goes_on_where_it_was_cut(
    ends: tuple[trio.abc.Stream, socket.socket], monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    console, theirs = ends
    assert isinstance(console, GatheringStream)
    real = os.writev

    def writev(fd: int, pieces: list[bytes]) -> int:
        return real(fd, [b"".join(pieces)[:taken]])

    monkeypatch.setattr(os, "writev", writev)
    await console.send_gathered([b"ab", b"c", b"def"])
    await console.aclose()
    assert await read_all(theirs) == b"abcdef"


async def test_a_read_that_finds_bytes_gives_other_tasks_their_turn_and_a_prompt_answer_does_not(
    ends: tuple[trio.abc.Stream, socket.socket],
) -> None:
    console, theirs = ends
    assert isinstance(console, GatheringStream)
    theirs.send(b"a request")
    with trio.testing.assert_checkpoints():
        assert await console.receive_some() == b"a request"
    with trio.testing.assert_no_checkpoints():
        assert console.send_gathered_nowait([b"an ", b"answer"]) == []
    assert theirs.recv(100) == b"an answer"
    await console.aclose()


async def test_a_cancelled_read_has_read_nothing(ends: tuple[trio.abc.Stream, socket.socket]) -> None:
    console, theirs = ends
    theirs.send(b"a request")
    with trio.CancelScope() as scope:
        scope.cancel()
        await console.receive_some()
    assert scope.cancelled_caught
    assert await console.receive_some(2) == b"a "
    assert await console.receive_some() == b"request"
    await console.aclose()


async def test_closing_ends_a_read_that_waits(ends: tuple[trio.abc.Stream, socket.socket]) -> None:
    console, _theirs = ends

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await console.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await console.receive_some()
        await console.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await console.receive_some()


async def test_pieces_that_cannot_be_written_at_once_are_left(ends: tuple[trio.abc.Stream, socket.socket]) -> None:
    console, theirs = ends
    assert isinstance(console, GatheringStream)
    left = console.send_gathered_nowait([bytes(3_000_000), b"end"])
    assert 0 < sum(map(len, left)) < 3_000_003
    assert console.send_gathered_nowait([b"more"]) == [b"more"]
    theirs.close()
    assert console.send_gathered_nowait([b"gone"]) == [b"gone"]
    await console.aclose()
    assert console.send_gathered_nowait([b"closed"]) == [b"closed"]


async def test_a_host_that_is_gone_breaks_the_console(ends: tuple[trio.abc.Stream, socket.socket]) -> None:
    console, theirs = ends
    theirs.close()
    with pytest.raises(trio.BrokenResourceError, match="Broken pipe"):
        await console.send_all(b"data")
    await console.aclose()


async def test_closing_ends_a_write_that_waits(ends: tuple[trio.abc.Stream, socket.socket]) -> None:
    console, _theirs = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed_resource, console)
        await trio.testing.wait_all_tasks_blocked()
        await console.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await console.send_all(b"data")


async def closed_resource(console: trio.abc.Stream) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await console.send_all(bytes(10_000_000))


async def test_one_task_writes_at_a_time(ends: tuple[trio.abc.Stream, socket.socket]) -> None:
    console, _theirs = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(console.send_all, bytes(10_000_000))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await console.send_all(b"data")
        nursery.cancel_scope.cancel()
    await console.aclose()


async def test_standard_input_and_output_are_taken(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = socket.socketpair()
    saved = [os.dup(0), os.dup(1)]
    try:
        os.dup2(ours.fileno(), 0)
        os.dup2(ours.fileno(), 1)
        ours.close()
        console = _console.open_stdio()
    finally:
        for number, fd in enumerate(saved):
            os.dup2(fd, number)
            os.close(fd)
    with theirs:
        theirs.sendall(b"in")
        assert await console.receive_some() == b"in"
        await console.send_all(b"out")
        assert theirs.recv(10) == b"out"
        await console.aclose()
        assert theirs.recv(10) == b""
