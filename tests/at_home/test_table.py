"""Everything in the table is in a guest as it is at home, or differs as it is meant to."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.at_home.beyond import BEYOND, NAMESPACES
from tests.at_home.runner import Runner
from tests.at_home.table import CASES, DIFFERENCES, TOPICS, Case
from tests.tools.installing import install

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def isolating_runner() -> Iterator[Runner]:
    install("bwrap", "bubblewrap")
    with Runner([NAMESPACES]) as runner:
        yield runner


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_in_a_guest_as_at_home(runner: Runner, case: Case) -> None:
    outcomes = runner.play(case, ["home", *case.places])
    home = outcomes.pop("home")
    if case.differs is None:
        assert outcomes == dict.fromkeys(case.places, home)
    else:
        assert outcomes == dict.fromkeys(case.places, case.in_guest)
        assert home != case.in_guest


ISOLATED = [case for case in CASES.values() if case.name not in BEYOND and "process" in case.places]


@pytest.mark.parametrize("case", ISOLATED, ids=[case.name for case in ISOLATED])
def test_it_is_the_same_in_namespaces(isolating_runner: Runner, case: Case) -> None:
    # (Where a guest differs from home, all guests differ alike.)
    outcomes = isolating_runner.play(case, ["home", NAMESPACES])
    assert outcomes[NAMESPACES] == (outcomes["home"] if case.differs is None else case.in_guest)


def test_what_is_not_played_in_namespaces_is_in_the_table() -> None:
    assert set(BEYOND) <= set(CASES)
    assert len(ISOLATED) >= 115


def test_the_table_is_complete() -> None:
    assert len(CASES) >= 120
    count = Counter(case.topic for case in CASES.values())
    assert set(count) == set(TOPICS)
    assert {topic: number for topic, number in count.items() if number < 4} == {}


def test_every_difference_is_shown_and_every_shown_difference_is_meant() -> None:
    assert {case.differs for case in CASES.values()} - {None} == set(DIFFERENCES)
    assert len(DIFFERENCES) <= 15
