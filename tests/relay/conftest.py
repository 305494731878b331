"""What all tests of relays in this program need."""

from __future__ import annotations

import pytest
import trio

from trio_console._trio.turns import Line


@pytest.fixture(autouse=True)
def nobody_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client rests for what it has used: that is real time, of which a busy machine takes more.

    (tests/test_turns.py has rests.)
    """

    async def go_on(_line: Line, _used: float, _behind: int) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Line, "rest", go_on)
