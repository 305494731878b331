"""A whole session with a real guest, cancelled at every moment, leaves nothing behind, and the next one works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.cancellation._places import echoing
from tests.tools.nights import tonight
from trio_console import CommandGuest, connect_guest, open_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.cancellation._sweep import Sweep
    from trio_console import Guest

    Session = Callable[["Place"], Awaitable[None]]

PIPE = subprocess.PIPE


@dataclass(frozen=True)
class Place:
    directory: str
    echo_port: int

    @property
    def relay_path(self) -> str:
        return os.path.join(self.directory, "relay")


@asynccontextmanager
async def place(directory: str) -> AsyncIterator[Place]:
    async with echoing() as port:
        yield Place(directory, port)


async def whole_session(place: Place) -> None:
    """Use each feature of a guest once."""
    async with open_guest(relay_path=place.relay_path) as guest:
        await use_commands(guest)
        await use_files(guest, place.directory)
        await use_connections(guest, place.echo_port)
        async with connect_guest(place.relay_path) as client:
            done = await client.run_process(["cat"], stdin=b"from a client", capture_stdout=True)
            assert done.stdout == b"from a client"


async def use_commands(guest: Guest) -> None:
    # It leaves a daemon behind, which ends with its guest.
    await guest.run_process(["sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo uncaptured"])
    async with guest.open_process(
        # Its child holds the output, lives on, and ends with the guest.
        ["sh", "-c", "sleep 1000 & cat"],
        stdin=PIPE,
        stdout=PIPE,
    ) as process:
        await process.stdin.send_all(b"x" * 100_000)
        received = 0
        while received < 100_000:
            received += len(await process.stdout.receive_some())
        await process.stdin.aclose()
        assert await process.wait() == 0
    async with guest.open_process(
        ["sh", "-c", "read line; stty size; sleep 1000"], stdin=PIPE, stdout=PIPE, tty=True
    ) as terminal:
        terminal.resize(11, 22)
        await terminal.stdin.send_all(b"line\n")
        shown = b""
        while b"11 22" not in shown:
            shown += await terminal.stdout.receive_some()


async def use_files(guest: Guest, directory: str) -> None:
    path = guest.path(directory) / "file"
    async with await guest.open_file(path, "wb") as file:
        await file.write(b"line\n" * 20_000)
    copy = path.parent / "copy"
    async with await path.open("rb") as source, await copy.open("wb") as target:
        while data := await source.read(30_000):
            await target.write(data)
    async with await guest.open_file(copy) as lines:
        assert await lines.readline() == "line\n"
    assert (await copy.stat()).st_size == 100_000
    await copy.unlink()


async def use_connections(guest: Guest, port: int) -> None:
    async with await guest.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"to the echo")
        await stream.send_eof()
        echoed = b"".join([bytes(data) async for data in stream])
    assert echoed == b"to the echo"


async def use_a_command_guest(_place: Place) -> None:
    command = [sys.executable, "-m", "trio_console.agent", "--stdio"]
    async with open_guest(CommandGuest(command)) as guest:
        assert (await guest.run_process(["cat"], stdin=b"x", capture_stdout=True)).stdout == b"x"


async def leave_a_stopped_guest(place: Place) -> None:
    """The guest has to be ended by force, with all processes that it had started."""
    async with open_guest(relay_path=place.relay_path, grace=1.0) as guest:
        script = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $PPID"
        done = await guest.run_process(["sh", "-c", script], capture_stdout=True)
        os.kill(int(done.stdout), signal.SIGSTOP)


async def next_session(place: Place) -> None:
    async with open_guest(relay_path=place.relay_path) as guest:
        assert (await guest.run_process(["echo", "next"], capture_stdout=True)).stdout == b"next\n"


@pytest.fixture
def sweep(make_sweep: Callable[..., Sweep], tmp_path: Path) -> Callable[..., Sweep]:
    return lambda session: make_sweep(lambda: place(str(tmp_path)), session, next_session, afterwards_every=10)


@pytest.mark.parametrize(
    ("session", "size"),
    [(whole_session, 7), (use_a_command_guest, 3), (leave_a_stopped_guest, 3)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_session_cancelled_at_some_moments_leaves_nothing_behind(
    sweep: Callable[..., Sweep], session: Session, size: int
) -> None:
    sweep(session).sample(size)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("session", "part", "parts"),
    [
        *((whole_session, part, 8) for part in range(tonight(2), 8, 2)),
        (use_a_command_guest, 0, 1),
        (leave_a_stopped_guest, 0, 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_session_cancelled_at_every_moment_in_two_nights_leaves_nothing_behind(
    sweep: Callable[..., Sweep], session: Session, part: int, parts: int
) -> None:
    sweep(session).all(part, parts)
