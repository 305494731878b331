"""The agent's directory of cgroups: where it may have one, how it is made, and what is left of it."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools.cgroups import PLACE, members, needs_cgroups
from tests.tools.leftovers import descriptors
from tests.tools.users import as_root
from trio_console.agent import _cgroups as module
from trio_console.agent._cgroups import Cgroup, Cgroups, Stay, open_cgroups, remove_stale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

V1 = "40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"


# --- where ----------------------------------------------------------------------------------------


def fake_proc(tmp_path: Path, own: str, mountinfo: str) -> str:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(f"9:name=systemd:/\n1:cpu:/x\n{own}")
    (proc / "mountinfo").write_text(V1 + mountinfo)
    return str(proc)


def mount(target: object, root: str = "/") -> str:
    return f"41 31 0:38 {root} {str(target).replace(' ', chr(92) + '040')} rw,relatime - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("own", "root", "within"),
    [("/", "/", ""), ("/a/b", "/a/b", ""), ("/a/b", "/a", "/b"), ("/a", "/", "/a")],
)
def test_the_own_cgroup_is_found_in_its_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, root: str, within: str
) -> None:
    monkeypatch.setattr(module, "_is_ours", lambda _place, *, is_top: is_top == (not within))
    target = tmp_path / "a mount"
    proc = fake_proc(tmp_path, f"0::{own}\n", mount(target, root))
    assert module._find(proc) == str(target) + within


@pytest.mark.parametrize(
    ("own", "mountinfo"),
    [
        ("", mount("/m")),  # no hierarchy of version 2
        ("0::/\n", ""),  # it is not mounted
        ("0::/ab\n", mount("/m", "/a")),  # only another part of it is
        ("0::/\n", mount("/m", "/..")),  # only what is above is
    ],
)
def test_a_cgroup_that_cannot_be_seen_is_not_used(tmp_path: Path, own: str, mountinfo: str) -> None:
    assert module._find(fake_proc(tmp_path, own, mountinfo)) is None


def test_a_system_without_cgroups_has_none_for_the_agent(tmp_path: Path) -> None:
    assert open_cgroups(fake_proc(tmp_path, "", "")) is None
    assert open_cgroups(str(tmp_path / "missing")) is None


def test_the_cgroup_of_a_manager_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    place = tmp_path / "some.service"
    place.mkdir()
    assert not module._is_ours(str(place), is_top=False)
    assert module._is_ours(str(place), is_top=True)


@pytest.mark.parametrize(("value", "ours"), [(b"1", True), (b"0", False)])
def test_a_cgroup_that_its_manager_has_delegated_is_ours(
    monkeypatch: pytest.MonkeyPatch, value: bytes, *, ours: bool
) -> None:
    def getxattr(_path: str, name: str) -> bytes:
        if name == "trusted.delegate":
            raise PermissionError
        return value

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getxattr", getxattr)
    assert module._is_ours("/a.service", is_top=False) == ours


def test_a_cgroup_of_our_own_user_is_ours_unless_it_is_a_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = 4711
    for name in ("mine", "app.scope"):
        (tmp_path / name).mkdir()
    real = os.stat
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result([*real(path)[:4], owner, *real(path)[5:]]))
    assert module._is_ours(str(tmp_path / "mine"), is_top=False)
    assert not module._is_ours(str(tmp_path / "app.scope"), is_top=False)


@pytest.mark.parametrize(
    ("release", "quick"), [("5.4.0-1", False), ("5.5", True), ("6.18.44-x", True), ("?", False)]
)
def test_kernels_in_which_a_move_takes_long_are_known(release: str, *, quick: bool) -> None:
    assert module._is_quick(release) == quick


def test_without_pidfds_there_are_no_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    assert open_cgroups() is None
    monkeypatch.delattr(os, "pidfd_open")
    assert open_cgroups() is None


# --- the directory --------------------------------------------------------------------------------


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    cgroups = open_cgroups()
    assert cgroups is not None
    yield cgroups
    cgroups.close()
    assert not Path(cgroups.path).exists()


def in_thread(function: Callable[[], None]) -> None:
    """Call a function in a thread of its own, so that no other is moved."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def born_in(cgroups: Cgroups, *command: str) -> tuple[Cgroup, subprocess.Popen[bytes]]:
    """A process that is born in a new cgroup."""
    born: list[tuple[Cgroup, subprocess.Popen[bytes]]] = []

    def start() -> None:
        cgroup = cgroups.new()
        cgroup.enter()
        born.append((cgroup, subprocess.Popen(command)))
        cgroups.leave()
        cgroup.stay = Stay.THREAD_OUT

    in_thread(start)
    return born[0]


@needs_cgroups
def test_a_process_is_born_in_the_cgroup_of_its_thread(cgroups: Cgroups) -> None:
    cgroup, process = born_in(cgroups, "sleep", "1000")
    assert cgroup.members() == {process.pid}
    assert cgroup.is_populated()
    assert not cgroups.take_back(cgroup)
    cgroup.kill()
    process.wait()
    assert not cgroup.is_populated()
    assert cgroups.take_back(cgroup)


