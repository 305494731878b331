"""A call that is cancelled in the turn in which an answer to it comes.

The reader handles the answer when the call's task has been cancelled, and before that task runs. So the call ends
with `trio.Cancelled`, although its session has gone on. (The sweeps of this folder cancel in the turn of the task
that makes the call, so they do not get there.)
"""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.cancellation._places import echoing
from tests.tools.limits import HANG
from trio_console import Guest, open_guest
from trio_console._session.connection import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from trio_console import _wire as wire

MIB = 1024 * 1024


async def connect(guest: Guest, port: int, _file: Path) -> None:
    async with await guest.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"x")
        await stream.receive_some()


async def run(guest: Guest, _port: int, _file: Path) -> None:
    await guest.run_process(["cat"], stdin=b"x" * MIB, capture_stdout=True)


async def open_process(guest: Guest, _port: int, _file: Path) -> None:
    async with guest.open_process(["cat"], stdin=PIPE, stdout=PIPE) as process:
        await process.stdin.send_all(b"x")
        await process.stdout.receive_some()


async def use_a_file(guest: Guest, _port: int, file: Path) -> None:
    async with await guest.open_file(file, "wb") as target:
        await target.write(b"x" * MIB)
        await target.truncate(10)
    async with await guest.open_file(file, "rb") as source:
        await source.read()


async def use_paths(guest: Guest, _port: int, file: Path) -> None:
    path = guest.path(file)
    await path.write_bytes(b"x" * MIB)
    await path.read_bytes()
    await path.stat()
    assert path in await path.parent.iterdir()


async def ask(guest: Guest, _port: int, _file: Path) -> None:
    await guest.ping()
    await guest.touch()


@asynccontextmanager
async def cancelling_before(monkeypatch: pytest.MonkeyPatch, nth: int) -> AsyncIterator[trio.CancelScope]:
    """A scope that is cancelled in the reader's turn, before it handles the nth frame."""
    frames = itertools.count()
    route = Connection._route
    scope = trio.CancelScope()

    def cancel_and_route(connection: Connection, frame: wire.Frame) -> Any:
        if next(frames) == nth:
            scope.cancel()
        return route(connection, frame)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "_route", cancel_and_route)
        yield scope


async def descriptors(guest: Guest) -> int:
    listing = await guest.run_process(["sh", "-c", "ls /proc/$PPID/fd | wc -l"], capture_stdout=True)
    return int(listing.stdout)


@pytest.mark.parametrize("call", [connect, run, open_process, use_a_file, use_paths, ask])
async def test_a_call_cancelled_in_the_turn_of_its_answer_leaves_nothing(
    call: Callable[[Guest, int, Path], Awaitable[None]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with echoing() as port, open_guest() as guest:
        await call(guest, port, tmp_path / "file")
        before = await descriptors(guest)
        for nth in itertools.count():
            async with cancelling_before(monkeypatch, nth) as scope:
                with trio.fail_after(HANG), scope:
                    await call(guest, port, tmp_path / "file")
            with trio.fail_after(HANG):
                while guest.statistics().active_sessions:
                    await guest.ping()
            if not scope.cancel_called:
                break
        assert nth > 1, "no frame came, so nothing was tried"
        with trio.fail_after(HANG):
            while await descriptors(guest) > before:
                await trio.sleep(0.01)
