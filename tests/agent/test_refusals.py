"""What the agent takes from its system is refused, call by call: that costs one session, and never the guest."""

from __future__ import annotations

import contextlib
import itertools
import socket
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio

from tests.agent._host import Host, closed, wait_gone
from tests.agent._refusals import Refusals
from tests.agent.conftest import running_agent
from tests.tools.cgroups import needs_cgroups
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._wire.ids import slot_ids
from trio_console.agent import _serve
from trio_console.agent._cgroups import open_cgroups
from trio_console.agent._process.births import Births

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Scenario: TypeAlias = Callable[[Host, Path], Awaitable[None]]

#: More calls than any of the scenarios makes while some are refused.
MOST = 400

IDS = slot_ids(1)

#: A command that has started something in a session of its own, which says its number.
ESCAPE = "setsid sh -c 'echo $$; exec sleep 1000' & wait"


async def last_of(host: Host, sid: int) -> wire.Message:
    last = (await host.collect(sid)).last
    assert isinstance(last, wire.Message)
    return last


def pid_in(outcome: list[wire.Message]) -> int | None:
    """The number that a command has said, if it could say it."""
    said = b"".join(message.data for message in outcome if isinstance(message, wire.ExecStdout))
    return int(said) if said.strip() else None


async def a_command(host: Host, _path: Path) -> None:
    await host.request("sh", "-c", "cat; echo err >&2", sid=IDS[0])
    for data in (b"in", b""):
        await host.send(wire.ExecStdin(data), IDS[0])
    await last_of(host, IDS[0])


async def a_terminal(host: Host, _path: Path) -> None:
    await host.request("sh", "-c", "echo hi; (sleep 0.01; echo more) & exit 3", sid=IDS[0], tty=True)
    await last_of(host, IDS[0])


async def a_kill(host: Host, _path: Path) -> None:
    await host.request("sh", "-c", ESCAPE, sid=IDS[0], ends=wire.ExecEnds(0))
    await after_output(host, wire.ExecKill(1000), IDS[0])


async def after_output(host: Host, message: wire.Message, sid: int) -> None:
    """Send a message when a command has said the number of its process; both end then."""
    heard: list[wire.Message] = []
    while True:
        heard.append(await host.receive(sid))
        if isinstance(heard[-1], wire.ExecStdout):
            break
        if wire.type_of(heard[-1]).flags & wire.FLAG_TERMINAL:
            return
    await host.send(message, 0 if isinstance(message, wire.ClientDisconnected) else sid)
    await last_of(host, sid)
    pid = pid_in(heard)
    assert pid is not None
    await wait_gone(pid)


async def a_client_that_leaves(host: Host, path: Path) -> None:
    handle = await host.fs(wire.OpOpenDir(str(path)), sid=IDS[1])
    await host.request("sh", "-c", ESCAPE, sid=IDS[0], ends=wire.ExecEnds(0))
    await after_output(host, wire.ClientDisconnected(IDS.start, IDS.stop), IDS[0])
    await host.send(wire.ClientDisconnected(IDS.start, IDS.stop))
    if handle.ok:
        await closed(path)


async def what_holds_the_output(host: Host, _path: Path) -> None:
    await host.request("sh", "-c", "sleep 0.05 & exit 0", sid=IDS[0], ends=wire.ExecEnds(0))
    await last_of(host, IDS[0])


async def files(host: Host, path: Path) -> None:
    (path / "file").write_bytes(b"x" * 70_000)
    for op in (
        wire.OpCopy(str(path / "file"), str(path / "copy")),
        wire.OpMkdir(str(path / "tree/deep"), None),
        wire.OpList(str(path)),
        wire.OpRemoveDir(str(path / "tree"), recursive=True),
    ):
        await host.fs(op, sid=IDS[0])
    names = ("read", "write", "append", "create", "truncate", "create_new")
    options = wire.OpenOptions(**{name: name in ("read", "write") for name in names})
    opened = await host.fs(wire.OpOpenFile(str(path / "file"), options), sid=IDS[0])
    if opened.ok:
        assert isinstance(opened.data, wire.ResultHandle)
        number = opened.data.value
        await host.send(wire.FsRequest(wire.OpWrite(number, 0)), IDS[0])
        for data in (b"y" * 70_000, b""):
            await host.send(wire.FsData(data), IDS[0])
        await last_of(host, IDS[0])
        await host.send(wire.FsRequest(wire.OpRead(number, 0)), IDS[1])
        await last_of(host, IDS[1])
        if not (await host.fs(wire.OpCloseHandle(number), sid=IDS[2])).ok:
            await host.fs(wire.OpCloseHandle(number), sid=IDS[2])


async def a_connection(host: Host, _path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        await host.send(wire.TcpConnect("localhost", server.getsockname()[1], window=1000), IDS[0])
        if not isinstance(await host.receive(IDS[0]), wire.TcpConnected):
            return
        peer, _ = server.accept()
        with peer, contextlib.suppress(ConnectionResetError):
            await host.send(wire.TcpData(b"x" * 100), IDS[0])
            peer.sendall(b"y" * 100)
            peer.shutdown(socket.SHUT_WR)
            await host.send(wire.TcpEof(), IDS[0])
        await last_of(host, IDS[0])


SCENARIOS: list[Scenario] = [
    a_command,
    a_terminal,
    a_kill,
    a_client_that_leaves,
    what_holds_the_output,
    files,
    a_connection,
]


async def check(host: Host) -> None:
    """The guest is there, and its next client finds it as the first one did."""
    await host.ping()
    assert (await host.run("echo", "hi")).stdout == b"hi\n"
    await host.ok(wire.OpStat("/", True))
    await host.send(wire.ClientDisconnected(IDS.start, IDS.stop, IDS[-1]))
    while not isinstance(await host.receive(IDS[-1]), wire.ClientForgotten):
        pass


@pytest.mark.parametrize("times", [1, 3, MOST])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_refusal_costs_one_session(
    scenario: Scenario, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await refuse_in_turn(Refusals(monkeypatch), scenario, times, tmp_path)


@needs_cgroups
@pytest.mark.parametrize("times", [1, MOST])
@pytest.mark.parametrize("scenario", [a_command, a_kill, a_client_that_leaves], ids=lambda each: each.__name__)
async def test_a_refusal_costs_one_session_of_an_agent_that_has_cgroups(
    scenario: Scenario, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_serve, "_births", lambda _: Births(open_cgroups()))
    await refuse_in_turn(Refusals(monkeypatch), scenario, times, tmp_path)


async def refuse_in_turn(refusals: Refusals, scenario: Scenario, times: int, tmp_path: Path) -> None:
    async with running_agent(activity_dir=str(tmp_path)) as host:
        for number in itertools.count(1):
            refusals.arm(number, times=times)
            with trio.fail_after(HANG):
                await scenario(host, tmp_path)
            was_refused = refusals.disarm()
            with trio.fail_after(HANG):
                await check(host)
            if not was_refused:
                break
            assert number < MOST
    assert number > 2, "the scenario takes nothing from the system"
