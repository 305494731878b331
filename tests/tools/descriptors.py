"""The kind of file behind a descriptor, found without changing it."""

from __future__ import annotations

import os
import select

__all__ = ["is_open", "is_readable"]


def is_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
