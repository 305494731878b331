"""Gets what machines need where it is missing: QEMU, by this system's package manager, and kernels.

A kernel is unpacked from its package into the cache, and not installed: that needs no root, and changes nothing
about how this machine starts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trio_console._guests.machine.qemu import find_qemu, modules_for
from trio_console._guests.machine.stock.cache import by_thread, directory, kept
from trio_console._guests.machine.stock.kernel import KERNELS, find_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["SetupError", "get_kernels", "get_qemu"]

#: Debian's packages that stand for the newest kernel: one for clouds, which is small and starts fastest, and one
#: that can also share directories.
_KERNELS: Final = (("linux-image-cloud-amd64", False), ("linux-image-amd64", True))

_DEPENDS: Final = re.compile(r"Depends: (linux-image-\d\S*)")

#: What of a kernel's package is of use in a machine without devices of its own.
_USEFUL: Final = re.compile(
    r"\./boot/vmlinuz-|\./lib/modules/[^/]+/(modules\.builtin$"
    r"|kernel/(drivers/(block|char|virtio)|fs|lib|crypto|net/9p|arch)/)"
)

#: How QEMU is installed, by the program that does it.
_INSTALL: Final = {
    "apt-get": ("apt-get", "install", "-y", "--no-install-recommends", "qemu-system-x86"),
    "dnf": ("dnf", "install", "-y", "qemu-system-x86-core"),
    "pacman": ("pacman", "-S", "--noconfirm", "qemu-system-x86"),
    "apk": ("apk", "add", "qemu-system-x86_64"),
    "zypper": ("zypper", "install", "-y", "qemu-x86"),
}


class SetupError(Exception):
    """Something could not be got; the message says what to do."""


def get_qemu(say: Callable[[str], object]) -> None:
    """Install QEMU if it is missing. Only root can; it blocks until it is done.

    Args:
        say: is told what is done, line by line.

    Raises:
        SetupError: it could not be installed.
    """
    try:
        say(f"QEMU: {find_qemu()}")
    except FileNotFoundError:
        pass
    else:
        return
    command = next((command for program, command in _INSTALL.items() if shutil.which(program)), None)
    if command is None:
        raise SetupError(
            "QEMU is not installed, and neither is a package manager that is known here: install QEMU "
            "for x86-64 (the program qemu-system-x86_64)"
        )
    if os.geteuid() != 0:
        raise SetupError(f"QEMU is not installed; as root: {' '.join(command)}")
    say(f"QEMU: {' '.join(command)}")
    if command[0] == "apt-get" and not _knows(command[-1]):
        _run(["apt-get", "update", "-q"])
    _run(command)
    say(f"QEMU: {find_qemu()}")


async def get_kernels(say: Callable[[str], object]) -> None:
    """Put the kernels that machines need into the cache, unless there are some already.

    Args:
        say: is told what is done, line by line.

    Raises:
        SetupError: one could not be got.
    """
    for package, shares in _KERNELS:
        what = "kernel with shares" if shares else "kernel"
        try:
            kernel = find_kernel(None, modules_for(shares=shares))
        except FileNotFoundError:
            newest, options = _newest(package, say)
            say(f"{what}: fetching {newest}")
            await kept(KERNELS, newest, by_thread(partial(_fetch, newest, options)))
            kernel = find_kernel(None, modules_for(shares=shares))
        say(f"{what}: {kernel.image}")


def _newest(package: str, say: Callable[[str], object]) -> tuple[str, Sequence[str]]:
    """The package of the newest kernel, and with which options apt knows it."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SetupError(
            "this system has no apt-get and dpkg-deb, by which kernels are fetched: install your distribution's "
            "kernel, so that it is in /boot and may be read, or name one with MicroVMGuest(kernel=...)"
        )
    if (found := _depends(package, ())) is not None:
        return found, ()
    # Lists of our own, because only root may fetch the system's.
    place = directory() / "apt"
    (place / "lists/partial").mkdir(parents=True, exist_ok=True, mode=0o700)
    options = ("-o", f"Dir::State::lists={place}/lists", "-o", f"Dir::Cache={place}")
    say("kernel: fetching the lists of packages")
    _run(["apt-get", *options, "update", "-q"])
    if (found := _depends(package, options)) is not None:
        return found, options
    raise SetupError(
        f"no package {package} is known to apt-get: install your distribution's kernel, so that it is in /boot "
        "and may be read, or name one with MicroVMGuest(kernel=...)"
    )


def _depends(package: str, options: Sequence[str]) -> str | None:
    done = subprocess.run(
        ["apt-cache", *options, "depends", package],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    found = _DEPENDS.search(done.stdout)
    return found[1] if found and _knows(found[1], options) else None


def _knows(package: str, options: Sequence[str] = ()) -> bool:
    command = ["apt-cache", *options, "show", package]
    return subprocess.run(command, capture_output=True, check=False, env=_environment()).returncode == 0


def _fetch(package: str, options: Sequence[str], place: Path) -> None:
    """Fetch a kernel's package, and unpack what is of use."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        _run(["apt-get", *options, "download", "-q", package], cwd=folder)
        (archive,) = Path(folder).glob("*.deb")
        unpacking = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
        with unpacking, tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar:
            for member in tar:
                # (A name that leads elsewhere is not one of a kernel's package.)
                if member.isfile() and _USEFUL.match(member.name) and ".." not in member.name.split("/"):
                    _write(tar, member, place / member.name)
        if unpacking.returncode:
            raise SetupError(f"the package {package} cannot be unpacked (dpkg-deb: status {unpacking.returncode})")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if (data := tar.extractfile(member)) is not None:  # as of every file
        with data, open(path, "wb") as file:
            shutil.copyfileobj(data, file)


def _run(command: Sequence[str], cwd: str | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=_environment(),
    )
    if done.returncode:
        said = done.stdout.strip().splitlines()[-5:]
        raise SetupError(f"{' '.join(command)} failed (status {done.returncode}): " + "\n".join(said))


def _environment() -> dict[str, str]:
    """So that no question is asked, and answers are in the language in which they are read here."""
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
