"""A leader that another part of the program has reaped: its number may be a stranger's; what it left is found."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.leftovers import becomes, runs, wait_until_none
from tests.tools.limits import HANG
from trio_console import _processes
from trio_console import _wire as wire
from trio_console._processes import COMMAND_MARK, Wanted, is_any_left, ticks
from trio_console.agent._process.background import Background
from trio_console.agent._process.exits import open_exit_fd
from trio_console.agent._process.spawn import Child, _Ends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.agent._host import Host

LEAVE = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"


@pytest.fixture
def child() -> Iterator[tuple[Child, int]]:
    """A child that has ended, and the process that it has left in its group."""
    since = ticks()
    popen = subprocess.Popen(["sh", "-c", LEAVE], stdout=subprocess.PIPE, start_new_session=True)
    made = Child(popen, open_exit_fd(popen.pid), _Ends(None, {}, (), tty=False), "m.", since)
    with popen.stdout:  # type: ignore[union-attr]
        left = int(popen.stdout.readline())  # type: ignore[union-attr]
    os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
    yield made, left
    made.reap()
    os.kill(left, signal.SIGKILL)


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The groups that were signalled."""
    groups: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _number: groups.append(group))
    return groups


def test_the_group_of_a_leader_that_was_not_reaped_is_signalled(
    child: tuple[Child, int], signalled: list[int]
) -> None:
    child[0].kill_group(signal.SIGKILL)
    assert signalled == [child[0].pid]


@pytest.mark.parametrize("known", [False, True])
def test_the_group_of_a_leader_that_another_has_reaped_is_not_signalled(
    child: tuple[Child, int], signalled: list[int], *, known: bool
) -> None:
    os.waitpid(child[0].pid, 0)
    if known:
        with pytest.raises(ChildProcessError):
            child[0].status()
    child[0].kill_group(signal.SIGKILL)
    assert signalled == []


def test_what_is_wanted_of_a_leader_that_another_has_reaped_is_as_old_as_when_it_was_seen(
    child: tuple[Child, int],
) -> None:
    before = ticks()
    assert child[0].status() == wire.ExecExited(0)
    seen = ticks()
    assert child[0].wanted().reaped is None
    os.waitpid(child[0].pid, 0)
    for _ in range(2):
        with pytest.raises(ChildProcessError):
            child[0].status()
    wanted = child[0].wanted()
    assert wanted.leader == child[0].pid
    assert wanted.reaped is not None
    assert before <= wanted.reaped <= seen


@pytest.mark.parametrize("taken", [False, True])
def test_until_when_a_number_was_the_leaders_is_told_when_it_is_reaped(
    child: tuple[Child, int], *, taken: bool
) -> None:
    told: list[tuple[int, int]] = []
    child[0].on_reap = lambda pid, until: told.append((pid, until))
    now = ticks()
    while ticks() == now:
        pass
    later = ticks()
    if taken:
        os.waitpid(child[0].pid, 0)
    child[0].reap()
    child[0].reap()
    [(pid, until)] = told
    assert pid == child[0].pid
    assert (until == child[0].since) if taken else (until >= later)


def test_a_leader_that_was_reaped_earlier_is_noted_with_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_console.agent._process.background._lives", lambda _group: True)
    book = Background()
    book.note(7, "m.", 5)
    assert book.wanted("m.") == Wanted(COMMAND_MARK, "m.", 7, 5)


@pytest.mark.parametrize(("started", "left"), [(100, True), (101, False)])
def test_a_strangers_group_with_the_number_of_a_leader_is_not_what_is_left(
    monkeypatch: pytest.MonkeyPatch, *, started: int, left: bool
) -> None:
    def processes(*_which: object) -> Iterator[_processes._Process]:
        yield _processes._Process(901, -1, b"S", 1, 900, 900, 0, 1, b"%d" % started)

    monkeypatch.setattr(_processes, "_processes", processes)
    monkeypatch.setattr(_processes, "_environment", lambda _process: b"A=B")
    assert is_any_left(Wanted(COMMAND_MARK, "m.", 900, 100)) is left


async def test_what_a_leader_has_left_that_another_has_reaped_is_found_by_its_mark(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = Child.status

    def after_another(child: Child) -> wire.ExecExited | None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child.pid, 0)
        return status(child)

    with monkeypatch.context() as patch:
        patch.setattr(Child, "status", after_another)
        outcome = await host.sh(LEAVE, ends=wire.ExecEnds(None))
    assert outcome.last.kind == "exit_unknown"
    [started] = outcome.all(wire.ExecStarted)
    left = int(outcome.stdout)
    await becomes(left, b"sleep")
    assert isinstance(started.command, int)
    await host.send(wire.KillBackground(started.command, 10_000), sid := host.new_id())
    with trio.fail_after(HANG):
        assert await host.receive(sid) == wire.BackgroundKilled(0)
    assert wait_until_none(lambda: [left] if runs(left) else []) == []
