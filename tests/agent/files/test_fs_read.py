"""Reading files: chunks, ends, errors, credit."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.limits import HANG, HELD
from trio_console import _wire as wire

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory

KIB = 1024
MIB = 1024 * 1024
STEP = (2**32 - 1) // 128
OK = wire.FsResponse(ok=True)


@pytest.fixture(params=["cached", "not cached"])
def _memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of reading: from memory, in trio's own thread; and from a disk, in another thread."""
    if request.param == "not cached":
        forbid_cached_reads(monkeypatch)


def forbid_cached_reads(monkeypatch: pytest.MonkeyPatch, code: int = errno.EAGAIN) -> None:
    plain = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(code, "not without waiting")
        return plain(fd, buffers, offset)

    monkeypatch.setattr("trio_console.agent._files.handles.os.preadv", preadv)


both_ways = pytest.mark.usefixtures("_memory")


@both_ways
@pytest.mark.parametrize("size", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 256 * KIB, 256 * KIB + 1, 3 * MIB])
async def test_a_file_is_read_to_its_end(host: Host, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    handle = await host.open_file(tmp_path / "f", "read")
    assert await host.read_file(wire.OpRead(handle, 0)) == (data, OK)


@both_ways
@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 0, b""),
        (0, 4, b"0123"),
        (3, 4, b"3456"),
        (8, 4, b"89"),
        (9, None, b"9"),
        (10, None, b""),
        (11, 5, b""),
        (2**40, None, b""),
        (0, 2**64 - 1, b"0123456789"),
    ],
)
async def test_a_part_is_read(
    host: Host, tmp_path: Path, offset: int, length: int | None, expected: bytes
) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    handle = await host.open_file(tmp_path / "f", "read")
    assert await host.read_file(wire.OpRead(handle, offset, length)) == (expected, OK)


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63, 2**64 - 1])
async def test_an_offset_no_file_has_is_an_error_or_its_end(host: Host, tmp_path: Path, offset: int) -> None:
    (tmp_path / "f").write_bytes(b"x")
    handle = await host.open_file(tmp_path / "f", "read")
    data, last = await host.read_file(wire.OpRead(handle, offset))
    assert data == b""
    if offset >= 2**63:
        assert last.error == "seek: Invalid argument (os error 22)"
    else:
        assert last.ok or "(os error " in (last.error or "")


async def test_no_frame_is_so_large_that_control_frames_wait_for_it(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(MIB))
    handle = await host.open_file(tmp_path / "f", "read")
    sid = host.new_id()
    await host.send(wire.FsRequest(wire.OpRead(handle, 0)), sid)
    sizes = [len(message.data) for message in (await host.collect(sid)).all(wire.FsData)]
    assert (sum(sizes), max(sizes)) == (MIB, 64 * KIB)


@pytest.mark.parametrize("path", ["/proc/version", "/proc/self/maps"])
async def test_a_file_whose_contents_are_made_up_is_read(host: Host, path: str) -> None:
    handle = await host.open_file(path, "read")
    data, last = await host.read_file(wire.OpRead(handle, 0))
    assert data
    assert last == OK


