"""What a night tries of the work that takes several nights."""

from __future__ import annotations

import datetime

__all__ = ["tonight"]


def tonight(parts: int) -> int:
    """The number of this night's part: from 0 to ``parts - 1``, another one in each of so many nights."""
    return datetime.date.today().toordinal() % parts
