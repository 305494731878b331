"""The cgroups of this system, as the tests see them."""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Final

import pytest

from trio_console.agent._cgroups import PREFIX, _find, _has_pidfds, remove_stale

__all__ = ["PLACE", "cgroup_of", "members", "needs_cgroups", "remove_leftovers"]


def _place() -> str | None:
    with contextlib.suppress(OSError):
        place = _find("/proc/self")
        if place is not None and _has_pidfds() and os.access(f"{place}/cgroup.procs", os.W_OK):
            return place
    return None


#: The cgroup in which the agents that tests start have their directories; `None` if they may have none here.
PLACE: Final = _place()

needs_cgroups = pytest.mark.skipif(
    PLACE is None, reason="this system lacks a cgroup (version 2) that the tests may divide, or pidfds"
)


def cgroup_of(pid: int | str) -> pathlib.Path:
    """The cgroup in which a process is."""
    assert PLACE is not None
    lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    [own] = [line[3:] for line in lines if line.startswith("0::")]
    _, prefix, rest = own.partition(PREFIX)
    return pathlib.Path(PLACE, prefix + rest)


def members(cgroup: pathlib.Path) -> list[int]:
    """The threads in a cgroup; none if it is gone."""
    try:
        return [int(text) for text in (cgroup / "cgroup.threads").read_text().split()]
    except OSError:
        return []


def remove_leftovers() -> None:
    """Remove the directories of agents that tests have killed: no other agent may start after them."""
    if PLACE is not None:
        remove_stale(PLACE)
