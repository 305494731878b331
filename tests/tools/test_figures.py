"""The figures count what they claim to count."""

from __future__ import annotations

import pathlib
import sys
from typing import TYPE_CHECKING

from tests import figures

if TYPE_CHECKING:
    import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_a_block_that_stands_twice_is_one_however_long_it_is_and_however_it_is_indented() -> None:
    block = [f"step({number})" for number in range(figures.BLOCK + 2)]
    one = ["def one():", *(f"    {line}" for line in block), "    return 1"]
    two = ["# two", *block[:3], "", "# in the middle", *block[3:], "end()"]
    found = figures.repeated_blocks({pathlib.Path("one"): one, pathlib.Path("two"): two})
    assert found == [["one:2-9", "two:2-11"]]


def test_what_is_shorter_or_stands_once_is_no_repeated_block() -> None:
    short = [f"step({number})" for number in range(figures.BLOCK - 1)]
    files = {pathlib.Path("one"): [*short, "a()"], pathlib.Path("two"): [*short, "b()"]}
    assert figures.repeated_blocks(files) == []


def test_all_figures_of_this_tree_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["figures", str(ROOT)])
    figures.main()
    said = capsys.readouterr().out
    for folder in figures.folders(ROOT / "trio_console"):
        assert f"{folder.relative_to(ROOT)} " in said
    for word in ("asserts per 1000", "functions: ", "public coroutines: ", "stand more than once in the tests: "):
        assert word in said
