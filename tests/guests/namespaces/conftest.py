"""bubblewrap, for all tests here."""

from __future__ import annotations

import pytest

from tests.tools.installing import install


@pytest.fixture(scope="session", autouse=True)
def _bubblewrap() -> None:
    install("bwrap", "bubblewrap")
