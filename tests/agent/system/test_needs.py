"""The calls that the agent tries at its start."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from tests.tools.leftovers import children, descriptors, threads
from tests.tools.limits import HANG
from trio_console.agent._system.needs import refused_calls

# It forks, and the process that runs these tests may have other threads. The child ends at once.
pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork:DeprecationWarning")


def test_nothing_is_refused_here_and_nothing_is_left_or_changed() -> None:
    before = descriptors(), children(), threads(), signal.getsignal(signal.SIGUSR1)
    assert refused_calls() == []
    assert (descriptors(), children(), threads(), signal.getsignal(signal.SIGUSR1)) == before


def test_without_its_own_number_it_sends_no_signal_and_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "getpid", lambda: -1)
    for name in ("kill", "fork", "killpg"):
        monkeypatch.setattr(os, name, never)
    assert refused_calls() == ["getpid"]


def test_a_lack_that_may_pass_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", busy)
    assert refused_calls() == []


def test_a_thread_that_cannot_be_had_is_named() -> None:
    program = """
import sys, threading
from trio_console.agent.__main__ import main
def refuse(*args):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
sys.exit(main(["--stdio"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"trio_console.agent: this system refuses what the agent needs: clone3 (or ")
