"""Processes of a guest with process ids of its own, as this machine numbers them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_console import Guest

__all__ = ["agent_of", "numbers_here"]


async def numbers_here(guest: Guest, *pids: int) -> list[int]:
    """The ids that living processes of a guest have here, by those that they have there."""
    done = await guest.run_process(["readlink", "/proc/self/ns/pid"], capture_stdout=True)
    namespace = done.stdout.decode().strip()
    if namespace == os.readlink("/proc/self/ns/pid"):
        return list(pids)
    there = dict(_members(namespace))
    return [there[pid] for pid in pids]


async def agent_of(guest: Guest) -> int:
    """The id that a guest's agent has here."""
    done = await guest.run_process(["sh", "-c", "echo $PPID"], capture_stdout=True)
    [pid] = await numbers_here(guest, int(done.stdout))
    return pid


def _members(namespace: str) -> list[tuple[int, int]]:
    """The processes of a namespace: the id there, and here."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/ns/pid") == namespace:
                with open(f"/proc/{name}/status", encoding="utf-8", errors="replace") as file:
                    [ids] = [line.split()[1:] for line in file if line.startswith("NSpid:")]
                found.append((int(ids[-1]), int(name)))
        except OSError:
            continue  # it has ended
    return found
