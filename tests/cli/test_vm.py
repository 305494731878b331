"""``vm``: what it says of this machine, and what it gets and removes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli._programs import PROGRAM
from tests.guests.machine.conftest import machines as machines  # a fixture
from tests.guests.machine.stock.test_kernel import add, module
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from pathlib import Path

MODULES = ("virtio_mmio", "virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")


def run(action: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **variables}
    command = [os.path.abspath(sys.executable), *PROGRAM[1:], "vm", action]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG, check=False)


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """A cache with a kernel that has all modules."""
    place = tmp_path / "trio_console/kernels/one"
    add(place, "6.1-amd64", {f"{name}.ko": module() for name in MODULES})
    return tmp_path


def test_setup_needs_no_network_where_nothing_is_missing(machines: None, kernels: Path, tmp_path: Path) -> None:
    qemu = tmp_path / "bin/qemu-system-x86_64"
    qemu.parent.mkdir()
    qemu.touch(0o755)
    done = run("setup", XDG_CACHE_HOME=str(kernels), PATH=str(qemu.parent))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "QEMU",
        "kernel",
        "kernel with shares",
    ]


def test_setup_says_what_to_install_where_it_cannot(kernels: Path, tmp_path: Path) -> None:
    done = run("setup", XDG_CACHE_HOME=str(kernels), PATH=str(tmp_path / "empty"))
    assert done.returncode == 1
    assert "install QEMU for x86-64 (the program qemu-system-x86_64)" in done.stderr


def test_the_doctor_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    done = run("doctor", XDG_CACHE_HOME=str(tmp_path), PATH=str(tmp_path))
    assert done.returncode == 1
    qemu = next(line for line in done.stdout.splitlines() if line.startswith("QEMU"))
    assert qemu.split()[1] == "no"
    assert "trio-console vm setup" in qemu


def test_the_doctor_finds_what_setup_has_got(machines: None) -> None:
    done = run("doctor")
    assert done.returncode == 0
    findings = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    for what in ("QEMU", "kernel", "kernel with shares"):
        assert "  yes  " in findings[what]
    assert "KVM" in findings


def test_prune_removes_kernels(kernels: Path) -> None:
    done = run("prune", XDG_CACHE_HOME=str(kernels))
    assert done.returncode == 0
    assert "MiB freed" in done.stdout
    assert not list((kernels / "trio_console").iterdir())
