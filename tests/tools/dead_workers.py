"""Ends the processes of a worker of pytest-xdist that has died in a test: it crashed, or it hung for too long."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

import pytest

from tests.tools.leftovers import started_with, wait_until_none

__all__ = ["pytest_testnodedown"]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Guests end by themselves, and are left a second for it: some of their processes have another environment."""
    if error is None:
        return
    run, worker = node.workerinput["testrunuid"], node.workerinput["workerid"]
    variables = {f"PYTEST_XDIST_TESTRUNUID={run}".encode(), f"PYTEST_XDIST_WORKER={worker}".encode()}
    if wait_until_none(lambda: started_with(variables), patience=1.0):
        wait_until_none(lambda: _kill(started_with(variables)))


def _kill(pids: set[int]) -> set[int]:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids
