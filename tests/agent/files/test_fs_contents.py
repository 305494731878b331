"""Small files whose contents come with the answer to their open, and the others, which are opened as always."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._wire.outbox import Outbox
from trio_console.agent._files.handles import FileHandle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory

MOST = wire.LARGEST_CONTENTS


def to_read(path: object, **changes: bool) -> wire.OpOpenFile:
    names = ("write", "append", "create", "truncate", "create_new")
    return wire.OpOpenFile(
        str(path), wire.OpenOptions(read=True, **{name: changes.get(name, False) for name in names})
    )


async def contents(host: Host, path: object, **fields: Any) -> tuple[bytes, wire.FsResponse]:
    """What an open with contents gives: the bytes that come with it, and the answer."""
    sid = host.new_id()
    await host.send(wire.FsRequest(to_read(path), contents=True, **fields), sid)
    *data, last = (await host.collect(sid)).messages
    assert isinstance(last, wire.FsResponse)
    return b"".join(chunk.data for chunk in data if isinstance(chunk, wire.FsData)), last


def handle_of(response: wire.FsResponse) -> int:
    assert isinstance(response.data, wire.ResultHandle), response
    return response.data.value


def open_here(path: Path) -> int:
    """How many descriptors of a file this process has, in which the agent runs."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{name}") == str(path)
    return count


async def test_the_agent_announces_it(agent: AgentFactory) -> None:
    async with agent(boot=False) as host:
        assert wire.CONTENTS in ((await host.boot()).features or ())


