"""The table of promises names files and tests that exist."""

from __future__ import annotations

import pathlib
import re

import pytest

TESTS = pathlib.Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "promises.md"

NAMED = sorted(set(re.findall(r"`((?:[a-z_]+/)*test_\w+\.py(?:::\w+)?)`", PAGE.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", NAMED)
def test_what_holds_a_promise_exists(name: str) -> None:
    path, _, function = name.partition("::")
    source = (TESTS / path).read_text(encoding="utf-8")
    # (A model's tests are those of its class.)
    assert re.search(
        rf"^(async )?def {function}" if function else r"^((async )?def test_|Test)", source, re.MULTILINE
    )


def test_every_promise_is_held() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 20
    assert all("test_" in row for row in rows)
