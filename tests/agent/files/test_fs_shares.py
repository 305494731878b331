"""Clients whose file operations hang: the files of the others go on, and so does what a client leaves behind."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import HANG, HELD
from trio_console import _wire as wire
from trio_console._wire.ids import slot_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.agent._host import Host

HANGS = wire.FsRequest(wire.OpStat("/hang", True))
ROOT = wire.OpRealPath("/")


class Gate:
    """Holds calls in the system, as a disk does that does not answer."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.inside = 0
        self._more = threading.Condition()

    def pass_through(self) -> None:
        with self._more:
            self.inside += 1
            self._more.notify_all()
        assert self.release.wait(HELD)

    async def wait_inside(self, count: int) -> None:
        def wait() -> bool:
            with self._more:
                return self._more.wait_for(lambda: self.inside >= count, HANG)

        assert await trio.to_thread.run_sync(wait)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A stat of ``/hang`` hangs, and so does the close of a directory whose path ends so."""
    with gated(monkeypatch) as gate:
        yield gate


@contextmanager
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, plain = Gate(), os.stat

    def slow(path: Any, **options: Any) -> os.stat_result:
        if path == b"/hang":
            gate.pass_through()
            path = b"/"
        return plain(path, **options)

    monkeypatch.setattr("trio_console.agent._files.paths.os.stat", slow)
    try:
        yield gate
    finally:
        gate.release.set()


async def leave(host: Host, slot: int) -> None:
    ids = slot_ids(slot)
    await host.send(wire.ClientDisconnected(ids.start, ids.stop, confirm=ids[-1]))


async def test_one_client_whose_calls_hang_stops_no_other_client(host: Host, gate: Gate) -> None:
    for sid in slot_ids(0)[:100]:
        await host.send(HANGS, sid)
    await gate.wait_inside(8)
    for slot in (1, 2, 127):
        await host.ok(ROOT, sid=slot_ids(slot)[0])
    assert gate.inside == 8


async def test_all_other_clients_together_stop_no_client(host: Host, gate: Gate) -> None:
    for slot in range(12):
        for sid in slot_ids(slot)[:3]:
            await host.send(HANGS, sid)
    await gate.wait_inside(12)
    await host.ok(ROOT, sid=slot_ids(127)[0])
    gate.release.set()
    for slot in range(12):
        for sid in slot_ids(slot)[:3]:
            assert (await host.receive(sid)).ok


async def test_that_a_client_has_gone_is_confirmed_while_its_calls_hang(host: Host, gate: Gate) -> None:
    for sid in slot_ids(0)[:100]:
        await host.send(HANGS, sid)
    await leave(host, 0)
    assert await host.receive(slot_ids(0)[-1]) == wire.ClientForgotten()
    await host.ok(ROOT, sid=slot_ids(0)[0])


async def test_the_next_client_with_these_ids_does_not_pay_for_calls_that_hang(host: Host, gate: Gate) -> None:
    await host.send(HANGS, slot_ids(0)[0])
    await gate.wait_inside(1)
    await leave(host, 0)
    for sid in slot_ids(0)[:7]:
        await host.send(HANGS, sid)
    await gate.wait_inside(8)
    await host.ok(ROOT, sid=slot_ids(0)[7])
    gate.release.set()


async def test_clients_that_leave_calls_behind_again_and_again_come_to_a_bound(
    host: Host, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_console.agent._shares._MOST_LEFT", 12)
    for left in (3, 6, 9, 12):
        await host.ok(ROOT, sid=slot_ids(1)[0])
        for sid in slot_ids(0)[:3]:
            await host.send(HANGS, sid)
        await gate.wait_inside(left)
        await leave(host, 0)
    error = await host.error(ROOT, sid=slot_ids(1)[0])
    assert error == "file operation: Resource temporarily unavailable (os error 11)"
    gate.release.set()
    with trio.fail_after(HANG):
        while not (await host.fs(ROOT, sid=slot_ids(1)[0])).ok:
            pass


async def test_a_close_that_hangs_stops_no_other_close(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, plain, closed = threading.Event(), os.close, trio.Event()
    for name in "ab":
        (tmp_path / name).touch()
    stuck = await host.open_file(tmp_path / "a", "read", sid=slot_ids(0)[0])
    assert stuck
    await host.open_file(tmp_path / "b", "read", sid=slot_ids(1)[0])
    token = trio.lowlevel.current_trio_token()

    def slow(fd: int) -> None:
        name = os.readlink(f"/proc/self/fd/{fd}")
        if name == str(tmp_path / "a"):
            assert held.wait(HELD)
        plain(fd)
        if name == str(tmp_path / "b"):
            token.run_sync_soon(closed.set)

    monkeypatch.setattr("trio_console.agent._files.handles.os.close", slow)
    try:
        await leave(host, 0)
        await host.ping()
        await leave(host, 1)
        with trio.fail_after(HANG):
            await closed.wait()
    finally:
        held.set()
