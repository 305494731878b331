"""Fixtures for pytest: a guest, a guest that misbehaves, consoles without a machine, and a look at what is left.

A project gets them by ``pytest_plugins = ["trio_console.testing.pytest_plugin"]`` in its ``conftest.py``. It is no
plugin that loads itself, because then every project with this package installed would have fixtures of these
names.

The asynchronous ones are run by pytest-trio, in its ``trio_mode`` or in tests marked ``trio``; where it is not
installed they say so, and the others work without it.

This module must not know how anything is done: it only opens what the package has, and closes it.
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
    """What the asynchronous fixtures need; without it they would be generators that nobody runs."""
    if find_spec("pytest_trio") is None:
        pytest.fail(
            f"the fixtures 'guest' and 'console_pair' need pytest-trio, and {request.node.name} uses one: "
            "pip install pytest-trio",
            pytrace=False,
        )
    if request.node.get_closest_marker("trio") is None:
        pytest.fail(
            f"the fixtures 'guest' and 'console_pair' are for trio tests, and {request.node.name} is none: "
            "mark it with pytest.mark.trio, or set trio_mode = true in pytest's configuration",
            pytrace=False,
        )


@pytest.fixture
def guest_spec() -> trio_console.GuestSpec:
    """The guest that `guest` and `faulty_guest` are made of; to be overridden. A `trio_console.ProcessGuest`."""
    return trio_console.ProcessGuest()


@pytest.fixture
async def guest(_runs_under_trio: None, guest_spec: trio_console.GuestSpec) -> AsyncIterator[trio_console.Guest]:
    """A `trio_console.Guest` that is open for the time of the test."""
    async with trio_console.open_guest(guest_spec) as opened:
        yield opened


@pytest.fixture
def faulty_guest(guest_spec: trio_console.GuestSpec) -> testing.FaultyGuest:
    """A `FaultyGuest` without faults yet, to be given to `trio_console.open_guest` by the test."""
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
    # Not left to the garbage collector: pytest still holds the ends when other fixtures look what is open.
    host._shared.close_wakes()


@pytest.fixture
def console_state() -> Iterator[trio_console.ConsoleSharedState]:
    """A `trio_console.ConsoleSharedState`: what `fake_console_device` drives, for the test to read and write."""
    state = trio_console.ConsoleSharedState()
    yield state
    state.close_wakes()


@pytest.fixture
def fake_console_device(console_state: trio_console.ConsoleSharedState) -> Iterator[testing.FakeConsoleDevice]:
    """A `FakeConsoleDevice` on `console_state`. After the test it must come to its end, and have no violations."""
    with testing.FakeConsoleDevice(console_state) as device:
        yield device
        # A device ends only once what its guest wrote was taken. A host that is done lets go of it.
        console_state.host_gone()


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """Fail the test if it leaves a thread, a descriptor or a child process; see the function of this name.

    For ``pytest.mark.usefixtures("nothing_left_behind")``, or with ``autouse`` in a project's own fixture.
    """
    with testing.nothing_left_behind():
        yield
