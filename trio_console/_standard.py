"""The standard descriptors of a program that may have been started with some of them closed."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["CLOSED_AT_START", "fill_standard_descriptors"]

#: The standard descriptors that were closed when `fill_standard_descriptors` was called first.
CLOSED_AT_START: Final[set[int]] = set()

_STANDARD: Final = range(3)


def fill_standard_descriptors() -> None:
    """Open the null device in place of each standard descriptor that is closed.

    Otherwise the next file that is opened gets its number, and all that is printed, or is read as input. A program
    must call this before it imports trio: ctypes opens a file with some builds of libffi.
    """
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) in _STANDARD:
        os.set_inheritable(fd, True)
        CLOSED_AT_START.add(fd)
    os.close(fd)
