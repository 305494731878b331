"""The short hostile soak."""

from __future__ import annotations

from tests.hostile._soak import hostile_soak


async def test_honest_clients_lose_nothing_beside_hostile_ones() -> None:
    figures = await hostile_soak(4.0, seed=1)
    assert figures.done
    assert figures.attacks
