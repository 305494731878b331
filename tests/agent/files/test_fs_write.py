"""Writing files: order, ends, errors, credit, and files that take no bytes."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.limits import HELD
from trio_console import _wire as wire

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory

KIB = 1024
MIB = 1024 * 1024
STEP = (2**32 - 1) // 128
OK = wire.FsResponse(ok=True)


def unknown(sid: int) -> wire.FsResponse:
    return wire.FsResponse(ok=False, error=f"unknown write session: {sid}")


@pytest.mark.parametrize("window", [None, MIB])
async def test_chunks_are_written_in_order(agent: AgentFactory, tmp_path: Path, window: int | None) -> None:
    async with agent(stdin_window=2 * MIB) as host:
        handle = await host.open_file(tmp_path / "f", "write create")
        chunks = [os.urandom(size) for size in (1, 70_000, 2, 300_000, 65_536)]
        fields = {} if window is None else {"window": window}
        assert await host.write_file(wire.OpWrite(handle, 0), *chunks, **fields) == OK
        assert (tmp_path / "f").read_bytes() == b"".join(chunks)


async def test_data_may_come_right_behind_the_request(host: Host, tmp_path: Path) -> None:
    handle = await host.open_file(tmp_path / "f", "write create")
    await host.send_raw(
        wire.encode(wire.FsRequest(wire.OpWrite(handle, 0, 5)), 5)
        + wire.encode(wire.FsData(b"hello"), 5)
        + wire.encode(wire.FsData(b""), 5)
    )
    assert await host.receive(5) == OK


async def test_no_chunk_at_all_writes_nothing(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    handle = await host.open_file(tmp_path / "f", "write")
    assert await host.write_file(wire.OpWrite(handle, 0, 0)) == OK
    assert (tmp_path / "f").read_bytes() == b"old"


async def test_an_offset_is_where_writing_begins(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    handle = await host.open_file(tmp_path / "f", "write")
    assert await host.write_file(wire.OpWrite(handle, 2, 3), b"ab", b"c") == OK
    assert await host.write_file(wire.OpWrite(handle, 12), b"x") == OK
    assert (tmp_path / "f").read_bytes() == b"01abc56789\0\0x"


async def test_appending_ignores_the_offset(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    handle = await host.open_file(tmp_path / "f", "append")
    assert await host.write_file(wire.OpWrite(handle, 0), b"a", b"b") == OK
    assert await host.write_file(wire.OpWrite(handle, 1000), b"c") == OK
    assert (tmp_path / "f").read_bytes() == b"oldabc"


@pytest.mark.parametrize("length", [0, 1, 2, 4])
async def test_another_length_than_announced_is_an_error_and_stays_written(
    host: Host, tmp_path: Path, length: int
) -> None:
    handle = await host.open_file(tmp_path / "f", "write create")
    response = await host.write_file(wire.OpWrite(handle, 0, length), b"ab", b"c")
    assert response.error == f"write length mismatch: expected {length}, wrote 3"
    assert (tmp_path / "f").read_bytes() == b"abc"


async def test_the_largest_chunk_there_is_and_very_many_small_ones(host: Host, tmp_path: Path) -> None:
    handle = await host.open_file(tmp_path / "f", "write create")
    large = os.urandom(4_194_262)
    assert await host.write_file(wire.OpWrite(handle, 0), large) == OK
    assert (tmp_path / "f").read_bytes() == large
    await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 5)
    await host.send_raw(b"".join(wire.encode(wire.FsData(b"%04d" % n), 5) for n in range(3000)))
    await host.send(wire.FsData(b""), 5)
    assert await host.receive(5) == OK
    assert (tmp_path / "f").read_bytes()[:12_004] == b"".join(b"%04d" % n for n in range(3000)) + large[12_000:][
        :4
    ]


async def test_short_writes_are_continued(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.pwritev
    monkeypatch.setattr(
        "trio_console.agent._files.handles.os.pwritev",
        lambda fd, views, offset: plain(fd, [b"".join(views)[:700]], offset),
    )
    handle = await host.open_file(tmp_path / "f", "write create")
    chunks = [os.urandom(size) for size in (1000, 1, 699, 700, 5000)]
    assert await host.write_file(wire.OpWrite(handle, 3), *chunks) == OK
    assert (tmp_path / "f").read_bytes() == b"\0\0\0" + b"".join(chunks)


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63, 2**64 - 1])
async def test_an_offset_no_file_has_is_an_error(host: Host, tmp_path: Path, offset: int) -> None:
    handle = await host.open_file(tmp_path / "f", "write create")
    await host.send(wire.FsRequest(wire.OpWrite(handle, offset)), 5)
    if offset < 2**63:
        await host.send(wire.FsData(b"xx"), 5)
    response = await host.receive(5)
    assert not response.ok
    assert "(os error " in response.error


# --- errors ---------------------------------------------------------------------------------------


async def test_an_error_of_writing_is_answered_at_once(host: Host) -> None:
    handle = await host.open_file("/dev/full", "write")
    await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 5)
    await host.send(wire.FsData(b"x"), 5)
    assert (await host.receive(5)).error == "write: No space left on device (os error 28)"
    await host.send(wire.FsData(b"y"), 5)
    await host.send(wire.FsData(b""), 5)
    assert await host.receive(5) == unknown(5)
    assert await host.receive(5) == unknown(5)
    await host.ok(wire.OpCloseHandle(handle))


async def test_data_after_a_write_or_a_refused_one_is_answered(host: Host, tmp_path: Path) -> None:
    handle = await host.open_file(tmp_path / "f", "write create")
    await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 5)
    await host.send(wire.FsData(b""), 5)
    assert await host.receive(5) == OK
    await host.send(wire.FsData(b"x"), 5)
    assert await host.receive(5) == unknown(5)
    await host.send(wire.FsRequest(wire.OpWrite(77, 0)), 6)
    await host.send(wire.FsData(b"x"), 6)
    assert (await host.receive(6)).error == "invalid handle: 77"
    assert await host.receive(6) == unknown(6)


async def test_a_bad_frame_ends_a_write(host: Host, tmp_path: Path) -> None:
    handle = await host.open_file(tmp_path / "f", "write create")
    await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 5)
    await host.send_raw(wire.encode_frame(5, 0, b"\xff"))
    assert (await host.receive(5)).kind == "malformed_message"
    assert await host.write_file(wire.OpWrite(handle, 0), b"x") == OK


async def test_an_id_in_use_is_refused_and_its_write_ends(host: Host, tmp_path: Path) -> None:
    handle = await host.open_file(tmp_path / "f", "write create")
    await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 5)
    await host.send(wire.FsRequest(wire.OpRealPath("/")), 5)
    assert (await host.receive(5)).kind == "invalid_session"
    assert await host.nothing_for(5)
    await host.ok(wire.OpCloseHandle(handle))


# --- credit ---------------------------------------------------------------------------------------


async def test_written_bytes_are_granted_anew_by_half_windows(agent: AgentFactory, tmp_path: Path) -> None:
    async with agent(stdin_window=1000) as host:
        handle = await host.open_file(tmp_path / "f", "write create")
        await host.send(wire.FsRequest(wire.OpWrite(handle, 0), window=1), 5)
        await host.send(wire.FsData(b"x" * 499), 5)
        await host.ok(wire.OpRealPath("/"))
        assert await host.nothing_for(5)
        await host.send(wire.FsData(b"x"), 5)
        assert await host.receive(5) == wire.Credit("data", 500)
        await host.send(wire.FsData(b"x" * 1000), 5)
        assert await host.receive(5) == wire.Credit("data", 1000)
        await host.send(wire.FsData(b""), 5)
        assert await host.receive(5) == OK


@pytest.mark.parametrize("excess", [0, 1])
async def test_the_whole_window_is_taken_and_not_a_byte_more(
    agent: AgentFactory, tmp_path: Path, excess: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agent(stdin_window=1000) as host:
        handle = await host.open_file(tmp_path / "f", "write create")
        hanging = hanging_writes(monkeypatch)
        with hanging as release:
            await host.send(wire.FsRequest(wire.OpWrite(handle, 0), window=1), 5)
            await host.send(wire.FsData(b"x" * 600), 5)
            await trio.to_thread.run_sync(hanging.begun.wait)  # so that the rest is not written with it
            await host.send(wire.FsData(b"x" * (400 + excess)), 5)
            if excess:
                error = await host.receive(5)
                assert (error.kind, error.offending_type) == ("invalid_session", "core.fs.data")
            else:
                assert await host.nothing_for(5)
                release.set()
                assert await host.receive(5) == wire.Credit("data", 600)


async def test_no_credit_is_spoken_to_a_client_that_did_not_ask(agent: AgentFactory, tmp_path: Path) -> None:
    async with agent(stdin_window=10) as host:
        handle = await host.open_file(tmp_path / "f", "write create")
        assert await host.write_file(wire.OpWrite(handle, 0), b"x" * 1000) == OK


# --- files that take nothing ----------------------------------------------------------------------


class hanging_writes:  # noqa: N801
    """In this block writes hang until the event is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.release = threading.Event(), threading.Event()
        plain = os.pwritev

        def slow(fd: int, views: list[memoryview], offset: int) -> int:
            self.begun.set()
            assert self.release.wait(HELD)
            return plain(fd, views, offset)

        monkeypatch.setattr("trio_console.agent._files.handles.os.pwritev", slow)

    def __enter__(self) -> threading.Event:
        return self.release

    def __exit__(self, *_: object) -> None:
        self.release.set()


