"""FIFOs and terminals of the guest behave like those of `trio.open_file`."""

from __future__ import annotations

import errno
import io
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_console
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_console import Guest

    Open = Callable[..., Awaitable[Any]]


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


async def both(guest: Guest, play: Callable[[Open], Awaitable[Any]]) -> Any:
    """The result of a script with the guest's `open_file`, which must be that with trio's."""
    with trio.fail_after(HANG):
        expected = await play(trio.open_file)
        assert await play(guest.open_file) == expected
    return expected


async def outcome(call: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await call()
    except Exception as exc:
        return type(exc).__name__, getattr(exc, "errno", None)


async def write_slowly(fifo: Path, *pieces: bytes) -> None:
    """Write each piece once the one before was read."""

    def write() -> None:
        fd = os.open(fifo, os.O_WRONLY)
        try:
            for piece in pieces:
                os.write(fd, piece)
        finally:
            os.close(fd)

    await trio.to_thread.run_sync(write)


@pytest.mark.parametrize(("mode", "options"), [("r", {"encoding": "utf-8"}), ("rb", {}), ("rb", {"buffering": 0})])
async def test_a_fifo_is_read_as_on_this_machine(
    guest: Guest, fifo: Path, mode: str, options: dict[str, Any]
) -> None:
    async def play(open_file: Open) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_slowly, fifo, b"one\ntwo\nth", b"ree\nfour")
            async with await open_file(fifo, mode, **options) as file:
                states = file.seekable(), file.isatty(), file.readable(), file.writable()
                first = await file.readline()
                got = [first, await file.readline(), *[line async for line in file], await file.read()]
                rest = await file.read(5)
        return states, got, rest

    states, got, rest = await both(guest, play)
    assert not states[0]
    empty: Any = b"" if "b" in mode else ""
    assert (empty.join(got), rest) == (
        ("one\ntwo\nthree\nfour" if mode == "r" else b"one\ntwo\nthree\nfour"),
        empty,
    )


@pytest.mark.parametrize(("mode", "options"), [("w", {"encoding": "utf-8"}), ("wb", {}), ("ab", {"buffering": 0})])
async def test_a_fifo_is_written_as_on_this_machine(
    guest: Guest, fifo: Path, mode: str, options: dict[str, Any]
) -> None:
    data: Any = b"bytes\n" if "b" in mode else "text\n"

    async def play(open_file: Open) -> Any:
        got: list[bytes] = []

        def read() -> None:
            got.append(fifo.read_bytes())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.to_thread.run_sync, read))
            async with await open_file(fifo, mode, **options) as file:
                results = [await file.write(data * 20_000), file.seekable(), await outcome(file.flush)]
        return results, got

    await both(guest, play)


@pytest.mark.parametrize(("mode", "options"), [("r", {"encoding": "utf-8"}), ("rb", {})])
async def test_a_fifo_has_no_positions(guest: Guest, fifo: Path, mode: str, options: dict[str, Any]) -> None:
    async def play(open_file: Open) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_slowly, fifo, b"bytes")
            async with await open_file(fifo, mode, **options) as file:
                results = [await outcome(file.tell), await outcome(partial(file.seek, 0))]
                data = await file.read()
        return results, data

    results, data = await both(guest, play)
    assert results[1][0] == "UnsupportedOperation"
    assert data in ("bytes", b"bytes")


@pytest.mark.parametrize("mode", ["r+", "r+b", "w+b", "a+"])
async def test_a_fifo_cannot_be_opened_for_both_with_a_buffer(guest: Guest, fifo: Path, mode: str) -> None:
    async def play(open_file: Open) -> Any:
        return await outcome(partial(open_file, fifo, mode))

    assert (await both(guest, play))[0] == "UnsupportedOperation"


async def test_a_fifo_for_both_without_a_buffer(guest: Guest, fifo: Path) -> None:
    async def play(open_file: Open) -> Any:
        async with await open_file(fifo, "r+b", buffering=0) as file:
            return [await file.write(b"to and fro"), file.mode, await file.read(2), await file.read(100)]

    assert await both(guest, play) == [10, "rb+", b"to", b" and fro"]


