"""One relay for all tests that leave it as they found it."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.cli._programs import relay_at

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def relay() -> Iterator[str]:
    """The path of the relay's socket."""
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "relay.sock")
        with relay_at(path):
            yield path
