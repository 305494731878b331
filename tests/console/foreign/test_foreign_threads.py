"""A whole session over a console that is driven by threads of a C library, as a monitor's are."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import AgentConsoleBackend, ConsoleSharedState, ConsoleStream, GuestLostError, open_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOURCE: Final = Path(__file__).with_name("device.c")

#: What the library takes for "not now".
WOULD_BLOCK: Final = -1

READ = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_long)
WRITE = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_long)
CALL = ctypes.CFUNCTYPE(None)


class Functions(ctypes.Structure):
    _fields_ = (("read", READ), ("write", WRITE), ("wait", CALL), ("gone", CALL), ("wake", ctypes.c_int))


class Device:
    """The library's device over a backend, with an agent in a process of its own for its guest."""

    def __init__(self, library: ctypes.CDLL, shared: ConsoleSharedState, guest: socket.socket) -> None:
        self._library = library
        self._guest = guest
        backend = AgentConsoleBackend(shared)
        self.escaped: list[Exception] = []

        # An exception must never get into a foreign thread. Here it is kept, and the test fails.
        def read(buffer: int, size: int) -> int:
            try:
                return backend.readinto(memoryview((ctypes.c_char * size).from_address(buffer)))
            except BlockingIOError:
                return WOULD_BLOCK
            except Exception as exc:
                self.escaped.append(exc)
                return 0

        def write(buffer: int, size: int) -> int:
            try:
                return backend.write(memoryview((ctypes.c_char * size).from_address(buffer)))
            except BlockingIOError:
                return WOULD_BLOCK
            except Exception as exc:
                self.escaped.append(exc)
                return size

        def wait() -> None:
            backend.wait_until_writable()

        self._functions = Functions(
            READ(read), WRITE(write), CALL(wait), CALL(shared.guest_gone), backend.read_wake_fd()
        )
        self._handle = library.device_start(self._functions, guest.fileno())

    def join(self) -> int:
        """Wait until both threads have ended; how often the wake was polled."""
        polls = int(self._library.device_join(self._handle))
        self._guest.close()
        return polls


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = tmp_path_factory.mktemp("device") / "device.so"
    compiler = os.environ.get("CC", "cc")
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *options, str(SOURCE), "-o", str(built)], check=True, timeout=HANG)
    loaded = ctypes.CDLL(str(built))
    loaded.device_start.argtypes = [Functions, ctypes.c_int]
    loaded.device_start.restype = ctypes.c_void_p
    loaded.device_join.argtypes = [ctypes.c_void_p]
    loaded.device_join.restype = ctypes.c_long
    return loaded


@asynccontextmanager
async def console(library: ctypes.CDLL, **limits: int) -> AsyncIterator[tuple[ConsoleSharedState, trio.Process]]:
    """A console with a device and a guest; when the block is left the host must have gone."""
    shared = ConsoleSharedState(**limits)
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "trio_console.agent", "--fd", str(theirs.fileno())]
    agent = await trio.lowlevel.open_process(command, pass_fds=(theirs.fileno(),))
    theirs.close()
    device = Device(library, shared, ours)
    with trio.fail_after(HANG):
        try:
            yield shared, agent
        finally:
            shared.host_gone()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(device.join)
                shared.close_wakes()
                await agent.wait()
    assert device.escaped == []


@pytest.mark.parametrize("limits", [{}, {"max_bytes": 5000}, {"capacity": 1}])
async def test_a_session_over_foreign_threads(library: ctypes.CDLL, limits: dict[str, int]) -> None:
    data = os.urandom(2_000_000)
    async with console(library, **limits) as (shared, agent):
        async with open_guest(ConsoleStream(shared)) as guest:
            done = await guest.run_process(["cat"], stdin=data, capture_stdout=True)
            assert done.stdout == data
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(guest.run_process, ["true"])
            now: Any = guest.statistics().console
        assert await agent.wait() == 0
    assert now.rx.bytes_in > len(data)
    assert now.tx.bytes_in > len(data)


async def test_a_host_that_leaves_while_both_directions_are_full_frees_the_threads(library: ctypes.CDLL) -> None:
    async with console(library, max_bytes=4096) as (shared, _):
        with trio.move_on_after(0.5):
            async with open_guest(ConsoleStream(shared), grace=1.0) as guest:
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(lambda: guest.run_process(["yes"], capture_stdout=True))
                        nursery.start_soon(lambda: guest.run_process(["sleep", "1000"], stdin=bytes(10_000_000)))


async def test_a_guest_that_dies_is_lost_with_all_that_it_has_said(library: ctypes.CDLL) -> None:
    async with console(library) as (shared, agent):
        async with open_guest(ConsoleStream(shared)) as guest:
            async with guest.open_process(
                ["sh", "-c", "echo first; exec sleep 1000"], stdout=subprocess.PIPE
            ) as one:
                assert one.stdout is not None
                assert await one.stdout.receive_some() == b"first\n"
                agent.kill()
                with pytest.raises(GuestLostError):
                    await one.wait()


async def test_the_wake_is_not_polled_in_a_circle(library: ctypes.CDLL) -> None:
    shared = ConsoleSharedState()
    ours, theirs = socket.socketpair()
    device = Device(library, shared, ours)
    channel = ConsoleStream(shared)
    with theirs:
        for number in range(20):
            await channel.send_all(bytes([number]))
            with trio.fail_after(HANG):
                await trio.to_thread.run_sync(theirs.recv, 1)
        await channel.aclose()
        with trio.fail_after(HANG):
            theirs.shutdown(socket.SHUT_WR)
            polls = await trio.to_thread.run_sync(device.join)
    shared.close_wakes()
    assert polls <= 3 * 20 + 3
    assert device.escaped == []
