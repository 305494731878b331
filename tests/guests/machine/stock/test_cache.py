"""The cache: entries are made once, and are whole or not there."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.limits import HANG
from trio_console._guests.machine.stock import cache

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "trio_console"


def write(place: Path) -> None:
    (place / "file").write_text("whole")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Is set when somebody has found a lock taken."""
    event = trio.Event()
    try_lock = cache._try_lock

    def tried(path: Path) -> FileIO | None:
        if (lock := try_lock(path)) is None:
            event.set()
        return lock

    monkeypatch.setattr(cache, "_try_lock", tried)
    return event


async def test_an_entry_is_made_and_kept(here: Path) -> None:
    place = await cache.kept("things", "one", cache.by_thread(write))
    assert place == here / "things/one"
    assert await cache.kept("things", "one", cache.by_thread(lambda _place: pytest.fail("made again"))) == place
    assert (place / "file").read_text() == "whole"


async def made(key: str, *, age: float = 0, most: int | None = 2) -> Path:
    """An entry whose last use was so many seconds ago."""
    place = await cache.kept("things", key, cache.by_thread(write), most=most)
    os.utime(place, (time.time() - age, time.time() - age))
    return place


async def test_only_the_entries_that_were_used_last_are_kept_when_one_is_made(here: Path) -> None:
    for age, key in enumerate(("one", "two", "three")):
        await made(key, age=10_000 - age, most=None)
    await cache.kept("things", "one", cache.by_thread(write), most=2)  # a use, which removes nothing
    assert len(list(here.glob("things/*/file"))) == 3
    await made("four")
    assert {path.name.partition(".")[0] for path in (here / "things").iterdir()} == {"one", "four"}


async def test_an_entry_that_was_used_just_now_is_kept_for_who_may_not_have_opened_it(here: Path) -> None:
    for key in ("one", "two", "three", "four"):
        await made(key)
    assert len(list(here.glob("things/*/file"))) == 4


async def test_an_entry_that_somebody_has_locked_is_kept(here: Path) -> None:
    old = await made("old", age=10_000)
    lock = cache._try_lock(old.with_name("old.lock"))
    assert lock is not None
    with lock:
        for key in ("one", "two"):
            await made(key)
    assert (old / "file").exists()


async def test_what_cannot_be_removed_keeps_nobody_from_an_entry(here: Path) -> None:
    (here / "things").mkdir(parents=True)
    (here / "things/broken").symlink_to("nowhere")
    assert (await made("one") / "file").exists()


async def test_two_at_once_make_an_entry_once(refused: trio.Event) -> None:
    made = []
    both = threading.Event()

    def make(place: Path) -> None:
        made.append(place)
        assert both.wait(HANG)
        write(place)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(cache.kept, "things", "one", cache.by_thread(make))
        await refused.wait()
        both.set()
    assert len(made) == 1


async def test_what_fails_is_no_entry(here: Path) -> None:
    def fail(place: Path) -> None:
        write(place)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        await cache.kept("things", "one", cache.by_thread(fail))
    assert [path.name for path in (here / "things").iterdir()] == ["one.lock"]


async def test_what_a_killed_program_has_left_is_no_part_of_an_entry(here: Path) -> None:
    (here / "things/one.new").mkdir(parents=True)
    (here / "things/one.new/half").touch()
    place = await cache.kept("things", "one", cache.by_thread(write))
    assert [path.name for path in place.iterdir()] == ["file"]


async def test_a_wait_for_an_entry_can_be_cancelled() -> None:
    going_on, begun = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def make(_place: Path) -> None:
        token.run_sync_soon(begun.set)
        assert going_on.wait(HANG)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.kept, "things", "one", cache.by_thread(make))
        await begun.wait()
        with trio.move_on_after(0.05) as scope:
            await cache.kept("things", "one", cache.by_thread(write))
        assert scope.cancelled_caught
        going_on.set()


async def test_an_entry_whose_making_is_cancelled_is_none(here: Path) -> None:
    with trio.CancelScope() as scope:

        async def make(place: Path) -> None:
            write(place)
            scope.cancel()
            await trio.sleep_forever()

        await cache.kept("things", "one", make)
    assert [path.name for path in (here / "things").iterdir()] == ["one.lock"]


async def test_an_entry_that_was_discarded_is_made_anew() -> None:
    place = await cache.kept("things", "one", cache.by_thread(write))
    await cache.discard(place)
    assert not place.exists()
    assert await cache.kept("things", "one", cache.by_thread(write)) == place


async def test_nothing_is_left_when_it_was_pruned(here: Path) -> None:
    await cache.kept("things", "one", cache.by_thread(write))
    await cache.kept("others", "two", cache.by_thread(write))
    assert await cache.prune(["things"]) > 0
    assert [path.name for path in here.iterdir()] == ["others"]


async def test_whoever_gets_the_lock_of_an_entry_that_was_pruned_takes_another(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It has opened the lock's file; whoever prunes removes that; then it locks a file that nobody else will find.
    flock, removed = fcntl.flock, []

    def late(file: FileIO, operation: int) -> None:
        if not removed:
            removed.append(here / "things/one.lock")
            removed[0].unlink()
        flock(file, operation)

    monkeypatch.setattr(cache.fcntl, "flock", late)
    await cache.kept("things", "one", cache.by_thread(write))
    assert removed[0].exists()


def test_the_directory_is_the_users_unless_the_environment_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert str(cache.directory()) == "/home/user/.cache/trio_console"


def test_a_name_is_that_of_what_it_was_made_of(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    first = cache.key_of(cache.stamp(path))
    assert first == cache.key_of(cache.stamp(path))
    path.write_text("longer")
    assert first != cache.key_of(cache.stamp(path))
