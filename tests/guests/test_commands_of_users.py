"""Commands of another user than the agent's, whose files are closed to the agent even if it is root."""

from __future__ import annotations

import os
import sys

import pytest

from tests.tools.users import NOBODY, as_root, shared_directory
from trio_console import CommandGuest, open_guest

#: Starts the agent as a root that may not pass over the permissions of files (capabilities 1 and 2 are dropped).
PLAIN_ROOT = """
import ctypes, os, sys
for capability in (1, 2):
    assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "trio_console.agent", "--stdio"])
"""

pytestmark = as_root


async def test_a_directory_that_only_the_user_may_enter_is_a_working_directory() -> None:
    with shared_directory() as shared:
        home = shared / "home"
        home.mkdir(0o700)
        os.chown(home, NOBODY, NOBODY)
        async with open_guest(CommandGuest([sys.executable, "-c", PLAIN_ROOT])) as guest:
            done = await guest.run_process(["pwd"], cwd=home, user=NOBODY, capture_stdout=True)
            assert done.stdout == os.fsencode(home) + b"\n"
            with pytest.raises(PermissionError):
                await guest.run_process(["pwd"], cwd=home)


async def test_a_users_command_opens_its_streams_by_name() -> None:
    script = "echo out >/dev/stdout; echo err >/dev/stderr; cat </dev/stdin"
    async with open_guest() as guest:
        done = await guest.run_process(
            ["sh", "-c", script], stdin=b"in\n", user=NOBODY, capture_stdout=True, capture_stderr=True
        )
    assert (done.stdout, done.stderr) == (b"out\nin\n", b"err\n")