async def test_a_file_system_that_knows_no_cached_reads_does_as_well(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_cached_reads(monkeypatch, errno.EOPNOTSUPP)
    data = os.urandom(600_000)
    (tmp_path / "f").write_bytes(data)
    handle = await host.open_file(tmp_path / "f", "read")
    assert await host.read_file(wire.OpRead(handle, 0)) == (data, OK)


async def test_partly_cached_files_are_read_in_order(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.preadv
    turn = 0

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        nonlocal turn
        if flags:
            turn += 1
            if turn % 3 == 0:
                raise BlockingIOError
            return plain(fd, [buffers[0][: 1000 * turn]], offset)
        return plain(fd, [buffers[0][:70_001]], offset)

    monkeypatch.setattr("trio_console.agent._files.handles.os.preadv", preadv)
    data = os.urandom(2 * MIB)
    (tmp_path / "f").write_bytes(data)
    handle = await host.open_file(tmp_path / "f", "read")
    assert await host.read_file(wire.OpRead(handle, 0)) == (data, OK)


async def test_an_error_midway_comes_after_what_was_read(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preadv(_fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        if offset >= 100_000:
            raise OSError(errno.EIO, "bad sector")
        return min(len(buffers[0]), 100_000 - offset)

    (tmp_path / "f").touch()
    handle = await host.open_file(tmp_path / "f", "read")
    monkeypatch.setattr("trio_console.agent._files.handles.os.preadv", preadv)
    data, last = await host.read_file(wire.OpRead(handle, 0))
    assert len(data) == 100_000
    assert last.error == "read: Input/output error (os error 5)"


async def test_data_for_a_read_is_a_mistake(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    handle = await host.open_file(tmp_path / "f", "read")
    await host.send(wire.FsRequest(wire.OpRead(handle, 0), window=1), 5)
    assert (await host.receive(5)).data == b"0"
    await host.send(wire.FsData(b"x"), 5)
    assert (await host.receive(5)).kind == "invalid_session"
    assert await host.nothing_for(5)


# --- credit ---------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("window", [1, 1000, 4096, 100_000, 256 * KIB])
async def test_no_more_than_a_window_comes_without_being_granted(host: Host, tmp_path: Path, window: int) -> None:
    data = os.urandom(min(600_000, 50 * window))
    (tmp_path / "f").write_bytes(data)
    handle = await host.open_file(tmp_path / "f", "read")
    sid = host.new_id()
    await host.send(wire.FsRequest(wire.OpRead(handle, 0), window=window), sid)
    got = b""
    while len(got) < len(data):
        part = b""
        while len(part) < min(window, len(data) - len(got)):
            part += (await host.receive(sid)).data
        assert len(part) <= window
        assert len(got) + len(part) == len(data) or await host.nothing_for(sid)
        got += part
        await host.send(wire.Credit("data", len(part)), sid)
    assert got == data
    assert await host.receive(sid) == OK


async def test_credit_of_another_stream_is_not_this_ones(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"ab")
    handle = await host.open_file(tmp_path / "f", "read")
    await host.send(wire.FsRequest(wire.OpRead(handle, 0), window=1), 5)
    assert (await host.receive(5)).data == b"a"
    await host.send(wire.Credit("stdout", 1), 5)
    assert await host.nothing_for(5)
    await host.send(wire.Credit("data", 1), 5)
    assert (await host.receive(5)).data == b"b"


async def test_a_reader_that_pauses_pauses_nobody_else(agent: AgentFactory, tmp_path: Path) -> None:
    async with agent(over_socket=True) as host:
        (tmp_path / "f").write_bytes(bytes(MIB))
        handles = [await host.open_file(tmp_path / "f", "read") for _ in range(20)]
        for handle in handles:
            await host.send(wire.FsRequest(wire.OpRead(handle, 0), window=1000), host.new_id())
        assert (await host.run("echo", "hi")).stdout == b"hi\n"
        other = await host.open_file(tmp_path / "f", "read")
        data, _ = await host.read_file(wire.OpRead(other, 0))
        assert len(data) == MIB


# --- cut short ------------------------------------------------------------------------------------


@both_ways
async def test_a_cancelled_read_is_over_at_once_and_its_handle_usable(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(100_000))
    handle = await host.open_file(tmp_path / "f", "read")
    for _ in range(20):
        await host.send(wire.FsRequest(wire.OpRead(handle, 0), window=50_000), 5)
        await host.send(wire.Cancel(), 5)
        outcome = await host.collect(5)
        assert outcome.last == wire.FsResponse(ok=False, error="cancelled")
        assert await host.nothing_for(5)
    assert (await host.read_file(wire.OpRead(handle, 0, 10)))[0] == bytes(10)
    await host.ok(wire.OpCloseHandle(handle))


async def test_a_read_that_hangs_is_cancelled_all_the_same(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = threading.Event(), threading.Event()

    def preadv(_fd: int, _buffers: object, _offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        begun.set()
        assert release.wait(HELD)
        return 0

    (tmp_path / "f").write_bytes(b"x")
    handle = await host.open_file(tmp_path / "f", "read")
    monkeypatch.setattr("trio_console.agent._files.handles.os.preadv", preadv)
    await host.send(wire.FsRequest(wire.OpRead(handle, 0)), 5)
    await trio.to_thread.run_sync(begun.wait, 20)
    await host.send(wire.Cancel(), 5)
    assert (await host.receive(5)).error == "cancelled"
    # The handle is not free before the call returns.
    await host.send(wire.FsRequest(wire.OpCloseHandle(handle)), 6)
    assert await host.nothing_for(6)
    release.set()
    assert (await host.receive(6)).ok


async def test_hung_reads_leave_the_console_to_others(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def preadv(_fd: int, _buffers: object, _offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        assert release.wait(HELD)
        return 0

    (tmp_path / "f").write_bytes(b"x")
    handles = [await host.open_file(tmp_path / "f", "read") for _ in range(20)]
    monkeypatch.setattr("trio_console.agent._files.handles.os.preadv", preadv)
    for handle in handles:
        await host.send(wire.FsRequest(wire.OpRead(handle, 0)), 2000 + handle)
    assert len((await host.run("head", "-c", "1000000", "/dev/zero")).stdout) == 1_000_000
    release.set()
    for handle in handles:
        assert (await host.collect(2000 + handle)).last == OK


@both_ways
async def test_a_client_that_left_gets_no_more_of_its_reads(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(10 * MIB))
    for _ in range(5):
        handle = await host.open_file(tmp_path / "f", "read", sid=7)
        await host.send(wire.FsRequest(wire.OpRead(handle, 0), window=2**30), 5)
        await host.receive(5)
        await host.send(wire.ClientDisconnected(1, STEP))
        await host.ok(wire.OpRealPath("/"), sid=STEP - 1)  # as the last request of a relay
        host._kept.pop(5, None)
        await host.ok(wire.OpRealPath("/"), sid=STEP - 1)
        assert await host.nothing_for(5)


async def test_reads_count_as_activity_in_bytes(agent: AgentFactory, tmp_path: Path) -> None:
    async with agent(activity_dir=str(tmp_path)) as host:
        (tmp_path / "f").write_bytes(bytes(12345))
        handle = await host.open_file(tmp_path / "f", "read write")
        await host.read_file(wire.OpRead(handle, 0))
        await host.write_file(wire.OpWrite(handle, 0), bytes(1000))
        await host.send(wire.FsRequest(wire.OpRead(handle, 0), window=1), 5)
        await host.send(wire.TcpConnect("127.0.0.1", 1), 6)
        with trio.fail_after(HANG):
            while b'"fs_bytes":13346' not in (record := read_if_there(tmp_path / "heartbeat.json")):
                await trio.sleep(0.01)
        assert b'"active_fs_streams":1' in record


def read_if_there(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
