"""The error for a lost guest. It is not in ``_errors`` because it needs trio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["GuestLostError", "explained"]

#: Seconds to find out why a guest is gone, before the tasks that wait for it get the error.
_EXPLANATION_TIME: Final = 0.25


class GuestLostError(trio.BrokenResourceError):
    """The guest, or the channel to it, is gone. Never raised for a command that failed.

    Bytes that arrived before are delivered before this is raised.

    Attributes:
        reason: what happened, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


async def explained(reason: str, explain: Callable[[], Awaitable[str]]) -> str:
    """``reason``, followed by the explanation that ``explain`` finds within 0.25 seconds, if it finds one.

    An exception of ``explain`` is put into the text and not raised: the guest is gone in any case, and the tasks
    that wait for it must get that error.
    """
    try:
        with trio.move_on_after(_EXPLANATION_TIME):
            return f"{reason}: {await explain()}"
    except Exception as exc:  # noqa: BLE001
        return f"{reason} (finding out why failed: {exc!r})"
    return reason
