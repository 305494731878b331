"""What is over leaves no objects that refer to each other in a circle, at any of the three parties.

Only the garbage collector frees a circle. In a program that serves many sessions it then has much to look at, and
one collection stops everything for a tenth of a second.
"""

from __future__ import annotations

import gc
import socket
import subprocess
from collections import Counter
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.tools.limits import HANG
from trio_console import connect_guest, serve_relay
from trio_console.agent import serve_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from trio_console import Guest

    Work = Callable[[Guest, Path], Awaitable[object]]

#: Times that each work is done. What is only there once is no circle of each work.
TIMES: Final = 3


@asynccontextmanager
async def three_parties(path: Path) -> AsyncIterator[None]:
    """An agent and a relay in this process; clients connect to the path."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in socket.socketpair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_agent, theirs)
        await nursery.start(serve_relay, ours, path)
        yield
        nursery.cancel_scope.cancel()


def circles() -> Counter[str]:
    """What only the garbage collector would free now, of what is ours."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return Counter(name for name in map(_named, gc.garbage) if name)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def _named(thing: Any) -> str | None:
    code = getattr(thing, "f_code", None) or getattr(thing, "cr_code", None) or getattr(thing, "gi_code", None)
    if code is not None:
        return f"frame of {code.co_name}" if "/trio_console/" in code.co_filename else None
    module = getattr(thing, "__module__", None) if callable(thing) else type(thing).__module__
    if not isinstance(module, str) or not module.startswith("trio_console"):
        return None
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


async def run_a_command(guest: Guest, _folder: Path) -> None:
    await guest.run_process(["cat"], stdin=b"x" * 300_000, capture_stdout=True)


async def run_what_fails(guest: Guest, _folder: Path) -> None:
    with suppress(subprocess.CalledProcessError):
        await guest.run_process(["false"])


async def run_what_is_not_there(guest: Guest, _folder: Path) -> None:
    with suppress(FileNotFoundError):
        await guest.run_process(["/no/such"])


async def kill_a_command(guest: Guest, _folder: Path) -> None:
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(guest.run_process, ["sleep", "1000"])
        assert process.returncode is None
        nursery.cancel_scope.cancel()


async def call_starts_off(guest: Guest, _folder: Path) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(guest.run_process, ["sleep", "1000"])
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def talk_to_a_terminal(guest: Guest, _folder: Path) -> None:
    async with guest.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, tty=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(b"hello\n")
        assert await process.stdout.receive_some()
        await process.stdin.aclose()


async def use_files(guest: Guest, folder: Path) -> None:
    path = guest.path(folder / "file")
    await path.write_bytes(b"x" * 300_000)
    await path.read_bytes()
    await path.stat()
    async with await path.open("rb") as file:
        await file.read(10)
        await file.seek(0)
        await file.read()
    async with await path.open("w") as text:
        await text.write("words")


async def ask_for_files_in_vain(guest: Guest, folder: Path) -> None:
    for operation in ("stat", "read_bytes", "unlink"):
        with suppress(OSError):
            await getattr(guest.path(folder / "missing"), operation)()


async def use_a_connection(guest: Guest, _folder: Path) -> None:
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, _echo, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with await guest.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some()
        nursery.cancel_scope.cancel()


async def _echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def connect_in_vain(guest: Guest, _folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with suppress(OSError):
        await guest.open_tcp_stream("127.0.0.1", port)


async def do_nothing(guest: Guest, _folder: Path) -> None:
    await guest.ping()


WORK: Final[tuple[Work, ...]] = (
    run_a_command,
    run_what_fails,
    run_what_is_not_there,
    kill_a_command,
    call_starts_off,
    talk_to_a_terminal,
    use_files,
    ask_for_files_in_vain,
    use_a_connection,
    connect_in_vain,
    do_nothing,
)


@pytest.mark.parametrize("work", WORK)
async def test_work_that_is_done_leaves_no_circle(work: Work, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with trio.fail_after(HANG):
        async with three_parties(path), connect_guest(path) as guest:
            await work(guest, tmp_path)  # what is made at the first use
            await _settled(guest)
            gc.collect()
            gc.disable()
            try:
                for _ in range(TIMES):
                    await work(guest, tmp_path)
                await _settled(guest)
                assert not circles()
            finally:
                gc.enable()


async def test_a_client_that_has_left_leaves_no_circle(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with trio.fail_after(HANG):
        async with three_parties(path), connect_guest(path) as stays:
            gc.collect()
            gc.disable()
            try:
                for _ in range(TIMES):
                    async with connect_guest(path) as guest:
                        await guest.run_process(["true"])
                await _settled(stays)
                assert not circles()
            finally:
                gc.enable()


async def _settled(guest: Guest) -> None:
    """Wait until all three have done what they do behind an end: it takes some turns of the loop."""
    for _ in range(3):
        await guest.ping()
        await wait_all_tasks_blocked()
