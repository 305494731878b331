"""Resources of this process that are short for a while: descriptors, and room on a disk."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator


@contextmanager
def lowered(limit: int, soft: int) -> Iterator[None]:
    """Set a soft limit of this process in a block."""
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


@contextmanager
def few_descriptors(free: int, how: str) -> Iterator[None]:
    """Leave ``free`` descriptors to this process.

    By a low limit child processes have about as few; by eating them up under a high one, they have plenty.
    """
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    eaten: list[int] = []
    try:
        with lowered(resource.RLIMIT_NOFILE, highest + 1 + free if how == "limit" else highest + 300):
            with contextlib.suppress(OSError):
                while True:
                    eaten.append(os.open(os.devnull, os.O_RDONLY))
            for fd in eaten[:free]:
                os.close(fd)
            del eaten[:free]
            yield
    finally:
        for fd in eaten:
            os.close(fd)


@contextmanager
def small_disk(directory: pathlib.Path, room: int) -> Iterator[pathlib.Path]:
    """A file system of its own with about so many bytes; raises `OSError` if this user may not have one."""
    mount = directory / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={max(room, 4096)},mode=700", "tmpfs", str(mount)],
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise PermissionError("only root may mount")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
