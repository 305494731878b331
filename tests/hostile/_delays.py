"""How long pings of honest clients take beside one kind of attack, and which processes have used the processor."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from operator import sub
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import trio

from tests.hostile._pings import ping_for
from tests.hostile._soak import a_relay, attacked
from tests.tools.leftovers import marking
from trio_console import connect_guest

__all__ = ["Delays", "delays"]

#: Seconds of the processor for each tick in ``/proc/PID/stat``.
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Delays:
    """What pings took beside one attack.

    Attributes:
        attack: its name, or "no attack".
        begun: how often it was begun.
        pings: seconds, in order of their length.
        used: seconds of a processor in each second, by the processes that used them: the relay, the agent, the
            commands that it has reaped, the hostile clients, and all others on the machine. (Among these are the
            honest clients, and commands that still run.)
    """

    attack: str
    begun: int
    pings: list[float]
    used: dict[str, float]


def processor_time(pid: int) -> tuple[float, float]:
    """Seconds of a process, and of the children that it has reaped."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK, (int(fields[13]) + int(fields[14])) * _TICK


def busy_time() -> float:
    """Seconds for which all processors of the machine were busy."""
    user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_bytes().split(None, 11)[1:11])
    return (user + nice + system + sum(rest[:2])) * _TICK


async def delays(
    attack: str | None, seconds: float, *, clients: int = 8, hostile: int = 8, seed: int = 0
) -> Delays:
    """Measure for so long beside an attack, with a relay of its own; `None` is no attack."""
    with TemporaryDirectory() as name, marking():
        folder = Path(name)
        folder.chmod(0o700)
        async with a_relay(folder) as (path, relay):
            async with connect_guest(path) as guest:
                pid = await guest.run_process(["sh", "-c", "echo $PPID"], capture_stdout=True)
            agent = int(pid.stdout)
            begun: Counter[str] = Counter()
            began = trio.current_time()
            before = *processor_time(agent), processor_time(relay)[0], busy_time()
            if attack is None:
                pings, attackers = await ping_for(seconds, path, clients), 0.0
            else:
                async with attacked(path, folder, hostile, seed, begun, [attack]) as attackers_pid:
                    pings = await ping_for(seconds, path, clients)
                    attackers = processor_time(attackers_pid)[0]
            after = *processor_time(agent), processor_time(relay)[0], busy_time()
            took = trio.current_time() - began
    used = dict(zip(("agent", "commands", "relay"), map(sub, after, before), strict=False))
    used["attackers"] = attackers
    used["others"] = after[-1] - before[-1] - sum(used.values())
    return Delays(attack or "no attack", begun.total(), pings, {who: time / took for who, time in used.items()})
