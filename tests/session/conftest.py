"""Fixtures that the tests of the session share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

import trio_console
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_console import Guest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"contents")
    return path


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    """A real guest. At the end no session is left; the close of a handle may take a moment more."""
    with trio.fail_after(HANG):
        async with trio_console.open_guest() as guest:
            yield guest
            while guest.statistics().active_sessions:
                await guest.ping()
