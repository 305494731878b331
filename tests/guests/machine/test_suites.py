"""The suites of the relay and of the session, with a virtual machine in the place of a child process.

A suite is taken as it is, but for the tests that look from here at what the guest does not share with this
machine. Each test has a clone of its own, which sees the directory of the test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from tests.guests._suites import taken_from
from tests.guests.machine.test_endings import BOOT
from tests.relay import test_interop, test_relay
from tests.relay.test_relay import path as path  # a fixture, as the two below
from tests.session.conftest import file as file
from tests.session.files import test_files_integration, test_names
from tests.session.files.test_names import odd as odd
from tests.session.process import test_arguments_twin, test_cancel
from trio_console import MicroVMGuest, Share, open_guest
from trio_console._guests import host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_console import Guest

pytestmark = pytest.mark.nightly  # because they take minutes

#: The suites, and the tests that are not for such a guest.
SUITES: Final = {
    test_relay: (
        # Processes have other numbers there, and connections lead nowhere.
        *("test_leaving_kills_what_the_client_still_runs", "test_a_guest_that_dies_is_an_error_with_its_reason"),
        "test_connections_pass_through",
        # These have guests of their own.
        *(
            "test_a_guest_that_does_not_obey_a_shutdown_is_ended_by_force",
            "test_mutated_frames_of_a_guest_end_in_order",
        ),
        *("test_a_greeting_that_is_none_is_an_error", "test_a_greeting_in_pieces_is_understood"),
    ),
    test_interop: (),
    test_files_integration: (
        # Its users and home are its own.
        *("test_every_path_call_does_what_trio_path_does", "test_places_are_those_of_the_agent"),
        *("test_a_number_without_a_name_is_a_key_error", "test_a_killed_guest_ends_its_files"),
        # Files of a share have other numbers there, so that those of several shares differ.
        "test_a_stat_has_what_it_has_on_this_machine",
    ),
    test_names: (),
    test_arguments_twin: ("test_a_host_may_be_bytes",),
    test_cancel: (),
}

globals().update(taken_from(SUITES))


def showing(directory: Path) -> MicroVMGuest:
    return MicroVMGuest(shares={str(directory): Share(directory, writable=True)})


@pytest.fixture(scope="session")
def _template(tmp_path_factory: pytest.TempPathFactory, machines: None) -> None:
    """The first machine of its kind takes longer than tests wait."""

    async def start() -> None:
        async with open_guest(showing(tmp_path_factory.mktemp("share")), launch_timeout=BOOT):
            pass

    trio.run(start)


@pytest.fixture(autouse=True)
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _template: None) -> MicroVMGuest:
    """A guest that sees the directory of its test; it is in the place of each child process."""

    def made(**_options: Any) -> MicroVMGuest:
        return showing(tmp_path)

    for module in (host, test_relay):
        monkeypatch.setattr(module, "ProcessGuest", made)
    return showing(tmp_path)


@pytest.fixture
async def guest(spec: MicroVMGuest) -> AsyncIterator[Guest]:
    with trio.fail_after(BOOT):
        async with open_guest(spec, launch_timeout=BOOT) as guest:
            yield guest
