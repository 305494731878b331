"""Looks at processes that hang in the kernel: they cost a thread, and keep no other command's end."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.tools.limits import HANG, HELD
from trio_console import _processes
from trio_console import _wire as wire
from trio_console._processes import COMMAND_MARK, Wanted, Watch, is_any_left, kill_found
from trio_console._wire.ids import slot_ids
from trio_console.agent import _looks
from trio_console.agent._looks import HangError, Looks
from trio_console.agent._process import session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from trio.testing import MockClock

    from tests.agent._host import Host
    from trio_console._processes import _Process


def process(pid: int, *, parent: int = 1, group: int = 0, started: int = 100) -> _Process:
    group = group or pid
    return _processes._Process(pid, -1, b"S", parent, group, group, 0, 1, b"%d" % started)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def looks(said: list[str]) -> Iterator[Looks]:
    looks = Looks(said.append)
    yield looks
    looks.end()


# --- one look -------------------------------------------------------------------------------------


async def test_a_look_that_hangs_is_given_up_and_the_next_ones_avoid_the_process(
    looks: Looks, said: list[str]
) -> None:
    gate = threading.Event()

    def hang(watch: Watch) -> None:
        with watch.reading(process(7)):
            gate.wait(HELD)

    with trio.fail_after(HANG):
        try:
            with pytest.raises(HangError):
                await looks.look(hang)
            assert await looks.look(lambda watch: (watch.avoided, watch.blind)) == ({(7, b"100")}, False)
            assert ["process 7 hangs" in " ".join(text.split()) for text in said] == [True]
        finally:
            gate.set()
        # The thread has come back, so the process can be looked at again.
        while await looks.look(lambda watch: watch.avoided):
            await trio.sleep(0.001)


async def test_a_look_that_takes_long_but_hangs_on_no_process_is_waited_for(
    looks: Looks, autojump_clock: MockClock
) -> None:
    turns: queue.SimpleQueue[None] = queue.SimpleQueue()
    reached: queue.SimpleQueue[int] = queue.SimpleQueue()

    def work(watch: Watch) -> int:
        for number in range(5):
            with watch.reading(process(7 + number)):
                reached.put(number)
                turns.get(timeout=HELD)
        reached.put(5)
        turns.get(timeout=HELD)
        return 5

    async def go_on() -> None:
        await wait_all_tasks_blocked()
        # (The clock stands still while this waits for the thread.)
        for _ in range(5):
            reached.get(timeout=HANG)
            await trio.sleep(0.9 * _looks._PATIENCE)
            turns.put(None)
        reached.get(timeout=HANG)
        await trio.sleep(10 * _looks._PATIENCE)
        turns.put(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on)
        assert await looks.look(work) == 5


async def test_when_many_threads_hang_no_memory_is_read_any_more(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_looks, "_MOST_HANGING", 3)
    monkeypatch.setattr(_looks, "_PATIENCE", 0.005)
    gate = threading.Event()

    def hang(watch: Watch, pid: int) -> None:
        with watch.reading(process(pid)):
            gate.wait(HELD)

    try:
        for pid in (7, 8, 9):
            assert not await looks.look(lambda watch: watch.blind)
            with pytest.raises(HangError):
                await looks.look(lambda watch, pid=pid: hang(watch, pid))  # type: ignore[misc]
        assert await looks.look(lambda watch: watch.blind)
    finally:
        gate.set()
    with trio.fail_after(HANG):
        while await looks.look(lambda watch: watch.blind):
            await trio.sleep(0.001)


@pytest.mark.parametrize("hangs", [False, True])
async def test_without_a_thread_the_loop_reads_no_memory_while_any_hangs(
    looks: Looks, monkeypatch: pytest.MonkeyPatch, *, hangs: bool
) -> None:
    monkeypatch.setattr(Looks, "prepare", lambda _: None)
    if hangs:
        looks._hanging.add((7, b"100"))
    assert await looks.look(lambda watch: (threading.current_thread(), watch.blind)) == (
        threading.main_thread(),
        hangs,
    )


# --- one scan -------------------------------------------------------------------------------------


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 7 hangs whoever reads its memory; 8 is its child, and 9 of its group."""

    def processes(only: Collection[int] | None = None, *_others: object) -> Iterator[_Process]:
        made = [process(7), process(8, parent=7), process(9, group=7)]
        yield from (each for each in made if only is None or each.pid in only)

    def environment(of: _Process) -> bytes:
        assert of.pid != 7, "a process that is avoided is not read from"
        return b"A=B"

    monkeypatch.setattr(_processes, "_processes", processes)
    monkeypatch.setattr(_processes, "_environment", environment)
    monkeypatch.setattr(_processes, "_kill", lambda _: None)


