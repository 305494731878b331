"""FIFOs and terminals: opened, read and written as by open(2), read(2) and write(2), and without a thread."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console.agent._files import handles

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent._host import Host

OK = wire.FsResponse(ok=True)
CANCELLED = wire.FsResponse(ok=False, error="cancelled")


def options(how: str) -> wire.OpenOptions:
    names = ("read", "write", "append", "create", "truncate", "create_new")
    return wire.OpenOptions(**{name: name in how.split() for name in names})


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


async def begin_open(host: Host, path: Path, how: str) -> int:
    """Request an open that waits; return its session's id."""
    sid = host.new_id()
    await host.send(wire.FsRequest(wire.OpOpenFile(str(path), options(how))), sid)
    await host.ping()
    return sid


async def handle_of(host: Host, sid: int) -> int:
    response = await host.receive(sid)
    assert response.ok, response
    assert response.opened.seekable is False
    value = response.data.value
    assert isinstance(value, int)
    return value


async def open_both(host: Host, fifo: Path) -> tuple[int, int]:
    """A handle to read and one to write."""
    reading, writing = await begin_open(host, fifo, "read"), await begin_open(host, fifo, "write")
    return await handle_of(host, reading), await handle_of(host, writing)


async def test_an_open_for_reading_waits_for_a_writer(host: Host, fifo: Path) -> None:
    sid = await begin_open(host, fifo, "read")
    await trio.sleep(3 * handles.FIFO_POLL)
    assert await host.nothing_for(sid)
    writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)
    assert await handle_of(host, sid)
    os.close(writer)


async def test_an_open_for_reading_is_over_if_a_writer_came_and_left(host: Host, fifo: Path) -> None:
    sid = await begin_open(host, fifo, "read")
    os.close(await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY))
    handle = await handle_of(host, sid)
    assert await host.read_file(wire.OpRead(handle, 0)) == (b"", OK)


async def test_an_open_for_writing_waits_for_a_reader(host: Host, fifo: Path) -> None:
    sid = await begin_open(host, fifo, "write")
    await trio.sleep(3 * handles.FIFO_POLL)
    assert await host.nothing_for(sid)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    handle = await handle_of(host, sid)
    assert await host.write_file(wire.OpWrite(handle, 77), b"by", b"tes") == OK
    assert os.read(reader, 100) == b"bytes"
    os.close(reader)


async def test_an_open_for_both_waits_for_nobody(host: Host, fifo: Path) -> None:
    response = await host.fs(wire.OpOpenFile(str(fifo), options("read write")))
    assert response.ok


# (Each has a FIFO of its own: the thread that opens one to read may do so behind the answer, and be a partner.)
@pytest.mark.parametrize("how", ["read", "write"])
async def test_an_open_that_waits_can_be_cancelled(host: Host, fifo: Path, how: str) -> None:
    sid = await begin_open(host, fifo, how)
    await host.send(wire.Cancel(), sid)
    assert await host.receive(sid) == CANCELLED
    with trio.fail_after(HANG):  # what was being opened is closed after the answer, by another thread
        while is_read(fifo):
            await trio.sleep(0.01)


def is_read(fifo: Path) -> bool:
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
        return False
    return True


async def test_opens_reads_and_writes_that_wait_hold_no_slot_of_the_disk(host: Host, fifo: Path) -> None:
    reading, writing = await open_both(host, fifo)
    other = fifo.with_name("other")
    os.mkfifo(other)
    for _ in range(20):
        await begin_open(host, other, "read")
    await host.send(wire.FsRequest(wire.OpRead(reading, 0, 10)), host.new_id())
    third = fifo.with_name("third")
    os.mkfifo(third)
    _, full = await open_both(host, third)
    sid = host.new_id()
    await host.send(wire.FsRequest(wire.OpWrite(full, 0)), sid)
    for _ in range(4):
        await host.send(wire.FsData(bytes(64 * 1024)), sid)
    for _ in range(20):
        await host.ok(wire.OpRealPath("/"))
    assert await host.write_file(wire.OpWrite(writing, 0), b"x") == OK


