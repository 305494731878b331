"""The forced part of a guest's end: it is bounded, and warns of everything that it leaves."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.tools.limits import HANG
from tests.tools.peer import Peer, ready_message
from trio_console import GuestLostError, SocketGuest, open_guest
from trio_console import _wire as wire
from trio_console._guests import host as _host
from trio_console._guests import leftovers, supervisor
from trio_console._guests.spec import GuestHost
from trio_console._processes import GUEST_MARK, Leftovers, Wanted
from trio_console._session.confirmations import Confirmations
from trio_console.agent import serve_agent
from trio_console.agent._router import Ending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from trio.testing import MockClock

    from trio_console import Guest
    from trio_console._guests.supervisor import Workers

MIB = 1024 * 1024


class Undying:
    """A process in an uninterruptible system call."""

    pid = 2**22 + 1  # more than the kernel gives, so that no other process can be hit
    returncode = None

    def __init__(self) -> None:
        self.stderr, self._said = trio.testing.memory_stream_one_way_pair()[::-1]
        self.signals: list[int] = []

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> None:
        await trio.sleep_forever()


@asynccontextmanager
async def watched(process: Any) -> AsyncIterator[GuestHost]:
    """What is told of a process that carries a guest; its watch is cancelled when the block is left."""
    console: Any = None
    async with trio.open_nursery() as nursery:

        async def watch(*, task_status: trio.TaskStatus[GuestHost]) -> None:
            await supervisor.watch(process, "the agent", console, process.stderr, task_status.started)

        yield await nursery.start(watch)
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times are those of the machine's clock."""
    monkeypatch.setattr(supervisor, "_KILL_TIME", 0.05)
    monkeypatch.setattr(leftovers, "_SCAN_TIME", 0.05)


async def test_a_process_that_does_not_die_is_left_behind_with_a_warning() -> None:
    process: Any = Undying()
    with pytest.warns(RuntimeWarning, match=r"the agent \(process 4194305\) was killed but did not end"):
        async with watched(process):
            pass
    assert process.signals == [signal.SIGKILL]


async def test_all_that_a_process_has_said_is_in_the_reason_of_its_end(autojump_clock: MockClock) -> None:
    process: Any = Undying()
    with pytest.warns(RuntimeWarning, match="did not end"):
        async with watched(process) as host:
            for part in (b"out of ", b"memory"):
                await process._said.send_all(part)
                await trio.testing.wait_all_tasks_blocked()
            assert host.explain is not None
            assert (await host.explain()).endswith("and said: out of memory")


