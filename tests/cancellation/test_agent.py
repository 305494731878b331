"""The agent's side of a session, cancelled at every moment, leaves nothing behind, and the host is told."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio

from tests.cancellation._places import echoing
from tests.tools.limits import HANG
from trio_console import GuestLostError, SocketGuest, open_guest
from trio_console.agent import BootError, serve_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.cancellation._sweep import Sweep
    from trio_console import Guest

PIPE = subprocess.PIPE


@dataclass
class Place:
    stream: trio.SocketStream  # the agent's end
    done: bool = False  # the host has got all it wanted


@asynccontextmanager
async def place(directory: str) -> AsyncIterator[Place]:
    """A host that uses the agent, in a task that is not cancelled."""
    console = os.path.join(directory, "console")
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.bind(console)
        sock.listen()
        async with echoing() as port, trio.open_nursery() as nursery:

            async def be_host() -> None:
                with suppress(GuestLostError):
                    async with open_guest(SocketGuest(console)) as guest:
                        await use(guest, directory, port)
                        here.done = True

            nursery.start_soon(be_host)
            connection, _ = await sock.accept()
            here = Place(trio.SocketStream(connection))
            yield here
            # Whatever has happened to the agent, the host does not wait for ever.
            nursery.cancel_scope.deadline = trio.current_time() + HANG
        assert not nursery.cancel_scope.cancelled_caught, "the host was not told of the end"
    os.unlink(console)


async def use(guest: Guest, directory: str, port: int) -> None:
    await guest.run_process(["cat"], stdin=b"x" * 100_000, capture_stdout=True)
    async with guest.open_process(["sh", "-c", "sleep 1000 & cat"], stdin=PIPE, stdout=PIPE, tty=True) as process:
        assert process.stdio is not None
        await process.stdio.send_all(b"line\n")
        assert await process.stdio.receive_some()
    async with await guest.open_file(os.path.join(directory, "file"), "w+b") as file:
        await file.write(b"x" * 100_000)
        await file.seek(0)
        assert len(await file.read()) == 100_000
    assert len(list(await guest.path(directory).iterdir())) == 2
    async with await guest.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"echo")
        assert await stream.receive_some() == b"echo"


async def be_an_agent(place: Place) -> None:
    with suppress(BootError):
        await serve_agent(place.stream)
    assert place.done


async def nothing_more(_place: Place) -> None:
    await trio.lowlevel.checkpoint()


@pytest.fixture
def sweep(make_sweep: Callable[..., Sweep], tmp_path: Path) -> Sweep:
    return make_sweep(lambda: place(str(tmp_path)), be_an_agent, nothing_more, patience=HANG)


def test_an_agent_cancelled_at_some_moments_leaves_nothing_behind(sweep: Sweep) -> None:
    sweep.sample(12)


@pytest.mark.nightly
def test_an_agent_cancelled_at_every_moment_leaves_nothing_behind(sweep: Sweep) -> None:
    sweep.all()
