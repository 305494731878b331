"""Each invariant of ARCHITECTURE.md names what holds it and the mutants that break it, and these exist.

And each assert of the package says in its message which fact the code below relies on.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.mutants.table import ROOT, load
from tests.test_imports import modules

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

MUTANTS = {mutant.name for mutant in load() if not mutant.equivalent}


class Invariant(NamedTuple):
    """An entry of the list: its text, and the names below it."""

    text: str
    asserts: list[str]
    tests: list[str]
    mutants: list[str]


def invariants(document: str) -> Iterator[Invariant]:
    section = document.partition("\n## Invariants\n")[2].partition("\n## ")[0]
    for entry in re.findall(r"^\* (.*?)(?=^\* |^\S)", section + "* ", re.MULTILINE | re.DOTALL):
        text, _, rest = re.sub(r"\s+", " ", entry).partition(" * Held by ")
        held, _, broken = rest.partition(" Broken by ")
        yield Invariant(
            text.strip(),
            asserts=re.findall(r'assert "([^"]+)"', held),
            tests=re.findall(r"`(tests/[^`]+)`", held),
            mutants=re.findall(r'"([^"]+)"', broken),
        )


def asserts(package: pathlib.Path) -> Iterator[tuple[str, ast.Assert]]:
    for _, path in modules(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                yield f"{path.relative_to(package)}:{node.lineno}", node


def message(node: ast.Assert) -> str:
    return node.msg.value if isinstance(node.msg, ast.Constant) and isinstance(node.msg.value, str) else ""


INVARIANTS = list(invariants((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")))
ASSERTS = list(asserts(ROOT / "trio_console"))
MESSAGES = {message(node) for _, node in ASSERTS}


def test_there_are_invariants() -> None:
    assert len(INVARIANTS) >= 18


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.text[:40])
def test_an_invariant_names_what_holds_it_and_what_breaks_it(invariant: Invariant) -> None:
    assert invariant.asserts or invariant.tests
    assert invariant.mutants
    assert [name for name in invariant.asserts if name not in MESSAGES] == []
    assert [path for path in invariant.tests if not (ROOT / path).exists()] == []
    assert [name for name in invariant.mutants if name not in MUTANTS] == []


def test_an_entry_without_names_is_found() -> None:
    plain, named = invariants(
        "## X\n\n## Invariants\n\n* One:\n  `_a`.\n* Two.\n"
        '  * Held by assert "a b", `tests/c`. Broken\n    by "d e".\n\nText.\n\n## Terms\n\n* Three.\n'
    )
    assert plain == ("One: `_a`.", [], [], [])
    assert named == ("Two.", ["a b"], ["tests/c"], ["d e"])


def test_every_assert_says_what_is_relied_on() -> None:
    assert [place for place, node in ASSERTS if node.msg is None] == []
