"""Everything that is left behind is found and named, and nothing else."""

from __future__ import annotations

import os
import subprocess
import threading

import pytest
import trio

from trio_console import open_guest
from trio_console.testing import ScriptedGuest, _left_behind, nothing_left_behind


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_left_behind, "_GRACE", 0.0)


def test_a_guest_leaves_nothing() -> None:
    async def use() -> None:
        async with open_guest(ScriptedGuest()) as guest:
            await guest.ping()

    with nothing_left_behind():
        trio.run(use)


@pytest.mark.usefixtures("no_grace")
def test_a_descriptor_is_named() -> None:
    fd = -1
    try:
        with (
            pytest.raises(AssertionError, match=r"left behind: descriptor \d+ \(/dev/null\)"),
            nothing_left_behind(),
        ):
            fd = os.open(os.devnull, os.O_RDONLY)
    finally:
        os.close(fd)


@pytest.mark.usefixtures("no_grace")
def test_a_thread_is_named() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="lingering")
    try:
        with pytest.raises(AssertionError, match="thread 'lingering'"), nothing_left_behind():
            thread.start()
    finally:
        end.set()
        thread.join()


@pytest.mark.usefixtures("no_grace")
def test_a_child_process_is_named() -> None:
    child = None
    try:
        with pytest.raises(AssertionError, match="child process"), nothing_left_behind():
            child = subprocess.Popen(["sleep", "1000"])
    finally:
        assert child is not None
        child.kill()
        child.wait()


def test_what_is_just_ending_is_waited_for() -> None:
    end = threading.Event()
    with nothing_left_behind():
        thread = threading.Thread(target=end.wait, args=(0.05,))
        thread.start()


def test_garbage_is_collected_first() -> None:
    class Holder:
        def __init__(self) -> None:
            self.me = self
            self.file = open(os.devnull)  # noqa: SIM115

        def __del__(self) -> None:
            self.file.close()

    with nothing_left_behind():
        Holder()


def test_a_block_that_raises_is_not_judged() -> None:
    fd = -1
    try:
        with pytest.raises(ZeroDivisionError), nothing_left_behind():
            fd = os.open(os.devnull, os.O_RDONLY)
            raise ZeroDivisionError
    finally:
        os.close(fd)
