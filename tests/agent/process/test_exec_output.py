"""Output: its order, its credit, the rest after the exit, and which waits it causes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.tools.leftovers import runs
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._trio import turns
from trio_console.agent._process import session as _exec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory

MIB = 1024 * 1024


async def test_output_in_bulk_arrives_whole_and_in_order(host: Host) -> None:
    outcome = await host.sh("seq 200000")
    assert outcome.stdout == b"".join(b"%d\n" % n for n in range(1, 200001))


async def test_no_output_frame_is_empty(host: Host) -> None:
    outcome = await host.sh("printf a; printf b >&2; exec 2>&-; printf c")
    assert all(m.data for m in outcome.messages if isinstance(m, wire.DataMessage))
    assert outcome.stdout == b"ac"


async def test_no_data_frame_is_larger_than_a_slice(host: Host) -> None:
    outcome = await host.sh("head -c 1000000 /dev/zero")
    assert max(len(m.data) for m in outcome.all(wire.ExecStdout)) <= 128 * 1024


async def test_closing_both_outputs_is_not_an_exit(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "exec >&- 2>&-; read line; exit 9")
    assert await host.nothing_for(sid)
    await host.send(wire.ExecStdin(b"\n"), sid)
    assert (await host.collect(sid)).messages == [wire.ExecExited(code=9)]


# --- small pieces ---------------------------------------------------------------------------------


@pytest.fixture
def left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each small piece that is no answer to input, output is not read for as long as a test may take."""
    for name, value in (("_SMALL_IN_A_ROW", 0.0), ("_LEFT_ALONE", HANG), ("_LONGEST_LEFT_ALONE", HANG)):
        monkeypatch.setattr(turns, name, value)


#: Says one thing at once, and another when it is told to, by a file; then it has said that, and goes on as asked.
TWO_PIECES = "echo one; read x <$1; echo two; : >$2; "


async def written_twice(host: Host, folder: Path, then: str) -> int:
    """The session of a command that has written twice, of which the first piece has come."""
    go, done = folder / "go", folder / "done"
    os.mkfifo(go)
    sid = await host.start("/bin/sh", "-c", TWO_PIECES + then, "sh", str(go), str(done))
    assert await host.receive(sid) == wire.ExecStdout(b"one\n")
    await trio.to_thread.run_sync(go.write_bytes, b"\n")
    while not done.exists():
        await trio.sleep(0.001)
    return sid


@pytest.mark.usefixtures("left_alone")
async def test_output_in_small_pieces_is_left_alone_until_the_command_is_sent_something(
    host: Host, tmp_path: Path
) -> None:
    sid = await written_twice(host, tmp_path, "read x; read x")
    assert await host.nothing_for(sid)
    await host.send(wire.ExecStdin(b"\n"), sid)
    assert await host.receive(sid) == wire.ExecStdout(b"two\n")
    await host.send(wire.ExecStdin(b"\n"), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(code=0)


@pytest.mark.usefixtures("left_alone")
async def test_output_that_comes_in_small_pieces_because_of_its_window_is_read_at_once(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "head -c 1000 /dev/zero; read x; exit 4", window=100)
    for _ in range(10):
        assert await host.receive(sid) == wire.ExecStdout(bytes(100))
        await host.send(wire.Credit("stdout", 100), sid)
    await host.send(wire.ExecStdin(b"\n"), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(code=4)


@pytest.mark.usefixtures("left_alone")
async def test_output_that_is_left_alone_is_read_when_the_command_has_ended(host: Host, tmp_path: Path) -> None:
    sid = await written_twice(host, tmp_path, "exit 3")
    assert (await host.collect(sid)).messages == [wire.ExecStdout(b"two\n"), wire.ExecExited(code=3)]


# --- drain ----------------------------------------------------------------------------------------


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exec, "DRAIN_GRACE", 0.0)


@pytest.fixture
def endless_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exec, "DRAIN_GRACE", HANG)


#: A background child that ends when the leader of its group is a zombie.
UNTIL_LEADER_IS_GONE = "until grep -q 'State:.Z' /proc/$$/status; do :; done"


@pytest.mark.usefixtures("no_grace")
async def test_a_background_child_with_our_stdout_does_not_hold_the_exit_back(host: Host) -> None:
    outcome = await host.sh("sleep 60 & echo $!; exit 3")
    assert outcome.last == wire.ExecExited(code=3)
    background = int(outcome.stdout)
    assert runs(background)  # it may live on
    os.kill(background, 9)


@pytest.mark.usefixtures("no_grace")
async def test_a_background_child_that_floods_does_not_hold_the_exit_back(host: Host) -> None:
    outcome = await host.sh("yes & exit 4")
    assert outcome.last == wire.ExecExited(code=4)


async def test_a_background_child_with_its_own_stdout_does_not_matter(host: Host) -> None:
    outcome = await host.sh("sleep 60 >/dev/null 2>&1 & echo $!; exit 5")
    assert outcome.last == wire.ExecExited(code=5)
    os.kill(int(outcome.stdout), 9)


@pytest.mark.usefixtures("endless_grace")
async def test_output_of_a_background_child_within_the_grace_is_delivered(host: Host) -> None:
    outcome = await host.sh(f"({UNTIL_LEADER_IS_GONE}; echo late) & exit 5")
    assert outcome.last == wire.ExecExited(code=5)
    assert outcome.stdout == b"late\n"


@pytest.mark.usefixtures("no_grace")
async def test_a_slow_reader_gets_all_that_was_there_at_the_exit(host: Host) -> None:
    # The background child keeps the pipe open, so the reading does not end with end of file.
    script = "sleep 60 & echo $!; head -c 50000 /dev/zero; exit 6"
    sid = await host.start("/bin/sh", "-c", script, window=1000)
    received = b""
    while not isinstance(message := await host.receive(sid), wire.ExecExited):
        received += message.data
        await host.send(wire.Credit("stdout", len(message.data)), sid)
    pid, zeros = received.split(b"\n")
    assert (len(zeros), message.code) == (50000, 6)
    os.kill(int(pid), 9)


