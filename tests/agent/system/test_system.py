"""Users, limits, clock, activity file and the list of children, each by itself."""

from __future__ import annotations

import errno
import json
import os
import pwd
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.agent._host import pid_is_taken, popen
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console.agent._process.limits import FdHeadroom, Limit, apply_limit, limit_number, raise_hard_limit
from trio_console.agent._process.users import Account, UnknownUserError, find_account, own_home
from trio_console.agent._system import machine as _system
from trio_console.agent._system.machine import Leaders, kill_remaining, set_clock

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent.conftest import AgentFactory


# --- users ----------------------------------------------------------------------------------------


def test_a_known_number_is_as_good_as_its_name() -> None:
    entry = pwd.getpwnam("daemon")
    assert find_account(str(entry.pw_uid)) == find_account("daemon")
    assert find_account("daemon").home == entry.pw_dir


def test_an_unknown_number_keeps_the_own_group_and_has_no_others() -> None:
    assert find_account("54321") == Account(54321, os.getegid(), (), None)


def test_a_group_replaces_the_users_own() -> None:
    assert find_account("daemon:54321").gid == 54321
    assert find_account("54321:daemon").gid == pwd.getpwnam("daemon").pw_gid


def test_the_largest_id_is_allowed_and_the_one_that_means_nobody_is_not() -> None:
    assert find_account("4294967294").uid == 2**32 - 2
    for text in ("4294967295", "1:4294967295"):
        with pytest.raises(UnknownUserError):
            find_account(text)


@pytest.mark.parametrize("text", ["", ":", "a:", ":0", "4294967296", "9" * 5000, "-1", "no such"])
def test_what_is_no_user_is_unknown(text: str) -> None:
    with pytest.raises(UnknownUserError):
        find_account(text)


def test_one_is_oneself() -> None:
    own = find_account(str(os.getuid()))
    assert own.home == own_home()
    assert not Account(os.getuid() + 1, os.getgid(), (), None).is_current()


# --- limits ---------------------------------------------------------------------------------------


def test_every_resource_of_the_protocol_has_a_number() -> None:
    names = "cpu fsize data stack core rss nproc nofile memlock as locks sigpending msgqueue nice rtprio rttime"
    assert sorted(limit_number(name) for name in names.split()) == list(range(16))  # type: ignore[type-var]
    assert limit_number("NoFile") == resource.RLIMIT_NOFILE
    assert limit_number("ofile") is None


def test_an_impossible_limit_has_an_errno() -> None:
    for call in (apply_limit, raise_hard_limit):
        with pytest.raises(OSError) as caught:
            call(Limit(resource.RLIMIT_CORE, 2, 1))
        assert caught.value.errno == errno.EINVAL


def test_raising_more_than_the_kernel_has_is_not_permitted() -> None:
    with pytest.raises(OSError) as caught:
        apply_limit(Limit(resource.RLIMIT_NOFILE, 2**64 - 1, 2**64 - 1))
    assert caught.value.errno == errno.EPERM


def test_what_is_permitted_anyway_needs_no_raise() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_hard_limit(Limit(resource.RLIMIT_NOFILE, 10, 20))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_descriptors_are_asked_for_only_when_needed_and_at_most_what_there_are() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        headroom = FdHeadroom()
        headroom.ensure(24)  # eight for each, and the reserve of 64
        assert headroom.for_child() == ()
        headroom.ensure(25)
        assert headroom.for_child() == (Limit(resource.RLIMIT_NOFILE, 256, before[1]),)
        headroom.ensure(10**9)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
        headroom.restore()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- clock ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("off_ms", "stepped"), [(0, False), (99, False), (-99, False), (101, True), (-101, True)])
def test_the_clock_is_stepped_beyond_a_tenth_of_a_second(
    monkeypatch: pytest.MonkeyPatch, off_ms: int, stepped: bool
) -> None:
    now = 1_700_000_000 * 10**9
    set_to: list[int] = []
    monkeypatch.setattr(time, "time_ns", lambda: now)
    monkeypatch.setattr(time, "clock_settime_ns", lambda _clock, value: set_to.append(value))
    target = now + off_ms * 1_000_000
    assert set_clock(target) is stepped
    assert set_to == [target] * stepped


