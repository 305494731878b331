"""Files of a real guest: the agent in a child process."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_console
from tests.session.files.test_files_twin import CONTENTS, READS, play
from tests.session.files.test_path import CALLS, OWN_CALLS, describe, make_tree, tree
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from pathlib import Path

    from trio_console import Guest

MIB = 1024 * 1024


async def test_every_path_call_does_what_trio_path_does(guest: Guest, tmp_path: Path) -> None:
    """Both in the same working directory, and with the same home."""

    async def outcome(call: Any, root: Any) -> Any:
        try:
            return describe(await call(root), str(root))
        except Exception as exc:
            return describe(exc, str(root))

    for number, (name, call) in enumerate([*CALLS, *OWN_CALLS]):
        here, there = tmp_path / f"{number}a", tmp_path / f"{number}b"
        make_tree(here)
        shutil.copytree(here, there, symlinks=True)
        expected = name, await outcome(call, trio.Path(here))
        assert (name, await outcome(call, guest.path(there))) == expected
        assert (name, tree(there)) == (name, tree(here))


async def test_links_and_names_of_a_file_are_the_same_file(guest: Guest, tmp_path: Path) -> None:
    # (trio's own `samefile` fails, whatever its arguments are.)
    make_tree(tmp_path / "root")
    root = guest.path(tmp_path / "root")
    await (root / "name").hardlink_to(root / "file")
    for other, same in (("link", True), ("name", True), ("dir/../file", True), ("dir/inner", False)):
        assert await (root / "file").samefile(root / other) is same
        assert await (root / "file").samefile(str(root / other)) is same
    with pytest.raises(FileNotFoundError):
        await (root / "file").samefile(root / "missing")


async def test_places_are_those_of_the_agent(guest: Guest) -> None:
    assert str(await guest.path("").cwd()) == str(await guest.path("x").resolve()).rpartition("/")[0]
    home = str(await trio.Path.home())
    assert str(await guest.path("/x").home()) == home
    assert str(await guest.path("~/a/b").expanduser()) == f"{home}/a/b"
    assert str(await guest.path(f"~{getpass.getuser()}").expanduser()) == pwd.getpwuid(os.geteuid()).pw_dir
    for path in ("/~", "x/~", "x"):
        assert str(await guest.path(path).expanduser()) == path
    with pytest.raises(RuntimeError, match="home directory"):
        await guest.path("~no_such_user/x").expanduser()


async def test_home_is_what_the_agents_environment_says(tmp_path: Path) -> None:
    async with trio_console.open_guest(
        trio_console.ProcessGuest(env={**os.environ, "HOME": str(tmp_path)})
    ) as guest:
        assert str(await guest.path("").home()) == str(tmp_path)
        assert str(await guest.path("~/a/b").expanduser()) == f"{tmp_path}/a/b"


async def test_a_number_without_a_name_is_a_key_error(guest: Guest, tmp_path: Path) -> None:
    os.chown(tmp_path, 3_999_999, 3_999_998)
    here, there = trio.Path(tmp_path), guest.path(tmp_path)
    for call in ("owner", "group"):
        with pytest.raises(KeyError) as expected:
            await getattr(here, call)()
        with pytest.raises(KeyError) as caught:
            await getattr(there, call)()
        assert str(caught.value) == str(expected.value)


async def test_a_stat_has_what_it_has_on_this_machine(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 10_000)
    expected, got = os.stat(tmp_path / "f"), await guest.path(tmp_path / "f").stat()
    assert got == expected
    for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize", "st_blocks", "st_rdev", "st_mtime"):
        assert getattr(got, name) == getattr(expected, name), name


async def test_touch_never_makes_a_file_older(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "f"
    for _ in range(20):
        path.write_bytes(b"new")
        before = path.stat().st_mtime_ns
        await guest.path(path).touch()
        assert path.stat().st_mtime_ns >= before


@pytest.mark.parametrize("mode", ["r", "rb", "r+", "rb+", "w+", "wb+", "a+", "ab+"])
async def test_a_script_does_what_it_does_on_a_local_file(guest: Guest, tmp_path: Path, mode: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(CONTENTS)
    there.write_bytes(CONTENTS)
    data: Any = b"new\xff\n" if "b" in mode else "ne\u00fc\n"
    steps = [
        *READS,
        ("seek", 0, 2),
        ("write", data),
        ("flush",),
        ("tell",),
        ("seek", 0),
        ("read",),
        ("truncate", 3),
    ]
    options = {} if "b" in mode else {"encoding": "utf-8"}
    expected = await play(partial(trio.open_file, here, mode, **options), steps)
    assert await play(partial(guest.open_file, there, mode, **options), steps) == expected
    assert there.read_bytes() == here.read_bytes()


async def test_large_files_pass_both_ways_at_once(guest: Guest, tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    (tmp_path / "source").write_bytes(data)

    async def read() -> None:
        assert await guest.path(tmp_path / "source").read_bytes() == data

    async def write() -> None:
        assert await guest.path(tmp_path / "target").write_bytes(data) == len(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
        await guest.ping()
    assert (tmp_path / "target").read_bytes() == data


async def test_lines_come_by_iteration(guest: Guest, tmp_path: Path) -> None:
    lines = [f"line {i} \u20ac\n" for i in range(20_000)]
    async with await guest.open_file(tmp_path / "file", "w") as file:
        await file.writelines(lines)
    async with await guest.open_file(tmp_path / "file") as file:
        assert [line async for line in file] == lines


async def test_a_cancelled_read_or_write_leaves_the_file_usable(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * MIB))
    async with await guest.open_file(path, "rb+") as file:
        for call in (file.read, partial(file.write, bytes(64 * MIB))):
            await file.seek(0)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call)
                    await guest.ping()
                    scope.cancel()
            assert scope.cancelled_caught
        await file.seek(0)
        await file.truncate(0)
        await file.write(b"after")
    assert path.read_bytes() == b"after"


async def test_many_tasks_read_many_files(guest: Guest, tmp_path: Path) -> None:
    for i in range(50):
        (tmp_path / str(i)).write_bytes(b"%d" % i * 10_000)

    async def read(i: int) -> None:
        assert await guest.path(tmp_path / str(i)).read_bytes() == b"%d" % i * 10_000

    async with trio.open_nursery() as nursery:
        for i in range(50):
            nursery.start_soon(read, i)


async def test_a_large_directory_is_listed(guest: Guest, tmp_path: Path) -> None:
    names = {f"{i:05}" for i in range(3000)}
    for name in names:
        (tmp_path / name).touch()
    assert {path.name for path in await guest.path(tmp_path).iterdir()} == names


async def test_cancelled_opens_leak_no_handle(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    # More than the handles one client may have.

    async def open_and_close() -> None:
        async with await guest.open_file(path):
            pass

    for _ in range(1100):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(open_and_close)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    # An open that was cancelled while its answer was on its way counts until its handle is closed.
    while guest.statistics().active_sessions:
        await guest.ping()
    async with await guest.open_file(path) as file:
        assert await file.read() == "x"


async def test_a_killed_guest_ends_its_files(tmp_path: Path) -> None:
    with trio.fail_after(HANG):
        async with trio_console.open_guest() as guest:
            file = await guest.open_file(tmp_path / "file", "wb")
            await file.write(b"not written")
            with pytest.raises(trio_console.GuestLostError):
                await guest.run_process(["/bin/sh", "-c", "kill -9 $PPID; sleep 9"])
            with pytest.raises(trio_console.GuestLostError):
                await file.aclose()