@pytest.mark.parametrize("size", [0, 1, MOST - 1, MOST])
async def test_a_small_file_comes_with_the_answer_and_is_closed(host: Host, tmp_path: Path, size: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(data := os.urandom(size))
    got, last = await contents(host, path, window=MOST)
    opened = wire.Opened(mode=path.stat().st_mode, seekable=True, terminal=False)
    assert (got, last) == (data, wire.FsResponse(ok=True, opened=opened))
    assert open_here(path) == 0


async def test_a_larger_file_is_opened_as_always(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(data := os.urandom(MOST + 1))
    got, last = await contents(host, path, window=MOST)
    assert got == b""
    assert (await host.read_file(wire.OpRead(handle_of(last), 0)))[0] == data


@pytest.mark.parametrize(("size", "comes"), [(999, True), (1000, True), (1001, False)])
async def test_no_more_comes_than_the_window_allows(host: Host, tmp_path: Path, size: int, comes: bool) -> None:
    (tmp_path / "f").write_bytes(data := os.urandom(size))
    got, last = await contents(host, tmp_path / "f", window=1000)
    assert got == (data if comes else b"")
    assert (last.data is None) == comes


async def test_without_a_window_the_bound_is_that_of_all(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(data := os.urandom(MOST))
    (tmp_path / "g").write_bytes(data + b"x")
    assert (await contents(host, tmp_path / "f"))[0] == data
    assert handle_of((await contents(host, tmp_path / "g"))[1])


async def test_a_larger_window_than_the_bound_changes_nothing(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(MOST + 1))
    assert handle_of((await contents(host, tmp_path / "f", window=2**32 - 1))[1])


@pytest.mark.parametrize("asked", [wire.UNSET, False])
async def test_who_does_not_ask_gets_a_handle(host: Host, tmp_path: Path, asked: Any) -> None:
    (tmp_path / "f").write_bytes(b"x")
    assert handle_of(await host.fs(to_read(tmp_path / "f"), contents=asked))


@pytest.mark.parametrize("option", ["write", "append", "create", "truncate", "create_new"])
async def test_a_file_that_may_change_is_opened_as_always(host: Host, tmp_path: Path, option: str) -> None:
    path = tmp_path / ("new" if option == "create_new" else "f")
    (tmp_path / "f").write_bytes(b"x")
    more = {"write": True} if option in ("truncate", "create_new", "create") else {}
    assert handle_of(await host.fs(to_read(path, **{option: True}, **more), contents=True))


async def test_a_directory_is_opened_as_always(host: Host, tmp_path: Path) -> None:
    got, last = await contents(host, tmp_path)
    assert (got, last.ok) == (b"", True)
    assert handle_of(last)


async def test_a_fifo_is_opened_as_always(host: Host, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = os.open(tmp_path / "fifo", os.O_RDWR)
    os.write(writer, b"in it")
    got, last = await contents(host, tmp_path / "fifo")
    assert got == b""
    assert await host.read_file(wire.OpRead(handle_of(last), 0, 5)) == (b"in it", wire.FsResponse(ok=True))
    os.close(writer)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EMFILE])
async def test_an_open_that_fails_fails_as_always(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    plain = os.open

    def open_(path: Any, *args: Any, **fields: Any) -> int:
        if path == os.fsencode(tmp_path / "f"):
            raise OSError(code, "injected")
        return plain(path, *args, **fields)

    monkeypatch.setattr("trio_console.agent._files.paths.os.open", open_)
    usual = await host.error(to_read(tmp_path / "f"))
    assert await host.error(to_read(tmp_path / "f"), contents=True) == usual
    assert usual == f"open: {os.strerror(code)} (os error {code})"


async def test_a_file_of_proc_comes_though_its_size_is_said_to_be_0(host: Host) -> None:
    got, last = await contents(host, "/proc/self/status")
    assert last.data is None
    assert b"Pid:" in got


def reads(monkeypatch: pytest.MonkeyPatch, before: Any) -> None:
    """Have ``before`` called before each read, with its number."""
    plain = os.pread
    numbers = iter(range(1000))

    def pread(fd: int, size: int, offset: int) -> bytes:
        before(next(numbers))
        return plain(fd, size, offset)

    monkeypatch.setattr("trio_console.agent._files.handles.os.pread", pread)


@pytest.mark.parametrize(("size", "comes"), [(MOST, True), (MOST + 1, False)])
async def test_a_file_that_grows_meanwhile_comes_if_it_is_still_small(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, comes: bool
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    reads(monkeypatch, lambda number: path.write_bytes(b"x" * size) if number == 1 else None)
    got, last = await contents(host, path)
    assert got == (b"x" * size if comes else b"")
    assert (last.data is None) == comes


async def test_a_file_that_shrinks_meanwhile_is_what_was_read_of_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    reads(monkeypatch, lambda number: path.write_bytes(b"x") if number == 0 else None)
    got, last = await contents(host, path)
    assert (got, last.data) == (b"x", None)


async def test_a_file_that_cannot_be_read_is_opened_and_its_read_has_the_error(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")

    def fail(_number: int) -> None:
        raise OSError(errno.EIO, "injected")

    reads(monkeypatch, fail)
    got, last = await contents(host, path)
    assert got == b""
    assert handle_of(last)


async def test_a_file_that_there_is_no_memory_for_is_closed(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")

    def fail(_number: int) -> None:
        raise MemoryError

    reads(monkeypatch, fail)
    sid = host.new_id()
    await host.send(wire.FsRequest(to_read(path), contents=True), sid)
    assert isinstance(await host.receive(sid), wire.Error)
    assert open_here(path) == 0


async def test_an_error_of_the_close_is_told(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"x")

    plain = FileHandle.close

    def close(file: FileHandle) -> None:
        plain(file)
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(FileHandle, "close", close)
    error = await host.error(to_read(tmp_path / "f"), contents=True)
    assert error == f"close: {os.strerror(errno.EIO)} (os error {errno.EIO})"


async def test_one_that_hangs_is_cancelled_at_once_and_closed_when_it_returns(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    begun, release = threading.Event(), threading.Event()

    def hang(number: int) -> None:
        if number == 0:
            begun.set()
            assert release.wait(HANG)

    reads(monkeypatch, hang)
    await host.send(wire.FsRequest(to_read(path), contents=True), 5)
    await trio.to_thread.run_sync(begun.wait, HANG)
    await host.send(wire.Cancel(), 5)
    assert await host.receive(5) == wire.FsResponse(ok=False, error="cancelled")
    # The id is free, and nothing comes under it when the call returns.
    await host.send(wire.FsRequest(wire.OpRealPath("/")), 5)
    assert (await host.receive(5)).ok
    release.set()
    with trio.fail_after(HANG):
        while open_here(path):
            await trio.sleep(0.001)
    assert await host.nothing_for(5)


async def test_no_handle_stays_counted(agent: AgentFactory, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    async with agent(handles_per_client=1) as host:
        for _ in range(3):
            assert (await contents(host, tmp_path / "f"))[0] == b"x"
        assert await host.open_file(tmp_path / "f", "read")


async def test_the_names_may_be_octets(host: Host, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff")
    path.write_bytes(b"x")
    assert (await contents(host, os.fsencode(path).decode("latin-1"), octets=True))[0] == b"x"


async def test_one_that_is_ended_while_it_waits_for_room_sends_nothing(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(bytes(MOST))
    plain, waits, ended = Outbox.reserve, trio.Event(), trio.Event()

    async def reserve(outbox: Outbox, nbytes: int) -> None:
        await plain(outbox, nbytes)
        if nbytes > MOST:  # the task has its room, and runs on only when its session was ended
            waits.set()
            with trio.CancelScope(shield=True):
                await ended.wait()

    monkeypatch.setattr(Outbox, "reserve", reserve)
    await host.send(wire.FsRequest(to_read(tmp_path / "f"), contents=True), 5)
    with trio.fail_after(HANG):
        await waits.wait()
    await host.send(wire.Cancel(), 5)
    assert await host.receive(5) == wire.FsResponse(ok=False, error="cancelled")
    ended.set()
    assert await host.nothing_for(5)
    monkeypatch.undo()
    assert (await contents(host, tmp_path / "f"))[0] == bytes(MOST)  # the room was given back