async def test_a_slow_disk_holds_a_client_without_credit_up_and_loses_nothing(
    agent: AgentFactory, tmp_path: Path
) -> None:
    async with agent(stdin_budget=100_000) as host:
        handle = await host.open_file(tmp_path / "f", "write create")
        chunk = os.urandom(50_000)
        assert await host.write_file(wire.OpWrite(handle, 0), *[chunk] * 100) == OK
        assert (tmp_path / "f").read_bytes() == chunk * 100


async def test_a_disk_that_hangs_delays_nobody_for_long(
    agent: AgentFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agent(stdin_budget=100_000, file_patience=0.05) as host:
        handle = await host.open_file(tmp_path / "f", "write create")
        with hanging_writes(monkeypatch):
            await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 5)
            for _ in range(3):
                await host.send(wire.FsData(bytes(50_000)), 5)
            await host.ping()
            response = await host.receive(5)
            assert response.error == "write: the queue is full, and the file takes no data"
            await host.send(wire.FsData(b"x"), 5)
            assert await host.receive(5) == unknown(5)


async def test_a_write_that_waits_for_its_turn_does_not_make_everybody_wait(
    agent: AgentFactory, tmp_path: Path
) -> None:
    # The operation that it waits for may itself wait for the router's next frame.
    async with agent(stdin_budget=100_000, file_patience=3600) as host:
        handle = await host.open_file(tmp_path / "f", "write create")
        await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 5)
        await host.send(wire.FsData(b"first"), 5)
        await host.ping()
        await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 6)
        for _ in range(3):
            await host.send(wire.FsData(bytes(50_000)), 6)
        assert "queue is full" in (await host.receive(6)).error
        await host.send(wire.FsData(b""), 5)
        assert await host.receive(5) == OK
        assert (tmp_path / "f").read_bytes() == b"first"


