"""What the agent can do without: memory for a frame, threads, descriptors for more clients."""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.agent._host import closed
from tests.tools.leftovers import runs
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._trio.threads import NoThreadError
from trio_console._wire.ids import slot_ids
from trio_console.agent._process.limits import FdHeadroom
from trio_console.agent._process.session import ExecSession
from trio_console.agent._process.spawn import Child
from trio_console.agent._session import Activity
from trio_console.agent._system import machine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory


async def no_thread(*_: object, **__: object) -> Any:
    raise NoThreadError("for a test")


# --- memory ---------------------------------------------------------------------------------------


async def test_a_frame_for_which_there_is_no_memory_ends_its_session(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = await host.start("cat")
    plain = wire.decode

    def decode(frame: wire.Frame) -> wire.Message:
        if frame.id == sid and frame.body.endswith(b"xyz"):
            raise MemoryError
        return plain(frame)

    monkeypatch.setattr(wire, "decode", decode)
    await host.send(wire.ExecStdin(b"xyz"), sid)
    last = (await host.collect(sid)).last
    assert (last.kind, last.message) == ("invalid_session", "the guest has no memory for this")
    assert (await host.run("echo", "hi")).stdout == b"hi\n"


async def test_what_a_session_has_started_that_fails_for_lack_of_memory_is_killed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ExecSession._read

    async def read(self: ExecSession, *args: Any) -> bytes | None:
        if await plain(self, *args):
            raise OSError(errno.ENOMEM, "no memory")
        return None

    monkeypatch.setattr(ExecSession, "_read", read)
    sid = await host.start("sh", "-c", "setsid sh -c 'echo $$; exec sleep 1000' & wait", ends=wire.ExecEnds(0))
    pid = int(await host.read_stdout(sid, b"\n"))
    assert isinstance((await host.collect(sid)).last, wire.Error)
    assert not runs(pid)


async def test_a_leader_whose_exit_cannot_be_waited_for_is_looked_at_until_it_has_ended(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, plain = 0, Child.status

    def status(self: Child) -> wire.ExecExited | None:
        nonlocal looks
        looks += 1
        return plain(self) if looks > 5 else None

    async def refuse(_fd: int) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    sid = await host.start("sleep", "1000")
    with monkeypatch.context() as patch:
        patch.setattr(Child, "status", status)
        patch.setattr("trio.lowlevel.wait_readable", refuse)
        await host.send(wire.ExecKill(10_000), sid)
        assert isinstance((await host.collect(sid)).last, wire.ExecExited)
    assert looks > 5


# --- threads --------------------------------------------------------------------------------------


async def test_without_a_thread_the_activity_file_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    plain, calls = machine.in_thread, 0

    async def rare(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 3):
            raise NoThreadError("for a test")
        return await plain(*args, **kwargs)

    monkeypatch.setattr(machine, "in_thread", rare)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.write_activity, Activity(), {}, str(tmp_path))
        while not (tmp_path / "heartbeat.json").exists():
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert calls >= 5


async def test_without_a_thread_the_disks_are_flushed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(machine, "in_thread", no_thread)
    monkeypatch.setattr(machine.os, "sync", lambda: flushed.append(1))
    await machine.flush_disks()
    assert flushed == [1]


async def test_without_a_thread_the_handles_of_a_client_that_has_gone_are_closed_later(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").touch()
    await host.open_file(tmp_path / "f", "read", sid=slot_ids(1)[0])
    monkeypatch.setattr("trio_console.agent._files.disk.in_thread", no_thread)
    await host.send(wire.ClientDisconnected(slot_ids(1).start, slot_ids(1).stop))
    await host.ping()
    monkeypatch.undo()
    await closed(tmp_path / "f")


async def test_without_a_thread_a_file_operation_fails_and_the_next_one_works(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("trio_console.agent._files.disk.in_thread", no_thread)
        error = await host.error(wire.OpStat("/", True))
    assert error == "file operation: Resource temporarily unavailable (os error 11)"
    await host.ok(wire.OpStat("/", True))


async def test_without_a_thread_processes_are_found_and_killed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = await host.start("sh", "-c", "setsid sh -c 'echo $$; exec sleep 1000' & wait", ends=wire.ExecEnds(0))
    pid = int(await host.read_stdout(sid, b"\n"))
    monkeypatch.setattr("trio_console.agent._looks.Looks.prepare", lambda _: None)
    await host.send(wire.ExecKill(10_000), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=0)
    assert not runs(pid)


async def test_without_a_thread_the_boot_fails_with_what_to_do(
    agent: AgentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_console.agent._system.boot.in_thread", no_thread)
    with pytest.RaisesGroup(pytest.RaisesExc(Exception, match="Raise the limit")):
        async with agent(boot=False) as host:
            await host.send(wire.Bootstrap(user="daemon"))
            await host.gone()


# --- descriptors ----------------------------------------------------------------------------------


@pytest.fixture
def headroom(monkeypatch: pytest.MonkeyPatch) -> FdHeadroom:
    """The descriptors of an agent that may have 512, and has twelve open."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (512, 512))
    monkeypatch.setattr(os, "listdir", lambda _: ["fd"] * 12)
    return FdHeadroom()


#: What is left for clients: without the reserve, and without what is open already; and for one that has many.
ALL = 512 - 64 - 12
MANY = ALL - 128


@pytest.mark.parametrize(("count", "granted"), [(MANY - 1, True), (MANY, True), (MANY + 1, False)])
def test_one_client_gets_three_quarters_of_all_descriptors(
    headroom: FdHeadroom, count: int, granted: bool
) -> None:
    assert headroom.claim(0, count) is granted


@pytest.mark.parametrize(("count", "granted"), [(15, True), (16, True), (17, False)])
def test_a_client_that_has_few_gets_some_of_the_rest(headroom: FdHeadroom, count: int, granted: bool) -> None:
    assert headroom.claim(0, MANY)
    assert headroom.claim(1, count) is granted


def test_the_reserve_is_nobodys(headroom: FdHeadroom) -> None:
    assert headroom.claim(0, MANY)
    for client in range(1, 9):
        assert headroom.claim(client, 16)
    assert not headroom.claim(9, 1)
    headroom.release(3, 1)
    assert headroom.claim(9, 1)
    assert not headroom.claim(3, 1)


def test_what_is_released_can_be_claimed_again(headroom: FdHeadroom) -> None:
    for _ in range(3):
        assert headroom.claim(0, MANY)
        headroom.release(0, MANY)


@pytest.mark.parametrize("what", ["command", "connection", "file", "call"])
async def test_a_client_that_may_have_no_more_descriptors_is_told(
    host: Host, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    sid = host.new_id()
    with monkeypatch.context() as patch:
        patch.setattr(FdHeadroom, "claim", lambda *_: False)
        match what:
            case "command":
                last = (await host.run("true")).last
                assert (last.kind, last.errno_name) == ("resource_limit", "EMFILE")
            case "connection":
                await host.send(wire.TcpConnect("localhost", 1), sid)
                error = "connect localhost:1: Too many open files (os error 24)"
                assert await host.receive(sid) == wire.TcpFailed(error)
            case "file":
                assert await host.error(wire.OpOpenDir("/")) == "opendir: Too many open files (os error 24)"
            case "call":
                error = await host.error(wire.OpList("/"))
                assert error == "file operation: Too many open files (os error 24)"
    assert (await host.run("echo", "hi")).stdout == b"hi\n"


async def test_all_that_sessions_have_claimed_is_released_when_they_are_over(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    plain_claim, plain_release = FdHeadroom.claim_anyway, FdHeadroom.release

    def claim(self: FdHeadroom, client: int, count: int) -> None:
        counted.append(count)
        plain_claim(self, client, count)

    def release(self: FdHeadroom, client: int, count: int) -> None:
        counted.append(-count)
        plain_release(self, client, count)

    monkeypatch.setattr(FdHeadroom, "claim_anyway", claim)
    monkeypatch.setattr(FdHeadroom, "release", release)
    await host.run("sh", "-c", "sleep 0.01 & exit 0", ends=wire.ExecEnds(0))
    await host.run("/no/such")
    await host.run("true", tty=True)
    handle = await host.open_file(tmp_path / "f", "read write create")
    await host.error(wire.OpOpenDir("/no/such"))
    await host.ok(wire.OpCloseHandle(handle))
    await host.ok(wire.OpList("/"))
    await host.send(wire.TcpConnect("127.0.0.1", 1), sid := host.new_id())
    await host.collect(sid)
    with trio.fail_after(HANG):
        while sum(counted):
            await trio.sleep(0.01)
    assert len(counted) >= 12
