"""Correlation ids: to which client an id belongs, and which id is used next.

The ids are divided into 128 ranges, one for each client of a relay; the number of a range is its client's *slot*.
Slot k has the ids from ``k * STEP + 1`` to ``(k + 1) * STEP - 1``. The multiples of STEP between the ranges, and
the ids after the last range, belong to no client. On a console without a relay, the host is the client of slot 0.

An id is free when the last frame of its session has passed; see `Place.ENDS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["MAX_CLIENTS", "STEP", "TRANSPORT_ID", "IdSequence", "slot_ids", "slot_of", "slots_in"]

MAX_CLIENTS: Final = 128

STEP: Final = (2**32 - 1) // MAX_CLIENTS

TRANSPORT_ID: Final = 2**32 - 1
"""The id under which an agent speaks of its console as a whole, to the console's owner alone."""


def slot_ids(slot: int) -> range:
    """Return the ids of a slot."""
    return range(slot * STEP + 1, (slot + 1) * STEP)


def slot_of(frame_id: int) -> int | None:
    """Return the slot that an id belongs to, or ``None`` if it belongs to no client."""
    slot, offset = divmod(frame_id, STEP)
    return slot if offset and slot < MAX_CLIENTS else None


def slots_in(id_start: int, id_end_exclusive: int) -> range:
    """Return the slots that have at least one of these ids."""
    if id_start >= id_end_exclusive:
        return range(0)
    # The first whose last id is not below the start, and the last whose first id is below the end.
    return range(id_start // STEP, min((id_end_exclusive - 2) // STEP + 1, MAX_CLIENTS))


@final
class IdSequence:
    """The ids that a client uses: one after the other, and then from the first again.

    Args:
        ids: all ids of the client.
    """

    __slots__ = ("_ids", "_next")

    def __init__(self, ids: range) -> None:
        self._ids: Final = ids
        self._next = ids.start

    def take(self, in_use: Collection[int]) -> int:
        """Return the next id that is not in use.

        A client has 33 million ids, so a used id comes again only after all others. It is skipped while the guest
        may still send frames for it.

        Raises:
            RuntimeError: all ids are in use.
        """
        if len(in_use) >= len(self._ids):
            raise RuntimeError("every correlation id of this connection is in use: end some of its sessions first")
        while True:
            session_id = self._next
            self._next = session_id + 1 if session_id + 1 < self._ids.stop else self._ids.start
            if session_id not in in_use:
                assert session_id in self._ids, "a session has an id of its client's"
                return session_id