def test_a_clock_that_is_not_ours_is_left_alone_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(time, "clock_settime_ns", refuse)
    assert set_clock(1) is False


# --- children -------------------------------------------------------------------------------------


async def test_nobody_is_reaped_while_a_leader_is_being_started() -> None:
    leaders = Leaders()
    settled = trio.Event()

    async def wait() -> None:
        await leaders.wait_settled()
        settled.set()

    async with trio.open_nursery() as nursery:
        with leaders.starting():
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not settled.is_set()
            leaders.add(5)
        await settled.wait()
    assert 5 in leaders
    leaders.discard(5)
    assert 5 not in leaders


async def test_who_exits_while_nobody_listens_is_reaped_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    children = [popen("sleep", "60"), popen("sleep", "60")]
    ours = {child.pid for child in children}
    every = _system._children
    monkeypatch.setattr(_system, "_children", lambda but: (c for c in every(but) if c[0] in ours))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_system.reap_orphans, Leaders())
        await trio.testing.wait_all_tasks_blocked()
        assert signal.getsignal(signal.SIGCHLD) is not before
        with trio.fail_after(HANG):
            children[0].kill()
            while signal.getsignal(signal.SIGCHLD) is not before:
                await trio.lowlevel.checkpoint()
            # It got the signal for the first child, and is about to look. For this child no signal comes.
            children[1].kill()
            await trio.to_thread.run_sync(os.waitid, os.P_PID, children[1].pid, os.WEXITED | os.WNOWAIT)
            while any(pid_is_taken(pid) for pid in ours):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    for child in children:
        child.returncode = -9
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.parametrize("kernel", ["has a list", "has none"])
def test_children_are_found_with_and_without_the_kernels_list(
    monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    if kernel == "has none":
        monkeypatch.setattr(_system, "_listed_children", lambda: None)
    with popen("sleep", "60") as child, popen("sleep", "60") as other:
        try:
            assert dict(_system._children({other.pid}))[child.pid] in (b"S", b"R", b"D")
            assert other.pid not in dict(_system._children({other.pid}))
            assert other.pid in dict(_system._children())
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert dict(_system._children())[child.pid] == b"Z"
        finally:
            child.kill()
            other.kill()
    assert child.pid not in dict(_system._children())


def test_the_kernels_list_has_the_children_of_all_threads() -> None:
    with ThreadPoolExecutor(1) as thread:
        with thread.submit(popen, "sleep", "60").result() as child:
            found = _system._listed_children()
            child.kill()
    assert child.pid in (found or ())


def test_without_the_kernels_list_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_file(path: str, *_mode: str) -> Any:
        raise FileNotFoundError(path)

    monkeypatch.setattr(_system, "open", no_such_file, raising=False)
    assert _system._listed_children() is None


async def test_everything_that_remains_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the child that is made here counts, because the test process may have others.
    child = popen("sleep", "60")
    every = _system._children
    monkeypatch.setattr(_system, "_children", lambda: (c for c in every() if c[0] == child.pid))
    with trio.fail_after(HANG):
        await kill_remaining()
    assert not pid_is_taken(child.pid)
    child.returncode = -9


# --- activity file ---------------------------------------------------------------------------------


async def test_the_activity_file_tells_what_goes_on(agent: AgentFactory, tmp_path: Path) -> None:
    async with agent(activity_dir=str(tmp_path)) as host:
        sid = await host.start("cat")
        path = tmp_path / "heartbeat.json"
        record: dict[str, object] = {}
        with trio.fail_after(HANG):
            while record.get("active_exec_sessions") != 1:
                await host.ping()
                record = read_json(path)
        assert record["heartbeat_seq"]
        assert set(record) == {
            *("heartbeat_seq", "activity_seq", "timestamp", "last_activity", "active_exec_sessions"),
            *("active_fs_streams", "active_tcp_streams", "activity_counters"),
        }
        assert str(record["timestamp"]).endswith("Z")
        await host.send(wire.ExecStdin(b""), sid)
        await host.collect(sid)


def read_json(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


async def test_without_its_directory_there_is_no_activity_file(agent: AgentFactory, tmp_path: Path) -> None:
    async with agent(activity_dir=str(tmp_path / "absent")) as host:
        await host.ping()
    assert not read_json(tmp_path / "absent" / "heartbeat.json")
