"""Files of a real guest: the agent in a child process."""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_console
from tests.session.files.test_files_twin import CONTENTS, READS, play
from tests.session.files.test_path import CALLS, describe, make_tree, tree
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from pathlib import Path

    from trio_console import Guest

MIB = 1024 * 1024


async def test_every_path_call_does_what_trio_path_does(guest: Guest, tmp_path: Path) -> None:
    async def outcome(call: Any, root: Any) -> Any:
        try:
            return describe(await call(root), str(root))
        except Exception as exc:
            return describe(exc, str(root))

    for number, (name, call) in enumerate(CALLS):
        here, there = tmp_path / f"{number}a", tmp_path / f"{number}b"
        make_tree(here)
        shutil.copytree(here, there, symlinks=True)
        expected = name, await outcome(call, trio.Path(here))
        assert (name, await outcome(call, guest.path(there))) == expected
        assert (name, tree(there)) == (name, tree(here))


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
    for _ in range(1100):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.open_file, path)
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
