"""Two threads and two tasks move numbered chunks as fast as they can; `stress` does the same for longer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.console.wake.stress import Stress

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _hasty_interpreter() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("capacity", [3, 2048])
def test_no_chunk_is_lost_doubled_or_overtaken_and_nobody_sleeps_beside_work(capacity: int) -> None:
    Stress(20_000, capacity, MIB).run()


@pytest.mark.nightly
@pytest.mark.parametrize("capacity", [3, 2048])
def test_nor_of_five_million(capacity: int) -> None:
    Stress(5_000_000, capacity, MIB).run()
