"""Input: order, end of file, errors, credit, and the command that never reads."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from trio_console import _wire as wire

if TYPE_CHECKING:
    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory

KIB = 1024
MIB = 1024 * 1024

EPIPE = wire.ExecStdinError(errno=errno.EPIPE, errno_name="EPIPE", message="io error: Broken pipe (os error 32)")


async def test_input_may_come_right_behind_the_request(host: Host) -> None:
    assert (await host.run("cat", stdin=b"hello")).stdout == b"hello"


async def test_an_end_of_file_may_come_right_behind_the_request(host: Host) -> None:
    sid = host.new_id()
    await host.request("/bin/sh", "-c", "cat; read x; exit 3", sid=sid)
    for data in (b"", b"too late", b""):
        await host.send(wire.ExecStdin(data), sid)
    outcome = await host.collect(sid)
    assert isinstance(outcome.messages[0], wire.ExecStarted)
    assert outcome.messages[1:] == [wire.ExecExited(code=3)]


async def test_an_empty_chunk_is_end_of_file(host: Host) -> None:
    sid = await host.start("cat")
    await host.send(wire.ExecStdin(b""), sid)
    assert (await host.collect(sid)).messages == [wire.ExecExited(code=0)]


async def test_input_after_end_of_file_is_ignored(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "cat; read x; exit 3")
    await host.send(wire.ExecStdin(b"a"), sid)
    await host.send(wire.ExecStdin(b""), sid)
    await host.send(wire.ExecStdin(b"b"), sid)
    await host.send(wire.ExecStdin(b""), sid)
    outcome = await host.collect(sid)
    assert (outcome.stdout, outcome.last.code) == (b"a", 3)
    assert not outcome.all(wire.ExecStdinError)


async def test_without_end_of_file_the_command_keeps_waiting(host: Host) -> None:
    sid = await host.start("cat")
    await host.send(wire.ExecStdin(b"a"), sid)
    assert await host.read_stdout(sid, b"a") == b"a"
    assert await host.nothing_for(sid)
    await host.send(wire.ExecStdin(b""), sid)
    assert (await host.collect(sid)).last.code == 0


async def test_16_mib_go_through_cat_in_both_directions_at_once(host: Host) -> None:
    sid = await host.start("cat")
    chunk = bytes(range(256)) * 4096  # 1 MiB
    for _ in range(16):
        await host.send(wire.ExecStdin(chunk), sid)
    await host.send(wire.ExecStdin(b""), sid)
    outcome = await host.collect(sid)
    assert outcome.stdout == chunk * 16
    assert not outcome.all(wire.ExecStdinError)


async def test_the_largest_chunk_there_is_arrives_whole(host: Host) -> None:
    data = b"x" * 4_194_259
    assert (await host.run("wc", "-c", stdin=data)).stdout.strip() == b"4194259"


async def test_each_failing_chunk_is_answered_and_the_session_goes_on(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "exec <&-; echo closed; sleep 60")
    await host.read_stdout(sid, b"closed\n")
    for _ in range(3):
        await host.send(wire.ExecStdin(b"x"), sid)
        assert await host.receive(sid) == EPIPE
    await host.send(wire.ExecSignal(15), sid)
    assert (await host.collect(sid)).messages == [wire.ExecExited(code=-1, signal=15)]


async def test_input_for_nobody_is_ignored(host: Host) -> None:
    await host.send(wire.ExecStdin(b"x"), 77)
    assert await host.nothing_for(77)


async def test_input_that_is_not_read_does_not_hold_the_exit_back(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "read x; exit 2")
    await host.send(wire.ExecStdin(b"\n" + bytes(MIB)), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(code=2)


# --- credit ---------------------------------------------------------------------------------------


async def test_ready_announces_the_window(agent: AgentFactory) -> None:
    async with agent(boot=False, stdin_window=12345) as host:
        assert (await host.boot()).flow == wire.Flow(12345)


async def test_consumed_input_is_granted_anew_by_half_windows(agent: AgentFactory) -> None:
    async with agent(stdin_window=1000) as host:
        sid = await host.start("/bin/sh", "-c", "cat >/dev/null", window=MIB)
        await host.send(wire.ExecStdin(b"x" * 499), sid)
        assert await host.nothing_for(sid)
        await host.send(wire.ExecStdin(b"x"), sid)
        assert await host.receive(sid) == wire.Credit("stdin", 500)
        await host.send(wire.ExecStdin(b"x" * 1000), sid)
        assert await host.receive(sid) == wire.Credit("stdin", 1000)
        await host.send(wire.ExecStdin(b""), sid)
        assert (await host.collect(sid)).messages == [wire.ExecExited(code=0)]


@pytest.mark.parametrize("excess", [0, 1])
async def test_the_whole_window_is_taken_and_not_a_byte_more(agent: AgentFactory, excess: int) -> None:
    window = 256 * KIB
    async with agent(stdin_window=window) as host:
        sid = await host.start("sleep", "60", window=MIB)
        await host.send(wire.ExecStdin(bytes(window)), sid)
        if excess:
            await host.send(wire.ExecStdin(b"x"), sid)
            last = (await host.collect(sid)).last
            assert (last.kind, last.offending_type) == ("invalid_session", "core.exec.stdin")
        else:
            assert await host.nothing_for(sid)
            await host.send(wire.ExecSignal(9), sid)
            assert (await host.collect(sid)).last.signal == 9


async def test_a_chunk_that_failed_is_granted_as_well(agent: AgentFactory) -> None:
    async with agent(stdin_window=100) as host:
        sid = await host.start("/bin/sh", "-c", "exec <&-; echo closed; sleep 60", window=MIB)
        await host.read_stdout(sid, b"closed\n")
        for _ in range(3):
            await host.send(wire.ExecStdin(bytes(100)), sid)
            assert await host.receive(sid) == EPIPE
            assert await host.receive(sid) == wire.Credit("stdin", 100)
        await host.send(wire.ExecSignal(9), sid)
        await host.collect(sid)


async def test_no_credit_is_spoken_to_a_client_that_did_not_ask(agent: AgentFactory) -> None:
    async with agent(stdin_window=10) as host:
        outcome = await host.run("cat", stdin=b"x" * 1000)
        assert not outcome.all(wire.Credit)
        assert len(outcome.stdout) == 1000


# --- a client without credit ----------------------------------------------------------------------


async def test_a_command_that_never_reads_delays_nobody_for_long(agent: AgentFactory) -> None:
    async with agent(stdin_patience=0.05) as host:
        sid = await host.start("sleep", "60")
        for _ in range(16):
            await host.send(wire.ExecStdin(bytes(MIB)), sid)
        await host.ping()
        errors = []
        while not await host.nothing_for(sid):
            errors.append(await host.receive(sid))
        assert {e.errno_name for e in errors} == {"ENOSPC"}
        assert len(errors) == 9  # the costs of the chunks use up one MiB of the budget of 8 MiB
        assert "is not reading" in errors[0].message
        await host.send(wire.ExecSignal(9), sid)
        assert (await host.collect(sid)).last.signal == 9


async def test_a_slow_command_holds_the_channel_up_and_loses_nothing(agent: AgentFactory) -> None:
    # The budget is far below the bytes that are sent, but the child reads: backpressure, and no refusal.
    async with agent(stdin_budget=100_000) as host:
        outcome = await host.run("wc", "-c", stdin=bytes(3 * MIB))
        assert outcome.stdout.strip() == b"%d" % (3 * MIB)
        assert not outcome.all(wire.ExecStdinError)
        sid = await host.start("wc", "-c")
        for _ in range(100):
            await host.send(wire.ExecStdin(bytes(50_000)), sid)
        await host.send(wire.ExecStdin(b""), sid)
        assert (await host.collect(sid)).stdout.strip() == b"5000000"


async def test_tiny_chunks_cannot_escape_the_budget(agent: AgentFactory) -> None:
    async with agent(stdin_budget=100_000, stdin_patience=0.01) as host:
        sid = await host.start("sleep", "60")
        await host.send(wire.ExecStdin(bytes(70_000)), sid)  # the pipe is full
        await host.send_raw(wire.encode(wire.ExecStdin(b"x"), sid) * 2000)
        outcome: list[wire.Message] = []
        while not await host.nothing_for(sid):
            outcome.append(await host.receive(sid))
        assert len(outcome) > 1000
        await host.send(wire.ExecSignal(9), sid)
        await host.collect(sid)


async def test_the_router_is_let_go_when_the_command_it_waits_for_exits(agent: AgentFactory) -> None:
    async with agent(stdin_budget=1000, stdin_patience=3600) as host:
        # The background child holds the other end of the pipe open, and does not read.
        sid = await host.start("/bin/sh", "-c", "sleep 60 <&0 >/dev/null 2>&1 & echo $!; read x; exit 3")
        background = int(await host.read_stdout(sid, b"\n"))
        await host.send(wire.ExecStdin(b"\n" + bytes(200_000)), sid)
        await host.send(wire.ExecStdin(b"x" * 1000), sid)
        await host.ping()
        assert (await host.collect(sid)).last == wire.ExecExited(code=3)
        os.kill(background, 9)
