"""The README: its picture is the one that its script makes, and its programs run."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import trio

from tests.guests.machine.conftest import machines as machines  # a fixture
from tests.tools.limits import HANG
from trio_console import MicroVMGuest, open_guest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

#: Seconds for a program that makes a machine, beside other tests that do.
PATIENCE = 110.0

#: Those that are whole.
PROGRAMS = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "trio.run(main)" in block]


def run(program: str, seconds: float) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_picture_is_what_its_script_makes() -> None:
    made = runpy.run_path(str(ROOT / "docs/picture.py"))
    assert made["PICTURE"].read_text() == made["picture"]()
    assert "docs/picture.svg" in README


async def test_the_first_program_runs_a_command_in_a_machine(machines: None) -> None:
    assert len(PROGRAMS) == 2
    # Beside other tests the first machine of its kind may take longer than a program waits that does not say so.
    async with open_guest(MicroVMGuest(), launch_timeout=PATIENCE):
        pass
    said = await trio.to_thread.run_sync(run, PROGRAMS[0], HANG)
    assert said.startswith("Linux ")
    assert os.uname().release not in said


def test_the_first_session_does_what_it_says() -> None:
    said = run(PROGRAMS[1], HANG)
    assert said.startswith("b'Linux\\n'\n")
    assert said.endswith("True\n")


def test_files_that_are_named_are_there() -> None:
    for path in re.findall(r"\]\(([\w./-]+?)(?:#[\w-]+)?\)", README):
        assert (ROOT / path).exists(), path
