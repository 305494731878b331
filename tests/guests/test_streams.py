"""Guests that other code has started, reached over its stream or its device."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.tools.limits import HANG
from tests.tools.peer import Peer
from trio_console import (
    AgentConsoleBackend,
    ConsoleSharedState,
    ConsoleStream,
    GuestLostError,
    connect_guest,
    open_guest,
    serve_relay,
)
from trio_console import _wire as wire
from trio_console.agent import AgentOptions, BootError, serve_agent
from trio_console.testing import console_stream_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class Plain(trio.abc.Stream):
    """A stream of a user, with nothing but the abstract methods, and awkward in what it returns."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self.inner = inner
        self.closed = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        raise AssertionError("nobody has to wait here")

    async def receive_some(self, max_bytes: int | None = None) -> bytearray:
        return bytearray(await self.inner.receive_some(max_bytes))

    async def aclose(self) -> None:
        self.closed += 1
        await self.inner.aclose()


def stapled() -> tuple[Any, trio.abc.Stream]:
    return trio.testing.memory_stream_pair()


def sockets() -> tuple[Any, trio.abc.Stream]:
    ours, theirs = map(trio.socket.from_stdlib_socket, socket.socketpair())
    return trio.SocketStream(ours), trio.SocketStream(theirs)


def consoles() -> tuple[Any, trio.abc.Stream]:
    return console_stream_pair()


def plain() -> tuple[Any, trio.abc.Stream]:
    ours, theirs = sockets()
    return Plain(ours), theirs


def devices() -> tuple[Any, trio.abc.Stream]:
    ours, theirs = socket.socketpair()
    return ours, trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


def numbers() -> tuple[Any, trio.abc.Stream]:
    ours, theirs = devices()
    return ours.detach(), theirs


STREAMS = [stapled, sockets, consoles, plain]
makers = pytest.mark.parametrize("make", [*STREAMS, devices, numbers])
stream_makers = pytest.mark.parametrize("make", STREAMS)


@asynccontextmanager
async def agent_at(stream: trio.abc.Stream) -> AsyncIterator[None]:
    """An agent at a guest's end of a console. It has to end by itself when the block does."""

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        with suppress(BootError):
            await serve_agent(stream, options=AgentOptions(shutdown_grace=0.2))

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            yield


# A whole session


@makers
async def test_a_guest_is_used_over_any_console(make: Callable[[], tuple[Any, trio.abc.Stream]]) -> None:
    console, theirs = make()
    data = os.urandom(1_000_000)
    async with agent_at(theirs), open_guest(console) as guest:
        assert (await guest.run_process(["cat"], stdin=data, capture_stdout=True)).stdout == data
        await guest.ping()


@makers
async def test_any_console_is_served_to_others(
    make: Callable[[], tuple[Any, trio.abc.Stream]], tmp_path: Path
) -> None:
    console, theirs = make()
    async with agent_at(theirs), trio.open_nursery() as nursery:
        relay = await nursery.start(serve_relay, console, tmp_path / "agent.sock")
        async with connect_guest(tmp_path / "agent.sock") as guest:
            assert (await guest.run_process(["echo", "hi"], capture_stdout=True)).stdout == b"hi\n"
        assert (relay.console_statistics() is None) == (make in (stapled, sockets, plain))
        nursery.cancel_scope.cancel()


@makers
async def test_a_guest_over_any_console_is_shared_while_it_is_used(
    make: Callable[[], tuple[Any, trio.abc.Stream]], tmp_path: Path
) -> None:
    console, theirs = make()
    async with agent_at(theirs), open_guest(console, relay_path=tmp_path / "agent.sock") as owner:
        async with connect_guest(tmp_path / "agent.sock") as guest:
            await guest.ping()
        await owner.ping()


@pytest.mark.parametrize(("make", "known"), [(stapled, False), (plain, False), (consoles, True), (devices, True)])
async def test_a_stream_that_is_not_ours_has_no_statistics(
    make: Callable[[], tuple[Any, trio.abc.Stream]], known: bool
) -> None:
    console, theirs = make()
    async with agent_at(theirs), open_guest(console) as guest:
        assert (guest.statistics().console is not None) == known


# Who closes it


@stream_makers
async def test_a_stream_is_closed_when_the_block_is_left(make: Callable[[], tuple[Any, trio.abc.Stream]]) -> None:
    console, theirs = make()
    async with agent_at(theirs), open_guest(console):
        pass
    with pytest.raises(trio.ClosedResourceError):
        await console.send_all(b"x")


@pytest.mark.parametrize("wrong", [{"heartbeat": -1}, {"bootstrap": {"nonsense": 1}}, {"bootstrap": 3}])
@makers
async def test_a_console_is_untouched_if_an_argument_is_wrong(
    make: Callable[[], tuple[Any, trio.abc.Stream]], wrong: dict[str, Any]
) -> None:
    console, theirs = make()
    with pytest.raises((TypeError, ValueError)):
        async with open_guest(console, **wrong):
            raise AssertionError("never here")
    async with agent_at(theirs), open_guest(console) as guest:
        await guest.ping()


@makers
async def test_a_console_is_closed_if_the_relays_socket_cannot_be_made(
    make: Callable[[], tuple[Any, trio.abc.Stream]], tmp_path: Path
) -> None:
    console, theirs = make()
    with pytest.raises(FileNotFoundError):
        async with open_guest(console, relay_path=tmp_path / "no" / "agent.sock"):
            raise AssertionError("never here")
    async with theirs:
        with trio.fail_after(HANG):
            assert await theirs.receive_some(10) == b""