async def test_leaving_a_process_that_does_not_die_can_be_cancelled_and_is_bounded(
    autojump_clock: MockClock,
) -> None:
    process: Any = Undying()
    with pytest.warns(RuntimeWarning, match="did not end"), trio.move_on_after(0.5) as scope:
        async with watched(process):
            await trio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("left", "match"), [(frozenset({17, 4}), r"the processes \[4, 17\] of a guest"), (frozenset[int](), None)]
)
async def test_what_a_guest_has_left_behind_and_cannot_be_killed_is_named(
    left: frozenset[int], match: str | None, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(leftovers, "kill_processes", lambda _wanted: Leftovers(left, left))
    await leftovers.kill_left_behind(Wanted(GUEST_MARK, "mark"), trio.CancelScope())
    assert [str(found.message).partition(" were")[0] for found in recwarn] == (
        ["the processes [4, 17] of a guest"] if match else []
    )


async def test_a_second_ctrl_c_does_not_cut_the_search_short(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(leftovers, "_SCAN_TIME", HANG)
    searched: list[str] = []

    def search(wanted: Wanted) -> Leftovers:
        searched.append(wanted.mark)
        return Leftovers(frozenset(), frozenset())

    monkeypatch.setattr(leftovers, "kill_processes", search)
    patience = trio.CancelScope()
    patience.cancel()  # as `see_through` does at a second Ctrl-C
    await leftovers.kill_left_behind(Wanted(GUEST_MARK, "mark"), patience)
    assert searched == ["mark"]
    assert not recwarn.list


async def test_a_search_that_takes_too_long_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(leftovers, "kill_processes", lambda _wanted: os.read(reading, 1))
    try:
        with pytest.warns(RuntimeWarning, match="may still run"):
            await leftovers.kill_left_behind(Wanted(GUEST_MARK, "mark"), trio.CancelScope())
    finally:
        os.write(writing, b"x")
        os.close(writing)
        # (The thread may be about to read.)
        await trio.to_thread.run_sync(lambda: None)  # noqa: ASYNC102  (takes no time)
        os.close(reading)


class Console:
    """Takes what it is given, and is closed, in its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.closed = False

    async def aclose(self) -> None:
        await trio.sleep(self.seconds)
        self.closed = True


async def _end(
    wait_ended: Callable[[], Awaitable[None]], confirmations: Confirmations, console: Console | None = None
) -> list[str]:
    told: list[str] = []
    channel: Any = console or Console(0)
    carrier: Any = SimpleNamespace(host=GuestHost(channel))
    await _host.end(lambda: told.append("told"), wait_ended, _host.Host(carrier, channel), confirmations)
    return told


async def test_a_teardown_leaves_the_last_of_the_grace_to_force(autojump_clock: MockClock) -> None:
    assert await _end(trio.sleep_forever, Confirmations(5)) == ["told"]
    assert trio.current_time() == pytest.approx(5 - _host._FORCE_TIME)


async def test_the_teardown_of_a_guest_that_has_let_others_wait_is_told_and_forced_at_once(
    autojump_clock: MockClock,
) -> None:
    confirmations = Confirmations(5)
    await confirmations.wait(trio.sleep_forever)
    assert await _end(trio.sleep_forever, confirmations) == ["told"]
    assert trio.current_time() == pytest.approx(5 + _host._TELL_TIME)


@pytest.mark.parametrize("workers", ["threads", "tasks"])
@pytest.mark.parametrize("grace", [0.0, 0.1, 0.4, 0.5])
async def test_a_guest_on_a_socket_is_told_to_end_however_short_the_grace_is(
    tmp_path: Path, grace: float, workers: Workers
) -> None:
    path = tmp_path / "console"
    endings: list[Ending] = []
    with trio.fail_after(HANG):
        async with await listen(path) as listener:
            async with trio.open_nursery() as nursery:

                async def machine() -> None:
                    endings.append(await serve_agent(await listener.accept()))

                nursery.start_soon(machine)
                async with open_guest(SocketGuest(path, workers=workers), grace=grace) as guest:
                    await guest.ping()
    assert endings == [Ending.SHUT_DOWN]


@pytest.mark.parametrize("workers", ["threads", "tasks"])
async def test_a_guest_is_told_to_end_behind_what_its_console_still_holds_however_short_the_grace_is(
    tmp_path: Path, workers: Workers
) -> None:
    """A machine that has not read for a while, and reads on when it is left."""
    path = tmp_path / "console"
    leaving = trio.Event()
    received: list[wire.Message] = []
    async with trio.open_nursery() as nursery:

        async def machine(listener: trio.SocketListener) -> None:
            peer = Peer(await listener.accept())
            await peer.expect(wire.Bootstrap)
            await peer.send(wire.InitResolved(wire.DefaultUser(0, 0)))
            await peer.expect(wire.InitAck)
            await peer.send(ready_message(16 * MIB))
            id_, _ = await peer.expect(wire.ExecRequest)
            await peer.send(wire.ExecStarted(7), id_)
            await leaving.wait()
            async with peer.stream:
                async for _, message in peer:
                    received.append(message)

        async def upload(guest: Guest) -> None:
            with suppress(GuestLostError):
                await guest.run_process(["cat"], stdin=bytes(16 * MIB))

        with trio.fail_after(HANG):
            async with await listen(path) as listener:
                nursery.start_soon(machine, listener)
                async with open_guest(SocketGuest(path, workers=workers), grace=0.2) as guest:
                    nursery.start_soon(upload, guest)
                    while not console_is_full(guest):
                        await trio.sleep(0.01)
                    leaving.set()
    assert any(isinstance(message, wire.Shutdown) for message in received)


async def listen(path: Path) -> trio.SocketListener:
    socket = trio.socket.socket(trio.socket.AF_UNIX)
    await socket.bind(str(path))
    socket.listen()
    return trio.SocketListener(socket)


def console_is_full(guest: Guest) -> bool:
    console = guest.statistics().console
    assert console is not None
    return console.tasks_waiting_send > 0


async def test_the_teardown_of_a_guest_that_answers_is_in_order_although_one_process_is_stuck(
    autojump_clock: MockClock,
) -> None:
    heard = 0
    confirmations = Confirmations(5, lambda: heard)
    await confirmations.wait(trio.sleep_forever)
    heard += 1  # such as the answer to another request
    console = Console(4)
    assert await _end(partial(trio.sleep, 0.1), confirmations, console) == ["told"]
    assert console.closed
    assert trio.current_time() == pytest.approx(9.1)


async def test_a_guest_that_confirms_its_end_and_does_not_go_has_the_last_of_the_grace_left_to_force(
    autojump_clock: MockClock,
) -> None:
    console = Console(100)
    assert await _end(partial(trio.sleep, 1), Confirmations(5), console) == ["told"]
    assert not console.closed
    assert trio.current_time() == pytest.approx(5 - _host._FORCE_TIME)
