"""When no thread can be started, one plain error is raised, and nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.tools.leftovers import becomes, idle_threads, runs
from tests.tools.limits import HANG
from trio_console import ProcessGuest, connect_guest, open_console, open_guest
from trio_console._relay.log import SessionLog
from trio_console._trio.threads import NoThreadError, in_thread
from trio_console.testing import ScriptedGuest, nothing_left_behind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio_console._guests.spec import GuestSpec


class Threads:
    """Trio's threads, as far as there are any."""

    def __init__(self, left: int | None = None) -> None:
        self.left = left

    def take(self) -> None:
        if self.left is not None:
            if not self.left:
                raise RuntimeError("can't start new thread")
            self.left -= 1


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    """As many as the test says, with none waiting in trio's cache."""
    supply = Threads()
    real = trio.to_thread.run_sync

    async def run_sync(*args: Any, **options: Any) -> Any:
        supply.take()
        return await real(*args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    return supply


@pytest.mark.parametrize("left", [0, 1])
async def test_a_console_is_refused_and_its_device_closed(threads: Threads, left: int) -> None:
    threads.left = left
    ours, theirs = socket.socketpair()
    with nothing_left_behind(), theirs:
        with pytest.raises(RuntimeError, match="no thread could be started for a console, which takes two"):
            async with open_console(ours):
                pytest.fail("was entered")
        assert theirs.recv(1) == b""


async def test_the_error_is_trios_in_a_real_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def use_up_the_cache() -> None:
        release = threading.Event()

        async def hold(task_status: trio.TaskStatus[None]) -> None:
            def wait() -> None:
                trio.from_thread.run_sync(task_status.started)
                release.wait(HANG)

            await trio.to_thread.run_sync(wait, limiter=trio.CapacityLimiter(1))

        async with trio.open_nursery() as nursery:
            # Each takes one, if there is one, and has its own name once it says that it holds.
            while idle_threads():
                await nursery.start(hold)
            monkeypatch.setattr(threading.Thread, "start", start)
            try:
                ours, theirs = socket.socketpair()
                with theirs, pytest.raises(RuntimeError, match="no thread could be started") as caught:
                    async with open_console(ours):
                        pass
                assert isinstance(caught.value.__cause__, RuntimeError)
            finally:
                release.set()

    await use_up_the_cache()


@pytest.mark.parametrize(("make", "needed"), [(ScriptedGuest, 3), (ProcessGuest, 5)])
async def test_a_guest_is_refused_and_nothing_of_it_left(
    threads: Threads, tmp_path: Path, make: Callable[[], GuestSpec], needed: int
) -> None:
    for left in range(needed):
        threads.left = left
        with nothing_left_behind():
            with pytest.raises(RuntimeError, match="no thread could be started"):
                async with open_guest(make(), relay_path=tmp_path / "socket"):
                    pytest.fail("was entered")
        assert not os.listdir(tmp_path)
    threads.left = needed
    async with open_guest(make(), relay_path=tmp_path / "socket"):
        pass
    assert not os.listdir(tmp_path)


async def test_what_a_guest_has_left_is_killed_all_the_same(threads: Threads) -> None:
    with nothing_left_behind():
        async with open_guest() as guest:
            done = await guest.run_process(
                ["sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! $PPID"], capture_stdout=True
            )
            daemon, agent = map(int, done.stdout.split())
            await becomes(daemon, b"sleep")
            os.kill(agent, signal.SIGKILL)
            threads.left = 0
        assert not runs(daemon)


async def test_a_relays_socket_is_removed_all_the_same(threads: Threads, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with open_guest(ScriptedGuest(), relay_path=path) as _guest, connect_guest(path):
        threads.left = 0
    assert not path.exists()


async def test_a_session_log_waits_for_a_thread(
    threads: Threads, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    log = SessionLog(tmp_path / "log")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        threads.left = 0
        log._put(1, "stdout", b"said meanwhile")
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1)
        assert log.statistics().records_written == 0
        # The clock stands still during the write: a clock that jumps would not wait for a thread.
        threads.left = None
        nursery.cancel_scope.cancel()
    assert log.statistics().records_written == 1


async def test_what_the_function_raises_is_not_taken_for_a_shortage() -> None:
    def fails() -> None:
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own") as caught:
        await in_thread("for a test", fails)
    assert not isinstance(caught.value, NoThreadError)
