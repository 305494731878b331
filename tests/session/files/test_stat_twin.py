"""`stat` of a path in a guest has what `os.stat` has, with and without a thread of the agent."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from trio_console import Guest

#: Of file systems of all kinds, and without attributes that change by themselves.
PLACES = [
    "/",
    "/etc",
    "/etc/passwd",
    "/dev",
    "/dev/null",
    "/dev/shm",
    "/proc/version",
    "/sys/kernel",
    "/sys",
]


def everything(found: os.stat_result) -> dict[str, int]:
    values = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
    return {name: value for name, value in values.items() if isinstance(value, int)}  # (and times in nanoseconds)


async def check(guest: Guest, path: str) -> None:
    for follow in (True, False):
        expected: Any = None
        error: Any = None
        try:
            expected = os.stat(path, follow_symlinks=follow)
        except OSError as exc:
            error = exc
        for _ in range(3):  # the first answer comes from a thread
            if error is None:
                found = await guest.path(path).stat(follow_symlinks=follow)
                assert (found, everything(found)) == (expected, everything(expected))
            else:
                with pytest.raises(type(error)) as raised:
                    await guest.path(path).stat(follow_symlinks=follow)
                assert (raised.value.errno, raised.value.filename) == (error.errno, path)


@pytest.mark.parametrize("path", PLACES)
async def test_a_place_of_the_system(guest: Guest, path: str) -> None:
    await check(guest, path)


async def test_everything_that_a_directory_can_have_in_it(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.utime(tmp_path / "file", ns=(1_000_000_001, -1_000_000_003))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    for name in (*os.listdir(tmp_path), "missing", "file/below", "x" * 256):
        await check(guest, f"{tmp_path}/{name}")
