"""QEMU's monitor: several tasks use it, and QEMU may say nothing, or nonsense."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trio_console._guests.machine import monitor as module
from trio_console._guests.machine.monitor import Monitor, MonitorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def monitored() -> AsyncIterator[tuple[Monitor, socket.socket]]:
    ours, theirs = socket.socketpair()
    with theirs, trio.socket.from_stdlib_socket(ours) as sock:
        yield Monitor(sock), theirs


async def test_the_answer_to_a_cancelled_call_is_not_taken_for_another(
    monitored: tuple[Monitor, socket.socket],
) -> None:
    monitor, qemu = monitored
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(monitor.execute, "first")
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    qemu.send(b'{"return": "of the first", "id": 1}\n{"event": "SOME"}\n{"return": "of the second", "id": 2}\n')
    assert await monitor.execute("second") == "of the second"


async def test_calls_of_several_tasks_have_their_turns(monitored: tuple[Monitor, socket.socket]) -> None:
    monitor, qemu = monitored
    async with trio.open_nursery() as nursery:
        for name in ("a", "b"):
            nursery.start_soon(monitor.execute, name)
        await trio.testing.wait_all_tasks_blocked()
        assert qemu.recv(1000).count(b"\n") == 1
        qemu.send(b'{"return": {}, "id": 1}\n')
        await trio.testing.wait_all_tasks_blocked()
        qemu.send(b'{"return": {}, "id": 2}\n')


async def test_a_closed_monitor_has_ended(monitored: tuple[Monitor, socket.socket]) -> None:
    monitor, _ = monitored
    monitor._socket.close()
    with pytest.raises(MonitorError, match="has ended before x"):
        await monitor.execute("x")


# What is no answer


async def test_a_qemu_that_does_not_answer_is_not_waited_for(
    monitored: tuple[Monitor, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    monitor, _ = monitored
    with pytest.raises(MonitorError, match="has said nothing within 120 seconds"):
        await monitor.begin()
    with pytest.raises(MonitorError, match="has not answered stop within 120 seconds"):
        await monitor.execute("stop")


async def test_a_qemu_that_tells_events_for_ever_has_not_answered(
    monitored: tuple[Monitor, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    monitor, qemu = monitored

    async def tell() -> None:
        while True:
            qemu.send(b'{"event": "SOME"}\n')
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        with pytest.raises(MonitorError, match="has not answered stop"):
            await monitor.execute("stop")
        nursery.cancel_scope.cancel()
    assert len(monitor.events) == 100


async def test_what_does_not_come_to_pass_is_not_waited_for(
    monitored: tuple[Monitor, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    monitor, _ = monitored

    async def execute(command: str) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return {"status": "active"}

    monitor.execute = execute  # type: ignore[method-assign, assignment]
    with pytest.raises(MonitorError, match="answer to query-migrate is 'active' after 120 seconds"):
        await monitor.wait_until("query-migrate", "completed")


@pytest.mark.parametrize("said", [b"nonsense\n", b"[1]\n", b"\xff\n", b"{}" * 100])
async def test_nonsense_is_an_error(
    monitored: tuple[Monitor, socket.socket], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(module, "_LONGEST", 100)
    monitor, qemu = monitored
    qemu.send(said)
    with pytest.raises(MonitorError, match="what is no answer"):
        await monitor.execute("stop")


async def test_an_answer_that_says_neither_is_a_refusal(monitored: tuple[Monitor, socket.socket]) -> None:
    monitor, qemu = monitored
    qemu.send(b'{"id": 1}\n')
    with pytest.raises(MonitorError, match="QEMU has refused stop: None"):
        await monitor.execute("stop")


@pytest.mark.parametrize("returned", [b"5", b"[]", b"null", b'{"status": {}}', b'{"fdset-id": "1"}'])
async def test_a_return_that_is_nonsense_is_an_error_or_asked_for_again(
    monitored: tuple[Monitor, socket.socket], autojump_clock: trio.testing.MockClock, returned: bytes
) -> None:
    monitor, qemu = monitored
    qemu.send(b'{"return": %b, "id": 1}\n{"return": %b, "id": 2}\n' % (returned, returned))
    with open(os.devnull, "rb") as file, pytest.raises(MonitorError, match="answer to add-fd"):  # noqa: ASYNC230
        await monitor.lend(file.fileno())
    with pytest.raises(MonitorError):
        await monitor.wait_until("query-status", "running")
