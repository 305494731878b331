"""A host and an agent whose interpreter was built against an old C library, and so lacks newer calls."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.tools.limits import HANG

if TYPE_CHECKING:
    from pathlib import Path

#: Run by every interpreter that is started with its folder on the path, before anything else.
SITE = """
import errno, os, signal

def refuse(*args):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

for module, names in (
    (os, ("RWF_NOWAIT", "copy_file_range", "eventfd", "eventfd_read", "eventfd_write", "pidfd_open")),
    (signal, ("pidfd_send_signal",)),
):
    for name in names:
        if {refused} and callable(getattr(module, name)):
            setattr(module, name, refuse)
        else:
            delattr(module, name)
"""

PROGRAM = """
import os, sys
import trio
from trio_console import WakePipe, connect_guest, open_guest

async def main():
    directory = sys.argv[1]
    async with open_guest(relay_path=f"{directory}/relay") as guest:
        done = await guest.run_process(["cat"], stdin=b"x" * 100_000, capture_stdout=True)
        assert done.stdout == b"x" * 100_000
        await guest.path(f"{directory}/file").write_bytes(b"y" * 100_000)
        assert await guest.path(f"{directory}/file").read_bytes() == b"y" * 100_000
        async with connect_guest(f"{directory}/relay") as client:
            with trio.move_on_after(0.1):
                await client.run_process(["sleep", "1000"])
            await client.ping()
        daemon = "trap '' TERM HUP; setsid sh -c 'sleep 1000 & echo $!' </dev/null"
        left = int((await guest.run_process(daemon, shell=True, capture_stdout=True)).stdout)
    try:
        with open(f"/proc/{left}/stat") as file:
            assert file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        pass

assert not hasattr(os, "RWF_NOWAIT"), "the folder is not on the path"
with WakePipe() as pipe:
    pipe.wake()
    assert pipe.wait(0)
    pipe.drain()
    assert not pipe.wait(0)
trio.run(main)
print("done")
"""


@pytest.mark.parametrize("refused", [False, True], ids=["missing", "refused"])
def test_guests_processes_files_and_relays_work_without(tmp_path: Path, refused: bool) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE.format(refused=refused))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"done\n", b"")
