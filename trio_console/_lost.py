"""The error of a guest that is gone. Apart from ``_errors`` because it needs trio."""

from __future__ import annotations

import trio

__all__ = ["GuestLostError"]


class GuestLostError(trio.BrokenResourceError):
    """The guest, or the channel to it, is gone. Never raised for a command that failed.

    What had arrived before is delivered before this is raised.

    Attributes:
        reason: what happened, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
