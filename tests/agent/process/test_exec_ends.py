"""The exit of a command and the ends of its streams: each is told when it happens, to a client that asks."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.agent._host import wait_gone
from tests.tools.leftovers import becomes, runs
from tests.tools.limits import HANG
from tests.tools.pidfds import pidfd_open
from trio_console import _processes
from trio_console import _wire as wire
from trio_console.agent._process import session as session_module
from trio_console.agent._process.hunt import Hunt
from trio_console.agent._process.spawn import Child

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent._host import Host
    from trio_console._processes import Wanted

TO_THE_END = wire.ExecEnds(None)
HOLDER = "sleep 1000 & echo $!"


async def the_holder(host: Host, sid: int) -> int:
    """The process id that the script `HOLDER` has told."""
    message = await host.receive(sid)
    assert isinstance(message, wire.ExecStdout)
    return int(message.data)


async def read_on(host: Host, sid: int) -> tuple[int, wire.ExecExited]:
    """Read the output to its end, with a grant for each chunk; returns how many bytes came, and the exit."""
    size = 0
    while True:
        message = await host.receive(sid)
        if isinstance(message, wire.ExecExited):
            return size, message
        if isinstance(message, wire.ExecStdout):
            size += len(message.data)
            await host.send(wire.Credit("stdout", len(message.data)), sid)


# What is told, and when


async def test_a_command_that_just_ends_costs_no_further_frame(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_TOGETHER", HANG)  # however busy the machine is
    outcome = await host.run("echo", "x", ends=TO_THE_END)
    assert [type(message) for message in outcome.messages] == [wire.ExecStarted, wire.ExecStdout, wire.ExecExited]


async def test_an_exit_that_a_relay_may_hold_behind_output_is_told_by_itself(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_TOGETHER", HANG)
    outcome = await host.run("head", "-c", "65536", "/dev/zero", ends=TO_THE_END)
    assert wire.ExecLeft(0) in outcome.messages
    assert outcome.last == wire.ExecExited(0)


@pytest.mark.parametrize("after_exit", [True, False])
async def test_the_exit_of_a_command_that_is_killed_whole_is_told_by_itself_too(
    host: Host, *, after_exit: bool
) -> None:
    sid = await host.start("sh", "-c", "head -c 65536 /dev/zero; exec sleep 1000", ends=TO_THE_END)
    size = 0
    while size < 65536:
        size += len((await host.receive(sid)).data)
    await host.send(wire.ExecKill(10_000, after_exit=after_exit), sid)
    if after_exit:
        await host.send(wire.ExecSignal(15), sid)
    number = 15 if after_exit else 9
    outcome = await host.collect(sid)
    assert outcome.messages == [wire.ExecLeft(-1, number), wire.ExecExited(-1, number, alive=0)]


async def test_an_exit_that_was_told_is_not_told_again_by_a_kill(host: Host) -> None:
    sid = await host.start("sh", "-c", f"head -c 65536 /dev/zero; {HOLDER} >&2", ends=TO_THE_END)
    while not isinstance(await host.receive(sid), wire.ExecLeft):
        pass
    await host.send(wire.ExecKill(10_000), sid)
    outcome = await host.collect(sid)
    assert [type(message) for message in outcome.messages if not isinstance(message, wire.ExecStderr)] == [
        wire.ExecExited
    ]


async def test_the_end_of_a_stream_is_told_while_the_command_runs(host: Host, tmp_path: Path) -> None:
    go = tmp_path / "go"
    waits = f"for i in $(seq 250); do test -e {go} && exit 3; sleep 0.02; done"  # and gives up, if it is not told
    sid = await host.start("sh", "-c", f"echo out; exec >&-; {waits}", ends=TO_THE_END)
    assert await host.receive(sid) == wire.ExecStdout(b"out\n")
    assert await host.receive(sid) == wire.ExecStreamEnded("stdout")
    go.touch()
    assert (await host.collect(sid)).last == wire.ExecExited(3)


async def test_an_exit_is_told_while_another_process_holds_the_streams(host: Host) -> None:
    sid = await host.start("sh", "-c", f"{HOLDER}; read x; exit 4", ends=TO_THE_END)
    pid = await the_holder(host, sid)
    await host.send(wire.ExecStdin(b"\n"), sid)
    assert await host.receive(sid) == wire.ExecLeft(4)
    assert await host.nothing_for(sid)
    os.kill(pid, signal.SIGKILL)
    assert (await host.collect(sid)).last == wire.ExecExited(4)


async def test_an_exit_is_told_while_output_is_not_read(host: Host) -> None:
    sid = await host.start("sh", "-c", "head -c 100 /dev/zero; read x; exit 5", ends=TO_THE_END, window=10)
    assert await host.receive(sid) == wire.ExecStdout(bytes(10))
    await host.send(wire.ExecStdin(b"\n"), sid)
    assert await host.receive(sid) == wire.ExecLeft(5)
    await host.send(wire.Credit("stdout", 10), sid)
    assert await read_on(host, sid) == (90, wire.ExecExited(5))


async def test_a_client_that_does_not_ask_is_told_nothing_more(host: Host) -> None:
    outcome = await host.sh("echo out; exec >&-; sleep 0.1; exit 3")
    assert [type(message) for message in outcome.messages] == [wire.ExecStarted, wire.ExecStdout, wire.ExecExited]
    outcome = await host.sh(f"{HOLDER}; exit 4")
    os.kill(int(outcome.stdout), signal.SIGKILL)
    assert outcome.last == wire.ExecExited(4)


# The drain


async def test_a_stream_is_read_on_while_bytes_come(host: Host) -> None:
    # The pauses are far shorter than the silence that would end it, together they are longer.
    script = "(for i in 1 2 3 4 5 6 7 8; do sleep 0.2; echo $i; done) & exit 0"
    outcome = await host.sh(script, ends=wire.ExecEnds(1500))
    assert outcome.stdout == b"1\n2\n3\n4\n5\n6\n7\n8\n"
    assert outcome.last == wire.ExecExited(0)


async def test_after_the_silence_the_streams_are_said_to_be_held(host: Host) -> None:
    sid = await host.start("sh", "-c", f"{HOLDER}; exit 6", ends=wire.ExecEnds(20))
    pid = await the_holder(host, sid)
    last = (await host.collect(sid)).last
    os.kill(pid, signal.SIGKILL)
    assert last == wire.ExecExited(6, held=["stdout", "stderr"])


@pytest.mark.parametrize(
    "ends", [wire.ExecEnds(0), wire.ExecEnds(50), wire.UNSET], ids=["none", "short", "legacy"]
)
async def test_a_reader_that_pauses_loses_nothing(
    host: Host, ends: wire.ExecEnds | wire.UnsetType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "DRAIN_GRACE", 0.05)
    script = "sleep 1000 & head -c 60000 /dev/zero; read x; exit 0"
    sid = await host.start("sh", "-c", script, ends=ends, window=1000)
    received = len((await host.receive(sid)).data)
    await host.send(wire.ExecStdin(b"\n"), sid)
    with trio.move_on_after(0.3):  # the reader's pause, longer than each drain
        assert await host.receive(sid) == wire.ExecLeft(0)
    await host.send(wire.Credit("stdout", received), sid)
    assert received + (await read_on(host, sid))[0] == 60_000


async def test_silence_does_not_count_while_the_client_takes_nothing(host: Host) -> None:
    script = "(echo 4567890123; sleep 0.4; echo 4567890123) & exit 0"
    sid = await host.start("sh", "-c", script, ends=wire.ExecEnds(100), window=11)
    first = [await host.receive(sid), await host.receive(sid)]  # (the exit may overtake the output)
    assert wire.ExecStdout(b"4567890123\n") in first
    assert wire.ExecLeft(0) in first
    with trio.move_on_after(1):  # the reader's pause, in which the window is used up
        await host.receive(sid)
    await host.send(wire.Credit("stdout", 11), sid)
    assert await read_on(host, sid) == (11, wire.ExecExited(0))


async def test_without_a_drain_what_was_written_before_the_exit_comes(host: Host) -> None:
    outcome = await host.sh("head -c 50000 /dev/zero; yes & exit 0", ends=wire.ExecEnds(0))
    assert outcome.stdout[:50000] == bytes(50000)
    assert outcome.last.held == ["stdout", "stderr"] or "stdout" in outcome.last.held


async def test_what_is_written_after_the_session_is_taken_and_dropped(host: Host, tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = f"(sleep 0.3; head -c 300000 /dev/zero && touch {done}) & exit 0"
    outcome = await host.sh(script, ends=wire.ExecEnds(0))
    assert outcome.last.held == ["stdout", "stderr"]
    with trio.fail_after(HANG):
        while not done.exists():
            await trio.sleep(0.01)


async def test_a_release_lets_the_holders_live(host: Host) -> None:
    sid = await host.start("sh", "-c", f"{HOLDER}; read x; exit 7", ends=TO_THE_END)
    pid = await the_holder(host, sid)
    await host.send(wire.ExecStdin(b"\n"), sid)
    assert await host.receive(sid) == wire.ExecLeft(7)
    await host.send(wire.ExecRelease(), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(7, held=["stdout", "stderr"])
    assert runs(pid)
    os.kill(pid, signal.SIGKILL)


async def test_a_release_just_before_the_wait_for_more_is_not_missed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = session_module.ExecSession._wait_in_silence

    async def released(session: session_module.ExecSession, output: Any, *, ended: bool) -> bool:
        session._release()
        return await real(session, output, ended=ended)

    monkeypatch.setattr(session_module.ExecSession, "_wait_in_silence", released)
    outcome = await host.run("sh", "-c", HOLDER, ends=TO_THE_END)
    assert isinstance(outcome.last, wire.ExecExited)
    assert outcome.last.held == ["stdout", "stderr"]
    os.kill(int(outcome.stdout), signal.SIGKILL)


async def test_a_second_release_looks_at_no_descriptor_that_was_closed(host: Host) -> None:
    """One stream was let go of, and its holder has ended; the other waits for credit."""
    script = "sleep 1000 2>&- & echo $!; printf '%030d' 0 >&2; exit 7"
    sid = await host.start("sh", "-c", script, ends=TO_THE_END, window=20)
    seen = [await host.receive(sid) for _ in range(3)]
    [pid] = [int(message.data) for message in seen if isinstance(message, wire.ExecStdout)]
    assert wire.ExecStderr(b"0" * 20) in seen
    await host.send(wire.ExecRelease(), sid)
    await host.ping()
    os.kill(pid, signal.SIGKILL)
    await wait_gone(pid)
    await trio.testing.wait_all_tasks_blocked()
    await host.send(wire.ExecRelease(), sid)
    await host.ping()
    await host.send(wire.Credit("stderr", 20), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(7, held=["stdout"])


# The streams


async def test_a_stream_to_null_sends_nothing_and_ends_in_no_error(host: Host) -> None:
    stdio = wire.ExecStdio("null", "null", "null")
    outcome = await host.sh("ls -l /proc/self/fd/; cat; echo out; echo err >&2; exit 8", stdio=stdio)
    assert [type(message) for message in outcome.messages] == [wire.ExecStarted, wire.ExecExited]
    assert outcome.last == wire.ExecExited(8)


async def test_stderr_in_the_pipe_of_stdout_keeps_the_order(host: Host) -> None:
    stdio = wire.ExecStdio("pipe", "pipe", "stdout")
    outcome = await host.sh("for i in 1 2 3 4 5; do echo o$i; echo e$i >&2; done", stdio=stdio)
    assert outcome.stdout == b"".join(b"o%d\ne%d\n" % (i, i) for i in range(1, 6))


async def test_a_terminal_lives_until_its_last_process(host: Host) -> None:
    # For a while no process has the terminal open.
    script = "T=$(tty); echo first; exec <&- >&- 2>&-; sleep 0.4; echo second > $T"
    outcome = await host.sh(script, tty=True)
    assert outcome.stdout == b"first\r\nsecond\r\n"


async def test_a_terminal_outlives_the_exit_of_its_command(host: Host, tmp_path: Path) -> None:
    # The command exits when the other process is in a session of its own: before, it would end by a hangup.
    away = tmp_path / "away"
    other = f'setsid sh -c "exec <&- >&- 2>&-; : > {away}; sleep 0.4; echo second > $T"'
    script = f"T=$(tty); {other} & until test -e {away}; do sleep 0.01; done; echo first"
    outcome = await host.sh(script, tty=True, ends=wire.ExecEnds(20_000))
    assert outcome.stdout == b"first\r\nsecond\r\n"
    assert outcome.last == wire.ExecExited(0)


async def test_what_is_written_to_a_terminal_during_the_look_for_its_processes_comes(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, go, done = (tmp_path / name for name in ("away", "go", "done"))

    async def late(_hunt: object, _wanted: object) -> bool:
        go.touch()
        with trio.fail_after(HANG):
            while not done.exists():
                await trio.sleep(0.01)
        return False

    monkeypatch.setattr("trio_console.agent._process.hunt.Hunt.any_left", late)
    waits = f"until test -e {go}; do sleep 0.01; done; echo second > $T; : > {done}"
    other = f'setsid sh -c "exec <&- >&- 2>&-; : > {away}; {waits}"'
    script = f"T=$(tty); {other} & until test -e {away}; do sleep 0.01; done; echo first"
    outcome = await host.sh(script, tty=True, ends=wire.ExecEnds(20_000))
    assert outcome.stdout == b"first\r\nsecond\r\n"


async def test_a_terminal_has_a_type_and_a_user_may_name_another(host: Host) -> None:
    assert (await host.sh("echo $TERM", tty=True, env=["TERM=vt100"])).stdout == b"vt100\r\n"


# Dead means dead

ESCAPES = {
    "timeout": "timeout 1000 sleep {}; :",
    "job control": "set -m; sleep {} & wait",
    "another session": "setsid sleep {} & wait",
    "double fork": "(setsid sleep {} &); sleep 1000",
    "no environment": "env -i sleep {} & wait",
}


def alive(marker: str) -> list[str]:
    listing = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if line.endswith(f"sleep {marker}") and not line.startswith("Z")]


async def wait_alive(marker: str) -> None:
    """Wait until the sleep runs. (A setsid(1) with such arguments is still in the session of its parent.)"""
    with trio.fail_after(HANG):
        while not any(line.split(None, 1)[1].strip() == f"sleep {marker}" for line in alive(marker)):
            await trio.sleep(0.01)


@pytest.mark.parametrize("script", ESCAPES.values(), ids=ESCAPES)
async def test_a_kill_ends_all_that_the_command_has_started(host: Host, script: str) -> None:
    marker = f"1000.{os.getpid()}"
    sid = await host.start("bash", "-c", script.format(marker), ends=TO_THE_END)
    await wait_alive(marker)
    await host.send(wire.ExecKill(10_000), sid)
    last = (await host.collect(sid)).last
    assert alive(marker) == []
    assert (last.signal, last.alive) == (9, 0)


async def test_a_kill_after_the_exit_waits_for_it_and_ends_the_rest(host: Host) -> None:
    marker = f"1000.{os.getpid()}"
    script = f"exec >/dev/null 2>&1; setsid sleep {marker} & wait"
    sid = await host.start("bash", "-c", script, ends=TO_THE_END)
    await wait_alive(marker)
    await host.send(wire.ExecKill(10_000, after_exit=True), sid)
    await host.send(wire.ExecSignal(15), sid)
    last = (await host.collect(sid)).last
    assert alive(marker) == []
    assert (last.signal, last.alive) == (15, 0)


@pytest.mark.parametrize("after_exit", [True, False])
async def test_the_rest_of_a_command_without_streams_is_killed_as_well(host: Host, *, after_exit: bool) -> None:
    """Such a session waits for the exit alone, so behind that there is nothing that a cancellation would end."""
    marker = f"1000.{os.getpid()}"
    script = f"setsid sleep {marker} & wait"
    stdio = wire.ExecStdio("null", "null", "null")
    sid = await host.start("bash", "-c", script, ends=TO_THE_END, stdio=stdio)
    await wait_alive(marker)
    await host.send(wire.ExecKill(10_000, after_exit=after_exit), sid)
    if after_exit:
        await host.send(wire.ExecSignal(15), sid)
    last = (await host.collect(sid)).last
    assert alive(marker) == []
    assert (last.signal, last.alive) == (15 if after_exit else 9, 0)


async def test_a_kill_after_the_exit_that_comes_behind_it_is_a_kill(host: Host) -> None:
    sid = await host.start("sh", "-c", HOLDER, ends=TO_THE_END)
    pid = await the_holder(host, sid)
    assert isinstance(await host.receive(sid), wire.ExecLeft)
    await host.send(wire.ExecKill(10_000, after_exit=True), sid)
    await host.collect(sid)
    assert not runs(pid)


async def test_what_cannot_be_ended_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    sid = await host.start("sh", "-c", HOLDER + "; wait", ends=TO_THE_END)
    pid = await the_holder(host, sid)
    real = _processes._kill

    def spare(process: _processes._Process) -> None:
        if process.pid != pid:
            real(process)

    monkeypatch.setattr(_processes, "_kill", spare)
    monkeypatch.setattr(_processes.os, "killpg", lambda *_: None, raising=False)
    monkeypatch.setattr("trio_console.agent._process.spawn.Child.kill_group", lambda *_: None)
    await host.send(wire.ExecKill(1000), sid)
    last = (await host.collect(sid)).last
    assert last == wire.ExecExited(-1, 9, alive=1)
    os.kill(pid, signal.SIGKILL)


async def test_what_a_client_has_left_in_the_background_ends_when_it_disconnects(host: Host) -> None:
    outcome = await host.sh("setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!", ends=TO_THE_END)
    pid = int(outcome.stdout)
    await becomes(pid, b"sleep")
    await host.send(wire.ClientDisconnected(0, 2**25))
    with trio.fail_after(HANG):
        while runs(pid):
            await trio.sleep(0.01)


async def test_a_kill_ends_children_that_carry_no_mark_in_sessions_of_their_own(host: Host) -> None:
    script = "env -i setsid sh -c 'echo $$; exec sleep 1000' & wait"
    sid = await host.start("sh", "-c", script, ends=TO_THE_END)
    pid = await the_holder(host, sid)
    await host.send(wire.ExecKill(10_000), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=0)
    assert not runs(pid)


async def test_a_kill_looks_for_all_processes_before_it_kills_the_group(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a leader has started may be found by its parent alone, as long as that lives."""
    steps = []
    real_look, real_kill = Hunt.kill, Child.kill_group

    async def look(hunt: Hunt, wanted: Wanted, grace: float) -> int:
        steps.append("look")
        return await real_look(hunt, wanted, grace)

    def kill_group(child: Child, number: int) -> None:
        steps.append("kill the group")
        real_kill(child, number)

    monkeypatch.setattr(session_module, "_LOOK_TIME", HANG)
    monkeypatch.setattr(Hunt, "kill", look)
    monkeypatch.setattr(Child, "kill_group", kill_group)
    sid = await host.start("sleep", "1000", ends=TO_THE_END)
    await host.send(wire.ExecKill(10_000), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=0)
    assert steps == ["look", "kill the group"]


async def test_a_look_that_hangs_does_not_keep_the_group_alive(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_hunt: object, _wanted: object, grace: float) -> int:
        with trio.move_on_after(grace):
            await trio.lowlevel.wait_readable(exit_fd)
            return 0
        return 1

    sid = await host.start("sh", "-c", HOLDER + "; wait", ends=TO_THE_END)
    exit_fd = pidfd_open(await the_holder(host, sid))
    monkeypatch.setattr(session_module, "_LOOK_TIME", 0.01)
    monkeypatch.setattr("trio_console.agent._process.hunt.Hunt.kill", hang)
    await host.send(wire.ExecKill(30_000), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=0)
    os.close(exit_fd)
