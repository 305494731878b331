"""Files of the guest on the wire: the requests, their sizes, and the errors."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_console
from tests.session._fake import WINDOW, at_once, begin, talking
from tests.session.files._fake_files import FLOWS, serving_files
from trio_console import _wire as wire

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


# What is asked for


async def test_a_whole_file_is_one_read(file: Path) -> None:
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "rb") as guest_file:
            assert await guest_file.read() == b"contents"
        assert [type(op) for op in files.ops] == [wire.OpOpenFile, wire.OpFStat, wire.OpRead, wire.OpCloseHandle]
        assert files.ops[2] == wire.OpRead(1, 0, None)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("r", "read"),
        ("r+", "read write"),
        ("w", "write create truncate"),
        ("w+", "read write create truncate"),
        ("a", "write append create"),
        ("a+", "read write append create"),
        ("x", "write create create_new"),
        ("x+", "read write create create_new"),
    ],
)
async def test_a_mode_says_what_open_2_is_to_do(file: Path, mode: str, expected: str) -> None:
    async with serving_files() as (talk, files):
        file.unlink() if "x" in mode else None
        await (await talk.guest.open_file(file, mode)).aclose()
        options = files.ops[0].options
        names = ["read", "write", "append", "create", "truncate", "create_new"]
        assert " ".join(name for name in names if getattr(options, name)) == expected
        assert options.mode is None


@FLOWS
async def test_lines_are_read_ahead_in_buffers(file: Path, window: int | None) -> None:
    file.write_bytes(b"".join(b"line %d\n" % i for i in range(20_000)))
    async with serving_files(window=window) as (talk, files):
        async with await talk.guest.open_file(file) as guest_file:
            count = 0
            async for line in guest_file:
                assert line == f"line {count}\n"
                count += 1
        assert count == 20_000
        assert files.count(wire.OpRead) == file.stat().st_size // 65536 + 2


@FLOWS
async def test_small_writes_are_written_together(file: Path, window: int | None) -> None:
    async with serving_files(window=window) as (talk, files):
        async with await talk.guest.open_file(file, "wb") as guest_file:
            for _ in range(65_536 + 10):
                await guest_file.write(b"x")
        assert [op.len for op in files.ops if isinstance(op, wire.OpWrite)] == [65_536, 10]
    assert file.read_bytes() == b"x" * 65_546


async def test_a_line_longer_than_the_buffer_is_whole(file: Path) -> None:
    file.write_bytes(b"x" * MIB + b"\n" + b"y")
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file) as guest_file:
            assert len(await guest_file.readline()) == MIB + 1
            assert await guest_file.readline() == "y"
        assert files.count(wire.OpRead) <= 8


async def test_line_buffering_writes_out_each_line(file: Path) -> None:
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "w", buffering=1) as guest_file:
            assert guest_file.line_buffering
            await guest_file.write("no end")
            assert files.count(wire.OpWrite) == 0
            await guest_file.write(" yet\n")
            assert file.read_bytes() == b"no end yet\n"


async def test_binary_files_can_be_peeked_and_read_into(file: Path) -> None:
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "rb") as guest_file:
            assert (await guest_file.peek()).startswith(b"c")
            assert await guest_file.read1(3) == b"con"
            buffer = bytearray(10)
            assert await guest_file.readinto(buffer) == 5
            assert buffer == b"tents\0\0\0\0\0"
            assert await guest_file.read1() == b""
            assert await guest_file.tell() == 8
        assert files.count(wire.OpRead) == 3


async def test_appended_bytes_are_written_before_others_are_read(file: Path) -> None:
    async with serving_files() as (talk, _):
        async with await talk.guest.open_file(file, "ab+") as guest_file:
            await guest_file.write(b"!")
            assert await guest_file.read(3) == b""
            await guest_file.seek(5)
            assert await guest_file.read(5) == b"nts!"


async def test_a_text_file_has_no_byte_methods(file: Path) -> None:
    async with serving_files() as (talk, _):
        async with await talk.guest.open_file(file) as guest_file:
            with pytest.raises(io.UnsupportedOperation):
                await guest_file.read1()
            with pytest.raises(io.UnsupportedOperation):
                await guest_file.readinto(bytearray(1))
            with pytest.raises(io.UnsupportedOperation):
                await guest_file.peek()
            with pytest.raises(io.UnsupportedOperation):
                guest_file.fileno()


async def test_a_file_tells_how_it_was_opened(file: Path) -> None:
    async with serving_files() as (talk, _):
        async with await talk.guest.open_file(file, errors="replace") as text:
            assert (text.name, text.mode, text.encoding, text.errors) == (str(file), "r", "utf-8", "replace")
            assert isinstance(text, trio_console.GuestFile)
        async with await talk.guest.open_file(file, "rb") as binary:
            assert (binary.mode, binary.encoding, binary.errors, binary.newlines) == ("rb", None, None, None)
        assert str(file) in repr(text)
        assert str(file) in repr(binary)


# Flow


async def test_a_read_larger_than_the_window_is_paid_for_as_it_is_consumed(file: Path) -> None:
    file.write_bytes(os.urandom(3 * MIB))
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "rb") as guest_file:
            assert await guest_file.read() == file.read_bytes()
        assert files.credit_granted >= 2 * MIB


async def test_an_agent_without_credit_is_not_spoken_to_of_it(file: Path) -> None:
    file.write_bytes(os.urandom(3 * MIB))
    async with serving_files(window=None) as (talk, files):
        async with await talk.guest.open_file(file, "rb+") as guest_file:
            data = await guest_file.read()
            assert data == file.read_bytes()
            await guest_file.seek(0)
            await guest_file.write(data[::-1])
        assert file.read_bytes() == data[::-1]
        assert files.credit_granted == 0
        assert all(request.window is wire.UNSET for request in files.requests)


async def test_only_reads_and_writes_ask_for_credit(file: Path) -> None:
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "rb+") as guest_file:
            await guest_file.read()
            await guest_file.write(b"x")
        asking = [type(one.op) for one in files.requests if one.window is not wire.UNSET]
        assert asking == [wire.OpRead, wire.OpWrite]


async def test_a_large_write_is_one_request_within_the_window(file: Path) -> None:
    data = os.urandom(2 * MIB)
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "wb") as guest_file:
            files.grant_writes = False
            writing = begin(talk.nursery, lambda: guest_file.write(data))
            await wait_all_tasks_blocked()
            (live,) = files.lives.values()
            assert live.most_outstanding == WINDOW
            assert not writing.done.is_set()
            files.grant_writes = True
            live.changed.set()
            assert await writing.wait() == len(data)
        assert files.count(wire.OpWrite) == 1
    assert file.read_bytes() == data


async def test_a_small_window_makes_a_small_buffer(file: Path) -> None:
    data = os.urandom(5000)
    async with serving_files(window=1000) as (talk, files):
        async with await talk.guest.open_file(file, "wb+") as guest_file:
            for start in range(0, 5000, 100):
                await guest_file.write(data[start : start + 100])
            await guest_file.write(data)
            await guest_file.seek(0)
            assert await guest_file.read() == data + data
        assert max(op.len for op in files.ops if isinstance(op, wire.OpWrite) and op.len < 5000) <= 1000


async def test_a_window_of_nothing_is_kept(file: Path) -> None:
    async with serving_files(window=0) as (talk, files):
        files.grant_writes = False
        guest_file = await talk.guest.open_file(file, "wb", buffering=0)
        with trio.CancelScope() as scope:
            talk.nursery.start_soon(cancel_when_blocked, scope)
            await guest_file.write(b"x")
        assert scope.cancelled_caught
        assert file.read_bytes() == b""
        await guest_file.aclose()


# Errors


async def test_the_error_of_an_open_is_python_s_own(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as expected:
        await trio.open_file(path)
    async with serving_files() as (talk, _):
        with pytest.raises(FileNotFoundError) as caught:
            await talk.guest.open_file(path)
    assert str(caught.value) == str(expected.value)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(path)


async def test_more_than_the_errno_is_kept_of_what_the_guest_says(file: Path) -> None:
    async with serving_files() as (talk, files):
        files.failing[wire.OpOpenFile] = "open: opendir: something unusual (os error 13)"
        with pytest.raises(PermissionError, match="something unusual"):
            await talk.guest.open_file(file)


async def test_an_error_without_a_number_is_a_plain_one(file: Path) -> None:
    async with serving_files() as (talk, files):
        files.failing[wire.OpOpenFile] = "too many open handles"
        with pytest.raises(OSError, match="too many open handles") as caught:
            await talk.guest.open_file(file)
        assert type(caught.value) is OSError
        assert caught.value.filename == str(file)


async def test_a_directory_is_not_opened_and_its_handle_closed(tmp_path: Path) -> None:
    async with serving_files() as (talk, _):
        for mode in ("r", "rb", "w", "a"):
            with pytest.raises(IsADirectoryError):
                await talk.guest.open_file(tmp_path, mode)


async def test_an_error_number_that_is_none_fails_the_operation_only(file: Path) -> None:
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "rb") as guest_file:
            files.failing[wire.OpRead] = "read: odd (os error 99999999999999999999)"
            with pytest.raises(OSError, match="odd") as caught:
                await guest_file.read()
            assert caught.value.errno is None
            files.failing.clear()
            assert await guest_file.read() == b"contents"


async def test_an_error_in_the_middle_of_a_read_consumes_nothing(file: Path) -> None:
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "rb") as guest_file:
            files.failing[wire.OpRead] = "read: Input/output error (os error 5)"
            with pytest.raises(OSError, match="Input/output") as caught:
                await guest_file.read()
            assert caught.value.errno == errno.EIO
            assert caught.value.filename == str(file)
            files.failing.clear()
            assert await guest_file.read() == b"contents"


async def test_a_failed_flush_keeps_what_was_not_written(file: Path) -> None:
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "wb") as guest_file:
            await guest_file.write(b"data")
            files.failing[wire.OpWrite] = "write: No space left on device (os error 28)"
            with pytest.raises(OSError, match="No space left") as caught:
                await guest_file.flush()
            assert caught.value.errno == errno.ENOSPC
            files.failing.clear()
        assert file.read_bytes() == b"data"


@pytest.mark.parametrize("mode", ["wb", "ab"])
async def test_a_failing_write_is_told_at_the_close_which_closes_all_the_same(file: Path, mode: str) -> None:
    async with serving_files() as (talk, files):
        guest_file = await talk.guest.open_file(file, mode)
        await guest_file.write(b"data")
        files.failing[wire.OpWrite] = "write: No space left on device (os error 28)"
        with pytest.raises(OSError, match="No space left"):
            await guest_file.aclose()
        assert not files.open
        assert guest_file.closed
        await guest_file.aclose()


async def test_an_append_that_failed_is_not_tried_again(file: Path) -> None:
    async with serving_files() as (talk, files):
        guest_file = await talk.guest.open_file(file, "ab")
        await guest_file.write(b"data")
        files.failing[wire.OpWrite] = "write: No space left on device (os error 28)"
        with pytest.raises(OSError, match="No space left"):
            await guest_file.flush()
        files.failing.clear()
        with pytest.raises(OSError, match="No space left"):
            await guest_file.aclose()
    assert file.read_bytes() == b"contents"


async def test_an_error_ends_a_large_write_at_once(file: Path) -> None:
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(file, "wb") as guest_file:
            files.failing[wire.OpWrite] = "write: File too large (os error 27)"
            with pytest.raises(OSError, match="File too large"):
                await guest_file.write(bytes(4 * MIB))
            files.failing.clear()
            await guest_file.write(b"x")
        assert file.read_bytes() == b"x"


async def test_an_error_of_the_close_is_told(file: Path) -> None:
    async with talking() as talk:
        opening = begin(talk.nursery, lambda: talk.guest.open_file(file, "wb"))
        id_, _ = await talk.agent.expect(wire.FsRequest)
        await talk.agent.send(wire.FsResponse(ok=True, data=wire.ResultHandle(1)), id_)
        guest_file = await opening.wait()
        closing = begin(talk.nursery, guest_file.aclose)
        id_, request = await talk.agent.expect(wire.FsRequest)
        assert request.op == wire.OpCloseHandle(1)
        await talk.agent.send(wire.FsResponse(ok=False, error="close: Disk quota exceeded (os error 122)"), id_)
        with pytest.raises(OSError, match="quota"):
            await closing.wait()


async def test_an_old_agent_is_told_apart_and_nothing_sent(file: Path) -> None:
    async with talking(generation=1) as talk:
        with pytest.raises(trio_console.UnsupportedByPeer):
            await talk.guest.open_file(file)
        with pytest.raises(trio_console.UnsupportedByPeer):
            await talk.guest.path(file).stat()
        await talk.agent.nothing_more()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (wire.Error(kind="invalid_payload", message="no"), "invalid_payload"),
        (wire.FsResponse(ok=True), "invalid_payload"),
        (wire.FsResponse(ok=True, data=wire.ResultPath("/x")), "invalid_payload"),
        (wire.FsData(b"x"), "invalid_session"),
        (wire.TcpEof(), "invalid_session"),
        (wire.Pong(), "invalid_session"),
    ],
)
async def test_an_answer_that_is_none_is_a_protocol_error(file: Path, answer: wire.Message, kind: str) -> None:
    async with talking() as talk:
        opening = begin(talk.nursery, lambda: talk.guest.open_file(file))
        id_, _ = await talk.agent.expect(wire.FsRequest)
        await talk.agent.send(answer, id_)
        with pytest.raises(trio_console.ProtocolError) as caught:
            await opening.wait()
        assert caught.value.kind == kind


async def test_a_handle_behind_a_misplaced_frame_is_closed(file: Path) -> None:
    async with talking() as talk:
        opening = begin(talk.nursery, lambda: talk.guest.open_file(file))
        id_, _ = await talk.agent.expect(wire.FsRequest)
        await talk.agent.send(wire.FsData(b"x"), id_)
        with pytest.raises(trio_console.ProtocolError):
            await opening.wait()
        await talk.agent.send(wire.FsResponse(ok=True, data=wire.ResultHandle(9)), id_)
        _, request = await talk.agent.expect(wire.FsRequest)
        assert request.op == wire.OpCloseHandle(9)


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
async def test_a_path_that_no_system_can_have_is_refused(path: Any) -> None:
    async with talking() as talk:
        with pytest.raises(ValueError):
            await talk.guest.open_file(path)
        nowhere = talk.guest.path(path)
        with pytest.raises(ValueError):
            await nowhere.stat()
        assert not await nowhere.exists()
        assert not await nowhere.is_file()
        assert not await nowhere.is_symlink()
        await talk.agent.nothing_more()


@pytest.mark.parametrize("path", ["\udcff", b"\xff"])
async def test_a_path_that_is_no_utf8_is_not_sent_to_an_agent_that_takes_only_utf8(path: Any) -> None:
    async with talking() as talk:
        with pytest.raises(trio_console.UnsupportedByPeer, match="UTF-8"):
            await at_once(talk, lambda: talk.guest.open_file(path))
        with pytest.raises(trio_console.UnsupportedByPeer, match="UTF-8"):
            await at_once(talk, talk.guest.path(path).exists)
        await talk.agent.nothing_more()


async def test_a_path_longer_than_a_frame_is_too_long() -> None:
    async with talking() as talk:
        with pytest.raises(OSError) as caught:
            await talk.guest.open_file("x" * (5 * MIB))
        assert caught.value.errno == errno.ENAMETOOLONG
        assert talk.connection.active_sessions == 0


# One task at a time


async def test_a_second_task_is_told_that_the_file_is_in_use(file: Path) -> None:
    async with serving_files() as (talk, files):
        for mode in ("r", "rb"):
            async with await talk.guest.open_file(file, mode) as guest_file:
                files.held[wire.OpRead] = trio.Event()
                reading = begin(talk.nursery, guest_file.read)
                await wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await guest_file.readline()
                files.held.pop(wire.OpRead).set()
                await reading.wait()


@pytest.mark.parametrize("mode", ["r", "rb"])
async def test_closing_a_file_in_use_complains_and_closes(file: Path, mode: str) -> None:
    async with serving_files() as (talk, files):
        guest_file = await talk.guest.open_file(file, mode)
        files.held[wire.OpRead] = trio.Event()
        reading = begin(talk.nursery, guest_file.read)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await guest_file.aclose()
        assert guest_file.closed
        files.held.pop(wire.OpRead).set()
        await reading.done.wait()