@needs_cgroups
def test_what_is_frozen_does_nothing_and_goes_on_when_it_is_thawed(cgroups: Cgroups) -> None:
    cgroup, process = born_in(cgroups, "sh", "-c", "read x </dev/null; while :; do read x </dev/null; done")
    cgroup.freeze()
    path = Path(cgroup._path)
    while "frozen 1" not in (path / "cgroup.events").read_text():
        pass
    cgroup.thaw()
    while "frozen 0" not in (path / "cgroup.events").read_text():
        pass
    cgroup.kill()
    process.wait()


@needs_cgroups
def test_a_cgroup_with_a_zombie_is_empty(cgroups: Cgroups) -> None:
    cgroup, process = born_in(cgroups, "true")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    while cgroup.is_populated():  # a moment longer, on a busy machine
        pass
    assert cgroups.take_back(cgroup)
    process.wait()


@needs_cgroups
def test_a_cgroup_that_was_taken_back_touches_nothing(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    before, process = born_in(cgroups, "true")
    process.wait()
    while before.is_populated():
        pass
    assert cgroups.take_back(before)
    after, process = born_in(cgroups, "sleep", "1000")
    assert after._path == before._path
    killed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, _signal: killed.append(pid))
        before.freeze()
        before.kill()
    assert killed == []
    assert Path(after._path, "cgroup.freeze").read_text() == "0\n"
    assert before.members() == frozenset()
    assert not before.is_populated()
    assert cgroups.take_back(before)
    assert after.members() == {process.pid}
    after.kill()
    process.wait()


@needs_cgroups
def test_a_cgroup_with_others_in_it_is_removed_with_these(cgroups: Cgroups) -> None:
    cgroup, process = born_in(cgroups, "true")
    process.wait()
    for inner in ("one", "one/two", "three"):
        Path(cgroup._path, inner).mkdir()
    while not cgroups.take_back(cgroup):
        pass
    assert not Path(cgroup._path).exists()


def fake_cgroup(path: Path, events: str = "populated 0\nfrozen 0\n") -> Cgroup:
    path.mkdir()
    (path / "cgroup.events").write_text(events)
    cgroup = Cgroup(str(path))
    cgroup.stay = Stay.THREAD_OUT
    return cgroup


def fake_cgroups(path: Path, controllers: str = "\n") -> Cgroups:
    (path / "cgroup.subtree_control").write_text(controllers)
    (path / "cgroup.threads").touch()
    return Cgroups(str(path), os.open(path, os.O_RDONLY), str(path), moved=False)


@pytest.mark.parametrize(("controllers", "reused"), [("\n", True), ("cpu pids\n", False)])
def test_a_cgroup_in_which_limits_can_be_set_is_not_used_again(
    tmp_path: Path, controllers: str, *, reused: bool
) -> None:
    cgroups = fake_cgroups(tmp_path, controllers)
    cgroup = fake_cgroup(tmp_path / "1")
    assert cgroups.take_back(cgroup) == reused  # (the other one cannot be removed, as it has files)
    assert [*cgroups._free] == ([str(tmp_path / "1")] if reused else [])
    cgroups.close()


@pytest.mark.parametrize("events", ["populated 1\nfrozen 0\n", "populated 0\nfrozen 1\n"])
def test_a_cgroup_that_is_not_like_a_new_one_is_not_used_again(tmp_path: Path, events: str) -> None:
    free: deque[str] = deque()
    fake_cgroup(tmp_path / "1", events).end(free)
    assert not free


def test_a_cgroup_that_was_frozen_is_not_used_again(tmp_path: Path) -> None:
    # The kernel may tell a little later that it is frozen.
    free: deque[str] = deque()
    cgroup = fake_cgroup(tmp_path / "1")
    cgroup.freeze()
    cgroup.end(free)
    assert not free


def test_no_more_than_a_few_cgroups_are_kept_for_others(tmp_path: Path) -> None:
    cgroups = fake_cgroups(tmp_path)
    for number in range(20):
        cgroups.take_back(fake_cgroup(tmp_path / str(number)))
    assert len(cgroups._free) == module._FEW_FREE
    cgroups.close()


def test_the_processes_that_cannot_be_seen_are_not_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _signal: killed.append(pid))
    cgroup = fake_cgroup(tmp_path / "1")
    (tmp_path / "1" / "cgroup.threads").write_text("0\n47114711\n0\n")
    cgroup.kill()
    assert killed == [47114711]
    assert cgroup.members() == {47114711}


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_lack_of_descriptors_is_not_taken_for_an_empty_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    cgroup = fake_cgroup(tmp_path / "1")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    for look in (cgroup.freeze, cgroup.members, cgroup.is_populated):
        with pytest.raises(OSError, match=os.strerror(code)):
            look()


