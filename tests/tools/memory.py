"""How much memory objects take that a block leaves behind."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Held", "held_by"]


class Held:
    """The bytes, once the block is over."""

    size = 0


@contextmanager
def held_by() -> Iterator[Held]:
    """Count the bytes that are allocated in a block and still used at its end."""
    held = Held()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield held
        held.size = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
