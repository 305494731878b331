"""The limits of a guest: where its cgroups are made, what they hold, and that they are removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import BubblewrapGuest, GuestLostError, Limits, open_guest
from trio_console._guests.namespaces import cgroups
from trio_console._guests.namespaces.cgroups import limited
from trio_console._guests.namespaces.runtime import find_runtime

MIB = 2**20
ROOT = Path(__file__).parents[3]


def _may_limit() -> bool:
    try:
        with limited(Limits(64, 10)):
            return True
    except OSError:
        return False


needs_limits = pytest.mark.skipif(not _may_limit(), reason="this program may not make cgroups with limits here")


def python(program: str) -> list[str]:
    return [*find_runtime().command, "-c", program]


def ours() -> set[str]:
    return {
        f"{directory}/{name}"
        for directory, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith(f"{cgroups.PREFIX}{os.getpid()}-")
    }


@needs_limits
async def test_a_command_that_takes_more_memory_than_the_limit_is_killed_and_the_guest_lives() -> None:
    with trio.fail_after(HANG):
        async with open_guest(BubblewrapGuest(limits=Limits(memory_mib=200))) as guest:
            done = await guest.run_process(python("b'x' * (10 * 2 ** 30)"), check=False, capture_stderr=True)
            assert done.returncode != 0
            hog = "parts = []\nwhile True: parts.append(b'x' * 2 ** 20)"
            done = await guest.run_process(python(hog), check=False, capture_stderr=True)
            assert done.returncode == -9
            await guest.ping()
    assert ours() == set()


@needs_limits
async def test_a_fork_bomb_ends_at_the_limit_and_the_guest_lives() -> None:
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: print('full', flush=True)"
    with trio.fail_after(HANG):
        async with open_guest(BubblewrapGuest(limits=Limits(processes=60))) as guest:
            async with guest.open_process(python(bomb), stdout=subprocess.PIPE) as process:
                assert await process.stdout.receive_some(4) == b"full"
                for _ in range(3):
                    await guest.ping()
                [count] = [int(file.read_text()) for path in ours() for file in Path(path).glob("pids.current")]
                assert 50 < count <= 60
            assert (await guest.run_process(["echo", "alive"], capture_stdout=True)).stdout == b"alive\n"
    assert ours() == set()


@needs_limits
async def test_files_in_the_guests_memory_count() -> None:
    with trio.fail_after(HANG):
        async with open_guest(BubblewrapGuest(limits=Limits(memory_mib=150))) as guest:
            fill = "file = open('/tmp/full', 'wb')\nfor _ in range(1000): file.write(bytes(2 ** 20))"
            with pytest.raises((GuestLostError, subprocess.CalledProcessError)):
                await guest.run_process(python(fill), capture_stderr=True)


@needs_limits
async def test_an_agent_that_was_killed_at_the_limit_says_so() -> None:
    with trio.fail_after(HANG):
        # It cannot even begin.
        with pytest.raises(GuestLostError, match="limit of memory was reached"):
            async with open_guest(BubblewrapGuest(limits=Limits(memory_mib=4))):
                pass
    assert ours() == set()


# Where they are made


class Kernel:
    """A ``/proc`` and hierarchies as a kernel has them, in a directory."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top = top
        (top / "proc").mkdir()
        monkeypatch.setattr(cgroups, "_PROC", str(top / "proc"))
        self._lines: dict[str, list[str]] = {"cgroup": [], "mountinfo": []}

    def has(self, version: int, own: str, controllers: str = "", root: str = "/") -> Path:
        mounted = self.top / f"mounted{len(self._lines['mountinfo'])}"
        kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", f"rw,{controllers}")
        self._lines["cgroup"].append(f"{0 if version == 2 else 1}:{'' if version == 2 else controllers}:{own}")
        self._lines["mountinfo"].append(f"30 20 0:26 {root} {mounted} rw,nosuid - {kind} cgroup {options}")
        for name, lines in self._lines.items():
            (self.top / "proc" / name).write_text("".join(f"{line}\n" for line in lines))
        return mounted

    def cgroup(self, path: Path, enabled: str = "") -> Path:
        path.mkdir(parents=True, exist_ok=True)
        (path / "cgroup.subtree_control").write_text(enabled)
        (path / "cgroup.procs").write_text("")
        return path


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def place(controller: str) -> str:
    return cgroups._find_place(controller).path


