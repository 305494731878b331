"""What holds for every test: no descriptor and no thread is left behind.

Idle worker threads of trio's cache are not counted: they end by themselves after ten seconds. A descriptor
that only waits for the garbage collector is not a leak, so one collection is made before judging.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import hypothesis
import pytest

from trio_console._guests import process as guest_process
from trio_console._guests import supervisor

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# A shell has these ignored in what it starts in the background, and the processes of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# The same inputs in every run, however busy the machine: what a change breaks fails at that change. Others are
# tried at night, with HYPOTHESIS_PROFILE=explore; a failure prints what to add to its test to see it again.
_AT_ANY_SPEED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow], "print_blob": True}
hypothesis.settings.register_profile("gate", derandomize=True, database=None, **_AT_ANY_SPEED)
hypothesis.settings.register_profile("explore", **_AT_ANY_SPEED)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

# The package warns when the processes of a guest are not seen to be gone within a second or two. On a busy machine
# they may take longer, and that is no fault.
guest_process._SCAN_TIME = supervisor._KILL_TIME = 30.0  # type: ignore[misc]

#: Seconds that a thread which is just ending may take to be gone.
GRACE = 5.0


def open_descriptors() -> dict[int, str]:
    """Every open descriptor and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that listed the directory
    return found


def busy_threads() -> set[threading.Thread]:
    """Threads that are doing something: trio names the idle ones of its cache."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}


def new_descriptors(before: dict[int, str]) -> dict[int, str]:
    return {fd: what for fd, what in open_descriptors().items() if before.get(fd) != what}


def pytest_collection_finish() -> None:
    """What is there by now stays: nobody need go through it again in each of thousands of collections."""
    _run_nothing()  # the first run of hypothesis makes what it has to find by a collection afterwards
    gc.collect()
    gc.freeze()


@hypothesis.given(hypothesis.strategies.none())
def _run_nothing(_: None) -> None:
    pass


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    threads_before = busy_threads()
    before = open_descriptors()
    yield
    if request.node.stash.get(_FAILED, False):
        return  # its traceback keeps things alive, and it says more than we could
    deadline = time.monotonic() + GRACE
    while new := busy_threads() - threads_before:
        if time.monotonic() > deadline:
            pytest.fail(f"threads left behind: {sorted(thread.name for thread in new)}")
        next(iter(new)).join(0.005)
    if new_descriptors(before):
        gc.collect()
    if left := new_descriptors(before):
        pytest.fail(f"descriptors left behind: {left}")


#: Carried in the environment of everything a test starts.
MARK = "TRIO_CONSOLE_TEST"


def marked(needle: bytes) -> set[int]:
    """Living processes, other than this one, with this in their environment."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if needle in file.read().split(b"\0"):
                        found.add(int(name))
            except OSError:
                continue
    return found


@pytest.fixture
def no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that leaves a process; kills it first."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv(MARK, mark)
    needle = f"{MARK}={mark}".encode()
    yield
    gc.collect()
    left = marked(needle)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