@pytest.mark.usefixtures("endless_grace")
async def test_signals_reach_the_group_after_the_leader_exited(host: Host) -> None:
    waiting = "trap 'echo got it; exit' USR1; " + UNTIL_LEADER_IS_GONE + "; echo alone; while :; do :; done"
    sid = await host.start("/bin/sh", "-c", f"({waiting}) & exit 0")
    await host.read_stdout(sid, b"alone\n")
    await host.send(wire.ExecSignal(10), sid)
    outcome = await host.collect(sid)
    assert (outcome.stdout, outcome.last) == (b"got it\n", wire.ExecExited(code=0))


# --- credit ---------------------------------------------------------------------------------------


async def test_no_more_than_the_window_is_sent_without_credit(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "head -c 5000 /dev/zero; printf done >&2", window=2000)
    stdout = stderr = b""
    while len(stdout) < 2000 or stderr != b"done":
        message = await host.receive(sid)
        stdout += message.data if isinstance(message, wire.ExecStdout) else b""
        stderr += message.data if isinstance(message, wire.ExecStderr) else b""
    assert await host.nothing_for(sid)
    assert len(stdout) == 2000
    await host.send(wire.Credit("stdout", 2500), sid)
    assert len(await read_exactly(host, sid, 2000)) == 2000
    await host.send(wire.Credit("stdout", 2000), sid)
    assert len((await host.collect(sid)).stdout) == 1000


async def read_exactly(host: Host, sid: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += (await host.receive(sid)).data
    return data


async def test_a_paused_reader_pauses_its_process_and_no_one_else(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "exec yes", window=64 * 1024)
    await read_exactly(host, sid, 64 * 1024)
    for _ in range(5):
        assert (await host.run("echo", "hi")).stdout == b"hi\n"
    assert await host.nothing_for(sid)
    await host.send(wire.ExecSignal(9), sid)
    await host.send(wire.Credit("stdout", 64 * 1024), sid)
    while not isinstance(message := await host.receive(sid), wire.ExecExited):
        await host.send(wire.Credit("stdout", len(message.data)), sid)
    assert message.signal == 9


async def test_credit_for_one_stream_is_none_for_the_other(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "printf aabb; printf ccdd >&2", window=2)
    assert len(await read_exactly(host, sid, 4)) == 4
    await host.send(wire.Credit("stderr", 2), sid)
    message = await host.receive(sid)
    assert message == wire.ExecStderr(b"dd")
    assert await host.nothing_for(sid)
    await host.send(wire.Credit("stdout", 2), sid)
    assert (await host.collect(sid)).stdout == b"bb"


async def test_too_much_credit_does_not_widen_the_window(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "read x; head -c 100 /dev/zero", window=10)
    await host.send(wire.Credit("stdout", 50), sid)
    await host.send(wire.ExecStdin(b"\n"), sid)
    await read_exactly(host, sid, 10)
    assert await host.nothing_for(sid)


async def test_credit_means_nothing_for_a_session_without_a_window(host: Host) -> None:
    sid = await host.start("cat")
    for stream in ("stdin", "stdout", "stderr"):
        await host.send(wire.Credit(stream, 5), sid)  # type: ignore[arg-type]
    await host.send(wire.ExecStdin(b"x"), sid)
    await host.send(wire.ExecStdin(b""), sid)
    assert (await host.collect(sid)).stdout == b"x"


# --- the console is slow --------------------------------------------------------------------------


async def test_an_unread_console_costs_no_memory_and_pauses_the_processes(agent: AgentFactory) -> None:
    async with agent(over_socket=True) as host:
        ids = [host.new_id() for _ in range(4)]
        for sid in ids:
            await host.request("/bin/sh", "-c", "exec head -c 4000000 /dev/zero", sid=sid)
        await wait_all_tasks_blocked(0.05)  # pipes, outbox and socket are all full by now
        for sid in ids:
            assert len((await host.collect(sid)).stdout) == 4_000_000


async def test_an_answer_overtakes_bulk_output(agent: AgentFactory) -> None:
    async with agent(over_socket=True) as host:
        flood = await host.start("yes")
        ping = host.new_id()
        await host.send(wire.Ping(), ping)
        before_pong = 0
        while True:
            frame = await host.receive_frame()
            assert frame is not None
            if frame.id == ping:
                break
            before_pong += len(frame.body)
        # The bytes that were on their way, and one batch that was being written.
        assert before_pong < 2 * MIB
        await host.send(wire.ExecSignal(9), flood)
        await host.collect(flood)


async def test_a_session_that_is_ended_sends_nothing_more(host: Host) -> None:
    for _ in range(20):
        sid = await host.start("yes")
        await host.read_stdout(sid, b"y\n")
        # A bad frame inside the session: its error is the last frame of the session.
        await host.send_raw(wire.encode_frame(sid, 0, b"\xff"))
        assert isinstance((await host.collect(sid)).last, wire.Error)
        assert await host.nothing_for(sid)


async def test_a_flood_does_not_starve_the_others(agent: AgentFactory) -> None:
    # Over a socket: a memory stream takes all bytes at once, and gives them away piece by piece.
    async with agent(over_socket=True) as host:
        flood = await host.start("yes", window=2**30)
        for _ in range(10):
            assert (await host.run("echo", "hi")).stdout == b"hi\n"
        await host.send(wire.ExecSignal(9), flood)
        assert (await host.collect(flood)).last.signal == 9
