"""Honest clients that ping, as a program: ``python -m tests.hostile._pings SOCKET CLIENTS SECONDS``.

It prints the seconds of each ping. It is a process of its own, does nothing else, and goes before other programs
as the relay and the agent do. So a ping takes as long as these two need for it, and not as long as its own program
has other work to do, or waits for a processor.
"""

from __future__ import annotations

import sys

import trio

from trio_console import connect_guest
from trio_console._rank import go_first

__all__ = ["ping_for", "quantile"]

#: Seconds between two pings of a client.
PAUSE = 0.02


async def ping_for(seconds: float, path: str, clients: int) -> list[float]:
    """The pings of so many clients of a relay in a process of their own: their seconds, the shortest first.

    Raises:
        subprocess.CalledProcessError: a client has lost the relay or was refused.
    """
    command = [sys.executable, "-m", "tests.hostile._pings", path, str(clients), str(seconds)]
    done = await trio.run_process(command, capture_stdout=True, start_new_session=True)
    return sorted(map(float, done.stdout.split()))


def quantile(ordered: list[float], part: float) -> float:
    """The smallest number that is not exceeded by this part of them."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


async def ping(path: str, end: float, pings: list[float]) -> None:
    async with connect_guest(path) as guest:
        while trio.current_time() < end:
            pings.append(await guest.ping())
            await trio.sleep(PAUSE)


async def main() -> None:
    path, clients, seconds = sys.argv[1:]
    go_first()
    pings: list[float] = []
    end = trio.current_time() + float(seconds)
    async with trio.open_nursery() as nursery:
        for _ in range(int(clients)):
            nursery.start_soon(ping, path, end, pings)
    sys.stdout.writelines(f"{seconds}\n" for seconds in pings)


if __name__ == "__main__":
    trio.run(main)