def test_a_cgroup_that_somebody_else_has_removed_is_empty(tmp_path: Path) -> None:
    cgroup = Cgroup(str(tmp_path / "gone"))
    cgroup.stay = Stay.THREAD_OUT
    cgroup.freeze()
    cgroup.kill()
    assert cgroup.members() == frozenset()
    assert not cgroup.is_populated()
    assert cgroup.end()


# --- what is refused ------------------------------------------------------------------------------


def _refuse_in_turn(monkeypatch: pytest.MonkeyPatch, number: int) -> tuple[list[str], list[str]]:
    """Let the call with this number fail, of those by which a directory is made.

    Returns the name of the refused call, and the directories that were made, as soon as there are any.
    """
    refused: list[str] = []
    made: list[str] = []
    counter = itertools.count(1)
    places = [(os, name) for name in ("mkdir", "open", "write", "stat", "scandir")] + [(module.fcntl, "flock")]
    for owner, name in places:
        plain = getattr(owner, name)

        def call(*args: Any, plain: Callable[..., Any] = plain, name: str = name, **kwargs: Any) -> Any:
            if sys._getframe(1).f_code.co_filename == module.__file__ and next(counter) == number:
                refused.append(name)
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            if name == "mkdir":
                made.append(args[0])
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)
    return refused, made


@needs_cgroups
def test_a_refused_step_leaves_no_directory_and_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for number in itertools.count(1):
        found = descriptors()
        with monkeypatch.context() as patch:
            refused, made = _refuse_in_turn(patch, number)
            cgroups = open_cgroups()
        if cgroups is not None:  # (what only tells of other agents may be refused)
            cgroups.close()
        assert descriptors() == found
        assert not [path for path in made if os.path.exists(path)]
        if not refused:
            break
        names.update(refused)
    assert names >= {"mkdir", "open", "write", "flock"}


# --- what is left of killed agents ------------------------------------------------------------------


@needs_cgroups
def test_what_a_killed_agent_has_left_is_ended_and_removed(cgroups: Cgroups) -> None:
    left = open_cgroups()
    assert left is not None
    assert PLACE is not None
    cgroup, process = born_in(left, "sleep", "1000")
    other, spared = born_in(cgroups, "sleep", "1000")
    remove_stale(PLACE)
    assert cgroup.members() == {process.pid}, "an agent that lives has its directory locked"
    os.close(left._lock)
    os.close(left._home)
    # (While the agent of another test is about it, we leave the directory alone.)
    while Path(left.path).exists():
        remove_stale(PLACE)
    assert process.wait() == -9
    assert members(Path(other._path)) == [spared.pid]
    other.kill()
    spared.wait()


@needs_cgroups
def test_a_directory_that_is_taken_for_a_stale_one_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PLACE is not None
    plain, times = module._locked, itertools.count()

    def locked(path: str) -> int | None:
        if next(times) < 2:  # another agent locks it, or has removed it
            return None
        return plain(path)

    made: list[str] = []
    mkdir = os.mkdir
    monkeypatch.setattr(os, "mkdir", lambda path: made.append(path) or mkdir(path))
    monkeypatch.setattr(module, "_locked", locked)
    path, lock = module._make_directory(PLACE)
    assert len(made) == 3
    assert [each for each in made if os.path.exists(each)] == [path]
    os.close(lock)
    os.rmdir(path)


def test_a_directory_that_was_removed_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "directory"
    path.mkdir()
    plain = module.fcntl.flock

    def flock(fd: int, how: int) -> None:
        path.rmdir()
        (tmp_path / "other").mkdir()
        path.mkdir()
        plain(fd, how)

    monkeypatch.setattr(module.fcntl, "flock", flock)
    assert module._locked(str(path)) is None
    assert module._locked(str(tmp_path / "missing")) is None


# --- beside a root ----------------------------------------------------------------------------------

#: A program that has a cgroup of its own, which it may divide. It prints its cgroups, before and after.
DELEGATED = """
import os, sys
from trio_console.agent._cgroups import open_cgroups
place = sys.argv[1]
os.setxattr(place, "trusted.delegate", b"1")
with open(f"{place}/cgroup.procs", "w") as file: file.write("0")
def own(): return open("/proc/self/cgroup").read().splitlines()[-1].removeprefix("0::").replace(place[-8:], "*")
cgroups = open_cgroups()
one = cgroups.new()
print(own().rpartition("/")[0].rpartition("/")[2], open(cgroups.path + "/cgroup.type").read().strip())
import threading
def hop():
    one.enter(); cgroups.leave()
thread = threading.Thread(target=hop); thread.start(); thread.join()
cgroups.close()
print(own().rpartition("/")[2], os.path.exists(cgroups.path))
"""


@as_root
@needs_cgroups
def test_an_agent_below_a_root_moves_into_its_directory_and_back() -> None:
    place = Path(f"{PLACE}/t{os.getpid():07}")
    place.mkdir()
    try:
        command = [sys.executable, "-c", DELEGATED, str(place)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout.splitlines() == ["* domain threaded", "* False"]
    finally:
        assert module._remove(str(place))
