"""When a slot, which is a range of ids, may be given to somebody else.

A slot is not free because its client has gone: the guest may still send frames with its ids, and the next
client would get them. It is free again when the guest has spoken its last word about it, or it is *retired*,
for good, when the guest did not do so in time.

Pure bookkeeping: no I/O, no clock of its own.
"""

from __future__ import annotations

from typing import final

from trio_console._wire.ids import MAX_CLIENTS

__all__ = ["Slots"]


@final
class Slots:
    """Which slots are taken, and by what."""

    def __init__(self) -> None:
        self._free = [True] * MAX_CLIENTS
        self._quarantined: dict[int, float] = {}
        self.retired = 0

    def take(self) -> int | None:
        """The lowest free slot, or `None`."""
        for slot, free in enumerate(self._free):
            if free:
                self._free[slot] = False
                return slot
        return None

    def quarantine(self, slot: int, deadline: float) -> None:
        """The slot's client has gone; the guest has until ``deadline`` to say its last word."""
        self._quarantined[slot] = deadline

    def release(self, slot: int) -> None:
        """The guest is done with a quarantined slot."""
        del self._quarantined[slot]
        self._free[slot] = True

    def retire_late(self, now: float) -> list[int]:
        """Give up the slots whose deadline has passed; they are not used again."""
        late = [slot for slot, deadline in self._quarantined.items() if deadline <= now]
        for slot in late:
            del self._quarantined[slot]
        self.retired += len(late)
        return late

    @property
    def quarantined(self) -> int:
        return len(self._quarantined)
