"""Fixtures for pytest: a guest, a guest that misbehaves, consoles without a machine, and a check for leaks.

A project loads them with ``pytest_plugins = ["trio_console.testing.pytest_plugin"]`` in its ``conftest.py``. The
plugin does not load itself, because then every project that has this package installed would get fixtures of these
names.

The asynchronous fixtures are run by pytest-trio, in its ``trio_mode`` or in tests marked ``trio``. Without
pytest-trio they fail with a message that says so, and the other fixtures work.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import trio

import trio_console
from trio_console import testing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = [
    "console_pair",
    "console_state",
    "fake_console_device",
    "faulty_guest",
    "guest",
    "guest_spec",
    "nothing_left_behind",
]


@pytest.fixture
def _runs_under_trio(request: pytest.FixtureRequest) -> None:
    """Fail a test that uses an asynchronous fixture and is not run by pytest-trio."""
    if find_spec("pytest_trio") is None:
        pytest.fail(
            f"the fixtures 'guest' and 'console_pair' need pytest-trio, and {request.node.name} uses one: "
            "pip install pytest-trio",
            pytrace=False,
        )
    if request.node.get_closest_marker("trio") is None:
        pytest.fail(
            f"the fixtures 'guest' and 'console_pair' are for trio tests, and {request.node.name} is not one: "
            "mark it with pytest.mark.trio, or set trio_mode = true in pytest's configuration",
            pytrace=False,
        )


@pytest.fixture
def guest_spec() -> trio_console.GuestSpec:
    """The guest for `guest` and `faulty_guest`: a `trio_console.ProcessGuest`. Override it to use another."""
    return trio_console.ProcessGuest()


@pytest.fixture
async def guest(_runs_under_trio: None, guest_spec: trio_console.GuestSpec) -> AsyncIterator[trio_console.Guest]:
    """A `trio_console.Guest` that is open for the time of the test."""
    async with trio_console.open_guest(guest_spec) as opened:
        yield opened


@pytest.fixture
def faulty_guest(guest_spec: trio_console.GuestSpec) -> testing.FaultyGuest:
    """A `FaultyGuest` without faults; the test passes it to `trio_console.open_guest`."""
    return testing.FaultyGuest(guest=guest_spec)


@pytest.fixture
async def console_pair(
    _runs_under_trio: None,
) -> AsyncIterator[tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]]:
    """Both ends of a console as streams, ``(host, guest)``; see `console_stream_pair`. Closed after the test."""
    host, guest_end = testing.console_stream_pair()
    yield host, guest_end
    for end in (host, guest_end):
        await trio.aclose_forcefully(end)
    # Closed here, because pytest still refers to the ends when other fixtures check for open descriptors.
    host._shared.close_wakes()


@pytest.fixture
def console_state() -> Iterator[trio_console.ConsoleSharedState]:
    """The `trio_console.ConsoleSharedState` that `fake_console_device` drives; the test reads and writes it."""
    state = trio_console.ConsoleSharedState()
    yield state
    state.close_wakes()


@pytest.fixture
def fake_console_device(console_state: trio_console.ConsoleSharedState) -> Iterator[testing.FakeConsoleDevice]:
    """A `FakeConsoleDevice` on `console_state`. After the test it must shut down, and have no violations."""
    with testing.FakeConsoleDevice(console_state) as device:
        yield device
        # A device ends only when the bytes that its guest wrote were taken or dropped. This drops them.
        console_state.host_gone()


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """Fail the test if it leaves a thread, a descriptor or a child process; see the function of this name.

    For ``pytest.mark.usefixtures("nothing_left_behind")``, or with ``autouse`` in a project's own fixture.
    """
    with testing.nothing_left_behind():
        yield
