"""Each invariant of ARCHITECTURE.md names what holds it and the mutants that break it, and these exist.

And each assert of the package says in its message which fact the code relies on. A mutant of the table
(``breaks``) breaks this fact, and the assert finds it, which is checked when the mutants are run. The only other
asserts tell the type checker what it cannot know.
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
BROKEN = {mutant.breaks: mutant for mutant in load() if mutant.breaks}


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
    """What an assert says; of a message with numbers in it, what is before the colon."""
    start = node.msg.values[0] if isinstance(node.msg, ast.JoinedStr) else node.msg
    text = start.value if isinstance(start, ast.Constant) else None
    return text.removesuffix(": ") if isinstance(text, str) else ""


def narrows(node: ast.Assert) -> bool:
    """Whether an assert only says of which type a value is, or that it is there."""
    match node.test:
        case ast.Call(func=ast.Name("isinstance")):
            return True
        case ast.Compare(ops=[ast.IsNot()], comparators=[ast.Constant(None)]):
            return True
    return False


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


def test_every_assert_has_a_mutant_that_it_finds_or_narrows_a_type() -> None:
    assert [place for place, node in ASSERTS if message(node) not in BROKEN and not narrows(node)] == []


def test_no_mutant_breaks_a_fact_that_nothing_asserts() -> None:
    assert BROKEN.keys() - MESSAGES == set()


def test_few_asserts_are_for_the_type_checker() -> None:
    plain = [place for place, node in ASSERTS if narrows(node) and message(node) not in BROKEN]
    assert len(plain) <= 28  # where the structure could say it instead, that is better


@pytest.mark.parametrize(
    ("source", "said", "plain"),
    [
        ("assert x is not None, 'it is there'", "it is there", True),
        ("assert isinstance(x, int), 'it is a number'", "it is a number", True),
        ("assert x == y, f'a whole is its parts: {x}, {y}'", "a whole is its parts", False),
        ("assert x is not None or y, 'one is there'", "one is there", False),
        ("assert x > 0", "", False),
    ],
)
def test_an_assert_is_read(source: str, said: str, plain: bool) -> None:
    [node] = ast.parse(source).body
    assert isinstance(node, ast.Assert)
    assert (message(node), narrows(node)) == (said, plain)
