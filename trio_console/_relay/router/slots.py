"""The slots, which are ranges of ids, and when a slot may be given to the next client.

A slot is not free as soon as its client has gone: the guest may still send frames with its ids, and the next
client would get them. So the slot is in *quarantine* until the guest has ended all sessions in it, and then it is
free. If the guest does not do that in time, the slot is *retired*: nobody waits for it any more. It is free when
the guest has ended them after all, however late.

There is no I/O and no clock here.
"""

from __future__ import annotations

from typing import final

from trio_console._wire.ids import MAX_CLIENTS

__all__ = ["Slots"]


@final
class Slots:
    """The state of all slots."""

    def __init__(self) -> None:
        self._free = [True] * MAX_CLIENTS
        self._quarantined: dict[int, float] = {}
        self._retired: set[int] = set()

    def take(self) -> int | None:
        """The lowest free slot, or `None`."""
        for slot, free in enumerate(self._free):
            if free:
                self._free[slot] = False
                return slot
        return None

    def quarantine(self, slot: int, deadline: float) -> None:
        """Quarantine the slot of a client that has gone; the guest has until ``deadline`` to end its sessions."""
        self._quarantined[slot] = deadline

    def release(self, slot: int) -> None:
        """Free a slot that is quarantined or retired: the guest has ended its sessions."""
        assert slot in self._quarantined or slot in self._retired, "a slot is given back once"
        self._quarantined.pop(slot, None)
        self._retired.discard(slot)
        self._free[slot] = True

    def retire_late(self, now: float) -> list[int]:
        """Retire the slots whose deadline has passed; returns them."""
        late = [slot for slot, deadline in self._quarantined.items() if deadline <= now]
        for slot in late:
            del self._quarantined[slot]
        self._retired.update(late)
        return late

    @property
    def quarantined(self) -> int:
        return len(self._quarantined)

    @property
    def retired(self) -> int:
        return len(self._retired)
