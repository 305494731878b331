"""Files and connections that are garbage-collected without having been closed."""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.session._fake import talking
from tests.session.files._fake_files import serving_files
from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio_console import Guest


def drop_here(holder: list[Any]) -> None:
    holder.clear()
    gc.collect()


def drop_in_a_thread(holder: list[Any]) -> None:
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()


DROPS = pytest.mark.parametrize("drop", [drop_here, drop_in_a_thread])


def agent_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def agent_pid(guest: Guest) -> int:
    return int((await guest.run_process("echo $PPID", shell=True, capture_stdout=True)).stdout)


async def settled(guest: Guest) -> None:
    """Wait until the guest has answered everything."""
    await trio.testing.wait_all_tasks_blocked()
    while guest.statistics().active_sessions:
        await guest.ping()


@DROPS
@pytest.mark.parametrize("mode", ["r", "rb", "r+", "w", "wb"])
async def test_a_dropped_file_is_closed_in_the_guest(
    guest: Guest, file: Path, drop: Callable[[list[Any]], None], mode: str
) -> None:
    with trio.fail_after(HANG):
        pid = await agent_pid(guest)
        before = agent_descriptors(pid)
        for _ in range(4):
            holder = [await guest.open_file(file, mode)]
            with pytest.warns(ResourceWarning, match="unclosed <trio_console.GuestFile name="):
                drop(holder)
        await settled(guest)
        while agent_descriptors(pid) > before:  # it has one more for a moment now and then
            await guest.ping()


@DROPS
async def test_a_dropped_connection_is_closed_in_the_guest(
    guest: Guest, drop: Callable[[list[Any]], None]
) -> None:
    with trio.fail_after(HANG):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        pid = await agent_pid(guest)
        before = agent_descriptors(pid)
        async with listener:
            holder = [await guest.open_tcp_stream("127.0.0.1", port)]
            async with await listener.accept() as peer:
                with pytest.warns(ResourceWarning, match=f"GuestTcpStream to 127.0.0.1:{port}"):
                    drop(holder)
                assert await peer.receive_some() == b""
        while agent_descriptors(pid) > before:
            await guest.ping()


async def test_objects_in_a_cycle_are_closed_too(guest: Guest, file: Path) -> None:
    with trio.fail_after(HANG):
        holder: list[Any] = [await guest.open_file(file)]
        holder.append(holder)
        with pytest.warns(ResourceWarning, match="unclosed"):
            del holder
            gc.collect()
        await settled(guest)


@pytest.mark.parametrize("mode", ["w", "wb", "a"])
async def test_the_buffer_of_a_dropped_file_is_written_out_as_in_io(guest: Guest, file: Path, mode: str) -> None:
    with trio.fail_after(HANG):
        opened: Any = await guest.open_file(file, mode)
        await opened.write(b"kept" if "b" in mode else "kept")
        with pytest.warns(ResourceWarning):
            del opened
        await settled(guest)
        assert file.read_bytes() == (b"contentskept" if mode == "a" else b"kept")


async def test_a_file_that_was_closed_or_detached_is_dropped_in_silence(guest: Guest, file: Path) -> None:
    opened = await guest.open_file(file)
    await opened.aclose()
    del opened
    text = await guest.open_file(file)
    raw = await (await text.detach()).detach()
    del text
    gc.collect()
    assert await raw.read() == b"contents"
    await raw.aclose()


async def test_what_is_dropped_after_its_guest_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with serving_files() as (talk, _):
        opened = await talk.guest.open_file(path, "w")
        await opened.write("lost")
        talk.connection.lose("gone")
        with pytest.warns(ResourceWarning):
            del opened
        await trio.testing.wait_all_tasks_blocked()


def test_what_is_dropped_after_the_run_is_no_error(tmp_path: Path) -> None:
    holder: list[Any] = []

    async def main() -> None:
        async with serving_files() as (talk, _):
            holder.append(await talk.guest.open_file(tmp_path / "file", "w"))
            talk.connection.lose("gone")

    trio.run(main)
    with pytest.warns(ResourceWarning):
        drop_here(holder)


async def test_a_dropped_file_whose_buffer_cannot_be_written_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_files() as (talk, files):
        opened = await talk.guest.open_file(tmp_path / "file", "w")
        await opened.write("lost")
        files.failing[wire.OpWrite] = "write: No space left on device (os error 28)"
        with pytest.warns(ResourceWarning):
            del opened
        await trio.testing.wait_all_tasks_blocked()
    assert "4 bytes were to be written" in caplog.text


async def test_a_connection_that_has_failed_is_dropped_in_silence() -> None:
    async with talking() as talk, trio.open_nursery() as nursery:
        holder: list[Any] = []

        async def connect() -> None:
            holder.append(await talk.guest.open_tcp_stream("h", 1))

        nursery.start_soon(connect)
        id_, _ = await talk.agent.expect(wire.TcpConnect)
        await talk.agent.send(wire.TcpConnected(), id_)
        await trio.testing.wait_all_tasks_blocked()
        await talk.agent.send(wire.TcpFailed("reset"), id_)
        await trio.testing.wait_all_tasks_blocked()
        drop_here(holder)
