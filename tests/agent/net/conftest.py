"""A server for the tests of connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.agent.net._server import Server, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server
