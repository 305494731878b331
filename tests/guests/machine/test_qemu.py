"""The command that starts QEMU, and the arguments of a guest that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trio_console import MicroVMGuest
from trio_console._guests.machine.qemu import Memory, Plan, command
from trio_console._guests.machine.saved.template import _key
from trio_console._guests.machine.view import Shared
from trio_console._machine.welcome import ON_DISK, Layout, Mount

PLAN = Plan("qemu", Path("/kernel"), Path("/initramfs"), "tcg", 256, 1, (), ())


def value_of(option: str, made: list[str]) -> list[str]:
    return [made[at + 1] for at, word in enumerate(made) if word == option]


@pytest.mark.parametrize("model", ["microvm", "q35"])
def test_qemu_may_start_no_program_and_has_no_network(model: str) -> None:
    made = command(PLAN, model, 7)
    assert "spawn=deny" in value_of("-sandbox", made)[0]
    assert "-nodefaults" in made
    assert not any("net" in word for word in [*value_of("-device", made), *value_of("-netdev", made)])


def test_qemus_own_filter_is_left_out_only_where_that_was_asked_for() -> None:
    assert PLAN.jailed_by == "seccomp"
    without = replace(PLAN, sandbox=False)
    assert "-sandbox" not in command(without, "microvm", 7)
    assert without.jailed_by == "none"


def test_a_share_is_read_only_unless_it_is_writable() -> None:
    shared = [Shared("a", "/x,y", False), Shared("b", "/z", True)]
    first, second = value_of("-fsdev", command(replace(PLAN, shared=shared), "q35", 7))
    assert "path=/x,,y," in first
    assert "readonly=on" in first
    assert "readonly=off" in second


def test_an_emulated_machine_is_told_how_fast_its_clock_counts() -> None:
    (arguments,) = value_of("-append", command(PLAN, "microvm", 7))
    assert "tsc_early_khz=" in arguments
    assert value_of("-cpu", command(PLAN, "microvm", 7)) == ["max,-cx16"]


def test_a_machine_is_told_that_its_root_directory_is_on_a_disk() -> None:
    assert ON_DISK in value_of("-append", command(replace(PLAN, disk=Path("/disk")), "microvm", 7))[0].split()
    assert ON_DISK not in value_of("-append", command(PLAN, "microvm", 7))[0]


def test_a_template_belongs_to_the_disk_that_it_has_mounted(tmp_path: Path) -> None:
    qemu, kernel, disk = (tmp_path / name for name in ("qemu", "kernel", "disk"))
    for path in (qemu, kernel, disk):
        path.write_bytes(b"")
    plan = replace(PLAN, qemu=str(qemu), kernel=kernel, disk=disk)
    before = _key(plan, "microvm", None)
    assert _key(plan, "microvm", None) == before
    disk.write_bytes(b"made anew")
    assert _key(plan, "microvm", None) != before


def test_a_template_belongs_to_the_directories_of_a_root_but_not_to_its_links(tmp_path: Path) -> None:
    for name in ("qemu", "kernel"):
        (tmp_path / name).touch()
    plan = replace(PLAN, qemu=str(tmp_path / "qemu"), kernel=tmp_path / "kernel")
    layout = Layout(lower=(Mount("root0", "/usr"),), links={"/bin": "usr/bin"})
    key = _key(plan, "microvm", layout)
    assert _key(plan, "microvm", msgspec.structs.replace(layout, links={}, files={"/etc/x": b""})) == key
    assert _key(plan, "microvm", msgspec.structs.replace(layout, lower=(Mount("root0", "/opt"),))) != key
    assert _key(plan, "microvm", None) != key


def test_programs_in_an_emulated_machine_are_always_at_the_same_addresses() -> None:
    assert "norandmaps" in value_of("-append", command(PLAN, "microvm", 7))[0].split()


def test_a_machine_on_the_processor_measures_its_clock_itself() -> None:
    made = command(replace(PLAN, accelerator="kvm"), "microvm", 7)
    assert "tsc" not in value_of("-append", made)[0]
    assert value_of("-accel", made) == ["kvm"]


def test_programs_in_a_machine_on_the_processor_are_at_random_addresses() -> None:
    made = command(replace(PLAN, accelerator="kvm"), "microvm", 7)
    assert "norandmaps" not in value_of("-append", made)[0]


def test_a_clones_memory_is_its_own() -> None:
    made = command(PLAN, "microvm", 7, memory=Memory(Path("/a,b"), private=True, saved=True))
    (memory,) = value_of("-object", made)
    assert "mem-path=/a,,b" in memory
    assert "share=off" in memory
    assert value_of("-incoming", made) == ["defer"]


def test_a_clone_reads_neither_its_kernel_nor_its_archive_again() -> None:
    made = command(PLAN, "microvm", 7, memory=Memory(Path("/a"), private=True, saved=True))
    assert not {"-kernel", "-initrd", "-append"} & set(made)
    assert "-kernel" in command(PLAN, "microvm", 7, memory=Memory(Path("/a")))


def test_what_is_saved_is_written_to_the_file() -> None:
    made = command(PLAN, "microvm", 7, memory=Memory(Path("/a")))
    assert "share=on" in value_of("-object", made)[0]
    assert not value_of("-incoming", made)


def test_further_arguments_come_last() -> None:
    assert command(replace(PLAN, extra_args=("-x", "y")), "q35", 7)[-2:] == ["-x", "y"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"root": 1}, "root must be"),
        ({"memory_mib": 127}, "memory_mib must be at least 128"),
        ({"cpus": 0}, "cpus must be at least 1"),
        ({"accel": "hvf"}, "accel must be"),
        ({"jail": "chroot"}, "jail must be"),
        ({"workers": "x"}, "workers must be"),
        ({"shares": {"mnt": "/"}}, "must be absolute"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], what: str) -> None:
    with pytest.raises((TypeError, ValueError), match=what):
        MicroVMGuest(**arguments)
