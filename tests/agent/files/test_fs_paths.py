"""File operations on paths."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import HELD
from trio_console import _wire as wire
from trio_console.agent._files import trees as _trees

if TYPE_CHECKING:
    from tests.agent._host import Host

ENOENT = "No such file or directory (os error 2)"
EEXIST = "File exists (os error 17)"
ENOTDIR = "Not a directory (os error 20)"
EISDIR = "Is a directory (os error 21)"
EINVAL = "Invalid argument (os error 22)"
ENOTEMPTY = "Directory not empty (os error 39)"

NOT_UTF8 = b"na\xffme"


def attrs(**fields: int) -> wire.SetAttrs:
    return wire.SetAttrs(**fields)


# --- stat -----------------------------------------------------------------------------------------


async def test_stat_tells_what_there_is(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"hello world")
    path.chmod(0o640)
    os.utime(path, ns=(5_900_000_000, -5_100_000_000))
    assert await host.ok(wire.OpStat(str(path), True)) == wire.EntryInfo(
        path=str(path),
        kind="file",
        size=11,
        mode=stat.S_IFREG | 0o640,
        modified=-6,
        uid=os.getuid(),
        gid=os.getgid(),
        atime=5,
        mtime=-6,
    )


async def test_stat_echoes_the_path_as_it_came(host: Host, tmp_path: Path) -> None:
    path = f"{tmp_path}/../{tmp_path.name}//"
    assert (await host.ok(wire.OpStat(path, True))).path == path


async def test_stat_follows_a_link_or_does_not(host: Host, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    link = tmp_path / "link"
    link.symlink_to("d")
    assert (await host.ok(wire.OpStat(str(link), True))).kind == "dir"
    found = await host.ok(wire.OpStat(str(link), False))
    assert (found.kind, found.mode) == ("symlink", 0o120777)


async def test_what_is_neither_file_nor_directory_nor_link_is_other(host: Host) -> None:
    assert (await host.ok(wire.OpStat("/dev/null", True))).kind == "other"


async def test_relative_paths_start_where_the_agent_is(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").touch()
    assert (await host.ok(wire.OpStat("f", True))).path == "f"


@pytest.mark.parametrize(
    ("op", "what"),
    [
        (wire.OpRealPath("/no/such"), "realpath"),
        (wire.OpStat("/no/such", True), "stat"),
        (wire.OpSetStat("/no/such", True, attrs(mode=0)), "setstat"),
        (wire.OpList("/no/such"), "readdir: opendir"),
        (wire.OpReadLink("/no/such"), "readlink"),
        (wire.OpSymlink("x", "/no/such"), "symlink"),
        (wire.OpMkdir(""), "mkdir"),
        (wire.OpRemove("/no/such"), "remove"),
        (wire.OpRemoveDir("/no/such", False), "remove_dir"),
        (wire.OpRemoveDir("/no/such", True), "remove_dir"),
        (wire.OpCopy("/no/such", "/no/other"), "copy"),
        (wire.OpRename("/no/such", "/no/other"), "rename"),
        (wire.OpOpenDir("/no/such"), "opendir"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_error_says_what_failed_and_why(host: Host, op: Any, what: str) -> None:
    assert await host.error(op) == f"{what}: {ENOENT}"


async def test_a_path_with_a_nul_is_invalid(host: Host) -> None:
    assert await host.error(wire.OpStat("a\0b", True)) == f"stat: {EINVAL}"


@pytest.mark.parametrize(("length", "fits"), [(4095, True), (4096, False)])
async def test_a_path_is_as_long_as_the_system_takes(host: Host, length: int, fits: bool) -> None:
    path = "./" * 2100
    path = path[-length:] if length % 2 == 0 else "/" + path[-(length - 1) :]
    assert len(path) == length
    response = await host.fs(wire.OpStat(path, True))
    assert response.error == (None if fits else "stat: File name too long (os error 36)")


# --- realpath -------------------------------------------------------------------------------------


async def test_realpath_resolves_links_and_dots(host: Host, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    real = str(tmp_path.resolve() / "a")
    assert await host.ok(wire.OpRealPath(f"{tmp_path}/./link/../a/")) == real


@pytest.mark.parametrize("tail", ["new", "new/"])
async def test_realpath_of_what_is_about_to_exist(host: Host, tmp_path: Path, tail: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert await host.ok(wire.OpRealPath(f"{tmp_path}/link/{tail}")) == str(tmp_path.resolve() / "a/new")


@pytest.mark.parametrize("tail", ["a/b", "a/..", ""])
async def test_realpath_needs_all_but_the_last_component(host: Host, tmp_path: Path, tail: str) -> None:
    path = f"{tmp_path}/missing/{tail}" if tail else ""
    assert await host.error(wire.OpRealPath(path)) == f"realpath: {ENOENT}"


# --- setstat --------------------------------------------------------------------------------------


async def test_setstat_changes_size_and_mode(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"hello")
    assert await host.ok(wire.OpSetStat(str(path), True, attrs(size=2, mode=0o100600))) is None
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"he", 0o600)


async def test_setstat_of_one_time_keeps_the_seconds_of_the_other(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    os.utime(path, ns=(5_900_000_000, 7_900_000_000))
    await host.ok(wire.OpSetStat(str(path), True, attrs(mtime=-3)))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (5_000_000_000, -3_000_000_000)


async def test_setstat_of_an_owner(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    if os.getuid() == 0:
        await host.ok(wire.OpSetStat(str(path), True, attrs(uid=12)))
        await host.ok(wire.OpSetStat(str(path), True, attrs(gid=34)))
        assert (path.stat().st_uid, path.stat().st_gid) == (12, 34)
    else:
        error = await host.error(wire.OpSetStat(str(path), True, attrs(uid=0)))
        assert error == "setstat: Operation not permitted (os error 1)"


async def test_setstat_of_a_link_itself(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello")
    (tmp_path / "f").chmod(0o644)
    os.utime(tmp_path / "f", (1, 1))
    link = tmp_path / "link"
    link.symlink_to("f")
    error = await host.error(wire.OpSetStat(str(link), False, attrs(mode=0o600)))
    assert error == "setstat: Operation not supported (os error 95)"
    error = await host.error(wire.OpSetStat(str(link), False, attrs(size=0)))
    assert error == "setstat: Too many levels of symbolic links (os error 40)"
    await host.ok(wire.OpSetStat(str(link), False, attrs(mtime=5)))
    assert link.lstat().st_mtime == 5
    target = (tmp_path / "f").stat()
    assert (stat.S_IMODE(target.st_mode), target.st_size, target.st_mtime) == (0o644, 5, 1)


async def test_setstat_that_does_not_follow_changes_a_file_all_the_same(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"hello")
    await host.ok(wire.OpSetStat(str(path), False, attrs(size=1, mode=0o600)))
    assert (path.stat().st_size, stat.S_IMODE(path.stat().st_mode)) == (1, 0o600)


@pytest.mark.parametrize("fields", [{"size": 2**64 - 1}, {"mtime": 2**63 - 1}, {"uid": 2**32 - 1}])
async def test_setstat_of_what_no_system_call_takes_fails(
    host: Host, tmp_path: Path, fields: dict[str, int]
) -> None:
    path = tmp_path / "f"
    path.touch()
    response = await host.fs(wire.OpSetStat(str(path), True, attrs(**fields)))
    assert response.ok or (response.error or "").startswith("setstat: ")
    await host.ping()


# --- links ----------------------------------------------------------------------------------------


async def test_symlink_and_readlink(host: Host, tmp_path: Path) -> None:
    link = str(tmp_path / "link")
    await host.ok(wire.OpSymlink("no/where", link))
    assert await host.ok(wire.OpReadLink(link)) == "no/where"
    assert await host.error(wire.OpSymlink("x", link)) == f"symlink: {EEXIST}"
    assert await host.error(wire.OpReadLink(str(tmp_path))) == f"readlink: {EINVAL}"


# --- directories ----------------------------------------------------------------------------------


async def test_mkdir_makes_parents_and_accepts_what_exists(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "a/b/c"
    await host.ok(wire.OpMkdir(str(path)))
    await host.ok(wire.OpMkdir(f"{path}/"))
    assert path.is_dir()


async def test_mkdir_sets_the_mode_of_the_last_one_only(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "a/b"
    for mode in (0o2777, 0o700):
        await host.ok(wire.OpMkdir(str(path), mode))
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE(path.parent.stat().st_mode) not in (0o2777, 0o700)


async def test_mkdir_goes_as_deep_as_paths_do(host: Host, tmp_path: Path) -> None:
    path = str(tmp_path) + "/d" * 1500
    await host.ok(wire.OpMkdir(path))
    assert Path(path).is_dir()
    await host.ok(wire.OpRemoveDir(f"{tmp_path}/d", True))


@pytest.mark.parametrize(("tail", "why"), [("f", EEXIST), ("f/x", ENOTDIR), ("f/x/y", ENOTDIR)])
async def test_mkdir_does_not_replace_a_file(host: Host, tmp_path: Path, tail: str, why: str) -> None:
    (tmp_path / "f").touch()
    assert await host.error(wire.OpMkdir(f"{tmp_path}/{tail}")) == f"mkdir: {why}"


async def test_mkdir_of_a_relative_path(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await host.ok(wire.OpMkdir("a/b"))
    assert (tmp_path / "a/b").is_dir()


async def test_remove_unlinks(host: Host, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    await host.ok(wire.OpRemove(str(tmp_path / "link")))
    assert os.listdir(tmp_path) == ["d"]
    assert await host.error(wire.OpRemove(str(tmp_path / "d"))) == f"remove: {EISDIR}"


async def test_remove_dir_removes_an_empty_one(host: Host, tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    assert await host.error(wire.OpRemoveDir(str(tmp_path / "d"), False)) == f"remove_dir: {ENOTEMPTY}"
    await host.ok(wire.OpRemoveDir(str(tmp_path / "d/e"), False))
    await host.ok(wire.OpRemoveDir(str(tmp_path / "d"), False))
    assert not os.listdir(tmp_path)


def make_tree(top: Path) -> None:
    for name in ("a/b/c", "a/d", "e"):
        (top / name).mkdir(parents=True)
        (top / name / "file").touch()
    os.mkfifo(top / "pipe")
    (top / "a/b" / os.fsdecode(NOT_UTF8)).touch()


async def test_remove_dir_removes_a_whole_tree(host: Host, tmp_path: Path) -> None:
    make_tree(tmp_path / "top")
    await host.ok(wire.OpRemoveDir(f"{tmp_path}/top/", True))
    assert not os.listdir(tmp_path)


async def test_remove_dir_follows_no_link(host: Host, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to("../precious")
    (tmp_path / "link").symlink_to("precious")
    assert await host.error(wire.OpRemoveDir(f"{tmp_path}/link/", True)) == f"remove_dir: {ENOTDIR}"
    await host.ok(wire.OpRemoveDir(str(tmp_path / "top"), True))
    assert sorted(os.listdir(tmp_path)) == ["link", "precious"]
    assert os.listdir(tmp_path / "precious") == ["file"]


async def test_remove_dir_of_a_file_fails(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for recursive in (False, True):
        assert await host.error(wire.OpRemoveDir(str(tmp_path / "f"), recursive)) == f"remove_dir: {ENOTDIR}"


@pytest.mark.parametrize("what", ["replaced", "moved"])
async def test_remove_dir_does_not_leave_a_tree_that_changes_under_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    # The tree is changed just before the step down into top/a, or just before the step back up.
    (tmp_path / "precious/sub").mkdir(parents=True)
    (tmp_path / "precious/file").touch()
    (tmp_path / "top/a").mkdir(parents=True)
    step = _trees._step

    def intrude(fd: int, name: bytes) -> int:
        if what == "replaced" and name == b"a":
            (tmp_path / "top/a").rename(tmp_path / "top/b")
            (tmp_path / "top/a").symlink_to(tmp_path / "precious")
        elif what == "moved" and name == b"..":
            (tmp_path / "top/a").rename(tmp_path / "precious/sub/a")
        return step(fd, name)

    monkeypatch.setattr(_trees, "_step", intrude)
    error = await host.error(wire.OpRemoveDir(str(tmp_path / "top"), True))
    assert error == f"remove_dir: {ENOTDIR if what == 'replaced' else 'Device or resource busy (os error 16)'}"
    assert {"file", "sub"} <= set(os.listdir(tmp_path / "precious"))


# --- listings -------------------------------------------------------------------------------------


async def test_list_tells_of_every_entry_itself(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    (tmp_path / os.fsdecode(NOT_UTF8)).touch()
    entries = await host.ok(wire.OpList(str(tmp_path)))
    assert {entry.path: entry.kind for entry in entries} == {
        f"{tmp_path}/f": "file",
        f"{tmp_path}/d": "dir",
        f"{tmp_path}/link": "symlink",
        f"{tmp_path}/na\ufffdme": "file",
    }
    [file] = (entry for entry in entries if entry.path.endswith("/f"))
    assert file == (await host.ok(wire.OpStat(f"{tmp_path}/f", False)))


async def test_list_of_nothing_is_empty(host: Host, tmp_path: Path) -> None:
    assert await host.ok(wire.OpList(str(tmp_path))) == []


async def test_list_does_not_double_a_slash(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert [entry.path for entry in await host.ok(wire.OpList(f"{tmp_path}/"))] == [f"{tmp_path}/f"]


async def test_list_of_a_file_fails(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert await host.error(wire.OpList(str(tmp_path / "f"))) == f"readdir: opendir: {ENOTDIR}"


async def test_an_entry_that_vanishes_is_still_listed(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Vanished:
        name = "f"

        def stat(self, **_: object) -> None:
            raise FileNotFoundError

    class Scan:
        def __init__(self, _fd: int) -> None:
            pass

        def __iter__(self) -> Any:
            return iter([Vanished()])

        def close(self) -> None:
            pass

    monkeypatch.setattr("trio_console.agent._files.paths.os.scandir", Scan)
    [entry] = await host.ok(wire.OpList(str(tmp_path)))
    assert entry == wire.EntryInfo(path=f"{tmp_path}/f", kind="other", size=0, mode=0, uid=0, gid=0)


@pytest.mark.parametrize("stage", ["by estimate", "by encoding"])
async def test_a_listing_that_fits_no_frame_is_refused(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    for number in range(100):
        (tmp_path / f"{number}").touch()
    if stage == "by estimate":
        monkeypatch.setattr("trio_console.agent._files.paths._LEAST_ENTRY", wire.MAX_FRAME_LENGTH // 50)
    else:
        long = "x" * (wire.MAX_FRAME_LENGTH // 50)
        monkeypatch.setattr("trio_console.agent._files.paths._LEAST_ENTRY", -len(long))
        shown = "trio_console.agent._files.paths.Shown.__call__"
        monkeypatch.setattr(shown, lambda _shown, name: name.decode() + long)
    error = await host.error(wire.OpList(str(tmp_path)))
    assert error.startswith("readdir: the listing of ")
    assert "does not fit a frame" in error


# --- copies ---------------------------------------------------------------------------------------


async def test_copy_takes_contents_and_permissions_and_follows_links(host: Host, tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.write_bytes(os.urandom(200_000))
    source.chmod(0o4751)
    target.write_bytes(b"x" * 300_000)
    (tmp_path / "link").symlink_to("s")
    (tmp_path / "other").symlink_to("t")
    await host.ok(wire.OpCopy(str(tmp_path / "link"), str(tmp_path / "other")))
    assert target.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o4751
    assert not target.is_symlink()


async def test_copy_of_a_file_whose_contents_are_made_up(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "t"
    await host.ok(wire.OpCopy("/proc/version", str(target)))
    assert target.read_bytes() == Path("/proc/version").read_bytes()


async def test_copy_where_the_kernel_cannot_do_it_by_itself(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "another file system")

    monkeypatch.setattr("trio_console.agent._files.trees.os.copy_file_range", refuse)
    (tmp_path / "s").write_bytes(b"hello" * 100_000)
    await host.ok(wire.OpCopy(str(tmp_path / "s"), str(tmp_path / "t")))
    assert (tmp_path / "t").read_bytes() == b"hello" * 100_000


async def test_copy_onto_itself_is_refused_and_harmless(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello")
    (tmp_path / "hard").hardlink_to(tmp_path / "f")
    assert await host.error(wire.OpCopy(str(tmp_path / "f"), str(tmp_path / "hard"))) == f"copy: {EINVAL}"
    assert (tmp_path / "f").read_bytes() == b"hello"


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("d", "new", EISDIR),
        ("f", "d", EISDIR),
        ("/dev/null", "new", EINVAL),
        ("pipe", "new", EINVAL),
        ("f", "pipe", "No such device or address (os error 6)"),
        ("f", "no/where", ENOENT),
    ],
)
async def test_copy_is_for_regular_files(host: Host, tmp_path: Path, source: str, target: str, why: str) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert await host.error(wire.OpCopy(str(tmp_path / source), str(tmp_path / target))) == f"copy: {why}"
    assert not (tmp_path / "new").exists()


async def test_rename_replaces(host: Host, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    await host.ok(wire.OpRename(str(tmp_path / "a"), str(tmp_path / "b")))
    assert (os.listdir(tmp_path), (tmp_path / "b").read_bytes()) == (["b"], b"a")


# --- one among many -------------------------------------------------------------------------------


async def test_an_operation_that_hangs_delays_neither_pings_nor_commands_nor_others(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging_stat(monkeypatch) as release:
        stuck = [host.new_id() for _ in range(7)]
        for sid in stuck:
            await host.send(wire.FsRequest(wire.OpStat("/hang", True)), sid)
        await host.ping()
        assert (await host.run("echo", "hi")).stdout == b"hi\n"
        await host.ok(wire.OpRealPath("/"))
        release.set()
        for sid in stuck:
            assert (await host.receive(sid)).ok


async def test_a_cancelled_operation_is_over_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_stat(monkeypatch) as release:
        sid = host.new_id()
        await host.send(wire.FsRequest(wire.OpStat("/hang", True)), sid)
        await host.ping()
        await host.send(wire.Cancel(), sid)
        assert await host.receive(sid) == wire.FsResponse(ok=False, error="cancelled")
        # Its id is free although its thread is not.
        assert await host.ok(wire.OpRealPath("/"), sid=sid) == "/"
        release.set()
        assert await host.nothing_for(sid)


async def test_a_bad_frame_ends_an_operation_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_stat(monkeypatch) as release:
        for version, expected in ((7, wire.Error), (4, wire.FsResponse)):
            sid = host.new_id()
            await host.send(wire.FsRequest(wire.OpStat("/hang", True)), sid)
            frame = bytearray(wire.encode(wire.Cancel(), sid, version=version))
            frame[8] = wire.FLAG_TERMINAL
            await host.send_raw(bytes(frame))
            assert isinstance(await host.receive(sid), expected)
        release.set()


async def test_cancelling_what_is_not_there_is_ignored(host: Host) -> None:
    await host.send(wire.Cancel(), 77)
    assert await host.nothing_for(77)


async def test_cancel_does_not_concern_commands(host: Host) -> None:
    sid = await host.start("cat")
    await host.send(wire.Cancel(), sid)
    await host.send(wire.ExecStdin(b""), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(code=0)


async def test_what_takes_long_stops_when_it_is_cancelled(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path / "top")
    begun, release, stopped = (threading.Event() for _ in range(3))
    check = _trees.Stop.check

    def slow_check(stop: _trees.Stop) -> None:
        begun.set()
        assert release.wait(HELD)
        try:
            check(stop)
        except OSError:
            stopped.set()
            raise

    monkeypatch.setattr(_trees.Stop, "check", slow_check)
    sid = host.new_id()
    await host.send(wire.FsRequest(wire.OpRemoveDir(str(tmp_path / "top"), True)), sid)
    await trio.to_thread.run_sync(begun.wait, 20)
    await host.send(wire.Cancel(), sid)
    await host.receive(sid)
    release.set()
    assert await trio.to_thread.run_sync(stopped.wait, 20)
    assert (tmp_path / "top/a/d/file").exists()


async def test_a_client_may_have_many_operations_waiting_but_not_any_number(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_console.agent._files.session._SESSIONS_PER_CLIENT", 3)
    other = 1 + (2**32 - 1) // 128
    with hanging_stat(monkeypatch) as release:
        sids = [host.new_id() for _ in range(3)]
        for sid in sids:
            await host.send(wire.FsRequest(wire.OpStat("/hang", True)), sid)
        error = await host.error(wire.OpRealPath("/"))
        assert error == "realpath: Resource temporarily unavailable (os error 11)"
        await host.ok(wire.OpRealPath("/"), sid=other)
        await host.send(wire.Cancel(), sids.pop())
        await host.ok(wire.OpRealPath("/"))
        release.set()
        for sid in sids:
            await host.receive(sid)
    for _ in range(4):
        await host.ok(wire.OpRealPath("/"))


class hanging_stat:  # noqa: N801
    """In this block a stat of ``/hang`` hangs until the event is set, and then returns that of ``/``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._release = threading.Event()

    def __enter__(self) -> threading.Event:
        plain = os.stat

        def slow(path: Any, **options: Any) -> os.stat_result:
            if path == b"/hang":
                assert self._release.wait(HELD)
                path = b"/"
            return plain(path, **options)

        self._monkeypatch.setattr("trio_console.agent._files.paths.os.stat", slow)
        return self._release

    def __exit__(self, *_: object) -> None:
        self._release.set()
        self._monkeypatch.undo()
