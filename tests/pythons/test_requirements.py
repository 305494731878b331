"""The lowest versions that pyproject.toml allows, as they are handed to pip."""

from __future__ import annotations

import pathlib
import runpy

import pytest

ROOT = pathlib.Path(__file__).parents[2]
constraints = runpy.run_path(str(ROOT / "tests/pythons/lowest.py"))["constraints"]


def test_everything_the_package_and_its_tests_need_has_a_lowest_version() -> None:
    lines = constraints((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = {line.partition("==")[0] for line in lines}
    assert {"trio", "outcome", "cbor2", "msgspec", "pytest", "pytest-trio", "hypothesis"} <= names


@pytest.mark.parametrize("requirement", ["trio", "trio>0.27", "trio>=0.27,<1"])
def test_a_requirement_without_one_is_an_error(requirement: str) -> None:
    text = f'[project]\nname = "x"\ndependencies = ["{requirement}"]\n'
    with pytest.raises(ValueError, match="no lowest version"):
        constraints(text, ())


def test_a_marker_stays_and_an_exact_version_needs_no_constraint() -> None:
    text = """[project]
name = "x"
dependencies = ["a>=1.2; sys_platform != 'win32'", "b==3"]
optional-dependencies.more = ["c>=4", "x[other]"]
"""
    assert constraints(text, ("more",)) == ["a==1.2; sys_platform != 'win32'", "c==4"]
