"""A test that hangs costs no more than its own time: it is ended and named, and the other tests are run."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.tools.leftovers import marked, marking
from tests.tools.limits import BUSY, ENDING, HANG

if TYPE_CHECKING:
    import pytest

ROOT = pathlib.Path(__file__).parents[2]

#: The first starts a process that does not notice the end of its parent.
TESTS = """
import subprocess
import time

def test_that_hangs():
    subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1000)

def test_behind_it():
    pass
"""


def run(config: pytest.Config, folder: pathlib.Path, processes: int) -> subprocess.CompletedProcess[str]:
    """Run the tests as `make test` does, but with a shorter `faulthandler_timeout`, and without other plugins."""
    (folder / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text(f"""[pytest]
faulthandler_timeout = 1
faulthandler_exit_on_timeout = {config.getini("faulthandler_exit_on_timeout")}
""")
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-n", str(processes), "--dist", "worksteal"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "-p", "tests.tools.dead_workers", "test_it.py"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )


def test_a_test_whose_wait_has_hung_has_the_time_to_say_so(pytestconfig: pytest.Config) -> None:
    assert float(pytestconfig.getini("faulthandler_timeout")) > HANG + BUSY + ENDING


def test_a_test_that_hangs_fails_and_the_others_are_run(
    tmp_path: pathlib.Path, pytestconfig: pytest.Config
) -> None:
    with marking() as mark:
        ended = run(pytestconfig, tmp_path, 1)
        left = marked(mark)
    assert ended.returncode == 1
    assert "FAILED test_it.py::test_that_hangs" in ended.stdout
    assert "1 failed, 1 passed" in ended.stdout
    assert not left


def test_a_test_that_hangs_in_the_only_process_ends_the_run_and_is_named(
    tmp_path: pathlib.Path, pytestconfig: pytest.Config
) -> None:
    with marking() as mark:
        ended = run(pytestconfig, tmp_path, 0)
        for pid in marked(mark):  # there is no other process that would end it
            os.kill(pid, signal.SIGKILL)
    assert ended.returncode == 1
    assert "in test_that_hangs" in ended.stderr


#: Stands for make: the second step hangs, and a process of it does not end when it is told to.
MAKE = """#!/bin/sh
[ "$1" = check ] || sh -c 'trap "" TERM; echo deaf; sleep 1000; true'
"""


def test_a_step_of_the_gate_that_hangs_is_ended_and_named(
    tmp_path: pathlib.Path, no_process_is_left: None
) -> None:
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "GATE_SECONDS": "1", "COLUMNS": "40"}
    gate = [str(ROOT / ".ci/run")]
    ended = subprocess.run(gate, env=env, capture_output=True, text=True, check=False, timeout=HANG)
    assert ended.returncode == 1
    assert re.search(r"make model has not ended in 1 s.*trap .* TERM; echo deaf", ended.stdout, re.DOTALL)
    assert re.search(r"make model was ended.*\n.*\n +make check: \d s\n +make model: \d+ s\n$", ended.stdout)
