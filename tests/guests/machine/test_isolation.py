"""What a machine can see of its host, and do to it: nothing but what was named.

Each claim is tried with QEMU in a jail and without one: what a machine may not do, QEMU itself keeps it from.
"""

from __future__ import annotations

import ast
import errno
import os
import secrets
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.guests.machine.conftest import serving
from tests.tools.installing import install
from trio_console import connect_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guests.machine.conftest import Served

INSIDE = Path(__file__).with_name("_inside.py")

#: Devices that a `microvm` has in any case (of ACPI, its clock, its serial port), and the kernel for itself.
PLATFORM = {
    *("ACPI0013", "LNRO0005", "PNP0C0C", "QEMU0002"),
    *("alarmtimer", "pcspkr", "platform-framebuffer", "reg-dummy", "rtc_cmos", "serial8250"),
}

#: The names in /dev, without their numbers.
DEVICES = {
    *(
        "console",
        "cpu_dma_latency",
        "fd",
        "full",
        "hpet",
        "hwrng",
        "input",
        "kmsg",
        "mem",
        "null",
        "nvram",
        "port",
    ),
    *("psaux", "ptmx", "pts", "random", "rtc", "shm", "snapshot", "stderr", "stdin", "stdout", "tty", "ttyS"),
    *("urandom", "userfaultfd", "vcs", "vcsa", "vcsu", "vga_arbiter", "vport0p", "zero"),
}

ROUNDS = 300

#: One process swaps a directory with a link while another one opens a file below it.
RACE = """\
import os
os.chdir("/mnt/rw")
for name in ("one", "two"):
    os.makedirs(name, exist_ok=True)
with open("one/file", "w") as file:
    file.write("inside")
os.symlink({target!r}, "out")
swapper = os.fork()
if not swapper:
    while True:
        os.rename("one", "hidden"); os.rename("out", "one")
        os.rename("one", "out"); os.rename("hidden", "one")
read = failed = 0
for _ in range(300):
    try:
        with open("one/file") as file:
            assert file.read() == "inside"
        read += 1
    except OSError:
        failed += 1
os.kill(swapper, 9)
os.wait()
print(read, failed)
"""


@pytest.fixture(scope="module", params=["seccomp", "bwrap"])
def machine(
    request: pytest.FixtureRequest, machines: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    install("bwrap", "bubblewrap")
    with serving(tmp_path_factory.mktemp("isolated"), "MINIMAL", shares=True, jail=request.param) as served:
        yield served


@pytest.fixture(scope="module")
def found(machine: Served) -> dict[str, Any]:
    secret = machine.read_only.parent / "secret"
    secret.write_text("secret")
    for share in (machine.read_only, machine.writable):
        (share / "inner").mkdir()
        for at, target in {
            "absolute": str(secret.parent),
            "relative": "..",
            "directory": f"../{secret.parent.name}/..",
            "inner/up": "../..",
            "to-absolute": str(secret),
            "to-relative": "../secret",
            "inner/to-relative": "../../secret",
        }.items():
            (share / at).symlink_to(target)
    with ExitStack() as stack:
        abstract = secrets.token_hex(8)
        listeners = [
            stack.enter_context(socket.socket(family)) for family in (socket.AF_INET, *[socket.AF_UNIX] * 2)
        ]
        listeners[0].bind(("0.0.0.0", 0))
        listeners[1].bind("\0" + abstract)
        listeners[2].bind(str(machine.writable / "socket"))
        for listener in listeners:
            listener.listen()
        given = {"secret": str(secret), "port": listeners[0].getsockname()[1], "abstract": abstract}
        return trio.run(_look, machine.path, given)


async def _look(path: str, given: dict[str, Any]) -> dict[str, Any]:
    async with connect_guest(path) as guest:
        command = ["python3", "-", repr(given)]
        done = await guest.run_process(command, stdin=INSIDE.read_bytes(), capture_stdout=True)
    looked: dict[str, Any] = ast.literal_eval(done.stdout.decode())
    return looked


def test_a_file_that_was_not_shared_cannot_be_read_by_any_name(found: dict[str, Any]) -> None:
    assert len(found["reads"]) > 50
    assert set(found["reads"].values()) <= {os.strerror(errno.ENOENT), os.strerror(errno.ENOTDIR)}


def test_there_is_no_network(found: dict[str, Any]) -> None:
    assert found["interfaces"] == ["lo"]
    assert found["routes"] == []


def test_no_address_leads_to_this_machine(found: dict[str, Any]) -> None:
    lost = {os.strerror(number) for number in (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EADDRNOTAVAIL)}
    assert set(found["tcp"].values()) <= lost
    assert found["vsock"] in (os.strerror(errno.EAFNOSUPPORT), os.strerror(errno.ENODEV))


def test_no_unix_socket_of_this_machine_is_reached(found: dict[str, Any]) -> None:
    # Also one in a share: the other kernel looks for its own.
    assert found["abstract"] == found["unix"] == os.strerror(errno.ECONNREFUSED)


def test_no_device_node_is_made_on_this_machine(found: dict[str, Any], machine: Served) -> None:
    assert found["device node"] is not None
    assert not os.path.lexists(machine.writable / "node")


def test_it_has_no_hardware_but_its_console_and_its_shares(found: dict[str, Any]) -> None:
    console, nine = 3, 9  # of the virtio standard
    assert found["virtio"] == [console, nine, nine]
    assert found["ports"] == ["vport0p1"]
    assert found["block"] == []
    assert found["pci"] == []
    assert {name.partition(":")[0].partition(".")[0] for name in found["platform"]} <= PLATFORM


def test_it_has_the_devices_of_a_kernel_alone_on_such_a_machine(found: dict[str, Any]) -> None:
    assert {name.rstrip("0123456789") for name in found["dev"]} <= DEVICES


def test_nothing_is_mounted_but_its_own_and_its_shares(found: dict[str, Any]) -> None:
    assert found["mounts"] == {
        "/": "rootfs",
        "/dev": "devtmpfs",
        "/dev/pts": "devpts",
        "/dev/shm": "tmpfs",
        "/mnt/ro": "9p",
        "/mnt/rw": "9p",
        "/proc": "proc",
        "/sys": "sysfs",
        "/sys/fs/cgroup": "cgroup2",
    }


async def test_no_race_of_links_leads_out_of_a_share(machine: Served, tmp_path: Path) -> None:
    # What was looked up as a directory is a link by the time that QEMU opens the file.
    (tmp_path / "file").write_text("outside")
    async with connect_guest(machine.path) as guest:
        script = RACE.format(target=str(tmp_path))
        done = await guest.run_process(["python3", "-"], stdin=script.encode(), capture_stdout=True)
    read, failed = map(int, done.stdout.split())
    assert read + failed == ROUNDS  # and none read "outside", which would be an error
    assert read
