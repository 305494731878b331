"""What machines need, and machines that many tests use: each boots once, behind a relay in a process of its own.

A machine takes seconds to start, and most tests only look at it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.tools.limits import HANG
from trio_console import connect_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from trio_console import Guest

#: Seconds to fetch packages, once on a new machine.
SETUP = 600

#: It ends its machine before it ends: whoever kills all that a test has left may kill the warden as well.
PROGRAM = """\
import json, signal, sys
import trio, trio_console
path, root, shares, writable, jail = json.loads(sys.argv[1])
shares = {at: trio_console.Share(here, writable=at in writable) for at, here in shares.items()}
root = trio_console.Root[root] if root in trio_console.Root.__members__ else root
spec = trio_console.MicroVMGuest(root=root, shares=shares, env={"GIVEN": "ü"}, jail=jail)

async def main():
    async with trio.open_nursery() as nursery:
        serve = trio_console.serve_relay
        await nursery.start(lambda task_status: serve(spec, path, launch_timeout=300, task_status=task_status))
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            print("ready", flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break

trio.run(main)
"""


@pytest.fixture(scope="session")
def machines() -> None:
    """QEMU and kernels are there: as root they are installed and fetched if they are missing."""
    done = subprocess.run(
        [sys.executable, "-m", "trio_console", "vm", "setup"], capture_output=True, text=True, timeout=SETUP
    )
    assert done.returncode == 0, done.stderr


class Served(NamedTuple):
    """A machine behind a relay."""

    path: str
    read_only: Path
    writable: Path


@contextmanager
def serving(folder: Path, root: str, *, shares: bool, jail: str = "auto") -> Iterator[Served]:
    served = Served(str(folder / "relay"), folder / "read-only", folder / "writable")
    named = {"/mnt/ro": str(served.read_only), "/mnt/rw": str(served.writable)} if shares else {}
    for share in (served.read_only, served.writable):
        share.mkdir()
    arguments = json.dumps([served.path, root, named, ["/mnt/rw"], jail])
    with open(folder / "err", "w+b") as err:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, arguments], stdout=subprocess.PIPE, stderr=err)
        try:
            assert process.stdout is not None
            with process.stdout:
                said = process.stdout.readline()
            err.seek(0)
            assert said == b"ready\n", err.read().decode()
            yield served
        finally:
            process.terminate()
            process.wait(HANG)


@pytest.fixture(scope="session")
def minimal_machine(machines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("minimal"), "MINIMAL", shares=False) as served:
        yield served


@pytest.fixture(scope="session")
def sharing_machine(machines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("sharing"), "HOST", shares=True) as served:
        yield served


@pytest.fixture
async def minimal(minimal_machine: Served) -> AsyncIterator[Guest]:
    """A machine with nothing of this one."""
    async with connect_guest(minimal_machine.path) as guest:
        yield guest


@pytest.fixture
async def sharing(sharing_machine: Served) -> AsyncIterator[Guest]:
    """A machine with this machine's programs and two shares."""
    async with connect_guest(sharing_machine.path) as guest:
        yield guest
