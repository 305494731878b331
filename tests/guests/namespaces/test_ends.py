"""The ends of a guest in namespaces: whatever is killed, and when, the guest is lost soon and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.leftovers import started_with
from tests.tools.limits import HANG
from tests.tools.pids import agent_of
from trio_console import BubblewrapGuest, GuestLostError, open_guest
from trio_console._guests.namespaces import bubblewrap
from trio_console._guests.namespaces.inside import Inside
from trio_console._processes import GUEST_MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_console import Guest


class Started:
    """The bubblewraps that were started: their processes, and the marks of all that they have started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[trio.Process] = []
        self.marks: set[bytes] = set()
        self.then: Callable[[trio.Process], None] = lambda _process: None
        start = bubblewrap.start

        async def note(command: list[str], **options: Any) -> trio.Process:
            process = await start(command, **options)
            self.processes.append(process)
            self.marks.add(f"{GUEST_MARK}={options['env'][GUEST_MARK]}".encode())
            self.then(process)
            return process

        monkeypatch.setattr(bubblewrap, "start", note)

    def left(self) -> set[int]:
        return started_with(self.marks)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    started = Started(monkeypatch)
    yield started
    assert len(started.marks) == 1
    assert started.left() == set()


async def test_all_of_it_ends_with_the_block(started: Started) -> None:
    with trio.fail_after(HANG):
        async with open_guest(BubblewrapGuest()) as guest:
            await guest.run_process("setsid sleep 1000 >/dev/null 2>&1 </dev/null &", shell=True)
            assert len(started.left()) >= 3  # bubblewrap, the agent, and what it has started


async def test_bubblewrap_killed_at_its_start_is_a_lost_guest(started: Started) -> None:
    started.then = lambda process: os.kill(process.pid, signal.SIGKILL)
    with trio.fail_after(HANG):
        with pytest.raises(GuestLostError, match="bwrap was killed by SIGKILL"):
            async with open_guest(BubblewrapGuest()):
                pass


@pytest.mark.parametrize("whom", ["bubblewrap", "agent", "both"])
async def test_killed_before_the_agents_program_begins_it_is_a_lost_guest(
    started: Started, whom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = bubblewrap._Watched.learn

    async def kill_then(watched: Any, news: Any) -> bool:
        answer = await learn(watched, news)
        [process] = started.processes
        if whom in ("bubblewrap", "both"):
            os.kill(process.pid, signal.SIGKILL)
        if whom in ("agent", "both"):
            os.kill(watched._inside._pid, signal.SIGKILL)
        return answer

    monkeypatch.setattr(bubblewrap._Watched, "learn", kill_then)
    with trio.fail_after(HANG):
        with pytest.raises(GuestLostError, match="bwrap "):
            async with open_guest(BubblewrapGuest()):
                pass


async def _upload(guest: Guest, *, task_status: trio.TaskStatus[None]) -> None:
    async with guest.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        task_status.started()
        with pytest.raises(GuestLostError):
            while True:
                await process.stdin.send_all(bytes(1 << 20))


@pytest.mark.parametrize("work", ["idle", "upload"])
@pytest.mark.parametrize("whom", ["bubblewrap", "agent", "both"])
async def test_killed_while_it_is_used_it_is_a_lost_guest(started: Started, whom: str, work: str) -> None:
    with trio.fail_after(HANG):
        async with open_guest(BubblewrapGuest()) as guest:
            agent = await agent_of(guest)
            async with trio.open_nursery() as nursery:
                if work == "upload":
                    await nursery.start(_upload, guest)
                if whom in ("bubblewrap", "both"):
                    os.kill(started.processes[0].pid, signal.SIGKILL)
                if whom in ("agent", "both"):
                    os.kill(agent, signal.SIGKILL)
                await guest.wait_lost()
            with pytest.raises(GuestLostError, match="bwrap "):
                await guest.ping()


async def test_stopped_it_costs_no_more_than_the_grace_and_leaves_nothing(started: Started) -> None:
    with trio.fail_after(HANG):
        async with open_guest(BubblewrapGuest(), grace=1.0) as guest:
            agent = await agent_of(guest)
            for pid in (agent, started.processes[0].pid):
                os.kill(pid, signal.SIGSTOP)


async def test_cancelled_at_its_start_it_leaves_nothing(started: Started) -> None:
    with trio.fail_after(HANG), trio.CancelScope() as scope:
        started.then = lambda _process: scope.cancel()
        async with open_guest(BubblewrapGuest()):
            pass
    assert scope.cancelled_caught


async def test_an_agent_that_a_command_has_taken_over_is_killed() -> None:
    # It may have another environment by then, and no console.
    inside = Inside("no process has this mark")
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:  # noqa: ASYNC220
        assert inside.learn(process.pid)
        inside.kill()
        assert process.wait(HANG) == -signal.SIGKILL


async def test_what_has_got_the_number_of_an_agent_lives() -> None:
    inside = Inside("no process has this mark")
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:  # noqa: ASYNC220
        assert inside.learn(process.pid)
        inside._started = "1"
        inside.kill()
        with trio.fail_after(HANG):
            await inside.end(trio.CancelScope())
        assert process.poll() is None
        process.kill()


async def test_an_agent_without_its_mark_is_waited_for_at_the_end() -> None:
    inside = Inside("no process has this mark")
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:  # noqa: ASYNC220
        assert inside.learn(process.pid)
        with trio.fail_after(HANG):
            await inside.end(trio.CancelScope())
        assert process.wait(HANG) == -signal.SIGKILL
