"""How it is noticed that a machine does not start: it has stopped, or is in a loop. A slow one is waited for."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trio_console._guests.machine import launch
from trio_console._guests.machine.launch import NotBootedError, Started
from trio_console._guests.machine.monitor import Monitor
from trio_console._guests.machine.qemu import Memory
from trio_console._machine.welcome import GREETING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Wait = Callable[["Machine"], Awaitable[None]]


class Machine:
    """In place of a process and its output: what it uses of a processor in each look, and what it says."""

    pid = 0

    def __init__(self, work: Callable[[int], float], says: Callable[[int], int] = lambda _look: 0) -> None:
        self.process = self
        self.looks = 0
        self._work = work
        self._says = says

    @property
    def heard(self) -> int:
        return self._says(self.looks)

    def worked(self, _pid: int) -> float:
        self.looks += 1
        return self._work((self.looks - 1) // 2)

    async def explain(self) -> str:
        await trio.lowlevel.checkpoint()
        return "QEMU still runs"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch, ends: tuple[socket.socket, socket.socket]) -> Wait:
    def wait(machine: Machine) -> Awaitable[None]:
        monkeypatch.setattr(launch, "_worked", machine.worked)
        return launch._hear_greeting(ends[0], machine, machine.pid)  # type: ignore[arg-type]

    return wait


async def test_a_machine_that_has_stopped_is_given_up(autojump_clock: object, wait: Wait) -> None:
    with pytest.raises(NotBootedError, match="it has stopped; QEMU still runs"):
        await wait(Machine(lambda _look: 3.0))


async def test_a_machine_in_a_loop_is_given_up(autojump_clock: object, wait: Wait) -> None:
    machine = Machine(lambda look: 5.0 * look)
    with pytest.raises(NotBootedError, match="it said nothing in 15 seconds of work"):
        await wait(machine)


async def test_a_machine_that_gets_no_processor_is_waited_for(
    autojump_clock: object, wait: Wait, ends: tuple[socket.socket, socket.socket]
) -> None:
    # It gets a fiftieth of one, for a hundred seconds.
    def work(look: int) -> float:
        if look == 20:
            ends[1].send(GREETING)
        return 0.1 * look

    await wait(Machine(work))


async def test_a_machine_that_says_something_is_waited_for(
    autojump_clock: object, wait: Wait, ends: tuple[socket.socket, socket.socket]
) -> None:
    def work(look: int) -> float:
        if look == 20:
            ends[1].send(GREETING)
        return 5.0 * look

    await wait(Machine(work, says=lambda calls: calls // 4))


async def test_a_machine_that_ends_is_given_up(
    autojump_clock: object, wait: Wait, ends: tuple[socket.socket, socket.socket]
) -> None:
    ends[1].send(GREETING[:5])
    ends[1].shutdown(socket.SHUT_WR)
    with pytest.raises(NotBootedError, match="QEMU still runs"):
        await wait(Machine(lambda look: float(look)))


async def test_only_so_many_machines_start_at_once_as_there_are_processors(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    turns = [launch._Turn() for _ in range(5)]
    async with trio.open_nursery() as nursery:
        for turn in turns:
            nursery.start_soon(turn.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert [turn._taken for turn in turns].count(True) == 3
        for turn in [turn for turn in turns if turn._taken]:
            turn.give_up()
            turn.give_up()  # at its end, too
        await trio.testing.wait_all_tasks_blocked()
        assert [turn._taken for turn in turns].count(True) == 2
        for turn in turns:
            turn.give_up()


@pytest.mark.parametrize("returned", ["5", "null", "[1]", '[{"label": []}]', '[{"label": "console"}]'])
@pytest.mark.parametrize("event", ['"VSERPORT_CHANGE"', '"VSERPORT_CHANGE", "data": []', "{}"])
async def test_nonsense_of_qemu_does_not_tell_that_a_console_was_closed(
    ends: tuple[socket.socket, socket.socket],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    returned: str,
    event: str,
) -> None:
    async def answer(qemu: trio.SocketStream) -> None:
        async for line in qemu:
            number = json.loads(line)["id"]
            await qemu.send_all(f'{{"event": {event}}}\n{{"return": {returned}, "id": {number}}}\n'.encode())

    monkeypatch.setattr(launch, "_PAUSE", 10)
    ours, theirs = map(trio.socket.from_stdlib_socket, ends)
    started = Started(ends[0], Monitor(ours), Machine(lambda _look: 0), 0, Memory(), ExitStack())  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, trio.SocketStream(theirs))
        with pytest.raises(NotBootedError, match="not let go of its console within 60 seconds"):
            await started.wait_left(loaded=True)
        nursery.cancel_scope.cancel()
