"""Many small sessions, each with a fault at a moment that its seed has chosen.

``TRIO_CONSOLE_SEED=1234`` plays only that round, ``TRIO_CONSOLE_SEED=1000-1999`` plays a thousand other rounds,
and ``TRIO_CONSOLE_ROUNDS=5000`` plays the first 5000.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.faults._plan import draw
from tests.faults._rounds import play

if TYPE_CHECKING:
    import pathlib

ROUNDS = int(os.environ.get("TRIO_CONSOLE_ROUNDS", "60"))
CHOSEN = os.environ.get("TRIO_CONSOLE_SEED")


def seeds() -> range:
    if CHOSEN is None:
        return range(ROUNDS)
    first, _, last = CHOSEN.partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.parametrize("seed", seeds())
async def test_a_round_ends_well(seed: int, tmp_path: pathlib.Path) -> None:
    plan = draw(seed)
    again = f"again: TRIO_CONSOLE_SEED={seed} python -m pytest tests/faults/test_rounds.py\n{plan}"
    try:
        verdict = await play(plan, tmp_path)
    except BaseException as exc:
        exc.add_note(again)
        raise
    if verdict.complaints:
        pytest.fail("\n".join([*verdict.complaints, again]), pytrace=False)
