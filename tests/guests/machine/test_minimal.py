"""A machine with nothing of this one: what it is, and what must not exist in it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from trio_console._version import __version__

PYTHON = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from pathlib import Path

    from trio_console import Guest


async def output(guest: Guest, script: str, **options: str) -> str:
    done = await guest.run_process(script, shell=True, capture_stdout=True, stderr=subprocess.STDOUT, **options)
    return done.stdout.decode().strip()


async def test_it_has_a_kernel_of_its_own(minimal: Guest) -> None:
    assert await output(minimal, "uname -r") != os.uname().release
    assert await output(minimal, "cat /proc/sys/kernel/random/boot_id") != boot_id_here()


def boot_id_here() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


async def test_the_agent_is_its_first_program(minimal: Guest) -> None:
    assert await output(minimal, "tr '\\0' ' ' < /proc/1/cmdline") == f"{PYTHON} -IS /init"
    assert minimal.ready.agent_version == f"trio_console {__version__}"


async def test_it_has_no_network(minimal: Guest) -> None:
    assert await output(minimal, "ls /sys/class/net") == "lo"
    assert len((await output(minimal, "cat /proc/net/route")).splitlines()) == 1  # the head of the table


async def test_it_has_no_devices_but_its_console(minimal: Guest) -> None:
    assert await output(minimal, "ls /sys/class/virtio-ports") == "vport0p1"
    assert await output(minimal, "ls /sys/block") == ""
    assert "9p" not in await output(minimal, "cat /proc/mounts")


async def test_a_command_has_only_the_environment_that_was_given(minimal: Guest) -> None:
    lines = (await output(minimal, "env")).splitlines()
    names = {line.partition("=")[0] for line in lines} - {"PWD", "SHLVL", "_", "OLDPWD"}  # the shell's own
    assert "GIVEN=ü" in lines
    assert names - {name for name in names if name.startswith("TRIO_CONSOLE")} == {"GIVEN", "HOME", "PATH"}


async def test_it_sees_no_file_of_this_machine(minimal: Guest, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("secret")
    assert not await minimal.path(path).exists()
    assert not await minimal.path(f"/proc/1/root{path}").exists()


async def test_its_clock_is_that_of_this_machine(minimal: Guest) -> None:
    before = time.time()
    there = float(await output(minimal, "date +%s.%N"))
    assert before - 2 < there < time.time() + 2


async def test_it_has_a_name_and_an_id(minimal: Guest) -> None:
    assert (await output(minimal, "hostname")).startswith("guest-")
    assert len(await output(minimal, "cat /etc/machine-id")) == 32


async def test_commands_run_as_other_users(minimal: Guest) -> None:
    assert await output(minimal, "id -u", user="nobody") == "65534"


async def test_a_full_disk_harms_no_other_command(minimal: Guest) -> None:
    script = "dd if=/dev/zero of=/tmp/full bs=64k 2>&1; rm /tmp/full; echo done"
    assert (await output(minimal, script)).endswith("done")
    assert await output(minimal, "echo still there") == "still there"
