"""The cgroups of commands in whole guests: a cancelled command is dead, and nothing is left of a guest."""

from __future__ import annotations

import os
import signal
import sys
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.cgroups import cgroup_of, needs_cgroups
from tests.tools.leftovers import becomes, runs
from tests.tools.limits import HANG
from trio_console import CommandGuest, Guest, GuestLostError, ProcessGuest, connect_guest, open_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = needs_cgroups

#: A daemon that has no mark and no stream, is in a session of its own, and has lost its parent. It tells its id.
DAEMON = "env -i setsid sh -c 'sh -c \"echo \\$\\$; exec sleep 1000 </dev/null >/dev/null 2>&1\" & exit 0'"


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes to be killed when the test is over."""
    pids: list[int] = []
    yield pids
    for pid in filter(runs, pids):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(params=["process", "command", "relay"])
async def guest(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Guest]:
    if request.param == "process":
        async with open_guest(ProcessGuest()) as guest:
            yield guest
    elif request.param == "command":
        async with open_guest(CommandGuest([sys.executable, "-m", "trio_console.agent", "--stdio"])) as guest:
            yield guest
    else:
        path = tmp_path / "agent.sock"
        async with open_guest(ProcessGuest(), relay_path=path), connect_guest(path) as guest:
            yield guest


@pytest.mark.parametrize("exited", [False, True])
async def test_a_cancelled_command_leaves_no_daemon(guest: Guest, pids: list[int], *, exited: bool) -> None:
    script = f"{DAEMON}; {'exit 0' if exited else 'exec sleep 1000'}"
    with trio.CancelScope() as scope:
        async with guest.open_process(script, shell=True, stdout=PIPE) as process:
            assert process.stdout is not None
            pids.append(int(await process.stdout.receive_some()))
            await becomes(pids[0], b"sleep")
            if exited:
                await process.wait()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert not runs(pids[0])


async def agent_of(guest: Guest) -> int:
    done = await guest.run_process("echo $PPID", shell=True, capture_stdout=True)
    assert isinstance(done.stdout, bytes)
    return int(done.stdout)


async def daemon(guest: Guest, pids: list[int]) -> Path:
    """A daemon that outlives its command; returns the directory of its guest's agent."""
    done = await guest.run_process(DAEMON, shell=True, capture_stdout=True)
    assert isinstance(done.stdout, bytes)
    pids.append(int(done.stdout))
    await becomes(pids[-1], b"sleep")
    return cgroup_of(pids[-1]).parent


async def test_a_guest_leaves_no_cgroup(pids: list[int]) -> None:
    async with open_guest() as guest:
        directory = await daemon(guest, pids)
        assert directory.exists()
    assert not runs(pids[0])
    assert not directory.exists()


async def test_two_guests_have_nothing_to_do_with_each_other(pids: list[int]) -> None:
    async with open_guest() as guest:
        directory = await daemon(guest, pids)
        async with open_guest() as other:
            assert await daemon(other, pids) != directory
        assert not runs(pids[1])
        assert runs(pids[0])
        assert directory.exists()
        assert (await guest.run_process(["true"])).returncode == 0


async def test_what_a_killed_agent_has_left_ends_with_the_start_of_the_next(pids: list[int]) -> None:
    with pytest.raises(GuestLostError):
        async with open_guest() as guest:
            directory = await daemon(guest, pids)
            os.kill(await agent_of(guest), signal.SIGKILL)
            with trio.fail_after(HANG):
                await guest.run_process(["true"])
    # (The next may be that of another test. While that one is about it, others leave the directory alone.)
    with trio.fail_after(HANG):
        while directory.exists():
            async with open_guest():
                pass
    assert not runs(pids[0])


async def test_an_agent_in_another_agents_command_has_no_cgroups_of_its_own(pids: list[int]) -> None:
    agent = [sys.executable, "-m", "trio_console.agent", "--stdio"]
    async with open_guest() as outer:
        async with outer.open_process(agent, stdin=PIPE, stdout=PIPE) as process:
            assert process.stdio is not None
            async with open_guest(process.stdio) as inner:
                assert await daemon(inner, pids) == cgroup_of(process.pid).parent
        assert not runs(pids[0])