async def test_what_is_neither_stream_nor_device_is_refused() -> None:
    for wrong in ("agent.sock", object(), 3.5, [1, 2]):
        with pytest.raises(TypeError, match="GuestSpec such as ProcessGuest"):
            async with open_guest(wrong):  # type: ignore[arg-type]
                raise AssertionError("never here")


# Endings


@stream_makers
async def test_a_stream_that_ends_is_a_lost_guest(make: Callable[[], tuple[Any, trio.abc.Stream]]) -> None:
    console, theirs = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_agent, theirs, options=AgentOptions(shutdown_grace=0.2)))
        with trio.fail_after(HANG):
            async with open_guest(console) as guest:
                nursery.cancel_scope.cancel()
                await trio.aclose_forcefully(theirs)
                with trio.CancelScope(shield=True), pytest.raises(GuestLostError):
                    await guest.run_process(["sleep", "1000"])


class Failing(Plain):
    """A stream that breaks in its own way."""

    def __init__(self, inner: trio.abc.Stream, fails: str) -> None:
        super().__init__(inner)
        self.fails = fails
        self.failing = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.fails == "send_all" and self.failing.is_set():
            raise RuntimeError("the user's own")
        await super().send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytearray:
        got = await super().receive_some(max_bytes)
        if self.fails == "receive_some" and self.failing.is_set():
            raise RuntimeError("the user's own")
        return got

    async def aclose(self) -> None:
        await super().aclose()
        if self.fails == "aclose":
            raise RuntimeError("the user's own")


@pytest.mark.parametrize("fails", ["send_all", "receive_some", "aclose"])
@pytest.mark.parametrize("relayed", [False, True])
async def test_what_a_stream_of_a_user_raises_is_a_lost_guest_and_nothing_else(
    fails: str, relayed: bool, tmp_path: Path
) -> None:
    ours, theirs = sockets()
    console = Failing(ours, fails)
    options = {"relay_path": tmp_path / "agent.sock"} if relayed else {}
    async with agent_at(theirs), open_guest(console, grace=2.0, **options) as guest:  # type: ignore[arg-type]
        console.failing.set()
        if fails == "aclose":
            await guest.ping()
        else:
            with pytest.raises(GuestLostError):
                await guest.ping()
    assert console.closed


class Stuck(Plain):
    """A stream whose orderly close waits for ever."""

    async def aclose(self) -> None:
        self.closed += 1
        try:
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(self.inner)


async def test_a_stream_that_does_not_close_in_order_is_closed_by_force() -> None:
    ours, theirs = sockets()
    console = Stuck(ours)
    async with agent_at(theirs):
        async with open_guest(console, grace=0.5):
            pass
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"x")


@makers
async def test_a_block_over_any_console_can_be_cancelled(
    make: Callable[[], tuple[Any, trio.abc.Stream]],
) -> None:
    console, theirs = make()
    with trio.fail_after(HANG):
        async with agent_at(theirs):
            with trio.CancelScope() as scope:
                async with open_guest(console) as guest:
                    await guest.ping()
                    scope.cancel()
                    await guest.run_process(["sleep", "1000"])
            assert scope.cancelled_caught


@makers
async def test_a_console_whose_agent_says_nothing_is_given_up(
    make: Callable[[], tuple[Any, trio.abc.Stream]],
) -> None:
    console, theirs = make()
    with trio.fail_after(HANG), pytest.raises(GuestLostError, match=r"not ready within 0\.1 seconds"):
        async with open_guest(console, ready_timeout=0.1):
            raise AssertionError("never here")
    async with theirs:
        peer = Peer(theirs)
        await peer.expect(wire.Bootstrap)
        await peer.expect_eof()


# A monitor's own threads


async def test_the_backend_of_a_monitor_carries_a_whole_session() -> None:
    # One thread plays the device, and an agent of another process the guest: as `examples/embed_vmm.py` has it.
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "trio_console.agent", "--fd", str(theirs.fileno())]
    agent = await trio.lowlevel.open_process(command, pass_fds=(theirs.fileno(),))
    theirs.close()
    with ours, trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, play_device_rx, backend, ours)
            nursery.start_soon(trio.to_thread.run_sync, play_device_tx, backend, shared, ours)
            async with open_guest(ConsoleStream(shared)) as guest:
                done = await guest.run_process(["cat"], stdin=bytes(3_000_000), capture_stdout=True)
                assert done.stdout == bytes(3_000_000)
                console = guest.statistics().console
                assert console is not None
                assert console.tx.bytes_in > 3_000_000
        shared.close_wakes()
        assert await agent.wait() == 0


def play_device_rx(backend: AgentConsoleBackend, guest: socket.socket) -> None:
    import select

    page = bytearray(4096)
    while True:
        try:
            size = backend.readinto(page)
        except BlockingIOError:
            select.select([backend.read_wake_fd()], [], [])
            continue
        if not size:
            guest.shutdown(socket.SHUT_WR)
            return
        with suppress(OSError):
            guest.sendall(memoryview(page)[:size])


def play_device_tx(backend: AgentConsoleBackend, shared: ConsoleSharedState, guest: socket.socket) -> None:
    while data := guest.recv(32768):
        while True:
            try:
                backend.write(data)
                break
            except BlockingIOError:
                backend.wait_until_writable()
    shared.guest_gone()
