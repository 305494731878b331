"""What this project has added to file operations: octets, touch, hard links, accounts, and all of a stat."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trio_console import _wire as wire

if TYPE_CHECKING:
    from tests.agent._host import Host

ODD = b"n\xff\xc3\xa4"  # no UTF-8, and then two bytes that are


def octets(path: bytes) -> str:
    return path.decode("latin-1")


async def test_a_name_of_octets_is_opened_and_listed(host: Host, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/" + ODD
    os.mkdir(raw)
    os.close(os.open(raw + b"/inner\xfe", os.O_CREAT))
    os.symlink(b"to\xfd", raw + b"/link")
    text = octets(raw)
    assert (await host.ok(wire.OpStat(text, True), octets=True)).kind == "dir"
    names = {entry.path for entry in await host.ok(wire.OpList(text), octets=True)}
    assert names == {f"{text}/inner\xfe", f"{text}/link"}
    handle = await host.ok(wire.OpOpenDir(text), octets=True)
    assert {entry.path for entry in await host.ok(wire.OpReadDir(handle), octets=True)} == names
    assert await host.ok(wire.OpReadLink(f"{text}/link"), octets=True) == "to\xfd"
    assert await host.ok(wire.OpRealPath(f"{text}/../{octets(ODD)}"), octets=True) == text
    await host.ok(wire.OpRename(f"{text}/inner\xfe", f"{text}/other\xfd"), octets=True)
    assert b"other\xfd" in os.listdir(raw)


async def test_without_octets_a_name_has_replacement_characters(host: Host, tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/" + ODD)
    [entry] = await host.ok(wire.OpList(str(tmp_path)))
    assert entry.path == f"{tmp_path}/n\N{REPLACEMENT CHARACTER}ä"


async def test_a_character_that_is_no_octet_is_refused(host: Host) -> None:
    assert await host.error(wire.OpStat("/\u0100", True), octets=True) == "stat: Invalid argument (os error 22)"


@pytest.mark.parametrize(("extra", "errors"), [(0, False), (1, True)])
async def test_the_length_of_octets_is_that_of_the_bytes(host: Host, extra: int, errors: bool) -> None:
    path = "/" + "\xff" * (4094 + extra)
    error = await host.error(wire.OpStat(path, True), octets=True)
    assert error == "stat: File name too long (os error 36)"
    short = "/." * 2000 + "/" + "\xff" * (94 + extra)  # each component is short, so only the whole is too long
    error = await host.error(wire.OpStat(short, True), octets=True)
    assert ("File name too long" in error) is errors


async def test_touch_takes_the_systems_own_time(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    os.utime(path, (1, 1))
    (tmp_path / "other").touch()
    before = (tmp_path / "other").stat().st_mtime_ns  # by the same clock
    await host.ok(wire.OpTouch(str(path), 0o666, True))
    assert path.stat().st_mtime_ns >= before
    assert path.stat().st_atime_ns >= before


async def test_touch_makes_a_file_with_its_mode_or_refuses_one_that_exists(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    await host.ok(wire.OpTouch(str(path), 0o640, False))
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()
    assert await host.error(wire.OpTouch(str(path), 0o640, False)) == "touch: File exists (os error 17)"
    missing = tmp_path / "no" / "where"
    assert "No such file" in await host.error(wire.OpTouch(str(missing), 0o640, True))


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


async def test_a_hard_link_is_a_further_name(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    await host.ok(wire.OpHardLink(str(tmp_path / "f"), str(tmp_path / "g")))
    assert (tmp_path / "g").samefile(tmp_path / "f")
    assert "File exists" in await host.error(wire.OpHardLink(str(tmp_path / "f"), str(tmp_path / "g")))


async def test_accounts_are_those_of_the_guest(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    me = pwd.getpwuid(os.geteuid())
    assert await host.ok(wire.OpAccount("user", str(me.pw_uid))) == me.pw_name
    assert await host.ok(wire.OpAccount("group", str(me.pw_gid))) == grp.getgrgid(me.pw_gid).gr_name
    assert await host.ok(wire.OpAccount("home", me.pw_name)) == me.pw_dir
    assert await host.ok(wire.OpAccount("home", "")) == me.pw_dir


async def test_the_agents_home_is_what_its_environment_says(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/else/where/")
    assert await host.ok(wire.OpAccount("home", "")) == "/else/where"
    assert await host.ok(wire.OpAccount("home", "root")) == pwd.getpwnam("root").pw_dir


async def test_an_agent_whose_user_has_no_home_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)
    assert "os error 3" in await host.error(wire.OpAccount("home", ""))


@pytest.mark.parametrize(
    "op",
    [
        wire.OpAccount("user", "3999999999"),
        wire.OpAccount("user", "x"),
        wire.OpAccount("user", "9" * 30),
        wire.OpAccount("group", "-5"),
        wire.OpAccount("home", "no such user"),
        wire.OpAccount("home", "a\0b"),
    ],
    ids=str,
)
async def test_an_account_that_is_not_known_is_said(host: Host, op: wire.OpAccount) -> None:
    assert await host.error(op) == "account: No such process (os error 3)"


async def test_data_and_holes_are_told_by_their_positions(host: Host, tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x")
        file.truncate(1 << 21)
    handle = await host.open_file(tmp_path / "f", "read")
    answer = await host.fs(wire.OpSeek(handle, 0, "data"))
    assert (answer.ok, answer.data, answer.position) == (True, None, 1 << 20)
    hole = (await host.fs(wire.OpSeek(handle, 1 << 20, "hole"))).position
    assert 1 << 20 < hole < 1 << 21
    assert await host.error(wire.OpSeek(handle, 1 << 21, "hole")) == "seek: No such device or address (os error 6)"
    assert "Invalid argument" in await host.error(wire.OpSeek(handle, 2**63, "data"))


async def test_a_stat_tells_everything(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    handle = await host.open_file(path, "read")
    found = path.stat()
    for op in (wire.OpStat(str(path), True), wire.OpFStat(handle)):
        assert (await host.fs(op)).more == wire.StatMore(
            dev=found.st_dev,
            ino=found.st_ino,
            nlink=found.st_nlink,
            rdev=found.st_rdev,
            blksize=found.st_blksize,
            blocks=found.st_blocks,
            atime_ns=found.st_atime_ns,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
        )


async def test_an_open_tells_what_it_has_opened(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    options = wire.OpenOptions(
        read=True, write=False, append=False, create=False, truncate=False, create_new=False
    )
    response = await host.fs(wire.OpOpenFile(str(path), options))
    assert response.opened == wire.Opened(mode=path.stat().st_mode, seekable=True, terminal=False)


# --- copies ---------------------------------------------------------------------------------------

MIB = 1024 * 1024


@pytest.mark.parametrize("parts", [[(0, 1), (30, 1)], [(7, 1)], [], [(39, 1)]], ids=str)
async def test_copy_leaves_holes_as_they_are(host: Host, tmp_path: Path, parts: list[tuple[int, int]]) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    with source.open("wb") as file:
        file.truncate(40 * MIB)
        for start, size in parts:
            file.seek(start * MIB)
            file.write(os.urandom(size * MIB))
    target.write_bytes(b"x" * 100)
    await host.ok(wire.OpCopy(str(source), str(target)))
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= len(parts) * MIB + 64 * 1024


async def test_copy_where_holes_are_not_told(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.lseek

    def lseek(fd: int, position: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(22, "no")
        return plain(fd, position, how)

    monkeypatch.setattr("trio_console.agent._files.trees.os.lseek", lseek)
    (tmp_path / "s").write_bytes(b"data" * 100_000)
    await host.ok(wire.OpCopy(str(tmp_path / "s"), str(tmp_path / "t")))
    assert (tmp_path / "t").read_bytes() == (tmp_path / "s").read_bytes()


async def test_copy_of_a_file_that_is_shorter_than_its_size(host: Host, tmp_path: Path) -> None:
    source = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    await host.ok(wire.OpCopy(str(source), str(tmp_path / "t")))
    assert (tmp_path / "t").read_bytes() == source.read_bytes()


async def test_what_is_appended_while_a_file_is_copied_is_copied_too(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.lseek
    source = tmp_path / "s"
    with source.open("wb") as file:
        file.write(b"begin")
        file.truncate(MIB)

    def lseek(fd: int, position: int, how: int) -> int:
        try:
            return plain(fd, position, how)
        except OSError:  # there is no more data
            with source.open("ab") as file:
                file.write(b"appended")
            raise

    monkeypatch.setattr("trio_console.agent._files.trees.os.lseek", lseek)
    await host.ok(wire.OpCopy(str(source), str(tmp_path / "t")))
    assert (tmp_path / "t").read_bytes() == source.read_bytes()
