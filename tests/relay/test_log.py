"""The session log: what it records, that its lines stay whole, and what it does when it is too slow."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.tools.limits import HANG
from tests.tools.peer import frame
from trio_console import _wire as wire
from trio_console._relay import log_writer as _log_writer
from trio_console._relay.log import SessionLog
from trio_console._relay.log_files import LogFile

if TYPE_CHECKING:
    from pathlib import Path


def say(log: SessionLog, id_: int, message: wire.Message) -> None:
    said = frame(message, id_)
    log.said(said, wire.measure_data(said))


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def written(log: SessionLog) -> None:
    """Let the log write what it has, and end it."""
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (wire.ExecRequest("echo", ["\xff\xc3\xa4"], octets=True), 'run: ["echo", "\\udcffä"]'),
        (wire.ExecRequest("echo", ["\u0100"], octets=True), 'run: ["echo", "\u0100"]'),
    ],
)
async def test_words_of_octets_are_recorded_as_they_are(
    tmp_path: Path, request_: wire.ExecRequest, text: str
) -> None:
    log = SessionLog(tmp_path / "log")
    log.opened(5, request_)
    await written(log)
    assert records(tmp_path / "log")[0]["text"] == text


async def test_a_session_is_recorded_from_its_command_to_its_end(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "log")
    log.opened(5, wire.ExecRequest(cmd="echo", args=["hé"]))
    say(log, 5, wire.ExecStarted(pid=7))
    say(log, 5, wire.ExecStdout(b"out\n"))
    say(log, 5, wire.ExecStderr(b"err\n"))
    say(log, 5, wire.ExecExited(3))
    await written(log)
    found = [(r["session"], r["source"], r["text"]) for r in records(tmp_path / "log")]
    assert found == [
        (1, "system", 'run: ["echo", "hé"]'),
        (1, "stdout", "out\n"),
        (1, "stderr", "err\n"),
        (1, "system", "exited with status 3"),
    ]


async def test_the_output_of_a_terminal_has_a_source_of_its_own(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "log")
    log.opened(5, wire.ExecRequest(cmd="sh", tty=True))
    say(log, 5, wire.ExecStdout(b"$ "))
    await written(log)
    assert records(tmp_path / "log")[1]["source"] == "output"


async def test_sessions_are_numbered_even_if_their_ids_come_again(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "log")
    for _ in range(2):
        log.opened(5, wire.ExecRequest(cmd="true"))
        say(log, 5, wire.ExecExited(0))
    await written(log)
    assert [r["session"] for r in records(tmp_path / "log")] == [1, 1, 2, 2]


async def test_a_character_split_over_frames_survives(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "log")
    log.opened(5, wire.ExecRequest(cmd="x"))
    for byte in "a☃b".encode():
        say(log, 5, wire.ExecStdout(bytes([byte])))
    await written(log)
    texts = [r["text"] for r in records(tmp_path / "log") if r["source"] == "stdout"]
    assert texts == ["a", "☃", "b"]


@pytest.mark.parametrize("data", [b"\xff\xfe", b"ok\xe2\x28", b"\xe2\x98", b"abc\x00\x80def"])
async def test_bytes_that_are_not_utf_8_are_kept(tmp_path: Path, data: bytes) -> None:
    log = SessionLog(tmp_path / "log")
    log.opened(5, wire.ExecRequest(cmd="x"))
    for at in range(len(data)):
        say(log, 5, wire.ExecStdout(data[at : at + 1]))
    say(log, 5, wire.ExecExited(0))
    await written(log)
    kept = b""
    for record in records(tmp_path / "log"):
        if record["source"] == "stdout":
            kept += base64.b64decode(record["base64"]) if "base64" in record else record["text"].encode()
    assert kept == data


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (wire.ExecExited(-1, 9), "killed by signal 9"),
        (wire.ExecFailed(kind="not_found", message="no such thing"), "could not be started: no such thing"),
        (wire.Error("invalid_payload", "bad"), "refused: bad"),
    ],
)
async def test_every_way_to_end_is_told(tmp_path: Path, ending: wire.Message, text: str) -> None:
    log = SessionLog(tmp_path / "log")
    log.opened(5, wire.ExecRequest(cmd="x"))
    say(log, 5, ending)
    await written(log)
    assert records(tmp_path / "log")[-1]["text"] == text


async def test_frames_of_other_sessions_are_not_recorded(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "log")
    say(log, 6, wire.FsData(b"secret"))
    say(log, 6, wire.ExecStdout(b"of nobody"))
    await written(log)
    assert records(tmp_path / "log") == []


async def test_a_full_queue_drops_output_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_log_writer, "_QUEUE_BUDGET", 1000)
    log = SessionLog(tmp_path / "log")
    log.opened(5, wire.ExecRequest(cmd="x"))
    say(log, 5, wire.ExecStdout(b"x" * 600))
    say(log, 5, wire.ExecStdout(b"y" * 600))
    say(log, 5, wire.ExecStdout(b"z" * 600))
    say(log, 5, wire.ExecExited(0))
    assert (log.statistics().records_dropped, log.statistics().bytes_dropped) == (2, 1200)
    await written(log)
    assert [r.get("text", "")[:20] for r in records(tmp_path / "log")] == [
        'run: ["x"]',
        "x" * 20,
        "1200 bytes of output",
        "exited with status 0",
    ]


async def test_files_are_rotated_by_size_and_the_oldest_goes(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "log", max_bytes=500, backups=2)
    log.opened(5, wire.ExecRequest(cmd="x"))
    for number in range(40):
        say(log, 5, wire.ExecStdout(f"line {number}".encode()))
    await written(log)
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1", "log.2"]
    files = [tmp_path / name for name in ("log.2", "log.1", "log")]
    assert all(file.stat().st_size <= 500 for file in files)
    texts = [r["text"] for file in files for r in records(file)]
    assert texts == [f"line {number}" for number in range(40)][-len(texts) :]


async def test_the_file_is_for_its_owner_only_and_is_appended_to(tmp_path: Path) -> None:
    for _ in range(2):
        log = SessionLog(tmp_path / "log")
        log.opened(5, wire.ExecRequest(cmd="x"))
        await written(log)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600
    assert len(records(tmp_path / "log")) == 2


async def test_a_full_disk_leaves_no_half_line_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SessionLog(tmp_path / "log")
    real_write = os.write
    full = True

    def write(fd: int, data: memoryview) -> int:
        if full and len(data) > 60:
            return real_write(fd, data[:60])
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(fd, data)

    monkeypatch.setattr(os, "write", write)
    log.opened(5, wire.ExecRequest(cmd="x"))
    await log._writer._write_queued()
    assert (tmp_path / "log").read_bytes() == b""
    assert log.statistics().records_dropped == 1
    full = False
    say(log, 5, wire.ExecExited(0))
    await written(log)
    assert [r["text"] for r in records(tmp_path / "log")] == [
        "1 record of 10 bytes could not be written: No space left on device",
        "exited with status 0",
    ]


async def test_what_a_full_disk_has_taken_is_said_in_the_log_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SessionLog(tmp_path / "log")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", no_space)
        log.opened(5, wire.ExecRequest(cmd="x"))
        say(log, 5, wire.ExecStdout(b"lost"))
        await log._writer._write_queued()
        say(log, 5, wire.ExecStdout(b"too"))
        await log._writer._write_queued()
    say(log, 5, wire.ExecExited(0))
    await written(log)
    first, last = records(tmp_path / "log")
    assert (first["session"], first["source"]) == (0, "system")
    assert first["text"] == "3 records of 17 bytes could not be written: No space left on device"
    assert last["text"] == "exited with status 0"
    assert (log.statistics().records_dropped, log.statistics().bytes_dropped) == (3, 17)


def no_space(_fd: int, _data: memoryview) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_what_came_just_before_the_end_is_written(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "log")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await trio.testing.wait_all_tasks_blocked()
        log.opened(5, wire.ExecRequest(cmd="x"))
        nursery.cancel_scope.cancel()
    assert len(records(tmp_path / "log")) == 1


async def test_a_write_that_fails_while_the_log_ends_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SessionLog(tmp_path / "log")
    writing, go_on = threading.Event(), threading.Event()

    def write(_fd: int, _data: memoryview) -> int:
        writing.set()
        go_on.wait(HANG)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    log.opened(5, wire.ExecRequest(cmd="x"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await trio.to_thread.run_sync(writing.wait)
        nursery.cancel_scope.cancel()
        go_on.set()
    now = log.statistics()
    assert (now.records_written, now.records_dropped, now.bytes_dropped, now.bytes_queued) == (0, 1, 10, 0)


async def test_a_rotation_that_cannot_open_a_file_loses_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SessionLog(tmp_path / "log", max_bytes=500, backups=2)
    log.opened(5, wire.ExecRequest(cmd="x"))
    for number in range(12):
        say(log, 5, wire.ExecStdout(f"line {number}".encode()))
    await log._writer._write_queued()
    before = [(tmp_path / name).read_bytes() for name in ("log.2", "log.1", "log")]

    def no_descriptors(*_args: object, **_options: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_descriptors)
        for number in range(12, 20):
            say(log, 5, wire.ExecStdout(f"line {number}".encode()))
            await log._writer._write_queued()
    after = [(tmp_path / name).read_bytes() for name in ("log.2", "log.1", "log")]
    assert after[:2] == before[:2]
    assert after[2].startswith(before[2])
    say(log, 5, wire.ExecExited(0))
    await written(log)
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1", "log.2"]
    assert records(tmp_path / "log")[-1]["text"] == "exited with status 0"


async def test_a_device_is_not_rotated(monkeypatch: pytest.MonkeyPatch) -> None:
    rotated = False

    def rotate(_files: object) -> None:
        nonlocal rotated
        rotated = True

    monkeypatch.setattr(LogFile, "_rotate", rotate)
    log = SessionLog("/dev/null", max_bytes=100)
    log.opened(5, wire.ExecRequest(cmd="x"))
    say(log, 5, wire.ExecStdout(b"x" * 200))
    say(log, 5, wire.ExecExited(0))
    await written(log)
    assert log.statistics().records_written == 3
    assert not rotated, "its name would now be that of an ordinary file"


def test_a_log_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SessionLog(tmp_path / "missing" / "log")


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        SessionLog(tmp_path / "log")