async def test_the_router_is_let_go_when_the_write_it_waits_for_fails(
    agent: AgentFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agent(stdin_budget=1000, file_patience=3600) as host:
        handle = await host.open_file("/dev/full", "write")
        hang = hanging_writes(monkeypatch)
        await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 5)
        await host.send(wire.FsData(bytes(1000)), 5)
        await trio.to_thread.run_sync(hang.begun.wait, 20)
        await host.send(wire.FsData(bytes(1000)), 5)
        hang.release.set()
        await host.ping()
        assert "os error 28" in (await host.receive(5)).error


# --- cut short ------------------------------------------------------------------------------------


async def test_a_cancelled_write_is_over_at_once(host: Host, tmp_path: Path) -> None:
    handle = await host.open_file(tmp_path / "f", "write create")
    await host.send(wire.FsRequest(wire.OpWrite(handle, 0), window=1), 5)
    await host.send(wire.FsData(b"x"), 5)
    await host.send(wire.Cancel(), 5)
    assert await host.receive(5) == wire.FsResponse(ok=False, error="cancelled")
    assert await host.write_file(wire.OpWrite(handle, 0), b"yy", window=1) == OK
    assert (tmp_path / "f").read_bytes() == b"yy"


async def test_a_write_whose_call_hangs_is_cancelled_and_ends_before_the_next_begins(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await host.open_file(tmp_path / "f", "write create")
    hang = hanging_writes(monkeypatch)
    await host.send(wire.FsRequest(wire.OpWrite(handle, 0), window=1), 5)
    await host.send(wire.FsData(b"old"), 5)
    await trio.to_thread.run_sync(hang.begun.wait, 20)
    await host.send(wire.Cancel(), 5)
    assert (await host.receive(5)).error == "cancelled"
    await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 5)
    await host.send(wire.FsData(b"new"), 5)
    await host.send(wire.FsData(b""), 5)
    assert await host.nothing_for(5)
    hang.release.set()
    assert await host.receive(5) == OK
    assert (tmp_path / "f").read_bytes() == b"new"


async def test_a_client_that_left_is_told_nothing_of_its_writes(host: Host, tmp_path: Path) -> None:
    handle = await host.open_file(tmp_path / "f", "write create", sid=7)
    await host.send(wire.FsRequest(wire.OpWrite(handle, 0), window=1), 5)
    await host.send(wire.ClientDisconnected(1, STEP))
    assert await host.nothing_for(5)
    # For the next frame the id is not open.
    await host.send(wire.FsData(b"x"), 5)
    assert await host.receive(5) == unknown(5)


async def test_a_flood_of_cancelled_requests_does_not_grow_without_bound(
    agent: AgentFactory, tmp_path: Path
) -> None:
    async with agent(over_socket=True) as host:
        handle = await host.open_file(tmp_path / "f", "read create")
        pair = wire.encode(wire.FsRequest(wire.OpRead(handle, 0), window=0), 5) + wire.encode(wire.Cancel(), 5)
        sent, stuck = 0, False
        while not stuck and sent < 100 * MIB:
            with trio.move_on_after(0.5) as scope:
                await host.stream.send_all(pair * 1000)
                sent += len(pair) * 1000
            stuck = scope.cancelled_caught
        assert stuck  # held back by an agent that is not read from
        # Half of the pair may be on the wire, so this connection cannot be used: the agent must see its end.
