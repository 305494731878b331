"""A machine whose root directory is an image: of its files it sees these alone, and its disk is only read."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guests.images.making import Item, file, folder, hard_link, layer, layout, symlink, write
from tests.guests.machine.conftest import serving
from tests.guests.machine.test_minimal import output
from trio_console import MicroVMGuest, Root, connect_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.guests.machine.conftest import Served
    from trio_console import Guest

PROGRAMS = ("sh", "cat", "chroot", "id", "ls", "mount", "stat", "touch", "uname")


def programs() -> list[Item]:
    """Some programs of this machine with their libraries, in which there is no Python."""
    found = {name: shutil.which(name, path="/usr/sbin:/usr/bin:/bin") for name in PROGRAMS}
    said = subprocess.run(["ldd", *map(str, found.values())], check=True, capture_output=True, text=True).stdout
    libraries = sorted(set(re.findall(r"(/\S+) \(0x", said)))
    return [
        *(file(f"usr/bin/{name}", Path(str(path)).read_bytes(), mode=0o755) for name, path in found.items()),
        *(file(name, Path(name).read_bytes(), mode=0o755) for name in libraries),
    ]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lower = layer(
        folder("usr/bin"),
        symlink("bin", "usr/bin"),
        *programs(),
        file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
        file("etc/shadow", b"secret", mode=0o600, uid=0, gid=42),
        symlink("etc/hosts", "/etc/shadow"),
        folder("home/user", uid=1000, gid=1000),
        file("home/user/old"),
        file("home/user/file", b"of the image", uid=1000, gid=1000, mode=0o4755),
        hard_link("home/user/link", "home/user/file"),
        symlink("var", "/nowhere"),
    )
    upper = layer(file("home/user/.wh.old"))
    return write(tmp_path_factory.mktemp("images") / "image", layout([lower, upper]))


@pytest.fixture(scope="session")
def image_machine(machines: None, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("image"), str(image), shares=False) as served:
        yield served


@pytest.fixture
async def guest(image_machine: Served) -> AsyncIterator[Guest]:
    async with connect_guest(image_machine.path) as guest:
        yield guest


async def test_its_programs_run_under_another_kernel(guest: Guest) -> None:
    assert await output(guest, "uname -r") != os.uname().release


async def test_its_files_are_there_without_those_that_were_deleted(guest: Guest) -> None:
    assert await output(guest, "cat /home/user/link") == "of the image"
    assert not await guest.path("/home/user/old").exists()


async def test_it_needs_no_python(guest: Guest) -> None:
    assert not await guest.path("/usr/lib/python3").exists()
    assert not await guest.path("/usr/bin/python3").exists()
    assert not await guest.path("/agent").exists()


async def test_owners_and_rights_are_those_of_the_image(guest: Guest) -> None:
    assert (
        await output(guest, "stat -c '%u %g %a %h' /home/user/file /etc/shadow") == "1000 1000 4755 2\n0 42 600 1"
    )


async def test_its_own_users_are_known(guest: Guest) -> None:
    done = await guest.run_process(["id", "-u"], user="user", capture_stdout=True)
    assert done.stdout == b"1000\n"


async def test_names_of_the_machine_are_written_through_no_link_of_the_image(guest: Guest) -> None:
    assert b"localhost" in await guest.path("/etc/hosts").read_bytes()
    assert await guest.path("/etc/shadow").read_bytes() == b"secret"


async def test_directories_that_it_lacks_are_made(guest: Guest) -> None:
    assert await output(guest, "stat -c %a /tmp /root /run") == "1777\n700\n755"


async def test_a_link_to_nowhere_in_the_place_of_a_directory_is_left(guest: Guest) -> None:
    assert await output(guest, "stat -c %N /var") == "'/var' -> '/nowhere'"


async def test_what_is_written_stays_in_memory(guest: Guest) -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trio_console/disks"
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in cache.glob("*/disk")}
    await guest.path("/home/user/file").write_bytes(b"changed")
    assert await guest.path("/home/user/file").read_bytes() == b"changed"
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in before} == before


async def test_the_disk_cannot_be_written(guest: Guest) -> None:
    with pytest.raises(OSError) as info:
        async with await guest.open_file("/dev/vda", "r+b", buffering=0) as disk:
            await disk.write(bytes(512))
    assert info.value.errno


@pytest.mark.parametrize("root", [1, None, b"path"])
def test_what_is_no_root_is_refused(root: object) -> None:
    with pytest.raises(TypeError, match="root must be"):
        MicroVMGuest(root=root)  # type: ignore[arg-type]


def test_a_guest_says_what_it_is_made_of() -> None:
    assert repr(MicroVMGuest(root="/images/one")) == "MicroVMGuest(root=/images/one)"
    assert repr(MicroVMGuest(root=Root.MINIMAL)) == "MicroVMGuest(root=Root.MINIMAL)"
