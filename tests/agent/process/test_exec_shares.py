"""Starts of commands that hang, as they do in a directory of a disk that does not answer."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.agent._host import wait_gone
from tests.tools.limits import HANG, HELD
from trio_console import _wire as wire
from trio_console._wire.ids import slot_ids
from trio_console.agent._process import spawn as spawn_module
from trio_console.agent._process.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.agent._host import Host

HANGS = wire.ExecRequest("/bin/sh", ["-c", "echo $$ >pid; exec sleep 60"], cwd="/hang")
TRUE = wire.ExecRequest("true")


class Starts:
    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.release = threading.Event()

    async def wait_begun(self, count: int) -> None:
        for _ in range(count):
            assert await trio.to_thread.run_sync(self.begun.acquire, True, HANG)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Starts]:
    """Starts in ``/hang`` hang until they are released; then they go on in ``tmp_path``."""
    held, plain_stat = Starts(), os.stat

    def slow(path: Any, **options: Any) -> os.stat_result:
        if path == str(tmp_path).encode():
            held.begun.release()
            assert held.release.wait(HELD)
        return plain_stat(path, **options)

    def plan(request: wire.ExecRequest, *args: Any) -> Any:
        made = make_plan(request, *args)
        return made._replace(cwd=str(tmp_path).encode()) if made.cwd == b"/hang" else made

    monkeypatch.setattr("trio_console.agent._process.spawn.os.stat", slow)
    monkeypatch.setattr("trio_console.agent._process.spawn.make_plan", plan)
    yield held
    held.release.set()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No start is taken for one that hangs."""
    monkeypatch.setattr("trio_console.agent._serve._USUAL_START", 3600.0)


async def test_starts_are_done_two_at_a_time(patience: None, host: Host, starts: Starts) -> None:
    for slot in range(5):
        await host.send(HANGS, slot_ids(slot)[0])
    await starts.wait_begun(2)
    await host.ping()
    await wait_all_tasks_blocked(0.01)
    assert not starts.begun.acquire(blocking=False), "a third start has begun"
    starts.release.set()
    await starts.wait_begun(3)
    for slot in range(5):
        await host.send(wire.ExecSignal(9), slot_ids(slot)[0])
        await host.collect(slot_ids(slot)[0])


async def test_one_client_whose_starts_hang_stops_no_start_of_another(host: Host, starts: Starts) -> None:
    for sid in slot_ids(0)[:20]:
        await host.send(HANGS, sid)
    await starts.wait_begun(4)
    for slot in (1, 127):
        await host.send(TRUE, slot_ids(slot)[0])
        assert (await host.collect(slot_ids(slot)[0])).last == wire.ExecExited(0)
    for sid in slot_ids(0)[:20]:
        await host.send(wire.ExecKill(1000), sid)
    starts.release.set()
    for sid in slot_ids(0)[:20]:
        await host.collect(sid)


async def test_a_client_that_leaves_does_not_wait_for_a_start_that_hangs(
    host: Host, starts: Starts, tmp_path: Path
) -> None:
    ids = slot_ids(0)
    await host.send(HANGS, ids[0])
    await starts.wait_begun(1)
    await host.send(wire.ClientDisconnected(ids.start, ids.stop, confirm=ids[-1]))
    assert (await host.collect(ids[0])).messages == [
        wire.ExecFailed(kind="other", message="ended before it was started")
    ]
    assert await host.receive(ids[-1]) == wire.ClientForgotten()
    # The id is free, and what the late start has started is ended under its old one, without a word.
    await host.send(wire.ExecRequest("sleep", ["60"]), ids[0])
    assert isinstance(await host.receive(ids[0]), wire.ExecStarted)
    starts.release.set()
    await host.ping()
    await host.send(wire.ExecSignal(9), ids[0])
    assert (await host.collect(ids[0])).messages == [wire.ExecExited(-1, 9)]


async def test_what_a_late_start_has_started_is_ended_also_out_of_its_group(
    host: Host, starts: Starts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ids, made = slot_ids(0), trio.Event()
    token = trio.lowlevel.current_trio_token()
    plain = spawn_module._fork
    script = "setsid sh -c 'echo $$ >other; exec sleep 60' & wait"

    def fork(*args: Any) -> Any:
        child = plain(*args)
        while not (tmp_path / "other").exists() or not (tmp_path / "other").read_text():
            threading.Event().wait(0.01)
        token.run_sync_soon(made.set)
        return child

    async def find_nothing(*_: object) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    monkeypatch.setattr(spawn_module, "_fork", fork)
    monkeypatch.setattr("trio_console.agent._process.hunt.Hunt.kill_client", find_nothing)  # it looked before that
    await host.send(wire.ExecRequest("/bin/sh", ["-c", script], cwd="/hang"), ids[0])
    await starts.wait_begun(1)
    await host.send(wire.ClientDisconnected(ids.start, ids.stop))
    await host.collect(ids[0])
    starts.release.set()
    with trio.fail_after(HANG):
        await made.wait()
    await wait_gone(int((tmp_path / "other").read_text()))


async def test_a_client_that_leaves_behind_a_refused_start_gets_its_reason(host: Host) -> None:
    ids = slot_ids(0)
    await host.send_raw(
        wire.encode(wire.ExecRequest("true"), ids[0])
        + wire.encode(wire.ExecSignal(9), ids[0])[:8]
        + b"\x01"
        + wire.encode(wire.ExecSignal(9), ids[0])[9:]
        + wire.encode(wire.ClientDisconnected(ids.start, ids.stop))
    )
    assert isinstance((await host.collect(ids[0])).last, wire.Error)


@pytest.mark.parametrize("lack", ["thread", "share"])
async def test_a_start_for_which_there_is_no_room_fails(
    host: Host, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    if lack == "share":
        monkeypatch.setattr("trio_console.agent._shares._MOST_LEFT", 0)
    else:

        def refuse(*_: object, **__: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr("trio.to_thread.run_sync", refuse)
    failed = (await host.run("true")).last
    monkeypatch.undo()
    assert failed == wire.ExecFailed(
        kind="resource_limit",
        errno=11,
        errno_name="EAGAIN",
        message='spawn "true": Resource temporarily unavailable (os error 11)',
        stage="Command::spawn",
        filename="true",
    )
    assert (await host.run("true")).last == wire.ExecExited(0)