async def test_a_read_returns_what_there_is(host: Host, fifo: Path) -> None:
    reading, writing = await open_both(host, fifo)
    sid = host.new_id()
    await host.send(wire.FsRequest(wire.OpRead(reading, 0, 1000)), sid)
    assert await host.nothing_for(sid)
    await host.write_file(wire.OpWrite(writing, 0), b"some")
    assert (await host.receive(sid)).data == b"some"
    assert await host.receive(sid) == OK
    await host.write_file(wire.OpWrite(writing, 0), b"more")
    assert await host.read_file(wire.OpRead(reading, 12345, 2)) == (b"mo", OK)
    await host.ok(wire.OpCloseHandle(writing))
    assert await host.read_file(wire.OpRead(reading, 0)) == (b"re", OK)
    assert await host.read_file(wire.OpRead(reading, 0, 5)) == (b"", OK)


async def test_a_cancelled_read_takes_no_byte_that_it_has_not_sent(host: Host, fifo: Path) -> None:
    reading, writing = await open_both(host, fifo)
    sid = host.new_id()
    await host.send(wire.FsRequest(wire.OpRead(reading, 0), window=3), sid)
    await host.ping()
    await host.write_file(wire.OpWrite(writing, 0), b"abcdef")
    assert (await host.receive(sid)).data == b"abc"
    await host.send(wire.Cancel(), sid)
    assert await host.receive(sid) == CANCELLED
    assert await host.read_file(wire.OpRead(reading, 0, 100)) == (b"def", OK)


async def test_a_write_without_a_reader_is_a_broken_pipe(host: Host, fifo: Path) -> None:
    reading, writing = await open_both(host, fifo)
    await host.ok(wire.OpCloseHandle(reading))
    assert (await host.write_file(wire.OpWrite(writing, 0), b"x")).error == "write: Broken pipe (os error 32)"


async def test_a_terminal_is_one_and_is_read_line_by_line(host: Host) -> None:
    master, slave = os.openpty()
    try:
        response = await host.fs(wire.OpOpenFile(os.ttyname(slave), options("read write")))
        assert response.opened is not wire.UNSET
        assert (response.opened.seekable, response.opened.terminal) == (False, True)
        assert isinstance(response.data, wire.ResultHandle)
        handle = response.data.value
        os.write(master, b"one\ntwo\n")
        assert await host.read_file(wire.OpRead(handle, 0, 100)) == (b"one\n", OK)
        assert await host.read_file(wire.OpRead(handle, 0, 100)) == (b"two\n", OK)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
async def test_a_device_with_positions_has_them(host: Host, path: str) -> None:
    response = await host.fs(wire.OpOpenFile(path, options("read")))
    assert response.opened is not wire.UNSET
    assert (response.opened.seekable, response.opened.terminal) == (True, False)


async def test_a_byte_that_was_read_in_the_look_for_a_writer_comes_first(
    host: Host, fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = await begin_open(host, fifo, "read")
    plain = handles.select.poll

    class Early:
        """A poll whose answer was given just before the writer came."""

        def __init__(self) -> None:
            self._plain = plain()

        def register(self, *args: int) -> None:
            self._plain.register(*args)

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            self._plain.poll(timeout)
            return []

    monkeypatch.setattr("trio_console.agent._files.handles.select.poll", Early)
    writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)
    os.write(writer, b"first")
    handle = await handle_of(host, sid)
    os.close(writer)
    assert await host.read_file(wire.OpRead(handle, 0)) == (b"first", OK)


async def test_a_client_that_leaves_takes_its_waiting_opens_along(host: Host, fifo: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for how in ("read", "write"):
        await begin_open(host, fifo, how)
    await host.send(wire.ClientDisconnected(1, (2**32 - 1) // 128))
    with trio.fail_after(HANG):
        while len(os.listdir("/proc/self/fd")) > before:
            await host.ping()
