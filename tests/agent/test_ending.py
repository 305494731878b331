"""The end of an agent: no process, descriptor or thread of it is left."""

from __future__ import annotations

import os
import resource
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.agent._host import Host, wait_gone
from tests.tools.leftovers import becomes, runs
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console.agent import _serve as serve_module

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent.conftest import AgentFactory


async def start_with_grandchild(host: Host, script: str = "wait") -> tuple[int, int, int]:
    """A session, its leader's pid and that of a background child."""
    sid = await host.start("/bin/sh", "-c", f"sleep 60 & echo $$ $!; {script}")
    leader, background = (await host.read_stdout(sid, b"\n")).split()
    return sid, int(leader), int(background)


async def test_a_closed_console_leaves_no_process(agent: AgentFactory) -> None:
    async with agent() as host:
        pids = [pid for _ in range(5) for pid in (await start_with_grandchild(host))[1:]]
        await host.run("true", tty=True)
        tty = await host.start("/bin/sh", "-c", "echo $$; exec cat", tty=True)
        pids.append(int(await host.read_stdout(tty, b"\n")))
    # Grandchildren were killed with their group, but this process cannot wait for them.
    for pid in pids:
        await wait_gone(pid)


@pytest.mark.parametrize(
    "script", ["setsid sleep 1000 & echo $!; wait", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"]
)
async def test_a_closed_console_leaves_nothing_in_sessions_of_its_own(agent: AgentFactory, script: str) -> None:
    """Also if the agent is a task of a program, which is no parent of what has lost its own."""
    async with agent() as host:
        sid = await host.start("/bin/sh", "-c", script)
        pid = int(await host.read_stdout(sid, b"\n"))
        await becomes(pid, b"sleep")
    assert not runs(pid)


async def test_a_console_closed_while_commands_start_leaves_no_process(agent: AgentFactory) -> None:
    # (That no child is left is checked after every test.)
    for _ in range(5):
        async with agent() as host:
            for sid in range(1, 9):
                await host.request("sleep", "60", sid=sid)


async def test_a_console_closed_in_a_flood_leaves_no_process(agent: AgentFactory) -> None:
    async with agent(over_socket=True) as host:
        for _ in range(3):
            await host.start("yes")


async def test_a_host_that_stops_reading_for_good_is_noticed(agent: AgentFactory) -> None:
    async with agent() as host:
        await host.start("yes")
        # Only this direction is gone, so the router alone would wait for ever.
        await host.stream.receive_stream.aclose()  # type: ignore[attr-defined]


# --- shutdown -------------------------------------------------------------------------------------


async def test_shutdown_asks_politely_and_says_nothing(agent: AgentFactory, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = f"trap 'echo bye >{mark}; exit' TERM; echo ready; while :; do sleep 0.01; done"
    async with agent() as host:
        sid = await host.start("/bin/sh", "-c", script)
        await host.read_stdout(sid, b"ready\n")
        await host.send(wire.Shutdown())
        # (The shell may print a message, but no exit is reported.)
        assert not [frame for frame in await host.gone() if frame.flags & wire.FLAG_TERMINAL]
    assert os.listdir(tmp_path) == ["mark"]


async def test_shutdown_comes_behind_all_that_was_said(
    agent: AgentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_module, "_LAST_WORDS_TIME", HANG)
    # More than a socket takes, and less than that and an outbox.
    async with agent(over_socket=True) as host:
        await host.request("head", "-c", "300000", "/dev/zero", sid=5, window=1_000_000)
        started = await host.receive(5)
        assert isinstance(started, wire.ExecStarted)
        await wait_gone(started.pid)
        await host.send(wire.Shutdown())
        await wait_all_tasks_blocked()  # the agent has ended its sessions
        said = [wire.decode(frame) for frame in await host.gone()]
        assert sum(len(message.data) for message in said if isinstance(message, wire.ExecStdout)) == 300_000


async def test_a_command_that_starts_during_a_shutdown_is_said_to_have_started(agent: AgentFactory) -> None:
    # Otherwise its output would come for a command of which nobody knows.
    request = wire.ExecRequest(cmd="cat")
    async with agent() as host:
        await host.send_raw(wire.encode(request, 5) + wire.encode(wire.Shutdown()))
        said = [wire.decode(frame) for frame in await host.gone()]
        assert [type(message) for message in said] == [wire.ExecStarted]


async def test_shutdown_waits_a_moment_only_for_a_host_that_does_not_read(
    agent: AgentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_module, "_LAST_WORDS_TIME", 0.01)
    async with agent(over_socket=True) as host:
        await host.request("head", "-c", "300000", "/dev/zero", sid=5, window=1_000_000)
        started = await host.receive(5)
        assert isinstance(started, wire.ExecStarted)
        await wait_gone(started.pid)
        await host.send(wire.Shutdown())
        with trio.fail_after(HANG):
            while not await agent_has_closed(host):
                await trio.sleep(0.01)


async def agent_has_closed(host: Host) -> bool:
    """Whether a byte for the agent finds its end closed."""
    try:
        await host.send_raw(b"\0")
    except trio.BrokenResourceError:
        return True
    return False


async def test_shutdown_kills_what_does_not_listen(agent: AgentFactory) -> None:
    async with agent(shutdown_grace=0.01) as host:
        stubborn = await start_with_grandchild(host, "trap '' TERM; while :; do :; done")
        await host.send(wire.Shutdown())
        assert not [frame for frame in await host.gone() if frame.flags & wire.FLAG_TERMINAL]
        assert not runs(stubborn[1])


@pytest.mark.parametrize("script", ["exec cat /dev/zero", "sleep 60 & exec cat /dev/zero"])
async def test_shutdown_does_not_wait_for_output_that_nobody_takes(agent: AgentFactory, script: str) -> None:
    async with agent(shutdown_grace=3600) as host:
        sid = await host.start("/bin/sh", "-c", script, window=1000)
        await host.read_stdout(sid, bytes(1000))
        await host.send(wire.Shutdown())
        with trio.fail_after(HANG):
            await host.gone()


async def test_shutdown_does_not_wait_for_output_of_what_has_exited_before(agent: AgentFactory) -> None:
    async with agent(shutdown_grace=3600) as host:
        await host.request("/bin/sh", "-c", "head -c 2000 /dev/zero", sid=5, window=1000)
        started = await host.receive(5)
        assert isinstance(started, wire.ExecStarted)
        await host.read_stdout(5, bytes(1000))
        await wait_gone(started.pid)
        await host.send(wire.Shutdown())
        with trio.fail_after(HANG):
            await host.gone()


async def test_shutdown_of_an_idle_agent_is_immediate(agent: AgentFactory) -> None:
    async with agent(shutdown_grace=3600) as host:
        await host.send(wire.Shutdown())
        assert await host.gone() == []


async def test_frames_behind_a_shutdown_are_void(agent: AgentFactory) -> None:
    async with agent() as host:
        await host.send_raw(wire.encode(wire.Shutdown()) + wire.encode(wire.Ping(), 5))
        assert await host.gone() == []


async def test_a_client_may_shut_down_with_an_id_of_its_own(agent: AgentFactory) -> None:
    async with agent() as host:
        await host.send(wire.Shutdown(), 5)
        assert await host.gone() == []


# --- many -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="without pidfds each child is waited for by a thread")
async def test_idle_commands_take_no_threads(host: Host) -> None:
    await host.run("true")
    before = threading.active_count()
    ids = [await host.start("cat") for _ in range(200)]
    assert threading.active_count() <= before + 4  # those that start children
    for sid in ids:
        await host.send(wire.ExecStdin(b""), sid)
    for sid in ids:
        assert (await host.collect(sid)).last.code == 0


async def test_many_commands_do_not_run_out_of_descriptors_nor_notice(
    agent: AgentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    tight = used + 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (tight, before[1]))
    try:
        async with agent() as host:
            ids = [await host.start("cat") for _ in range(50)]
            assert (await host.sh("ulimit -n")).stdout == b"%d\n" % tight
            for sid in ids:
                await host.send(wire.ExecStdin(b""), sid)
            for sid in ids:
                assert (await host.collect(sid)).last.code == 0
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (tight, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_cancelling_the_agent_anywhere_in_a_session_leaves_nothing(agent: AgentFactory) -> None:
    # (The fixture makes the checks.) Each round gets one step further before it is cut off.
    for steps in range(12):
        async with agent() as host:
            await host.request("/bin/sh", "-c", "cat; echo end", sid=5, tty=bool(steps % 2))
            await host.send(wire.ExecStdin(b"x"), 5)
            for _ in range(steps * 3):
                await trio.lowlevel.checkpoint()
