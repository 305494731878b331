"""What all contenders share: programs of the system, files in memory, a command that writes, and the rate."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MIB", "PIECE", "file_in_memory", "needed", "rate", "writer"]

MIB: Final = 1024 * 1024

#: Bytes in one write to a command, and at most in one read.
PIECE: Final = 256 * 1024

#: Where programs for administrators lie, which not every user has in PATH.
_MORE_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"


@functools.cache
def needed(program: str, package: str) -> str:
    """The path of a program. If it is missing, root installs its package; anybody else is told to.

    Raises:
        SystemExit: it is missing, and cannot be installed.
    """
    path = f"{os.environ.get('PATH', os.defpath)}:{_MORE_PATH}"
    if (found := shutil.which(program, path=path)) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", package]
        subprocess.run(
            install,
            stdout=subprocess.DEVNULL,
            check=False,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
        found = shutil.which(program, path=path)
    if found is None:
        raise SystemExit(f"this row needs {program}: install the package {package}, or name other rows")
    return found


def writer(nbytes: int) -> str:
    """A command that writes so many bytes (a multiple of 64 KiB), as fast as a pipe takes them."""
    return f"dd if=/dev/zero bs=64k count={nbytes // 65536} status=none"


@contextlib.contextmanager
def file_in_memory(nbytes: int) -> Iterator[str]:
    """A file of so many bytes. It is not on a disk, because the speed of the disk is not to be measured."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        for _ in range(nbytes // MIB):
            file.write(bytes(MIB))
        file.flush()
        yield file.name


def rate(total: int, expected: int, start: float) -> float:
    """MiB in a second since ``start``.

    Raises:
        RuntimeError: not as many bytes came as were expected.
    """
    seconds = time.perf_counter() - start
    if total != expected:
        raise RuntimeError(f"{total} bytes came instead of {expected}")
    return total / seconds / MIB
