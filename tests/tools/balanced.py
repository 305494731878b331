"""A check that what was reserved of an outbox was used or given back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trio_console._wire.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


@contextmanager
def balanced_outboxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check at the end of the block that each outbox made in it has all of its budget, except for queued frames.

    A session that ends while it waits for room, or has just got some, must give it back: otherwise the other
    sessions of the guest have less for ever. (An outbox whose stream broke has no use for its budget.)
    """
    made: list[Outbox] = []
    real = Outbox.__init__

    def init(self: Outbox, *args: Any, **options: Any) -> None:
        made.append(self)
        real(self, *args, **options)

    monkeypatch.setattr(Outbox, "__init__", init)
    yield
    for outbox in made:
        if outbox._broken is None:
            assert outbox._bulk_used == sum(each.size for each in outbox._bulk)