WATCH = Watch({(7, b"100")})


@pytest.mark.usefixtures("hidden")
def test_a_process_whose_memory_is_not_read_is_found_by_its_group() -> None:
    [look] = kill_found([Wanted(COMMAND_MARK, "m.", 7)], WATCH)
    assert (look.found, look.unclear) == ({7, 8, 9}, set())


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize(("since", "counts"), [(0, True), (100, True), (101, False)])
def test_a_process_whose_memory_is_not_read_may_be_one_that_was_started_before_it(
    since: int, *, counts: bool
) -> None:
    wanted = Wanted(COMMAND_MARK, "m.", since=since)
    [look] = kill_found([wanted], WATCH)
    assert look.is_clean({}) is not counts
    assert is_any_left(wanted, WATCH) is counts


# --- the ends of commands -------------------------------------------------------------------------


@contextmanager
def memory_hangs(monkeypatch: pytest.MonkeyPatch, pid: int) -> Iterator[None]:
    """Who reads a process's memory hangs, until the end of the block."""
    gate = threading.Event()
    real = _processes._read

    def read(proc_fd: int, name: str, most: int | None = None) -> bytes:
        if name != "stat" and real(proc_fd, "stat").startswith(b"%d " % pid):
            gate.wait(HELD)
        return real(proc_fd, name, most)

    monkeypatch.setattr(_processes, "_read", read)
    try:
        yield
    finally:
        gate.set()


DAEMON = "setsid sh -c 'echo $$; exec sleep 1000 2>&-' & exec sleep 1000 >&-"


async def a_daemon(host: Host) -> tuple[int, int]:
    """A command of another client and a daemon of it; the session's id, and the daemon's."""
    sid = await host.start("sh", "-c", DAEMON, sid=slot_ids(1)[0])
    return sid, int(await host.read_stdout(sid, b"\n"))


@pytest.mark.parametrize("tty", [False, True])
async def test_a_process_that_hangs_the_search_keeps_no_end_of_a_later_command(
    host: Host, monkeypatch: pytest.MonkeyPatch, *, tty: bool
) -> None:
    _, pid = await a_daemon(host)
    started = int(_processes.start_time(pid) or 0)
    while _processes.ticks() <= started:  # (a command of the same tick may have started it)
        await trio.sleep(0.001)
    with trio.fail_after(HANG), memory_hangs(monkeypatch, pid):
        for _ in range(3):
            sid = await host.start("sh", "-c", "sleep 1000 & exec sleep 1000", ends=wire.ExecEnds(0), tty=tty)
            await host.send(wire.ExecKill(round(HELD * 1000)), sid)
            assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=0)


async def test_a_process_that_hangs_the_search_has_the_ends_of_earlier_commands_not_confirmed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = await host.start("sleep", "1000", ends=wire.ExecEnds(0))
    _, pid = await a_daemon(host)
    with memory_hangs(monkeypatch, pid):
        await host.send(wire.ExecKill(1000), sid)
        assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=1)


async def test_a_process_that_hangs_the_search_dies_with_its_command_all_the_same(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    sid, pid = await a_daemon(host)
    monkeypatch.setattr(session, "_LOOK_TIME", HANG)  # the daemon is known by its parent, while that lives
    with trio.fail_after(HANG), memory_hangs(monkeypatch, pid):
        await host.send(wire.ExecKill(round(HELD * 1000)), sid)
        last = (await host.collect(sid)).last
        assert isinstance(last, wire.ExecExited)
        assert _processes.start_time(pid) is None


async def test_an_end_that_no_search_could_look_for_is_not_confirmed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[object]:
        raise OSError

    sid = await host.start("sleep", "1000", ends=wire.ExecEnds(0))
    monkeypatch.setattr("trio_console.agent._process.hunt.kill_found", fail)
    await host.send(wire.ExecKill(1000), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=1)
