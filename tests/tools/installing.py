"""Programs of the system that tests need: installed where they are missing, as root, once."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile

import pytest

__all__ = ["install"]

_TIME = 300.0


def install(program: str, package: str) -> None:
    """Make sure that a program is there; fails the test where it is not, and this user may not install it."""
    if shutil.which(program):
        return
    if os.getuid():
        pytest.fail(f"{program} is missing: install the package {package} (only root may)")
    with open(os.path.join(tempfile.gettempdir(), "trio-console-tests-install"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests run in several processes
        if not shutil.which(program):
            for command in (["update", "-qq"], ["install", "-y", "-qq", package]):
                subprocess.run(["apt-get", *command], stdout=subprocess.DEVNULL, check=True, timeout=_TIME)
