"""Commands in a guest behave as on this machine: their streams, their ends, and what they leave running."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from subprocess import DEVNULL, PIPE, STDOUT
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.tools.leftovers import becomes, runs
from tests.tools.limits import HANG
from trio_console import CommandGuest, Guest, GuestProcess, ProcessGuest, connect_guest, open_guest
from trio_console._processes import COMMAND_MARK, GUEST_MARK
from trio_console.testing import Fault, FaultyGuest, Stall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOLD = "sleep 1000 & echo $!"


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


async def read_all(stream: trio.abc.ReceiveStream | None) -> bytes:
    assert stream is not None
    with trio.fail_after(HANG):
        return b"".join([bytes(chunk) async for chunk in stream])


async def test_a_filter_behind_the_command_is_waited_for(guest: Guest) -> None:
    done = await guest.run_process(["bash", "-c", "shuf -i 1-100000 > >(sort -n)"], capture_stdout=True)
    assert done.stdout == b"".join(b"%d\n" % number for number in range(1, 100001))
    assert not done.output_open


async def test_a_reader_that_pauses_after_the_exit_loses_nothing(guest: Guest) -> None:
    script = "exec > >(cat); head -c 2150000 /dev/zero"
    async with guest.open_process(["bash", "-c", script], stdout=PIPE) as process:
        assert await process.wait() == 0
        await trio.sleep(0.5)
        assert await read_all(process.stdout) == bytes(2150000)


async def test_a_stream_ends_when_the_command_closes_it(guest: Guest) -> None:
    script = "echo question; exec 1>&-; read answer; exit $answer"
    async with guest.open_process(["sh", "-c", script], stdin=PIPE, stdout=PIPE) as process:
        assert await read_all(process.stdout) == b"question\n"
        assert process.stdin is not None
        await process.stdin.send_all(b"7\n")
        assert await process.wait() == 7


async def test_a_killed_process_is_waited_for_without_reading_its_output(guest: Guest) -> None:
    async with guest.open_process(["yes"], stdout=PIPE) as process:
        assert process.stdout is not None
        await process.stdout.receive_some(1)
        process.kill()
        with trio.fail_after(HANG):
            assert await process.wait() == -9


async def test_both_outputs_in_one_pipe_keep_their_order(guest: Guest) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do echo out $i; echo err $i >&2; done"
    done = await guest.run_process(["sh", "-c", script], capture_stdout=True, stderr=STDOUT)
    assert done.stdout == b"".join(b"out %d\nerr %d\n" % (i, i) for i in range(1, 9))


async def test_null_is_null_in_the_guest(guest: Guest) -> None:
    code = "import os, sys; sys.stderr.write(' '.join(os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1)))"
    command = [sys.executable, "-c", code]
    done = await guest.run_process(command, stdin=DEVNULL, stdout=DEVNULL, capture_stderr=True)
    assert done.stderr == b"/dev/null /dev/null"


async def test_a_background_process_outlives_its_command_with_working_output(guest: Guest, tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = f"(sleep 0.5; head -c 300000 /dev/zero && touch {done}) & exit 0"
    result = await guest.run_process(["sh", "-c", script], capture_stdout=True, drain=0)
    assert result.output_open
    with trio.fail_after(HANG):
        while not done.exists():
            await trio.sleep(0.01)


async def test_a_held_output_is_told_with_a_failure_too(guest: Guest) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        await guest.run_process(["sh", "-c", f"{HOLD}; exit 3"], capture_stdout=True, drain=0.01)
    assert caught.value.returncode == 3
    assert caught.value.output_open
    os.kill(int(caught.value.output), signal.SIGKILL)


async def test_a_block_left_in_order_lets_the_background_live(guest: Guest) -> None:
    async with guest.open_process(["sh", "-c", HOLD], stdout=PIPE) as process:
        assert process.stdout is not None
        pid = int(await process.stdout.receive_some())
        assert await process.wait() == 0
    assert runs(pid)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("exited", [True, False])
async def test_a_block_left_by_a_cancellation_kills_the_background(guest: Guest, *, exited: bool) -> None:
    script = f"(setsid {HOLD}); {'exit 0' if exited else 'wait; sleep 1000'}"
    with trio.CancelScope() as scope:
        async with guest.open_process(["sh", "-c", script], stdout=PIPE) as process:
            assert process.stdout is not None
            pid = int(await process.stdout.receive_some())
            if exited:
                await process.wait()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert not runs(pid)


BACKGROUND = ["sleep 1000", "setsid sleep 1000", "env -i sleep 1000"]


@pytest.mark.parametrize("command", BACKGROUND)
@pytest.mark.parametrize("how", ["exception", "cancellation"])
async def test_a_block_that_fails_after_the_exit_kills_what_holds_no_stream(
    guest: Guest, how: str, command: str
) -> None:
    script = f"{command} </dev/null >/dev/null 2>&1 & echo $!"
    pid = 0
    with contextlib.suppress(LookupError), trio.CancelScope() as scope:
        async with guest.open_process(["sh", "-c", script], stdout=PIPE) as process:
            pid = int(await read_all(process.stdout))
            await process.wait()
            while guest.statistics().active_sessions:  # the session is over
                await trio.sleep(0.001)
            await becomes(pid, b"sleep")
            if how == "exception":
                raise LookupError("mine")
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert not runs(pid)


@pytest.mark.parametrize("command", BACKGROUND)
async def test_a_block_left_in_order_lets_what_holds_no_stream_live(guest: Guest, command: str) -> None:
    script = f"{command} </dev/null >/dev/null 2>&1 & echo $!"
    async with guest.open_process(["sh", "-c", script], stdout=PIPE) as process:
        pid = int(await read_all(process.stdout))
        await becomes(pid, b"sleep")
        await process.wait()
    assert runs(pid)
    os.kill(pid, signal.SIGKILL)


async def test_a_command_cancelled_as_its_session_ends_by_itself_is_dead() -> None:
    """Its last frame is on its way, so the request to kill all comes to an agent that has ended the session."""
    slow = Fault(Stall(), "core.exec.exited")
    faulty = FaultyGuest([slow])
    script = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"
    async with open_guest(faulty) as guest:
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[GuestProcess]) -> None:
                await guest.run_process(["sh", "-c", script], stdout=PIPE, task_status=task_status)

            process = await nursery.start(run)
            pid = int(await process.stdout.receive_some())
            await faulty.wait_fired(slow)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            faulty.resume()
        assert not runs(pid)


async def test_a_command_cancelled_while_its_output_is_still_copied_is_dead(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command has ended; this program's own output takes nothing."""
    copying = trio.Event()

    async def stuck(_stream: object, _fd: int) -> None:
        copying.set()
        await trio.sleep_forever()

    monkeypatch.setattr("trio_console._session.process.plumbing._pass_on", stuck)
    script = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >&2"
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[GuestProcess]) -> None:
            await guest.run_process(["sh", "-c", script], stderr=PIPE, task_status=task_status)

        process = await nursery.start(run)
        pid = int(await read_all(process.stderr))
        await copying.wait()
        while guest.statistics().active_sessions:
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert not runs(pid)