def test_in_version_2_it_is_beside_our_own(kernel: Kernel) -> None:
    mounted = kernel.has(2, "/app.slice/run.scope")
    beside = kernel.cgroup(mounted / "app.slice", "memory pids")
    kernel.cgroup(mounted / "app.slice/run.scope")
    assert place("memory") == place("pids") == str(beside)


def test_in_version_2_it_is_in_our_own_where_that_has_the_controller(kernel: Kernel) -> None:
    mounted = kernel.has(2, "/")
    own = kernel.cgroup(mounted, "cpu memory")
    assert place("memory") == str(own)


def test_in_version_2_the_controller_must_be_enabled(kernel: Kernel) -> None:
    mounted = kernel.has(2, "/app.slice/run.scope")
    kernel.cgroup(mounted / "app.slice", "cpu")
    kernel.cgroup(mounted / "app.slice/run.scope")
    with pytest.raises(PermissionError, match="there is none"):
        place("memory")


def test_in_version_1_it_is_in_our_own(kernel: Kernel) -> None:
    mounted = kernel.has(1, "/a/b", "memory", root="/a")
    kernel.has(1, "/", "cpu,pids")
    own = kernel.cgroup(mounted / "b")
    assert place("memory") == str(own)


def test_a_directory_that_may_not_be_written_to_is_named(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = kernel.has(2, "/")
    own = kernel.cgroup(mounted, "pids")
    monkeypatch.setattr(os, "access", lambda *_args: False)  # (root may write everywhere)
    with pytest.raises(PermissionError, match=f"may not write to {own}.*systemd-run"):
        place("pids")


def test_the_limits_are_set_in_one_cgroup_of_version_2(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = kernel.has(2, "/")
    own = kernel.cgroup(mounted, "memory pids")
    seen: dict[str, str] = {}

    def remove(path: str) -> None:
        seen.update({entry.name: entry.read_text() for entry in Path(path).iterdir()})

    monkeypatch.setattr(cgroups, "_remove", remove)
    with limited(Limits(memory_mib=3, processes=7)) as made:
        assert len(list(own.glob(f"{cgroups.PREFIX}*"))) == 1
        made.add(4711)
    assert seen == {"memory.max": str(3 * MIB), "pids.max": "7", "cgroup.procs": "4711"}


def test_without_limits_no_cgroup_is_needed(kernel: Kernel) -> None:
    with limited(Limits()) as made:
        made.add(os.getpid())
        assert not made.out_of_memory()


def test_empty_cgroups_of_programs_that_were_killed_are_removed(kernel: Kernel) -> None:
    own = kernel.cgroup(kernel.has(2, "/"), "pids")
    make = "import sys; from trio_console._guests.namespaces import cgroups; cgroups._make(sys.argv[1])"
    command = [sys.executable, "-c", f"{make}; print(flush=True); input()", str(own)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as another:
        assert another.stdout is not None
        assert another.stdout.readline()
        [living] = own.glob(f"{cgroups.PREFIX}*")
        mine = Path(cgroups._make(str(own)))
        dead, other = own / f"{cgroups.PREFIX}{2**22 + 1}-12-ab", own / "other"
        for path in (dead, other):
            path.mkdir()
        cgroups._remove_stale(str(own))
        assert [path.exists() for path in (dead, living, mine, other)] == [False, True, True, True]
        another.communicate(b"\n", HANG)
    cgroups._remove_stale(str(own))
    assert [path.exists() for path in (living, mine, other)] == [False, True, True]


@pytest.mark.parametrize(("text", "killed"), [("low 0\noom_kill 2\n", True), ("low 0\noom_kill 0\n", False)])
def test_the_kernels_kills_are_counted(tmp_path: Path, text: str, killed: Any) -> None:
    (tmp_path / "memory.events").write_text(text)
    assert cgroups.Cgroups([str(tmp_path)]).out_of_memory() is killed
