"""Files of the guest when a call is cancelled: what was done, what is closed, and that the file stays usable."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_console
from tests.session._fake import begin, talking
from tests.session.files._fake_files import FLOWS, serving_files
from trio_console import _wire as wire

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


async def cancelled(call: Any) -> Any:
    """Start a call, and cancel it when all tasks wait; returns its outcome."""
    async with trio.open_nursery() as nursery:
        result = begin(nursery, call)
        await wait_all_tasks_blocked()
        assert not result.done.is_set()
        result.scope.cancel()
    assert result.scope.cancelled_caught
    return result


@FLOWS
async def test_a_handle_that_comes_too_late_is_closed(file: Path, window: int | None) -> None:
    async with serving_files(window=window) as (talk, files):
        files.held[wire.OpOpenFile] = trio.Event()
        await cancelled(lambda: talk.guest.open_file(file))
        files.held.pop(wire.OpOpenFile).set()
        await wait_all_tasks_blocked()
        assert [type(op) for op in files.ops] == [wire.OpOpenFile, wire.OpCloseHandle]
        assert talk.connection.active_sessions == 0


@FLOWS
@pytest.mark.parametrize("held", [wire.OpOpenFile, wire.OpOpenDir, wire.OpStat, wire.OpMkdir])
async def test_an_agent_that_can_be_told_is_told_that_a_request_is_given_up(
    file: Path, window: int | None, held: type
) -> None:
    # An agent that has fallen behind counts the handles of abandoned opens as open until it reads on.
    async with serving_files(window=window) as (talk, files):
        files.held[held] = trio.Event()
        calls: dict[type, Any] = {
            wire.OpOpenFile: lambda: talk.guest.open_file(file),
            wire.OpOpenDir: lambda: talk.guest.path(file.parent).iterdir(),
            wire.OpStat: lambda: talk.guest.path(file).stat(),
            wire.OpMkdir: lambda: talk.guest.path(file.parent / "new").mkdir(),
        }
        await cancelled(calls[held])
        await wait_all_tasks_blocked()
        assert files.cancelled == (list(files.lives) if window is not None else [])
        files.held.pop(held).set()
        await wait_all_tasks_blocked()
        assert talk.connection.active_sessions == 0


async def test_a_cancelled_close_is_not_called_off(file: Path) -> None:
    async with serving_files(grace=0) as (talk, files):
        guest_file = await talk.guest.open_file(file, "wb")
        files.held[wire.OpCloseHandle] = trio.Event()
        await cancelled(guest_file.aclose)
        assert files.cancelled == []
        files.held.pop(wire.OpCloseHandle).set()
        await wait_all_tasks_blocked()
        assert not files.open


async def test_a_handle_that_comes_with_the_cancellation_is_closed(file: Path) -> None:
    async with talking() as talk:
        opening = begin(talk.nursery, lambda: talk.guest.open_file(file))
        id_, _ = await talk.agent.expect(wire.FsRequest)
        # The task is woken by the cancellation, and its answer comes before it runs.
        opening.scope.cancel()
        frame = wire.Frame(id_, 1, wire.encode(wire.FsResponse(ok=True, data=wire.ResultHandle(3)), id_)[9:])
        talk.connection._route(frame)
        await opening.done.wait()
        assert opening.scope.cancelled_caught
        _, request = await talk.agent.expect(wire.FsRequest)
        assert request.op == wire.OpCloseHandle(3)


@FLOWS
async def test_a_cancelled_read_has_read_nothing(file: Path, window: int | None) -> None:
    data = os.urandom(MIB)
    file.write_bytes(data)
    async with serving_files(window=window) as (talk, files):
        async with await talk.guest.open_file(file, "rb") as guest_file:
            assert await guest_file.read(10) == data[:10]
            files.grant_reads = False
            await cancelled(guest_file.read)
            files.grant_reads = True
            for live in files.lives.values():
                live.changed.set()
            assert await guest_file.tell() == 10
            assert await guest_file.read() == data[10:]
        assert bool(files.cancelled) == (window is not None)


@FLOWS
async def test_a_cancelled_large_write_ends_and_the_file_goes_on(file: Path, window: int | None) -> None:
    async with serving_files(window=window) as (talk, files):
        async with await talk.guest.open_file(file, "wb") as guest_file:
            files.grant_writes = False
            await cancelled(lambda: guest_file.write(b"x" * 4 * MIB))
            files.grant_writes = True
            for live in files.lives.values():
                live.changed.set()
            assert await guest_file.tell() == 0
            assert await guest_file.truncate(0) == 0
            await guest_file.write(b"after")
        assert bool(files.cancelled) == (window is not None)
        assert file.read_bytes() == b"after"


@FLOWS
async def test_after_a_cancelled_large_write_what_was_read_ahead_is_read_again(
    file: Path, window: int | None
) -> None:
    file.write_bytes(b"o" * 4 * MIB)
    async with serving_files(window=window) as (talk, files):
        async with await talk.guest.open_file(file, "rb+") as guest_file:
            assert await guest_file.read(10) == b"o" * 10
            files.grant_writes = False
            await cancelled(lambda: guest_file.write(b"x" * 4 * MIB))
            # An agent has written a part of it, or all.
            file.write_bytes(b"o" * 10 + b"x" * 4 * MIB)
            files.grant_writes = True
            for live in files.lives.values():
                live.changed.set()
            assert await guest_file.tell() == 10
            assert await guest_file.read(20) == b"x" * 20


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_after_a_truncate_that_was_cancelled_or_failed_what_was_read_ahead_is_read_again(
    file: Path, how: str
) -> None:
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "rb+") as guest_file:
            assert await guest_file.read(3) == b"con"
            if how == "cancelled":
                files.held[wire.OpFSetStat] = trio.Event()
                await cancelled(lambda: guest_file.truncate(5))
                files.held.pop(wire.OpFSetStat).set()
                await trio.testing.wait_all_tasks_blocked()
            else:
                files.failing[wire.OpFSetStat] = "fsetstat: Input/output error (os error 5)"
                with pytest.raises(OSError):
                    await guest_file.truncate(5)
                os.truncate(file, 5)
            assert await guest_file.read() == b"te"


async def test_after_a_write_that_failed_what_was_read_ahead_is_read_again(file: Path) -> None:
    file.write_bytes(b"o" * MIB)
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "rb+") as guest_file:
            assert await guest_file.read(3) == b"ooo"
            files.failing[wire.OpWrite] = "write: No space left on device (os error 28)"
            with pytest.raises(OSError):
                await guest_file.write(b"x" * MIB)
            file.write_bytes(b"x" * MIB)
            assert await guest_file.read(3) == b"xxx"


@FLOWS
async def test_after_a_cancelled_large_write_errors_are_told_again(file: Path, window: int | None) -> None:
    async with serving_files(window=window) as (talk, files):
        async with await talk.guest.open_file(file, "wb", buffering=0) as guest_file:
            files.grant_writes = False
            await cancelled(lambda: guest_file.write(b"x" * 4 * MIB))
            files.grant_writes = True
            for live in files.lives.values():
                live.changed.set()
            await guest_file.write(b"a")
            files.failing[wire.OpWrite] = "write: No space left on device (os error 28)"
            with pytest.raises(OSError, match="No space"):
                await guest_file.write(b"b")


@FLOWS
@pytest.mark.parametrize("mode", ["wb", "ab"])
async def test_a_flush_cancelled_after_it_was_sent_is_done_once(file: Path, window: int | None, mode: str) -> None:
    file.write_bytes(b"")
    async with serving_files(window=window) as (talk, files):
        async with await talk.guest.open_file(file, mode) as guest_file:
            await guest_file.write(b"one ")
            files.held[wire.OpWrite] = trio.Event()
            await cancelled(guest_file.flush)
            files.held.pop(wire.OpWrite).set()
            await guest_file.write(b"two ")
            await guest_file.flush()
        assert files.count(wire.OpWrite) == 2
    assert file.read_bytes() == b"one two "


async def test_the_error_of_a_write_nobody_waited_for_comes_with_the_next_call(file: Path) -> None:
    async with serving_files() as (talk, files):
        guest_file = await talk.guest.open_file(file, "wb")
        await guest_file.write(b"one ")
        held = files.held[wire.OpWrite] = trio.Event()
        await cancelled(guest_file.flush)
        files.failing[wire.OpWrite] = "write: No space left on device (os error 28)"
        held.set()
        with pytest.raises(OSError, match="No space"):
            await guest_file.aclose()


@pytest.mark.parametrize("mode", ["wb", "ab", "w"])
async def test_a_cancelled_close_still_writes_and_closes(file: Path, mode: str) -> None:
    file.write_bytes(b"")
    async with serving_files() as (talk, files):
        with trio.CancelScope() as scope:
            async with await talk.guest.open_file(file, mode) as guest_file:
                await guest_file.write(b"data" if "b" in mode else "data")
                scope.cancel()
        assert scope.cancelled_caught
        assert not files.open
        assert file.read_bytes() == b"data"


@pytest.mark.parametrize("held", [wire.OpWrite, wire.OpCloseHandle])
async def test_a_cancelled_close_takes_no_longer_than_the_grace(
    file: Path, held: type, autojump_clock: MockClock
) -> None:
    async with serving_files(grace=3) as (talk, files):
        guest_file = await talk.guest.open_file(file, "wb")
        await guest_file.write(b"data")
        files.held[held] = trio.Event()
        start = trio.current_time()
        with trio.move_on_after(1) as scope:
            await guest_file.aclose()
        assert scope.cancelled_caught
        assert trio.current_time() - start == pytest.approx(4)


async def test_a_cancelled_close_writes_and_closes_although_a_process_is_stuck(
    file: Path, autojump_clock: MockClock
) -> None:
    async with serving_files(grace=3) as (talk, _):
        confirmations = talk.guest._confirmations
        assert not await confirmations.wait(trio.sleep_forever)
        with trio.CancelScope() as scope:
            async with await talk.guest.open_file(file, "wb") as guest_file:
                await guest_file.write(b"data")
                scope.cancel()
        assert scope.cancelled_caught
        assert file.read_bytes() == b"data"
        assert confirmations.peek() == trio.current_time() + 3  # that was a confirmation


async def test_cancelling_anywhere_leaves_no_handle_and_no_session(file: Path) -> None:
    async def session(guest: trio_console.Guest) -> None:
        async with await guest.open_file(file, "r+") as guest_file:
            await guest_file.readline()
            await guest_file.seek(0)
            await guest_file.write("x" * 100_000)
            await guest_file.truncate(5)
        path = guest.path(file)
        await path.touch()
        list(await path.parent.iterdir())
        assert await path.read_bytes() == b"xxxxx"

    finished = False
    after = 0
    while not finished:
        file.write_bytes(b"contents\n")
        async with serving_files() as (talk, _):
            with trio.CancelScope() as scope:
                counter = Countdown(scope, after)
                trio.lowlevel.add_instrument(counter)
                try:
                    await session(talk.guest)
                    finished = True
                finally:
                    trio.lowlevel.remove_instrument(counter)
        after += 1
    assert after > 20


class Countdown(trio.abc.Instrument):
    """Cancels a scope when the task that made this has been scheduled so many times."""

    def __init__(self, scope: trio.CancelScope, after: int) -> None:
        self._scope = scope
        self._left = after
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            if self._left == 0:
                self._scope.cancel()
            self._left -= 1
