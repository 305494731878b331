"""What a command has left when its session is over is killed on request, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.leftovers import becomes, runs
from tests.tools.limits import HANG
from trio_console import _processes
from trio_console import _wire as wire
from trio_console.agent._process import background
from trio_console.agent._process.background import Background

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.agent._host import Host

SECOND_CLIENT = (2**32 - 1) // 128 + 5
BACKGROUND = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes to be killed when the test is over."""
    pids: list[int] = []
    yield pids
    for pid in filter(runs, pids):
        os.kill(pid, signal.SIGKILL)


async def leave(host: Host, pids: list[int], script: str = BACKGROUND) -> tuple[int, int]:
    """Run a command that leaves something; returns its number, and the id of what it has left."""
    outcome = await host.sh(script, ends=wire.ExecEnds(None))
    [started] = outcome.all(wire.ExecStarted)
    assert isinstance(started.command, int)
    pids.append(int(outcome.stdout))
    await becomes(pids[-1], b"sleep")
    return started.command, pids[-1]


async def kill(host: Host, command: int, *, sid: int | None = None, grace: int = 10_000) -> wire.Message:
    sid = sid or host.new_id()
    await host.send(wire.KillBackground(command, grace), sid)
    with trio.fail_after(HANG):
        answer = await host.receive(sid)
    assert isinstance(answer, wire.Message)
    return answer


async def test_what_a_command_has_left_is_killed(host: Host, pids: list[int]) -> None:
    number, pid = await leave(host, pids)
    _, other = await leave(host, pids)
    assert await kill(host, number) == wire.BackgroundKilled(0)
    assert not runs(pid)
    assert runs(other)


@pytest.mark.parametrize("how", ["setsid", "env -i"])
async def test_what_has_left_the_session_or_lost_the_mark_is_killed(host: Host, pids: list[int], how: str) -> None:
    number, pid = await leave(host, pids, f"{how} {BACKGROUND}")
    assert await kill(host, number) == wire.BackgroundKilled(0)
    assert not runs(pid)


async def test_the_children_of_what_was_left_are_killed(host: Host, pids: list[int]) -> None:
    inner = "env -i setsid sleep 1000 >/dev/null & echo $!; exec >/dev/null; wait"
    number, pid = await leave(host, pids, f"sh -c '{inner}' </dev/null 2>/dev/null &")
    assert await kill(host, number) == wire.BackgroundKilled(0)
    assert not runs(pid)


async def test_a_client_names_only_its_own_commands(host: Host, pids: list[int]) -> None:
    number, pid = await leave(host, pids)
    assert await kill(host, number, sid=SECOND_CLIENT) == wire.BackgroundKilled(0)
    assert runs(pid)


async def test_a_number_of_no_command_names_nothing(host: Host, pids: list[int]) -> None:
    _, pid = await leave(host, pids)
    assert await kill(host, 2**64 - 1) == wire.BackgroundKilled(0)
    assert runs(pid)


async def test_no_number_is_told_to_a_client_that_has_not_asked_for_the_ends(host: Host) -> None:
    [started] = (await host.sh("true")).all(wire.ExecStarted)
    assert started.command is wire.UNSET


async def test_what_cannot_be_killed_is_counted(
    host: Host, pids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    number, pid = await leave(host, pids)
    with monkeypatch.context() as patch:
        patch.setattr(_processes, "_kill", lambda process: None)
        assert await kill(host, number, grace=100) == wire.BackgroundKilled(1)
        assert runs(pid)  # (here: behind the block, a scan that is under way kills it)


async def test_a_client_that_has_gone_gets_no_answer(
    host: Host, pids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id may be another client's by then."""
    number, pid = await leave(host, pids)
    with monkeypatch.context() as patch:
        patch.setattr(_processes, "_kill", lambda process: None)
        sid = host.new_id()
        await host.send(wire.KillBackground(number, 3_600_000), sid)
        await host.send(wire.ClientDisconnected(0, 2**25))
        assert await host.nothing_for(sid)
    with trio.fail_after(HANG):
        while runs(pid):
            await trio.sleep(0.01)
    assert await host.nothing_for(sid)


async def test_a_bad_frame_ends_the_request_at_once(
    host: Host, pids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    number, _ = await leave(host, pids)
    monkeypatch.setattr(_processes, "_kill", lambda process: None)
    sid = host.new_id()
    await host.send(wire.KillBackground(number, 3_600_000), sid)
    await host.send(wire.FsData(b"x"), sid)
    answer = await host.receive(sid)
    assert isinstance(answer, wire.Error)
    assert answer.kind == "invalid_session"


# The book of leaders


def leader(script: str) -> tuple[int, int]:
    """A leader that was reaped, and the process that it has left in its group (0: none)."""
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as popen:
        assert popen.stdout is not None
        left = popen.stdout.readline()
    return popen.pid, int(left or 0)


def test_a_leader_without_a_group_is_not_kept() -> None:
    book = Background()
    pid, _ = leader("exit")
    book.note(pid, "m.")
    assert book.wanted("m.").leader is None
    assert not book._leaders


def test_a_leader_with_a_group_is_kept_for_its_mark(pids: list[int]) -> None:
    book = Background()
    pid, left = leader(BACKGROUND)
    pids.append(left)
    book.note(pid, "m.")
    assert book.wanted("m.").leader == pid
    assert book.wanted("n.").leader is None


def test_the_leader_that_has_a_number_now_is_kept(pids: list[int]) -> None:
    book = Background()
    pid, left = leader(BACKGROUND)
    pids.append(left)
    book.note(pid, "former.")
    book.note(pid, "present.")
    assert book.wanted("former.").leader is None
    assert book.wanted("present.").leader == pid


def test_a_leader_without_a_group_takes_the_number_from_the_former_one(monkeypatch: pytest.MonkeyPatch) -> None:
    book = Background()
    monkeypatch.setattr(background, "_lives", lambda group: True)
    book.note(7, "former.")
    monkeypatch.setattr(background, "_lives", lambda group: False)
    book.note(7, "present.")
    assert book.wanted("former.").leader is None


def test_groups_that_have_ended_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    living = set(range(1000))
    monkeypatch.setattr(background, "_lives", lambda group: group in living)
    book = Background()
    for pid in range(1000):
        book.note(pid, f"{pid}.")
        if pid % 2:
            living.discard(pid)
        assert len(book._leaders) <= max(64, 2 * (pid // 2 + 1) + 64)
    assert all(book.wanted(f"{pid}.").leader == pid for pid in range(0, 1000, 2))
    living.clear()
    for pid in range(1000, 3000):
        living.add(pid)
        book.note(pid, "m.")
        living.clear()
    assert len(book._leaders) <= 64


def test_a_group_that_may_not_be_signalled_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_group: int, _number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(background.os, "killpg", refuse)
    book = Background()
    book.note(7, "m.")
    assert book.wanted("m.").leader == 7
