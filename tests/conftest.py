"""Checks for every test: no descriptor and no thread is left behind.

Idle worker threads of trio's cache are not counted: they end by themselves after ten seconds. A descriptor that
only waits for the garbage collector is not a leak, so the collector runs before the check.
"""

from __future__ import annotations

import gc
import os
import pathlib
import signal
import sys
from typing import TYPE_CHECKING

import hypothesis
import pytest
import trio._core._run as trio_run

from tests.tools.balanced import balanced_outboxes
from tests.tools.cgroups import remove_leftovers
from tests.tools.dead_workers import pytest_testnodedown as pytest_testnodedown  # a hook, like those below
from tests.tools.leftovers import descriptors, marked, marking, name_thread, threads, wait_until_none
from tests.tools.limits import BUSY
from trio_console import BubblewrapGuest, CommandGuest, MicroVMGuest, ProcessGuest, SocketGuest
from trio_console._guests import leftovers as guest_leftovers
from trio_console._guests import supervisor

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

HERE = pathlib.Path(__file__).parent

# A shell lets its background commands ignore these signals, and the processes of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# The same inputs in every run, however busy the machine: what a change breaks fails at that change. Others are
# tried at night, with HYPOTHESIS_PROFILE=explore; a failure prints what to add to its test to see it again.
_AT_ANY_SPEED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow], "print_blob": True}
hypothesis.settings.register_profile("gate", derandomize=True, database=None, **_AT_ANY_SPEED)
hypothesis.settings.register_profile("explore", **_AT_ANY_SPEED)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

guest_leftovers._SCAN_TIME = supervisor._KILL_TIME = BUSY  # type: ignore[misc]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--workers",
        choices=["threads", "tasks"],
        help="what moves the bytes of guests for which a test does not say it; by default what each kind has",
    )
    parser.addoption(
        "--task-order",
        default="0",
        help="a number or word; with another one trio runs the tasks of each test in another order (default: 0)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if workers := config.getoption("--workers"):
        for kind in (BubblewrapGuest, CommandGuest, MicroVMGuest, ProcessGuest, SocketGuest):
            kind.__init__.__kwdefaults__["workers"] = workers


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs QEMU and a kernel."""
    for item in items:
        if "machines" in getattr(item, "fixturenames", ()) or HERE / "agentd" in item.path.parents:
            item.add_marker("machines")


def pytest_collection_finish() -> None:
    """Exempt the objects that exist now from the thousands of collections below: they live until the end."""
    _run_nothing()  # the first run of hypothesis makes what it has to find by a collection afterwards
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    remove_leftovers()


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
def _tasks_run_in_the_same_order(request: pytest.FixtureRequest) -> None:
    """trio tosses a coin for the order of tasks that are ready at one time: it falls the same in every run."""
    trio_run._r.seed(f"{request.config.getoption('--task-order')} {request.node.nodeid}")


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    threads_before, descriptors_before = threads(), descriptors()
    yield
    if request.node.stash.get(_FAILED, False):
        return  # the traceback keeps objects alive, and the error of the test says more
    if left := wait_until_none(lambda: threads() - threads_before):
        pytest.fail(f"left behind: {sorted(map(name_thread, left))}")
    if descriptors() - descriptors_before:
        gc.collect()
    if left := descriptors() - descriptors_before:
        pytest.fail(f"left behind: {sorted(left)}")


@pytest.fixture
def no_process_is_left() -> Iterator[None]:
    """Fails a test that leaves a process; kills it first."""
    with marking() as mark:
        yield
    gc.collect()
    left = marked(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture(autouse=True)
def _outboxes_are_balanced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.path.is_relative_to(HERE / "wire"):  # these test the outbox itself, without sessions
        yield
        return
    with balanced_outboxes(monkeypatch):
        yield
