"""The error of a guest that is gone. Apart from ``_errors`` because it needs trio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["GuestLostError", "explained"]

#: Seconds to find out why a guest is gone, before those who wait for it are told.
_EXPLANATION_TIME: Final = 0.25


class GuestLostError(trio.BrokenResourceError):
    """The guest, or the channel to it, is gone. Never raised for a command that failed.

    What had arrived before is delivered before this is raised.

    Attributes:
        reason: what happened, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


async def explained(reason: str, explain: Callable[[], Awaitable[str]]) -> str:
    """``reason``, and what ``explain`` finds out about it within 0.25 seconds.

    What it raises costs nobody anything but the explanation: the guest is gone either way, and that is what those
    who wait for it have to hear.
    """
    try:
        with trio.move_on_after(_EXPLANATION_TIME):
            return f"{reason}: {await explain()}"
    except Exception as exc:  # noqa: BLE001
        return f"{reason} (asking why failed: {exc!r})"
    return reason
