"""The short soak."""

from __future__ import annotations

from tests.soak._soak import soak
from tests.soak._work import WORK


async def test_nothing_is_left_and_nothing_is_cut_off() -> None:
    done = await soak(4.0, seed=1)
    assert set(done) == {piece.__name__ for piece in WORK}
