"""The environment that the agent was given, which is that of its commands.

In the C locale Python sets ``LC_CTYPE`` in its own environment when it starts (PEP 538), and all that it starts
would inherit that.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["restore_environment"]

_CHANGED: Final = b"LC_CTYPE"


def restore_environment() -> None:
    """Undo what the interpreter has done to this process's environment; without ``/proc`` this does nothing."""
    try:
        with open("/proc/self/environ", "rb") as file:
            given = file.read()
    except OSError:
        return
    for entry in given.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == _CHANGED:
            os.environb[_CHANGED] = value
            return
    os.environb.pop(_CHANGED, None)
