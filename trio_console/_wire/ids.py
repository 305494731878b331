"""Which ids belong to whom. They are given out in 128 ranges, one to each client a relay may have."""

from __future__ import annotations

from typing import Final

__all__ = ["is_session_id", "slot_of", "slots_in"]

#: The first id of each range, and what follows the last range, belong to nobody.
_STEP: Final = (2**32 - 1) // 128

_SLOTS: Final = 128


def is_session_id(number: int) -> bool:
    """Whether an id may belong to a client."""
    return number % _STEP != 0 and number < _SLOTS * _STEP


def slot_of(session_id: int) -> int:
    """The client an id belongs to, as the number of its range."""
    return (session_id - 1) // _STEP


def slots_in(id_start: int, id_end_exclusive: int) -> range:
    """The clients some ids belong to."""
    if id_start >= id_end_exclusive:
        return range(0)
    return range(slot_of(max(1, id_start)), slot_of(id_end_exclusive - 1) + 1)
