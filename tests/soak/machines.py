"""Machines while every processor is busy with something else: none fails to start, or to run a command.

``python -m tests.soak.machines [BOOTS CLONES]`` (20 and 40) starts so many machines, one after the other, beside a
loop for each processor, and says how long they took. `make nightly` runs it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter

import trio

from benchmarks.session_rows import busy_processors
from trio_console import MicroVMGuest, Root, open_guest

#: Seconds for a machine to start: many times what it takes.
PATIENCE = 300.0


async def start(count: int, *, template: bool) -> None:
    """Start machines, and print how long they took, and in how many attempts."""
    spec = MicroVMGuest(root=Root.MINIMAL, template=template)
    ready, commands = [], []
    attempts: Counter[int] = Counter()
    for _ in range(count):
        began = time.monotonic()
        async with open_guest(spec, launch_timeout=PATIENCE) as guest:
            ready.append(time.monotonic() - began)
            await guest.run_process(["true"])
            commands.append(time.monotonic() - began - ready[-1])
            assert guest.machine is not None
            attempts[guest.machine.attempts] += 1
    told = ", ".join(f"{number} in {each}" for each, number in sorted(attempts.items()))
    for what, seconds in (("ready", ready), ("first command", commands)):
        low, high = min(seconds), max(seconds)
        median = statistics.median(seconds)
        print(f"    {what}: median {median:.2f} s ({low:.2f} to {high:.2f}); attempts: {told}", flush=True)


async def main(boots: int, clones: int) -> None:
    """Make the template, and then start all machines beside busy processors."""
    async with open_guest(MicroVMGuest(root=Root.MINIMAL), launch_timeout=PATIENCE):
        pass
    with busy_processors():
        print(f"==> {boots} machines started", flush=True)
        await start(boots, template=False)
        print(f"==> {clones} machines cloned", flush=True)
        await start(clones, template=True)


if __name__ == "__main__":
    trio.run(main, *(map(int, sys.argv[1:3] if len(sys.argv) > 1 else ("20", "40"))))
