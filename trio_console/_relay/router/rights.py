"""The rights of a user at a relay: what the relay forwards for the user's clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

__all__ = ["Rights"]


@final
@dataclass(frozen=True, slots=True)
class Rights:
    """What a user's processes may do through a relay; by default everything.

    Args:
        run: whether they may run commands.
        files: whether they may change files (``"write"``), only read them (``"read"``), or do nothing with files
            (`None`). The page on the relay has a table of the file operations.
        tcp: whether they may open connections in the guest.
        shutdown: whether they may shut the guest down, for all clients.

    Raises:
        ValueError: ``files`` is another value.
    """

    run: bool = True
    files: Literal["write", "read"] | None = "write"
    tcp: bool = True
    shutdown: bool = True

    def __post_init__(self) -> None:
        if self.files not in ("write", "read", None):
            raise ValueError(f"files must be 'write', 'read' or None, not {self.files!r}")
