"""The jail around QEMU: what is in it is looked at from outside, as somebody would who has taken QEMU over."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tests.guests.machine.test_endings import BOOT, qemu_of
from tests.guests.machine.test_qemu import PLAN, value_of
from tests.tools.installing import install
from tests.tools.leftovers import marking, runs
from tests.tools.limits import HANG
from trio_console import MicroVMGuest, Root, Share, open_guest
from trio_console._guests.machine import jail as jails
from trio_console._guests.machine.jail import Bubblewrap, find_bubblewrap, find_jail, in_jail, jailed
from trio_console._guests.machine.qemu import Memory, command, find_qemu
from trio_console._guests.machine.view import Shared

pytestmark = pytest.mark.usefixtures("machines", "no_process_is_left")

JAIL = Bubblewrap("/bwrap", ("/qemu",), reads_only=True)
CLONE = Memory(Path("/cache/memory"), private=True, saved=True)
DEVICES = {"fd", "null", "urandom"}


@pytest.fixture(scope="session", autouse=True)
def _bubblewrap() -> None:
    install("bwrap", "bubblewrap")


def binds(made: list[str]) -> dict[str, tuple[str, str]]:
    """How each path in the jail was made, and of what."""
    return {
        made[at + 2]: (word, made[at + 1])
        for at, word in enumerate(made)
        if word in ("--bind", "--ro-bind", "--dev-bind")
    }


def test_a_machine_has_its_own_files_in_a_directory_of_the_jail() -> None:
    shared = [Shared("a", "/usr", False), Shared("b", "/x,y", True)]
    plan = replace(PLAN, shared=shared, disk=Path("/disk"))
    made = binds(jailed(JAIL, plan, CLONE, 3, "mark"))
    assert made == {
        "/qemu": ("--ro-bind", "/qemu"),
        "/dev/null": ("--dev-bind", "/dev/null"),
        "/dev/urandom": ("--dev-bind", "/dev/urandom"),
        "/machine/kernel": ("--ro-bind", "/kernel"),
        "/machine/initramfs": ("--ro-bind", "/initramfs"),
        "/machine/disk": ("--ro-bind", "/disk"),
        "/machine/memory": ("--ro-bind", "/cache/memory"),
        "/machine/a": ("--ro-bind", "/usr"),
        "/machine/b": ("--bind", "/x,y"),
    }
    inside = command(in_jail(plan), "microvm", 7, memory=jails.memory_in_jail(CLONE))
    assert not {"/kernel", "/initramfs"} & set(inside)
    assert "/x,," not in "".join(inside)


def test_only_a_machine_that_is_saved_may_write_its_memory() -> None:
    assert binds(jailed(JAIL, PLAN, CLONE, 3, ""))["/machine/memory"][0] == "--ro-bind"
    saved = replace(CLONE, private=False, saved=False)
    assert binds(jailed(JAIL, PLAN, saved, 3, ""))["/machine/memory"][0] == "--bind"


def test_qemu_is_told_that_it_may_only_read_its_template() -> None:
    for reads_only in (True, False):
        plan = replace(PLAN, jail=replace(JAIL, reads_only=reads_only))
        (memory,) = value_of("-object", command(plan, "microvm", 7, memory=CLONE))
        assert memory.endswith("share=off,readonly=on,rom=off" if reads_only else "share=off")


@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_kvm_is_there_only_where_it_is_used(accelerator: str) -> None:
    made = binds(jailed(JAIL, replace(PLAN, accelerator=accelerator), CLONE, 3, ""))
    assert ("/dev/kvm" in made) == (accelerator == "kvm")


class Seen(NamedTuple):
    """A jailed QEMU, while it runs."""

    namespaces: dict[str, bool]
    mounts: dict[str, str]
    processes: set[str]
    devices: set[str]
    interfaces: list[str]
    environment: list[bytes]
    status: dict[str, str]
    top: set[str]
    secret: bool


async def look(folder: Path) -> Seen:
    secret = folder / "secret"
    secret.write_text("secret")
    (folder / "share").mkdir()
    spec = MicroVMGuest(root=Root.MINIMAL, jail="bwrap", shares={"/mnt": Share(folder / "share", writable=True)})
    with marking() as mark:
        async with open_guest(spec, launch_timeout=BOOT) as guest:
            assert guest.machine is not None
            assert guest.machine.jail == "bwrap"
            return seen(Path(f"/proc/{qemu_of(mark)}"), secret)


def seen(qemu: Path, secret: Path) -> Seen:
    root = qemu / "root"
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    mounts = [line.split() for line in (qemu / "mountinfo").read_text().splitlines()]
    status = (qemu / "status").read_text().splitlines()
    return Seen(
        {kind: os.readlink(qemu / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}") for kind in kinds},
        {words[4]: words[5].split(",")[0] for words in mounts},
        {name for name in os.listdir(root / "proc") if name.isdigit()},
        set(os.listdir(root / "dev")),
        [line.split(":")[0].strip() for line in (qemu / "net/dev").read_text().splitlines()[2:]],
        [entry.partition(b"=")[0] for entry in (qemu / "environ").read_bytes().split(b"\0") if entry],
        dict(line.split(":\t", 1) for line in status if ":\t" in line),
        set(os.listdir(root)),
        os.path.lexists(f"{root}{secret}"),
    )


@pytest.fixture(scope="module")
def jailed_qemu(machines: None, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return trio.run(look, tmp_path_factory.mktemp("jailed"))


def test_it_has_namespaces_of_its_own(jailed_qemu: Seen) -> None:
    assert all(jailed_qemu.namespaces.values()), jailed_qemu.namespaces


def test_it_sees_no_file_that_it_does_not_need(jailed_qemu: Seen) -> None:
    jail = trio.run(find_bubblewrap, find_qemu())
    own = {"/", "/proc", *(f"/machine/{name}" for name in ("kernel", "initramfs", "memory", "share0"))}
    devices = {"/dev/null", "/dev/urandom"}
    real = {os.path.realpath(path) for path in jail.files}  # (a path of the jail may lead through a link there)
    # (In /proc bubblewrap covers what must not be written to.)
    found = {os.path.realpath(path) for path in jailed_qemu.mounts if not path.startswith("/proc/")}
    assert found == own | devices | real
    assert jailed_qemu.top <= {"dev", "etc", "lib", "lib64", "machine", "proc", "usr"}
    assert not jailed_qemu.secret


def test_it_can_write_only_what_is_its_machines(jailed_qemu: Seen) -> None:
    writable = {path for path, access in jailed_qemu.mounts.items() if access == "rw"}
    assert writable - {"/machine/memory"} == {"/dev/null", "/dev/urandom", "/machine/share0"}


def test_it_sees_no_process_but_itself(jailed_qemu: Seen) -> None:
    assert jailed_qemu.processes == {"1"}


def test_it_has_no_device_that_it_does_not_need(jailed_qemu: Seen) -> None:
    assert jailed_qemu.devices == DEVICES


def test_it_has_no_network(jailed_qemu: Seen) -> None:
    assert jailed_qemu.interfaces == ["lo"]


def test_it_has_nothing_of_this_programs_environment(jailed_qemu: Seen) -> None:
    assert set(jailed_qemu.environment) == {b"PWD", b"TRIO_CONSOLE_GUEST"}  # PWD is bubblewrap's: /


def test_it_has_no_right_and_gets_none(jailed_qemu: Seen) -> None:
    assert {int(value, 16) for name, value in jailed_qemu.status.items() if name.startswith("Cap")} == {0}
    assert jailed_qemu.status["NoNewPrivs"] == "1"
    assert jailed_qemu.status["Seccomp"] == "2"  # QEMU's own filter


async def test_a_machine_whose_bubblewrap_is_killed_is_lost_and_leaves_nothing() -> None:
    spec = MicroVMGuest(root=Root.MINIMAL, jail="bwrap")
    with marking() as mark:
        async with open_guest(spec, launch_timeout=BOOT) as guest:
            qemu = qemu_of(mark)
            os.kill(int(Path(f"/proc/{qemu}/status").read_text().partition("PPid:")[2].split()[0]), signal.SIGKILL)
            with trio.fail_after(HANG):
                await guest.wait_lost()
        assert not runs(qemu)


async def test_without_a_jail_there_is_none() -> None:
    async with open_guest(MicroVMGuest(root=Root.MINIMAL, jail="none"), launch_timeout=BOOT) as guest:
        assert guest.machine is not None
        assert guest.machine.jail == "none"


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


async def test_where_bubblewrap_is_not_installed_it_is_done_without(
    no_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = find_qemu()
    monkeypatch.setenv("PATH", "")
    assert await find_jail("auto", qemu) is None
    with pytest.raises(FileNotFoundError, match="apt-get install bubblewrap"):
        await find_jail("bwrap", qemu)


async def test_where_there_are_no_namespaces_it_is_done_without(
    no_cache: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bwrap = tmp_path / "bin/bwrap"
    bwrap.parent.mkdir()
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    bwrap.chmod(0o755)
    qemu = find_qemu()
    monkeypatch.setenv("PATH", str(bwrap.parent))
    assert await find_jail("auto", qemu) is None
    with pytest.raises(PermissionError, match=r"does not run in bubblewrap here.*user namespaces"):
        await find_jail("bwrap", qemu)
    # Nothing of that is kept: it may have been changed by now.
    monkeypatch.setenv("PATH", os.path.dirname(shutil.which("bwrap", path="/usr/bin:/bin") or ""))
    assert await find_jail("auto", qemu) is not None


@pytest.mark.parametrize("jail", ["seccomp", "none"])
async def test_bubblewrap_is_not_looked_for_where_it_is_not_wanted(jail: jails.Jail) -> None:
    assert await find_jail(jail, "/no qemu") is None
