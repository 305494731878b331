"""The runner reports each mutant correctly: as found, as a survivor, or as not a fault."""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.mutants.run import ELSEWHERE, FOUND, HUNG, INVALID, SURVIVED, Tree, Verdict
from tests.mutants.table import Mutant

if TYPE_CHECKING:
    import pathlib

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a finder leaves is looked for in /proc")

MODULE = """
def least(a, b):
    return a if a < b else b
"""

TESTS = """
import subprocess
import time

from trio_console.sums import least

def test_least():
    assert least(1, 2) == 1

def test_that_fails_anyhow():
    assert least(1, 2) == 3

def test_that_hangs_with_a_process_of_its_own_session():
    if least(1, 2) != 1:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        with open({pid!r}, "w") as file:
            file.write(str(child.pid))
        time.sleep(1000)
"""

LEAST = "tests/test_sums.py::test_least"
ANYHOW = "tests/test_sums.py::test_that_fails_anyhow"
HANGS = "tests/test_sums.py::test_that_hangs_with_a_process_of_its_own_session"


@pytest.fixture
def pid_file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "pid"


@pytest.fixture
def tree(tmp_path: pathlib.Path, pid_file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    # Only what the runner itself names: importing all other plugins takes longer than the tests.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "_hypothesis_pytestplugin")
    source = tmp_path / "source"
    for folder in ("trio_console", "tests"):
        (source / folder).mkdir(parents=True)
    (source / "trio_console" / "__init__.py").touch()
    (source / "trio_console" / "sums.py").write_text(MODULE)
    (source / "tests" / "test_sums.py").write_text(textwrap.dedent(TESTS.format(pid=str(pid_file))))
    return Tree(tmp_path / "work", source=source)


def by_hand(old: str, new: str) -> Mutant:
    return Mutant(module="sums", name="by hand", old=old, new=new)


TURNED = Mutant(module="sums", operator="negate", where="least", text="a < b")


def test_a_fault_that_a_test_sees_is_found(tree: Tree) -> None:
    outcome = tree.run(TURNED, [LEAST])
    assert (outcome.verdict, outcome.by) == (FOUND, LEAST)


@pytest.mark.parametrize(("breaks", "verdict"), [("assert 2 == 1", FOUND), ("a sum is no sum", ELSEWHERE)])
def test_a_fault_that_another_assert_finds_than_the_table_says_is_told(
    tree: Tree, breaks: str, verdict: Verdict
) -> None:
    outcome = tree.run(dataclasses.replace(TURNED, breaks=breaks), [LEAST])
    assert outcome.verdict is verdict
    assert outcome.verdict.good == (verdict is FOUND)


def test_afterwards_the_tree_is_what_it_was(tree: Tree) -> None:
    tree.run(TURNED, [LEAST])
    assert tree.find([LEAST]).verdict is SURVIVED


def test_a_mutant_that_does_what_the_original_does_survives(tree: Tree) -> None:
    outcome = tree.run(by_hand("a if a < b else b", "b if b <= a else a"), [LEAST])
    assert outcome.verdict is SURVIVED
    assert not outcome.verdict.good


@pytest.mark.parametrize("new", ["return a if", "return a\x00"])
def test_what_is_no_python_is_invalid_and_not_found(tree: Tree, new: str) -> None:
    outcome = tree.run(by_hand("return a if a < b else b", new), [LEAST])
    assert outcome.verdict is INVALID
    assert not outcome.verdict.good


def test_what_cannot_be_imported_is_invalid_and_not_found(tree: Tree) -> None:
    assert tree.run(by_hand("def least(a, b):", "least = missing\ndef least(a, b):"), [LEAST]).verdict is INVALID


def test_a_test_that_is_not_there_finds_nothing(tree: Tree) -> None:
    assert tree.run(TURNED, ["tests/test_sums.py::test_gone"]).verdict is INVALID


def test_a_finder_that_does_not_end_has_found_it_and_leaves_nothing(tree: Tree, pid_file: pathlib.Path) -> None:
    for bound in (4.0, 16.0, 64.0):  # on a machine with much else to do it takes long to come to the test at all
        tree.bound = bound
        outcome = tree.run(TURNED, [HANGS])
        if pid_file.exists():
            break
    assert (outcome.verdict, outcome.by) == (HUNG, HANGS)
    assert not os.path.exists(f"/proc/{int(pid_file.read_text())}/exe")  # (a zombie has none)


def test_a_finder_that_fails_without_any_mutant_is_told(tree: Tree) -> None:
    assert tree.failing([[LEAST]]) == []
    [line] = tree.failing([[LEAST], [ANYHOW]])
    assert ANYHOW in line
    assert tree.failing([["tests/test_sums.py::test_gone"]])