async def test_an_open_that_waits_can_be_cancelled(guest: Guest, fifo: Path) -> None:
    for mode in ("w", "r"):
        with trio.move_on_after(0.1) as scope:
            await guest.open_file(fifo, mode)
        assert scope.cancelled_caught
    await closed_in(guest, fifo)
    await write_and_check(guest, fifo)


async def closed_in(guest: Guest, fifo: Path) -> None:
    """Wait until the agent has the FIFO open no more: that of a cancelled open is closed a moment later."""
    result = await guest.run_process("echo $PPID", shell=True, capture_stdout=True)
    folder = f"/proc/{int(result.stdout)}/fd"
    with trio.fail_after(HANG):
        while str(fifo) in [link_of(f"{folder}/{fd}") for fd in os.listdir(folder)]:
            await guest.ping()


def link_of(fd: str) -> str:
    try:
        return os.readlink(fd)
    except FileNotFoundError:  # just closed
        return ""


async def write_and_check(guest: Guest, fifo: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_slowly, fifo, b"still works")
        async with await guest.open_file(fifo, "rb") as file:
            assert await file.read() == b"still works"


@pytest.mark.parametrize("how", ["read", "read some", "readline", "read1", "text"])
async def test_a_cancelled_read_has_lost_no_byte(guest: Guest, fifo: Path, how: str) -> None:
    with trio.fail_after(HANG):
        writer = os.open(fifo, os.O_RDWR)
        file = await guest.open_file(fifo, "r" if how == "text" else "rb")
        try:
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "read": file.read,
                "read some": partial(file.read, 1000),
                "readline": file.readline,
                "read1": file.read1,
                "text": partial(file.read, 1000),
            }
            got = b""
            for number in range(20):
                with trio.move_on_after(0.005 * (number % 3)):
                    part = await calls[how]()
                    got += part.encode() if isinstance(part, str) else part
                os.write(writer, b"%03d" % number)
            os.close(writer)
            writer = -1
            rest = await file.read()
            got += rest.encode() if isinstance(rest, str) else rest
            assert got == b"".join(b"%03d" % number for number in range(20))
        finally:
            if writer != -1:
                os.close(writer)
            await file.aclose()


async def test_files_that_wait_delay_no_others(guest: Guest, fifo: Path, tmp_path: Path) -> None:
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(guest.open_file, fifo)
            for _ in range(10):
                await guest.path(tmp_path).stat()
            nursery.cancel_scope.cancel()


async def test_a_file_whose_write_waits_can_be_left(fifo: Path) -> None:
    with trio.fail_after(HANG):
        async with trio_console.open_guest(grace=1) as guest:
            reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            try:
                file = await guest.open_file(fifo, "wb", buffering=0)
                for _ in range(3):
                    with trio.move_on_after(0.05):
                        await file.write(bytes(60_000))
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await file.aclose()
            finally:
                os.close(reader)
            await closed_in(guest, fifo)
            await write_and_check(guest, fifo)


async def test_a_terminal_is_read_as_on_this_machine(guest: Guest) -> None:
    async def play(open_file: Open) -> Any:
        master, slave = os.openpty()
        try:
            os.write(master, b"one\ntwo\n")
            async with await open_file(os.ttyname(slave), "r", encoding="utf-8") as file:
                return [file.isatty(), file.seekable(), file.line_buffering, await file.readline(),
                        await file.readline()]  # fmt: skip
        finally:
            os.close(master)
            os.close(slave)

    assert await both(guest, play) == [True, False, True, "one\n", "two\n"]


async def test_a_write_to_a_fifo_without_readers_is_a_broken_pipe(guest: Guest, fifo: Path) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    file = await guest.open_file(fifo, "wb")
    os.close(reader)
    await file.write(b"x")
    with pytest.raises(BrokenPipeError) as caught:
        await file.flush()
    assert (caught.value.errno, caught.value.strerror) == (errno.EPIPE, os.strerror(errno.EPIPE))
    with pytest.raises(BrokenPipeError):
        await file.aclose()


async def test_seek_on_a_fifo_sends_nothing(guest: Guest, fifo: Path) -> None:
    writer = os.open(fifo, os.O_RDWR)
    async with await guest.open_file(fifo, "rb") as file:
        with pytest.raises(io.UnsupportedOperation):
            await file.seek(0)
        with pytest.raises(OSError):
            await file.truncate(0)
    os.close(writer)
