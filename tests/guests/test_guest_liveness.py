"""Real guests that are silent, or seem to be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import HANG
from tests.tools.pidfds import pidfd_open, pidfd_send_signal
from trio_console import GuestLostError, ProcessGuest, UnsupportedByPeer, connect_guest, open_guest
from trio_console._open import guest as _opening
from trio_console._session.connection import Connection
from trio_console.testing import nothing_left_behind

if TYPE_CHECKING:
    from trio.testing import MockClock

    from trio_console import Guest


async def _agent_pid(guest: Guest) -> int:
    return int((await guest.run_process(["sh", "-c", "echo $PPID"], capture_stdout=True)).stdout)


async def test_a_stopped_guest_is_given_up_and_ended_by_force() -> None:
    with trio.fail_after(HANG):
        async with open_guest(heartbeat=0.2) as guest:
            agent = pidfd_open(await _agent_pid(guest))
            try:
                pidfd_send_signal(agent, signal.SIGSTOP)
                lost = await guest.wait_lost()
                assert "silent" in lost.reason
                await trio.lowlevel.wait_readable(agent)  # it has ended, before the block is left
            finally:
                os.close(agent)


async def test_a_client_of_a_relay_leaves_a_silent_guest_and_ends_nothing(tmp_path: Any) -> None:
    path = tmp_path / "relay.sock"
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path) as owner:
            pid = await _agent_pid(owner)
            async with connect_guest(path, heartbeat=0.2) as guest:
                os.kill(pid, signal.SIGSTOP)
                try:
                    assert "silent" in (await guest.wait_lost()).reason
                finally:
                    os.kill(pid, signal.SIGCONT)
            assert await owner.ping() >= 0


async def test_a_program_that_sleeps_keeps_its_guest() -> None:
    with trio.fail_after(HANG):
        async with open_guest(heartbeat=0.2) as guest:
            for _ in range(2):
                time.sleep(0.5)  # noqa: ASYNC251  (that is the point)
                await trio.lowlevel.checkpoint()
            await guest.ping()


HOST = """
import sys, trio
from trio_console import open_guest

async def main():
    async with open_guest(heartbeat=0.2) as guest:
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        await guest.ping()
        print("alive", flush=True)

trio.run(main)
"""


def test_a_program_that_is_stopped_keeps_its_guest() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as host:
        try:
            assert host.stdin is not None
            assert host.stdout is not None
            assert host.stdout.readline() == "ready\n"
            host.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, host.pid, os.WSTOPPED | os.WNOWAIT)
            time.sleep(1.5)
            host.send_signal(signal.SIGCONT)
            host.stdin.write("\n")
            host.stdin.flush()
            assert host.stdout.readline() == "alive\n"
            assert host.wait(HANG) == 0
        finally:
            host.kill()


@pytest.mark.parametrize("heartbeat", ["1", 0])
async def test_what_is_no_heartbeat_is_refused_before_anything_is_started(heartbeat: Any, tmp_path: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="heartbeat must be"):
        async with open_guest(ProcessGuest(cwd="/no/such/directory"), heartbeat=heartbeat):
            pass
    with pytest.raises((TypeError, ValueError), match="heartbeat must be"):
        async with connect_guest(tmp_path / "nothing", heartbeat=heartbeat):
            pass


async def test_a_guest_whose_agent_knows_no_pings_is_refused_with_a_heartbeat_and_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_opening, "Connection", older)
    with trio.fail_after(HANG), nothing_left_behind():
        with pytest.raises(UnsupportedByPeer, match="ping"):
            async with open_guest(heartbeat=1):
                pass
        async with open_guest() as guest:
            assert (await guest.run_process(["true"])).returncode == 0


def older(stream: Any, decoder: Any, ready: Any, _generation: int, *rest: Any) -> Connection:
    """A connection to an agent of the first generation."""
    return Connection(stream, decoder, ready, 1, *rest)


# Virtual time


async def test_a_real_guest_under_virtual_time_says_what_to_do(autojump_clock: MockClock) -> None:
    with pytest.raises(GuestLostError, match=r"not ready within 60 seconds.*autojump_clock") as caught:
        async with open_guest():
            pass
    assert "memory streams" in caught.value.reason


async def test_a_relay_under_virtual_time_says_what_to_do(autojump_clock: MockClock, tmp_path: Any) -> None:
    path = os.fspath(tmp_path / "relay.sock")
    with trio.socket.socket(trio.socket.AF_UNIX) as silent:
        await silent.bind(path)
        silent.listen()
        with pytest.raises(GuestLostError, match=r"did not greet within 10 seconds.*autojump_clock"):
            async with connect_guest(path):
                pass


async def test_a_guest_that_is_late_by_the_machines_clock_is_told_nothing_of_clocks() -> None:
    with pytest.raises(GuestLostError, match=r"not ready within 0\.01 seconds$"):
        async with open_guest(ready_timeout=0.01):
            pass
