"""A reset, and a host that goes while another may come: sessions end, and what they have left goes on."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from trio.testing import memory_stream_pair

from tests.agent._host import Host, open_fds, wait_gone
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console.agent import AgentOptions, Ending
from trio_console.agent._serve import Lasting, serve_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Served:
    """An agent of one of the hosts that follow each other."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.ending: Ending | None = None


@asynccontextmanager
async def serving(lasting: Lasting | None, **bootstrap: Any) -> AsyncIterator[Served]:
    """An agent for one host; the block is left when the agent has returned."""
    ours, theirs = memory_stream_pair()
    served = Served(Host(ours))

    async def serve() -> None:
        served.ending = await serve_agent(theirs, options=AgentOptions(), lasting=lasting)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve())
        await served.host.boot(**bootstrap)
        yield served
        nursery.cancel_scope.deadline = trio.current_time() + HANG
    assert not nursery.cancel_scope.cancelled_caught, "the agent did not return"


async def reset(host: Host) -> None:
    await host.send(wire.Reset(sid := host.new_id()))
    assert isinstance((await host.collect(sid)).last, wire.ResetDone)
    await host.send(wire.Ping(), host.new_id())  # too late: it is dropped
    await host.stream.send_eof()  # type: ignore[attr-defined]
    assert all(wire.type_of(wire.decode(frame)).place is wire.Place.ENDS for frame in await host.gone())


async def end(lasting: Lasting) -> None:
    """The end of the last host, with a shutdown: nothing of the agent is left."""
    async with serving(lasting) as served:
        await served.host.send(wire.Shutdown())
    assert served.ending is Ending.SHUT_DOWN
    assert not lasting.goes_on
    assert not lasting.sinks


async def test_a_reset_ends_sessions_and_is_answered_when_they_are_over(tmp_path: Path) -> None:
    lasting = Lasting()
    file = tmp_path / "file"
    async with serving(lasting) as served:
        host = served.host
        sid = await host.start("/bin/sh", "-c", "setsid sleep 60 & echo $$ $!; wait")
        pids = [int(pid) for pid in (await host.read_stdout(sid, b"\n")).split()]
        await host.open_file(file, "write create")
        assert open_fds(file) == 1
        await reset(host)
    assert served.ending is Ending.RESET
    assert lasting.goes_on
    assert open_fds(file) == 0
    for pid in pids:
        await wait_gone(pid)
    await end(lasting)


async def test_the_ends_of_sessions_are_told_before_the_answer_to_a_reset() -> None:
    lasting = Lasting()
    async with serving(lasting) as served:
        sid = await served.host.start("sleep", "60")
        await served.host.send(wire.Reset(answer := served.host.new_id()))
        assert (await served.host.collect(sid)).last.signal == signal.SIGKILL
        assert isinstance((await served.host.collect(answer)).last, wire.ResetDone)
        await served.host.stream.aclose()
    await end(lasting)


async def test_what_a_command_has_left_goes_on_and_its_output_is_taken() -> None:
    lasting = Lasting()
    async with serving(lasting) as served:
        # It writes more than fits into a pipe that nobody reads, and then says so.
        script = "(read x < /proc/self/fd/3; head -c 300000 /dev/zero; echo done >&4) & echo $!"
        go, done = os.pipe(), os.pipe()
        os.set_inheritable(go[0], True)
        os.set_inheritable(done[1], True)
        script = script.replace("/proc/self/fd/3", f"/proc/{os.getpid()}/fd/{go[0]}")
        script = script.replace(">&4", f"> /proc/{os.getpid()}/fd/{done[1]}")
        outcome = await served.host.sh(script, ends=wire.ExecEnds(0))
        assert outcome.last.held == ["stdout", "stderr"]
        pid = int(outcome.stdout)
        await reset(served.host)
    os.kill(pid, 0)
    assert len(lasting.sinks) == 2
    async with serving(lasting) as served:
        os.write(go[1], b"x\n")
        with trio.fail_after(HANG):
            await trio.lowlevel.wait_readable(done[0])
        assert os.read(done[0], 10) == b"done\n"
        await wait_gone(pid)
        await served.host.send(wire.Shutdown())
    for fd in (*go, *done):
        os.close(fd)
    assert not lasting.sinks


async def test_a_process_that_was_left_ends_with_the_last_host() -> None:
    lasting = Lasting()
    async with serving(lasting) as served:
        outcome = await served.host.sh("sleep 60 >/dev/null 2>&1 & echo $!")
        pid = int(outcome.stdout)
        await reset(served.host)
    os.kill(pid, 0)
    # (An agent that is not a process of its own finds only what its own commands have left.)
    os.kill(pid, signal.SIGKILL)
    await wait_gone(pid)
    await end(lasting)


async def test_it_is_known_when_the_console_of_a_host_was_closed_that_is_followed_by_another() -> None:
    lasting = Lasting()
    began = trio.current_time()
    async with serving(lasting) as served:
        await reset(served.host)
    assert began <= lasting.closed_at <= trio.current_time()
    await end(lasting)


async def test_the_settings_of_a_host_are_not_those_of_the_next() -> None:
    lasting = Lasting()
    secret = [wire.EnvVar("SECRET", "told")]
    async with serving(lasting, default_env=secret, default_cwd="/tmp") as served:
        assert (await served.host.sh("echo $SECRET; pwd")).stdout == b"told\n/tmp\n"
        await reset(served.host)
    async with serving(lasting) as served:
        assert (await served.host.sh("echo $SECRET; pwd")).stdout != b"told\n/tmp\n"
        assert b"SECRET" not in (await served.host.run("env")).stdout
        await served.host.send(wire.Shutdown())


async def test_a_host_that_goes_in_the_middle_of_a_frame_may_be_followed_by_another() -> None:
    lasting = Lasting()
    async with serving(lasting) as served:
        outcome = await served.host.sh("sleep 60 >/dev/null 2>&1 & echo $!")
        left = int(outcome.stdout)
        sid = await served.host.start("/bin/sh", "-c", "echo $$; cat")
        reader = int(await served.host.read_stdout(sid, b"\n"))
        frame = wire.encode(wire.ExecStdin(bytes(1000)), sid)
        await served.host.send_raw(frame[: len(frame) // 2])
        await served.host.stream.aclose()
    assert lasting.goes_on
    await wait_gone(reader)
    os.kill(left, 0)
    os.kill(left, signal.SIGKILL)
    await end(lasting)


async def test_a_console_out_of_step_has_no_other_host() -> None:
    lasting = Lasting()
    async with serving(lasting) as served:
        await served.host.send_raw(b"\0\0\0\0")
    assert served.ending is Ending.OUT_OF_STEP
    assert not lasting.goes_on


async def test_an_agent_with_one_host_does_not_announce_resets() -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_agent, theirs)
        host = Host(ours)
        assert wire.RESETS not in ((await host.boot()).features or ())
        await host.send(wire.Reset(9))
        await host.ping()  # it was ignored
        await ours.aclose()
    lasting = Lasting()
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_agent(theirs, lasting=lasting))
        host = Host(ours)
        assert wire.RESETS in ((await host.boot()).features or ())
        await host.send(wire.Shutdown())
