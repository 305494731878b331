"""The files of logs: whose they are, who else writes to them, and what is in their lines."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools.limits import HANG
from tests.tools.users import NOBODY, as_root
from trio_console import Log, ProcessGuest, RelayOptions, serve_relay
from trio_console._relay import log_files as _log_files
from trio_console._relay.log_files import LogFile, json_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "log"


def opened(path: Path, max_bytes: int = 100, backups: int = 2) -> LogFile:
    return LogFile(path, max_bytes, backups)


# What is in a line

DANGEROUS = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),  # DEL and C1, of which U+009B begins a terminal's commands
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",  # text from right to left
    *"\u2028\u2029\u00ad\ufeff",
]


@pytest.mark.parametrize("character", DANGEROUS, ids=lambda character: f"U+{ord(character):04X}")
def test_characters_that_do_something_are_escaped(character: str) -> None:
    line = json_line({"text": f"a{character}b"})
    assert json.loads(line) == {"text": f"a{character}b"}
    assert character not in line.decode().removesuffix("\n")


def test_all_other_characters_are_shown_as_they_are() -> None:
    text = "".join(map(chr, (*range(0x20, 0x7F), *range(0xA1, 0xAD), 0x20AC, 0x1F600)))
    assert json.loads(json_line({"text": text})) == {"text": text}
    assert "ä€😀" in json_line({"text": "ä€😀"}).decode()


def test_bytes_that_are_no_text_are_escaped() -> None:
    assert json.loads(json_line({"text": "a\udcffb"})) == {"text": "a\udcffb"}


# Whose the files are


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_a_file_of_another_user_is_refused_and_not_written(path: Path, mode: int) -> None:
    path.touch()
    path.chmod(mode)
    os.chown(path, NOBODY, -1)
    with pytest.raises(PermissionError, match=f"belongs to user {NOBODY}") as caught:
        opened(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(("mode", "refused"), [(0o600, 0), (0o644, 0), (0o620, 1), (0o602, 1), (0o666, 1)])
def test_a_file_that_others_can_write_is_refused(path: Path, mode: int, *, refused: int) -> None:
    path.touch()
    path.chmod(mode)
    if refused:
        with pytest.raises(PermissionError, match="other users can write to the file"):
            opened(path)
    else:
        opened(path).close()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_directory_that_others_can_write_is_refused_and_nothing_made_stays_open(path: Path, mode: int) -> None:
    path.parent.chmod(mode)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(PermissionError, match="other users can write to the directory"):
        opened(path)
    assert set(os.listdir("/proc/self/fd")) == before


@as_root
def test_a_directory_of_another_user_is_refused(path: Path) -> None:
    os.chown(path.parent, NOBODY, -1)
    with pytest.raises(PermissionError, match=f"belongs to user {NOBODY}"):
        opened(path)


def test_a_link_is_not_followed(path: Path) -> None:
    path.symlink_to(path.parent / "other")
    with pytest.raises(OSError, match="symbolic links") as caught:
        opened(path)
    assert caught.value.errno == errno.ELOOP
    assert not (path.parent / "other").exists()


def test_a_new_file_is_this_users_alone_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        file = opened(path, 10)
        for _ in range(2):
            file.write_line(b"123456789\n")
    finally:
        os.umask(before)
    file.close()
    assert {stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()} == {0o600}
    assert len(list(path.parent.iterdir())) == 2


def test_a_fifo_that_nobody_reads_is_an_error_and_not_a_hang(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device or address"):
        opened(path)


def test_a_device_is_written_and_neither_locked_nor_rotated() -> None:
    files = [LogFile("/dev/null", 1, 1) for _ in range(2)]
    for file in files:
        for _ in range(3):
            file.write_line(b"a line\n")
        file.close()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_file_that_somebody_has_left_for_the_next_one_is_not_written(path: Path) -> None:
    file = opened(path, 10)
    (path.parent / "log.0").symlink_to("elsewhere")
    for _ in range(2):
        file.write_line(b"123456789\n")
    file.close()
    assert not (path.parent / "elsewhere").exists()
    assert path.read_bytes() == (path.parent / "log.1").read_bytes() == b"123456789\n"


# Two relays


def test_a_log_is_one_relays_at_a_time(path: Path) -> None:
    first = opened(path)
    first.write_line(b"first\n")
    with pytest.raises(BlockingIOError, match="another relay writes to this log") as caught:
        opened(path)
    assert caught.value.filename == str(path)
    first.close()
    second = opened(path)
    second.write_line(b"second\n")
    second.close()
    assert path.read_bytes() == b"first\nsecond\n"


def test_a_log_stays_one_relays_when_it_has_been_rotated(path: Path) -> None:
    first = opened(path, 10)
    for number in range(5):
        first.write_line(b"line %d\n" % number)
        with pytest.raises(BlockingIOError, match="another relay"):
            opened(path)
    first.close()
    assert (path.parent / "log.1").exists()
    opened(path).close()


def test_a_file_that_was_rotated_before_it_was_locked_is_opened_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old\n")
    path.chmod(0o600)
    flock = fcntl.flock
    rotations = [1]

    def rotate_first(fd: int, operation: int) -> None:
        if rotations:
            rotations.pop()
            os.rename(path, f"{path}.1")  # another relay does that, and ends
            path.touch(0o600)
        flock(fd, operation)

    monkeypatch.setattr(_log_files.fcntl, "flock", rotate_first)
    file = opened(path)
    file.write_line(b"new\n")
    file.close()
    assert path.read_bytes() == b"new\n"
    assert (path.parent / "log.1").read_bytes() == b"old\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def test_without_locks_a_log_is_written_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_fd: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_log_files.fcntl, "flock", refuse)
    file = opened(path, 10)
    for _ in range(3):
        file.write_line(b"123456789\n")
    file.close()
    assert file.records == 3


_HOLD = """
import sys
from trio_console._relay.log_files import LogFile
file = LogFile(sys.argv[1], 100, 1)
print("open", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_relay_that_was_killed_is_free(path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(BlockingIOError):
            opened(path)
        process.kill()
        process.wait(HANG)
    opened(path).close()


@pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_holds_no_lock(path: Path) -> None:
    file = opened(path)
    told, telling = os.pipe()
    waiting, ending = os.pipe()
    child = os.fork()
    if not child:
        os.write(telling, b"x")
        os.close(ending)
        os.read(waiting, 1)
        os._exit(0)
    try:
        os.read(told, 1)
        file.close()
        opened(path).close()
    finally:
        for number in (told, telling, waiting, ending):
            os.close(number)
        os.waitpid(child, 0)


@pytest.fixture
def nothing_started(path: Path) -> Iterator[None]:
    yield
    assert not (path.parent / "socket").exists()


@pytest.mark.usefixtures("nothing_started")
async def test_a_relay_does_not_start_if_its_logs_are_one_file(path: Path) -> None:
    options = RelayOptions(session_log=path, audit_log=Log(path))
    with pytest.raises(BlockingIOError, match="another relay writes to this log"):
        await serve_relay(ProcessGuest(), path.parent / "socket", options=options)


@pytest.mark.usefixtures("nothing_started")
async def test_a_relay_does_not_start_without_its_audit_log(path: Path) -> None:
    path.touch()
    path.chmod(0o666)
    options: Any = RelayOptions(session_log=path.parent / "other", audit_log=path)
    with pytest.raises(PermissionError, match="other users can write to the file"):
        await serve_relay(ProcessGuest(), path.parent / "socket", options=options)
