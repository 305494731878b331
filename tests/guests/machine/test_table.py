"""Everything in the table of what a guest does is in a virtual machine as it is at home."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.at_home.beyond import BEYOND_MACHINES, MACHINE
from tests.at_home.runner import Runner
from tests.at_home.table import CASES, Case

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.nightly  # because they take minutes

CHOSEN = [case for case in CASES.values() if case.name not in BEYOND_MACHINES and "process" in case.places]


@pytest.fixture(scope="module")
def runner(machines: None) -> Iterator[Runner]:
    with Runner([MACHINE]) as runner:
        yield runner


def test_what_is_not_played_in_a_machine_is_in_the_table() -> None:
    assert set(BEYOND_MACHINES) <= set(CASES)
    assert len(CHOSEN) >= 110


@pytest.mark.parametrize("case", CHOSEN, ids=[case.name for case in CHOSEN])
def test_it_is_the_same_in_a_machine(runner: Runner, case: Case) -> None:
    # (Where a guest differs from home, all guests differ alike.)
    outcomes = runner.play(case, ["home", MACHINE])
    assert outcomes[MACHINE] == (outcomes["home"] if case.differs is None else case.in_guest)
