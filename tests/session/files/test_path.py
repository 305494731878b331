"""Paths of the guest behave like `trio.Path`: the same calls are made on both, in two equal directories."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_console
from tests.session._fake import talking
from tests.session.files._fake_files import serving_files
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._session.files.operations import FileSystem
from trio_console._session.files.path import GuestPath

if TYPE_CHECKING:
    from collections.abc import Callable


def make_tree(root: Path) -> None:
    root.mkdir()
    (root / "file").write_bytes(b"text\r\nline\n")
    (root / "dir").mkdir()
    (root / "dir" / "inner").write_bytes(b"")
    (root / "empty").mkdir()
    (root / "link").symlink_to("file")
    (root / "dirlink").symlink_to("dir")
    (root / "dangling").symlink_to("nowhere/at/all")
    (root / "loop").symlink_to("loop")
    (root / "slash").symlink_to("/")
    for path in (root / "file", root / "dir" / "inner"):
        os.utime(path, (1_000_000, 2_000_000))


def describe(value: Any, root: str) -> Any:
    """A value in a form that can be compared between the two."""
    if isinstance(value, (trio.Path, GuestPath)):
        return ("path", str(value).removeprefix(root))
    if isinstance(value, os.stat_result):
        size = 0 if stat.S_ISDIR(value.st_mode) else value.st_size
        return (value.st_mode, value.st_uid, value.st_gid, size, int(value.st_mtime))
    if isinstance(value, OSError):
        names = [str(name).removeprefix(root) for name in (value.filename, value.filename2) if name is not None]
        return (type(value), value.errno, names)
    if isinstance(value, Exception):
        return type(value)
    if value is None or isinstance(value, (str, bytes, bool, int)):
        return value
    return sorted(describe(one, root) for one in value)


def tree(root: Path) -> list[Any]:
    return sorted(
        (str(path.relative_to(root)), path.lstat().st_mode, path.is_file() and path.read_bytes())
        for path in root.rglob("*")
    )


CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    *[
        (f"{name} {target}", lambda root, name=name, target=target: getattr(root / target, name)())
        for name in (
            *("read_bytes", "read_text", "stat", "lstat", "exists", "is_file", "is_dir", "is_symlink"),
            *("iterdir", "mkdir", "rmdir", "unlink", "readlink", "resolve"),
        )
        for target in ("file", "dir", "empty", "link", "dirlink", "dangling", "missing", "missing/below", "file/x")
        # How directories and loops are unlinked, and resolved, differs between systems and Python versions.
        if (name, target) not in {("unlink", "dir"), ("unlink", "empty")}
    ],
    ("mkdir exist_ok", lambda root: (root / "dir").mkdir(exist_ok=True)),
    ("mkdir exist_ok link", lambda root: (root / "dirlink").mkdir(exist_ok=True)),
    ("mkdir exist_ok file", lambda root: (root / "file").mkdir(exist_ok=True)),
    ("mkdir exist_ok dangling", lambda root: (root / "dangling").mkdir(exist_ok=True)),
    ("mkdir parents", lambda root: (root / "a/b/c").mkdir(parents=True)),
    ("mkdir parents exists", lambda root: (root / "dir").mkdir(parents=True)),
    ("mkdir parents below file", lambda root: (root / "file/a/b").mkdir(parents=True)),
    ("mkdir below dangling", lambda root: (root / "dangling/a").mkdir()),
    ("mkdir mode", lambda root: (root / "private").mkdir(0o700)),
    ("unlink missing_ok", lambda root: (root / "missing").unlink(missing_ok=True)),
    ("rename", lambda root: (root / "file").rename(root / "renamed")),
    ("rename text", lambda root: (root / "file").rename(str(root / "renamed"))),
    ("rename over", lambda root: (root / "file").rename(root / "dir/inner")),
    ("rename missing", lambda root: (root / "missing").rename(root / "other")),
    ("rename over dir", lambda root: (root / "file").rename(root / "dir")),
    ("replace", lambda root: (root / "file").replace(root / "dir/inner")),
    ("symlink_to", lambda root: (root / "new").symlink_to("file")),
    ("symlink_to exists", lambda root: (root / "file").symlink_to("dir")),
    ("chmod", lambda root: (root / "file").chmod(0o640)),
    ("chmod missing", lambda root: (root / "missing").chmod(0o640)),
    ("touch new", lambda root: (root / "new").touch()),
    ("touch new mode", lambda root: (root / "new").touch(0o600)),
    ("touch exists", lambda root: (root / "file").touch()),
    ("touch exists not ok", lambda root: (root / "file").touch(exist_ok=False)),
    ("touch nowhere", lambda root: (root / "missing/new").touch()),
    ("write_bytes", lambda root: (root / "new").write_bytes(b"data")),
    ("write_bytes over", lambda root: (root / "file").write_bytes(b"x")),
    ("write_bytes text", lambda root: (root / "file").write_bytes("x")),
    ("write_text", lambda root: (root / "new").write_text("\u00e4\n", encoding="utf-8")),
    ("write_text newline", lambda root: (root / "new").write_text("a\nb", encoding="utf-8", newline="\r\n")),
    ("write_text bytes", lambda root: (root / "file").write_text(b"x")),
    ("resolve dots", lambda root: (root / "dir/../dirlink/../link").resolve()),
    (
        "resolve twice by a link to the root",
        lambda root: (root / "slash" / str(root)[1:] / "slash/none").resolve(),
    ),
    ("resolve beyond", lambda root: (root / "missing/../dirlink/x/y").resolve()),
    ("resolve strict", lambda root: (root / "dirlink/inner").resolve(strict=True)),
    ("resolve strict missing", lambda root: (root / "missing").resolve(strict=True)),
    ("exists loop", lambda root: (root / "loop").exists()),
    ("is_dir loop", lambda root: (root / "loop").is_dir()),
]


async def listed(paths: Any) -> list[Any]:
    return list(await paths)


#: Calls that need an agent of ours: they are made with a real one.
OWN_CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    *[
        (f"{name} {target}", lambda root, name=name, target=target: getattr(root / target, name)())
        for name in (
            *("is_block_device", "is_char_device", "is_fifo", "is_socket", "is_mount", "owner", "group"),
            *("absolute", "expanduser", "stat"),
        )
        for target in ("file", "dir", "dirlink", "dangling", "missing", "missing/below", "file/x", "loop")
    ],
    *[
        (f"{name} {target}", lambda root, name=name, target=target: getattr(root.joinpath(target), name)())
        for name in ("is_block_device", "is_char_device", "is_fifo", "is_socket", "is_mount", "is_file", "is_dir")
        for target in ("/", "/dev", "/dev/null", "/proc", "/proc/self", "/usr")
    ],
    *[
        (f"glob {pattern}", lambda root, pattern=pattern: listed(root.glob(pattern)))
        for pattern in (
            *(
                "*",
                "**",
                "**/*",
                "*/",
                "f*",
                "[fd]*",
                "fil?",
                "dir/inner",
                "dir/*",
                "**/inner",
                "*/inner",
                "nothing",
            ),
            *("**/", "dir/**", "**/dir/..", "missing/*", "file/*", "./file", "dirlink/*", "**/**/inner", ".h*"),
        )
    ],
    *[
        (f"rglob {pattern}", lambda root, pattern=pattern: listed(root.rglob(pattern)))
        for pattern in ("*", "inner", "d*", "*/", "dir/inner")
    ],
    *[
        (f"glob {pattern!r}", lambda root, pattern=pattern: listed(root.glob(pattern)))
        for pattern in ("/abs", "a**" if sys.version_info < (3, 13) else "/")
    ],
    ("hardlink_to", lambda root: (root / "new").hardlink_to(root / "file")),
    ("hardlink_to a link", lambda root: (root / "new").hardlink_to(root / "link")),
    ("hardlink_to exists", lambda root: (root / "dir").hardlink_to(root / "file")),
    ("hardlink_to missing", lambda root: (root / "new").hardlink_to(root / "missing")),
    ("as_uri", lambda root: awaited((root / "a b\u00e4").as_uri().removeprefix("file://" + str(root)))),
    ("bytes", lambda root: awaited(bytes(root / "\u00e4")[-3:])),
    ("loop resolve", lambda root: (root / "loop").resolve()),
    ("loop resolve strict", lambda root: (root / "loop/x").resolve(strict=True)),
    ("is_file nul", lambda root: (root / "a\0b").is_file()),
    ("is_symlink nul", lambda root: (root / "a\0b").is_symlink()),
    ("is_socket nul", lambda root: (root / "a\0b").is_socket()),
    ("stat nul", lambda root: (root / "a\0b").stat()),
    ("touch nul", lambda root: (root / "a\0b").touch()),
]


async def awaited(value: Any) -> Any:
    return value


@pytest.mark.parametrize("call", [call for _, call in CALLS], ids=[name for name, _ in CALLS])
async def test_a_call_does_what_trio_path_does(tmp_path: Path, call: Callable[[Any], Any]) -> None:
    async def outcome(root: Any) -> Any:
        try:
            return describe(await call(root), str(root))
        except Exception as exc:
            return describe(exc, str(root))

    make_tree(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there", symlinks=True)
    expected = await outcome(trio.Path(tmp_path / "here"))
    async with serving_files() as (talk, _):
        with trio.fail_after(HANG):
            assert await outcome(talk.guest.path(tmp_path / "there")) == expected
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


async def test_a_loop_of_links_is_an_error_to_resolve(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "endless").symlink_to("endless/more")
    async with serving_files() as (talk, _):
        for name in ("loop", "endless"):
            here, there = trio.Path(tmp_path / name), talk.guest.path(tmp_path / name)
            for strict in (False, True):
                if sys.version_info >= (3, 13) and not strict:
                    assert str(await there.resolve()) == str(await here.resolve())
                    continue
                with pytest.raises((OSError, RuntimeError)) as expected:
                    await here.resolve(strict=strict)
                with pytest.raises(expected.type):
                    await there.resolve(strict=strict)


async def test_a_link_to_nowhere_does_not_resolve_strictly(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    async with serving_files() as (talk, _):
        with pytest.raises(FileNotFoundError):
            await talk.guest.path(tmp_path / "dangling").resolve(strict=True)


async def test_touch_sets_the_time_of_now(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.utime(path, (0, 0))
    async with serving_files() as (talk, _):
        before = int(time.time())
        await talk.guest.path(path).touch()
    assert path.stat().st_mtime >= before


async def test_touch_by_whole_seconds_makes_no_file_older(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with serving_files() as (talk, _):
        for _ in range(5):
            path.write_bytes(b"")
            before = path.stat().st_mtime_ns
            await talk.guest.path(path).touch()
            assert path.stat().st_mtime_ns > before


async def test_what_an_agent_does_not_know_is_not_sent(tmp_path: Path) -> None:
    async with serving_files() as (talk, files):
        path = talk.guest.path(tmp_path)
        for call in (
            path.home,
            path.is_mount,
            lambda: path.samefile(tmp_path),
            lambda: path.hardlink_to(tmp_path),
            lambda: talk.guest.path("~").expanduser(),
        ):
            with pytest.raises(trio_console.UnsupportedByPeer):
                await call()
        assert not files.ops
        with pytest.raises(trio_console.UnsupportedByPeer):
            await path.owner()


async def test_a_stat_is_0_where_the_guest_says_nothing(tmp_path: Path) -> None:
    async with serving_files() as (talk, _):
        found = await talk.guest.path(tmp_path).stat()
    assert isinstance(found, os.stat_result)
    assert (found.st_ino, found.st_dev, found.st_nlink, found.st_ctime, found.st_blocks) == (0,) * 5
    assert found.st_mtime == int(tmp_path.stat().st_mtime)
    assert found.st_mtime_ns == int(tmp_path.stat().st_mtime) * 10**9


async def test_a_large_directory_comes_in_pages(tmp_path: Path) -> None:
    names = {f"{i:04}" for i in range(1000)}
    for name in names:
        (tmp_path / name).touch()
    async with serving_files() as (talk, files):
        paths = [*await talk.guest.path(tmp_path).iterdir()]
        assert {path.name for path in paths} == names
        assert files.count(wire.OpReadDir) == 5
        assert files.count(wire.OpList) == 0


async def test_a_directory_that_cannot_be_read_on_is_closed(tmp_path: Path) -> None:
    async with serving_files() as (talk, files):
        files.failing[wire.OpReadDir] = "readdir: Input/output error (os error 5)"
        with pytest.raises(OSError, match="Input/output"):
            await talk.guest.path(tmp_path).iterdir()


async def test_open_is_open_file(tmp_path: Path) -> None:
    async with serving_files() as (talk, _):
        path = talk.guest.path(tmp_path) / "file"
        async with await path.open("w") as file:
            await file.write("x")
        async with await talk.guest.open_file(path, "rb") as binary:
            assert await binary.read() == b"x"


# What needs no guest


@pytest.fixture
def path() -> GuestPath:
    return make_path("/usr/lib/python3.tar.gz")


class NoConnection:
    pass


ONE, OTHER = NoConnection(), NoConnection()


def make_path(text: str, connection: Any = ONE) -> GuestPath:
    return GuestPath(FileSystem(connection, 1.0), PurePosixPath(text))


@pytest.mark.parametrize("name", ["parts", "root", "anchor", "drive", "name", "stem", "suffix", "suffixes"])
def test_its_parts_are_those_of_a_pure_path(path: GuestPath, name: str) -> None:
    assert getattr(path, name) == getattr(PurePosixPath(str(path)), name)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p / "x",
        lambda p: "/x" / p,
        lambda p: p / PurePosixPath("/etc"),
        lambda p: p.joinpath("a", "b"),
        lambda p: p.parent,
        lambda p: p.with_name("n"),
        lambda p: p.with_stem("s"),
        lambda p: p.with_suffix(".z"),
        lambda p: p.relative_to("/usr"),
        lambda p: p.parents[1],
    ],
)
def test_what_is_made_of_it_is_what_a_pure_path_makes(path: GuestPath, change: Any) -> None:
    made = change(path)
    assert isinstance(made, GuestPath)
    assert str(made) == str(change(PurePosixPath(str(path))))


def test_several_segments_of_the_start_are_joined_on_every_python(path: GuestPath) -> None:
    # Python 3.12 warns of this form of a pure path's method, and 3.14 refuses it.
    assert str(path.relative_to("/usr", "lib")) == str(PurePosixPath(str(path)).relative_to("/usr/lib"))


def test_questions_about_it_are_answered_as_by_a_pure_path(path: GuestPath) -> None:
    assert path.is_absolute()
    assert path.match("*.gz")
    assert path.is_relative_to("/usr")
    assert path.is_relative_to("/usr", "lib")
    assert not path.is_relative_to("/usr", "share")
    assert not path.is_reserved()
    assert path.as_posix() == str(path) == "/usr/lib/python3.tar.gz"
    assert repr(path) == "GuestPath('/usr/lib/python3.tar.gz')"
    for other in (("/etc",), ("/usr", "share")):
        with pytest.raises(ValueError):
            path.relative_to(*other)
    for call in (path.relative_to, path.is_relative_to):
        with pytest.raises(TypeError):
            call()


def test_paths_of_one_guest_compare_and_hash() -> None:
    a, b = make_path("/a"), make_path("/b")
    assert a == make_path("/a")
    assert hash(a) == hash(make_path("/a"))
    assert a != b
    assert a < b <= make_path("/b")
    assert b > a >= make_path("/a")
    assert make_path("/a") / b == b


def test_a_path_of_elsewhere_is_another_path() -> None:
    a, other = make_path("/a"), make_path("/a", OTHER)
    assert a != other
    assert a != "/a"
    assert a != PurePosixPath("/a")
    assert len({a, other, PurePosixPath("/a")}) == 3
    with pytest.raises(TypeError):
        _ = a < other
    with pytest.raises(ValueError, match="another guest"):
        _ = a / other
    with pytest.raises(TypeError):
        _ = a / 3  # type: ignore[operator]
    with pytest.raises(TypeError):
        _ = 3 / a  # type: ignore[operator]


def test_it_is_no_path_of_this_machine(path: GuestPath) -> None:
    assert not isinstance(path, os.PathLike)
    with pytest.raises(TypeError):
        open(path)  # type: ignore[call-overload]  # noqa: SIM115
    with pytest.raises(TypeError):
        Path(path)  # type: ignore[arg-type]


async def test_a_guest_makes_paths_of_text_and_of_paths() -> None:
    async with talking() as talk:
        path = talk.guest.path
        assert path("/a") == path(PurePosixPath("/a")) == path(path("/a")) == path(b"/a")
        with pytest.raises(TypeError):
            path(3)  # type: ignore[arg-type]
        assert trio_console.GuestPath is GuestPath