@pytest.mark.parametrize(
    "script",
    [
        "timeout 1000 sleep {}; :",
        "set -m; sleep {} & wait",
        "setsid sleep {} & wait",
        "(setsid sleep {} &); sleep 1000",
    ],
)
async def test_cancelled_is_dead(guest: Guest, script: str) -> None:
    marker = f"1000.{os.getpid()}{abs(hash(script)) % 1000}"

    def alive() -> list[str]:
        listing = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
        return [line for line in listing.splitlines() if line.endswith(f"sleep {marker}") and line[0] != "Z"]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.run_process, ["bash", "-c", script.format(marker)])
        with trio.fail_after(HANG):
            while not alive():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert alive() == []


async def test_a_terminal_has_a_type(guest: Guest) -> None:
    done = await guest.run_process(["sh", "-c", 'test -n "$TERM" && echo yes'], tty=True, capture_stdout=True)
    assert done.stdout == b"yes\r\n"


async def test_a_user_that_the_guest_does_not_know_is_a_lookup_error(guest: Guest) -> None:
    with pytest.raises(LookupError, match="no-such-user"):
        await guest.run_process(["true"], user="no-such-user")


async def test_a_host_that_the_guest_does_not_know_is_a_gaierror(guest: Guest) -> None:
    with pytest.raises(socket.gaierror):
        await guest.open_tcp_stream("no-such-host.invalid", 80)


async def test_signal_0_is_no_signal(guest: Guest) -> None:
    async with guest.open_process(["cat"], stdin=PIPE) as process:
        process.send_signal(0)
        assert process.stdin is not None
        await process.stdin.aclose()
        assert await process.wait() == 0


async def test_commands_of_a_process_guest_get_no_variable_that_nobody_gave() -> None:
    env = {"PATH": os.environ["PATH"], "LANG": "C"}
    async with open_guest(ProcessGuest(env=env)) as guest:
        done = await guest.run_process(["env"], capture_stdout=True)
    names = {line.partition(b"=")[0].decode() for line in done.stdout.splitlines()}
    assert names - {"HOME"} == {*env, GUEST_MARK, COMMAND_MARK}
