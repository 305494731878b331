"""Killing the processes that a dead agent has left: all of them and no other, within a bounded time."""

from __future__ import annotations

import errno
import os
import pathlib
import secrets
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.tools.hiding import HIDING, check_hidden
from tests.tools.leftovers import runs, wait_until_none
from tests.tools.limits import BUSY, HANG
from trio_console import _processes
from trio_console._processes import (
    GUEST_MARK,
    Elders,
    Leftovers,
    Look,
    Wanted,
    Watch,
    is_any_left,
    kill_found,
    kill_processes,
    start_time,
    ticks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence


def test_a_killed_process_that_takes_its_time_to_die_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [*[{11}] * 30, set(), {12}, set(), set()]

    def kill_found(_wanted: Sequence[Wanted]) -> list[Look]:
        found = looks.pop(0)
        return [Look(found, set(), dict.fromkeys(found, b"7"))]

    monkeypatch.setattr(_processes, "kill_found", kill_found)
    assert len(kill_processes(Wanted(GUEST_MARK, "mark")).killed) == 2
    assert looks == []


def test_a_process_that_cannot_be_killed_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def kill_found(_wanted: Sequence[Wanted]) -> list[Look]:
        nonlocal looks
        looks += 1
        return [Look({11}, set(), {11: b"7"})]

    monkeypatch.setattr(_processes, "kill_found", kill_found)
    assert kill_processes(Wanted(GUEST_MARK, "mark"), 0.01) == Leftovers(frozenset({11}), frozenset({11}))
    assert looks > 0


def test_exactly_the_marked_processes_are_killed() -> None:
    mine, other = secrets.token_hex(8), secrets.token_hex(8)
    with (
        subprocess.Popen(["sleep", "1000"], env={**os.environ, GUEST_MARK: mine}) as first,
        subprocess.Popen(["sleep", "1000"], env={**os.environ, GUEST_MARK: other}) as second,
    ):
        try:
            assert len(kill_processes(Wanted(GUEST_MARK, mine)).killed) == 1
            assert first.wait() == -9
            assert second.poll() is None
            assert len(kill_processes(Wanted(GUEST_MARK, mine)).killed) == 0
        finally:
            first.kill()
            second.kill()


@pytest.fixture
def in_exec(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the process with a mark show neither its environment nor its arguments for thirty looks."""

    def hide(mark: str) -> None:
        real_read = _processes._read
        looks = 0

        def read(proc_fd: int, name: str, most: int | None = None) -> bytes:
            nonlocal looks
            found = real_read(proc_fd, "environ")
            if mark.encode() not in found or looks >= 30:
                return real_read(proc_fd, name, most)
            if name == "stat":
                name_of_it, end, fields = real_read(proc_fd, name, most).rpartition(b")")
                listed = fields.split()
                listed[47:49] = b"0", b"0"  # where its environment is
                return name_of_it + end + b" " + b" ".join(listed)
            looks += 1
            return b""

        monkeypatch.setattr(_processes, "_read", read)

    return hide


def test_a_process_in_the_middle_of_an_exec_is_waited_for(in_exec: Callable[[str], None]) -> None:
    mark = secrets.token_hex(8)
    in_exec(mark)
    with subprocess.Popen(["sleep", "1000"], env={GUEST_MARK: mark}) as process:
        try:
            assert len(kill_processes(Wanted(GUEST_MARK, mark), BUSY).killed) == 1
            assert process.wait() == -9
        finally:
            process.kill()


def test_a_process_in_the_middle_of_an_exec_may_be_one_that_is_left(in_exec: Callable[[str], None]) -> None:
    mark = secrets.token_hex(8)
    in_exec(mark)
    with subprocess.Popen(["sleep", "1000"], env={GUEST_MARK: mark}) as process:
        try:
            assert is_any_left(Wanted(GUEST_MARK, mark))
        finally:
            process.kill()


def test_a_process_whose_exec_ends_during_the_look_is_found_by_that_look(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = secrets.token_hex(8)
    real_read = _processes._read
    looks = 0

    def read(proc_fd: int, name: str, most: int | None = None) -> bytes:
        nonlocal looks
        found = real_read(proc_fd, name, most)
        if name == "environ" and mark.encode() in found:
            looks += 1
            return found if looks > 1 else b""
        return found

    with subprocess.Popen(["sleep", "1000"], env={GUEST_MARK: mark}) as process:
        try:
            monkeypatch.setattr(_processes, "_read", read)
            [look] = kill_found([Wanted(GUEST_MARK, mark)])
            assert look.found == {process.pid}
        finally:
            process.kill()


def test_an_older_process_in_the_middle_of_an_exec_is_not_waited_for(in_exec: Callable[[str], None]) -> None:
    mark = secrets.token_hex(8)
    in_exec(mark)
    with subprocess.Popen(["sleep", "1000"], env={GUEST_MARK: mark}) as process:
        try:
            wanted = Wanted(GUEST_MARK, secrets.token_hex(8))
            [unknown, younger] = kill_found([wanted, wanted._replace(since=ticks() + 100)])
            assert process.pid in unknown.unclear
            assert process.pid not in younger.unclear
            # (If it was killed before, it is still there.)
            assert younger.left({process.pid: younger.living[process.pid]}) == {process.pid}
        finally:
            process.kill()


def test_an_older_process_in_the_middle_of_an_exec_is_none_that_is_left(in_exec: Callable[[str], None]) -> None:
    mark = secrets.token_hex(8)
    in_exec(mark)
    with subprocess.Popen(["sleep", "1000"], env={GUEST_MARK: mark}) as process:
        try:
            assert not is_any_left(Wanted(GUEST_MARK, secrets.token_hex(8), since=ticks() + 100))
        finally:
            process.kill()


def test_a_process_that_has_taken_its_arguments_and_environment_away_is_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", HIDING], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            check_hidden(process.stdout.readline())
            assert not pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes()
            [look] = kill_found([Wanted(GUEST_MARK, secrets.token_hex(8))])
            assert process.pid not in look.unclear
            assert process.poll() is None
        finally:
            process.kill()


def test_a_process_without_an_environment_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = 0
    real_listing = _processes._listed

    def listing() -> list[tuple[int, int]]:
        nonlocal scans
        scans += 1
        return real_listing()

    with subprocess.Popen(["sleep", "1000"], env={}) as process:
        try:
            while b"sleep" not in pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes():
                pass
            monkeypatch.setattr(_processes, "_listed", listing)
            assert len(kill_processes(Wanted(GUEST_MARK, secrets.token_hex(8))).killed) == 0
            assert scans <= 10  # two, and a few more if another process is in the middle of an exec
            assert process.poll() is None
        finally:
            process.kill()


def test_the_calling_process_is_never_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os; from trio_console._processes import Wanted, kill_processes as kill;"
        f"raise SystemExit(len(kill(Wanted({GUEST_MARK!r}, os.environ[{GUEST_MARK!r}])).killed))"
    )
    env = {**os.environ, GUEST_MARK: secrets.token_hex(8)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_zombies_and_kernel_threads_are_not_in_the_middle_of_an_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    read = _processes._read

    def read_as_older_kernels_do(proc_fd: int, name: str, most: int | None = None) -> bytes:
        try:
            return read(proc_fd, name, most)
        except ProcessLookupError:
            if name != "environ":
                raise
            return b""  # a process without memory has an empty environment, and not none

    monkeypatch.setattr(_processes, "_read", read_as_older_kernels_do)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        # (If there are such threads here depends on where this runs.)
        listing = [each for each in _processes._listed() if each[0] == child.pid or _is_the_kernels(each[0])]
        monkeypatch.setattr(_processes, "_listed", lambda: listing)
        [look] = _processes.kill_found([Wanted(GUEST_MARK, "mark")])
        assert look.is_clean({})


def _is_the_kernels(pid: int) -> bool:
    # (Not by its parent's number: in a container that may be anybody's.)
    try:
        with open(f"/proc/{pid}/stat") as file:
            return bool(int(file.read().rpartition(")")[2].split()[6]) & _processes._PF_KTHREAD)
    except OSError:
        return False


def test_the_dying_of_others_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As newer kernels do, the environment is refused from the moment at which the memory begins to be freed.

    On a busy machine there is always some process that dies.
    """
    real_read = _processes._read
    with subprocess.Popen(["sleep", "1000"]) as other:

        def read(proc_fd: int, name: str, most: int | None = None) -> bytes:
            line = real_read(proc_fd, "stat")
            if not line.startswith(b"%d " % other.pid):
                return real_read(proc_fd, name, most)
            if name == "environ":
                raise ProcessLookupError
            before, _, after = line.rpartition(b")")
            return b"" if name == "cmdline" else before + b")" + b" 0".join(after.split(b" ")[:21]) + b" 0" * 30

        monkeypatch.setattr(_processes, "_read", read)
        monkeypatch.setattr(_processes, "_listed", lambda: [(other.pid, 1)])
        try:
            [look] = _processes.kill_found([Wanted(GUEST_MARK, "mark")])
        finally:
            other.kill()
    assert list(look.living) == [other.pid]
    assert look.is_clean({})


def test_what_was_killed_is_waited_for_although_nothing_tells_any_more_whose_it_is() -> None:
    """Its parent, by which it was found, is dead before it."""
    script = "env -i setsid sleep 1000 & echo $!; wait"
    killed: dict[int, bytes] = {}
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        assert wait_until_none(lambda: [] if os.getsid(child) == child else [child]) == []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_processes, "_kill", lambda _process: None)  # it takes its time
            [look] = kill_found([Wanted(GUEST_MARK, "mark", leader.pid)])
        look.note_killed(killed)
        leader.kill()
    try:
        [look] = kill_found([Wanted(GUEST_MARK, "mark", leader.pid, ticks())])
        assert look.found == set()
        assert look.left(killed) == {child}
        assert not look.is_clean(killed)
    finally:
        os.kill(child, signal.SIGKILL)
    assert wait_until_none(lambda: [child] if runs(child) else []) == []
    [look] = kill_found([Wanted(GUEST_MARK, "mark", leader.pid, ticks())])
    assert look.is_clean(killed)


def test_a_process_with_the_number_of_one_that_was_killed_is_not_waited_for() -> None:
    assert Look(set(), set(), {11: b"8"}).is_clean({11: b"7"})


def test_children_are_found_by_their_parents_before_any_of_them_is_killed() -> None:
    """A child without the mark, in a POSIX session of its own, is known only as its parent's while that lives."""
    script = "env -i setsid sleep 1000 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        assert wait_until_none(lambda: [] if os.getsid(child) == child else [child]) == []
        [look] = _processes.kill_found([Wanted(GUEST_MARK, "mark", leader.pid)])
        assert look.found == {leader.pid, child}
        assert wait_until_none(lambda: [child] if runs(child) else []) == []


def test_none_is_killed_before_all_were_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a parent dies the kernel gives its children another, whatever comes of a look that has begun."""
    parents = {900: 1, 500: 900, 70: 500, 1: 0}
    killed = []

    def processes(only: Collection[int] | None = None, *_others: object) -> Iterator[_processes._Process]:
        for pid in list(only if only is not None else parents):
            yield _processes._Process(pid, -1, b"S", parents[pid], pid, pid, 0, 1, b"7")

    def kill(process: _processes._Process) -> None:
        killed.append(process.pid)
        for pid, parent in parents.items():
            if parent == process.pid:
                parents[pid] = 1

    monkeypatch.setattr(_processes, "_processes", processes)
    monkeypatch.setattr(_processes, "_environment", lambda _process: b"A=B")
    monkeypatch.setattr(_processes, "_kill", kill)
    [look] = kill_found([Wanted(GUEST_MARK, "mark", leader=900)])
    assert look.found == {900, 500, 70}
    assert killed == [900, 500, 70]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_look_without_descriptors_or_memory_finds_not_nothing_but_fails(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_args: object, **_options: object) -> int:
        raise OSError(number, os.strerror(number))

    wanted = Wanted(GUEST_MARK, "mark")
    for look in (lambda: kill_found([wanted]), lambda: is_any_left(wanted), lambda: start_time(1)):
        with monkeypatch.context() as patch, pytest.raises(OSError, match=os.strerror(number)):
            patch.setattr(_processes.os, "open", refuse)
            look()


def test_members_are_found_with_their_children_and_other_ids_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = {900: 1, 500: 900, 70: 1, 1: 0}
    killed = []

    def processes(only: Collection[int] | None = None, *_others: object) -> Iterator[_processes._Process]:
        for pid in only if only is not None else parents:
            yield _processes._Process(pid, -1, b"S", parents[pid], pid, pid, 0, 1, b"7")

    monkeypatch.setattr(_processes, "_processes", processes)
    monkeypatch.setattr(_processes, "_environment", lambda _process: b"A=B")
    monkeypatch.setattr(_processes, "_kill", lambda process: killed.append(process.pid))
    # (901 is a thread of 900, which is not listed as a process.)
    [look, other] = kill_found(
        [Wanted(GUEST_MARK, "mark", members=frozenset({900, 901})), Wanted(GUEST_MARK, "other")]
    )
    assert look.found == {900, 500}
    assert other.found == set()
    assert killed == [900, 500]


def test_parents_are_killed_before_their_children(monkeypatch: pytest.MonkeyPatch) -> None:
    # The ids have wrapped around, so that the children's are the smaller ones.
    parents = {900: 1, 500: 900, 70: 500, 33: 70, 32: 900, 1: 0}
    killed = []

    def processes(only: Collection[int] | None = None, *_others: object) -> Iterator[_processes._Process]:
        for pid in only or parents:
            group = 1 if pid == 1 else 900
            yield _processes._Process(pid, -1, b"S", parents[pid], group, group, 0, 1, b"7")

    monkeypatch.setattr(_processes, "_processes", processes)
    monkeypatch.setattr(_processes, "_environment", lambda _process: b"A=B")
    monkeypatch.setattr(_processes, "_kill", lambda process: killed.append(process.pid))
    kill_found([Wanted(GUEST_MARK, "mark", leader=900)])
    assert sorted(killed) == [32, 33, 70, 500, 900]
    assert all(killed.index(parents[pid]) < killed.index(pid) for pid in killed if pid != 900)


# A leader that was reaped


def scanned(monkeypatch: pytest.MonkeyPatch, reaped: int, *living: tuple[int, int, int]) -> set[int]:
    """What is found of the session 900, whose leader was reaped, among processes: id, session, when started."""

    def processes(only: Collection[int] | None = None, *_others: object) -> Iterator[_processes._Process]:
        for pid, session, started in living:
            if only is None or pid in only:
                yield _processes._Process(pid, -1, b"S", 1, session, session, 0, 1, b"%d" % started)

    monkeypatch.setattr(_processes, "_processes", processes)
    monkeypatch.setattr(_processes, "_environment", lambda _process: b"A=B")
    monkeypatch.setattr(_processes, "_kill", lambda _process: None)
    [look] = kill_found([Wanted(GUEST_MARK, "mark", 900, reaped)])
    return look.found


@pytest.mark.parametrize("started", [99, 100])
def test_the_session_of_a_leader_that_was_reaped_is_found(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    assert scanned(monkeypatch, 100, (901, 900, started), (902, 900, 500), (903, 903, 50)) == {901, 902}


def test_a_session_that_began_later_with_the_same_number_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scanned(monkeypatch, 100, (901, 900, 101), (902, 900, 1000)) == set()


def test_a_process_that_has_the_number_now_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # It was a leader's, so the process is newer; and whoever is in its session belongs to it.
    assert scanned(monkeypatch, 100, (900, 900, 101), (901, 900, 50)) == set()


def test_a_process_is_not_younger_than_the_clock_of_the_kernel_says() -> None:
    before = _processes.ticks()
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            fd = os.open(f"/proc/{process.pid}", os.O_RDONLY)
            started = int(_processes._look(process.pid, fd).started)
            os.close(fd)
        finally:
            process.kill()
    assert before - 1 <= started <= _processes.ticks()


# --- what no scan need look at ----------------------------------------------------------------------


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes of which a scan has read something; a test clears it."""
    pids: list[int] = []
    look = _processes._look

    def noted(pid: int, proc_fd: int) -> _processes._Process:
        pids.append(pid)
        return look(pid, proc_fd)

    monkeypatch.setattr(_processes, "_look", noted)
    return pids


def as_old_as(process: subprocess.Popen[bytes]) -> int:
    return int(start_time(process.pid) or 0)


def younger(mark: str, than: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """A process with a mark that has started in a later tick."""
    while ticks() <= as_old_as(than):
        pass
    process = subprocess.Popen(["sleep", "1000"], env={GUEST_MARK: mark})
    while mark.encode() not in pathlib.Path(f"/proc/{process.pid}/environ").read_bytes():  # it is in its exec
        pass
    return process


def test_what_is_older_than_all_that_is_wanted_is_looked_at_once(looked_at: list[int]) -> None:
    mark = secrets.token_hex(8)
    with subprocess.Popen(["sleep", "1000"]) as elder, younger(mark, elder) as wanted:
        try:
            watch = Watch(elders=Elders(as_old_as(wanted)))
            kill_found([Wanted(GUEST_MARK, "no" + mark)], watch)
            assert {elder.pid, wanted.pid} <= set(looked_at)
            looked_at.clear()
            [look] = kill_found([Wanted(GUEST_MARK, mark)], watch)
            assert look.found == {wanted.pid}
            assert wanted.wait(HANG) == -9
            assert elder.pid not in looked_at
            assert not any(map(_is_the_kernels, looked_at))
        finally:
            elder.kill()
            wanted.kill()


def test_what_has_started_in_the_same_tick_is_no_elder() -> None:
    mark = secrets.token_hex(8)
    with subprocess.Popen(["sleep", "1000"], env={GUEST_MARK: mark}) as process:
        try:
            watch = Watch(elders=Elders(as_old_as(process)))
            assert all(is_any_left(Wanted(GUEST_MARK, mark), watch) for _ in range(2))
        finally:
            process.kill()


def test_an_elder_is_found_where_it_is_a_member(looked_at: list[int]) -> None:
    with subprocess.Popen(["sleep", "1000"]) as elder:
        try:
            watch = Watch(elders=Elders(ticks() + 1))
            kill_found([Wanted(GUEST_MARK, "no such mark")], watch)
            # (Elsewhere, such as in a container, that number is a process of somebody else.)
            members = frozenset({elder.pid, 2} if _is_the_kernels(2) else {elder.pid})
            [look] = kill_found([Wanted(GUEST_MARK, "mark", members=members)], watch)
            assert look.found == {elder.pid}
            assert elder.wait(HANG) == -9
        finally:
            elder.kill()


def test_a_process_with_the_number_of_an_elder_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = secrets.token_hex(8)
    with subprocess.Popen(["sleep", "1000"]) as elder, younger(mark, elder) as wanted:
        try:
            elders = Elders(as_old_as(wanted))
            # (As if it had the number before that the other one has now, and another inode.)
            elders.note(frozenset({(wanted.pid, 7)}))
            assert is_any_left(Wanted(GUEST_MARK, mark), Watch(elders=elders))
        finally:
            elder.kill()
            wanted.kill()


def test_elders_that_have_gone_are_forgotten() -> None:
    elders = Elders(100)
    elders.note(frozenset({(7, 70), (8, 80)}))
    assert elders.others([(8, 80), (9, 90)]) == [(9, 90)]
    assert elders.others([(7, 70), (8, 80)]) == [(7, 70)]
