"""Programs that have closed their standard descriptors, as daemons do: other files get their numbers."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.tools.limits import HANG

if TYPE_CHECKING:
    from pathlib import Path

#: Closes the descriptors that are named behind the first two arguments, and opens a guest. The event loop runs
#: already, so the next numbers are the guest's.
PROGRAM = """
import os, sys, trio
from subprocess import PIPE
from trio_console import CommandGuest, ProcessGuest, connect_guest, open_guest

SCRIPT = ["sh", "-c", "cat; echo out; echo err >&2"]

async def use(guest, report):
    await guest.run_process(SCRIPT)
    done = await guest.run_process(SCRIPT, stdin=b"in ", capture_stdout=True, capture_stderr=True)
    print(done.stdout, done.stderr, file=report, flush=True)
    async with guest.open_process(SCRIPT, stdin=PIPE) as process:
        await process.stdin.aclose()
        print(await process.wait(), file=report, flush=True)

async def main(kind, report_path, *numbers):
    with open(report_path, "w") as report, trio.fail_after(60):
        for number in numbers:
            os.close(int(number))
        argv = [sys.executable, "-m", "trio_console.agent", "--stdio"]
        spec = CommandGuest(argv) if kind == "command" else ProcessGuest()
        if kind == "relay":
            path = report_path + ".sock"
            async with open_guest(spec, relay_path=path), connect_guest(path) as guest:
                await use(guest, report)
        else:
            async with open_guest(spec) as guest:
                await use(guest, report)

trio.run(main, *sys.argv[1:])
"""


def run(kind: str, report: Path, *numbers: int) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-c", PROGRAM, kind, str(report), *map(str, numbers)]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("process", (1,)),
        ("process", (0, 1)),
        ("process", (0, 1, 2)),
        ("command", (0, 1)),
        ("command", (1, 2)),
        ("relay", (1, 2)),
    ],
    ids=str,
)
def test_a_guest_is_opened_and_its_output_goes_into_no_other_file(
    kind: str, numbers: tuple[int, ...], tmp_path: Path
) -> None:
    report = tmp_path / "report"
    done = run(kind, report, *numbers)
    assert report.read_bytes() == b"b'in out\\n' b'err\\n'\n0\n"
    assert done.returncode == 0
    assert done.stdout == b""
    assert done.stderr == (b"" if 2 in numbers else b"err\nerr\n")


def test_output_goes_to_a_descriptor_that_took_the_place_of_a_closed_one(tmp_path: Path) -> None:
    code = """
import os, sys, trio
from trio_console import open_guest
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.close(1)
os.dup2(log, 1)
async def main():
    async with open_guest() as guest:
        await guest.run_process(["echo", "out"])
trio.run(main)
"""
    log = tmp_path / "log"
    subprocess.run([sys.executable, "-c", code, str(log)], timeout=HANG, check=True)
    assert log.read_bytes() == b"out\n"
