"""Fixtures that the tests of the relay share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tools.balanced import balanced_outboxes

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _outboxes_are_balanced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with balanced_outboxes(monkeypatch):
        yield
