"""Keep a service in a guest running: when the guest is lost, it is started again, after a pause that grows.

Run it with ``python examples/supervised.py``. There is no supervisor to configure: a loop around ``async with``
says all of it, and cancelling the loop ends the guest in order. The example kills its guest twice, checks that the
work is done all the same, and takes a second or two.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import trio

import trio_console

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FIRST_PAUSE = 0.1  # seconds, after the first loss
LONGEST_PAUSE = 30.0
HEALTHY = 60.0  # seconds after which a guest counts as one that works, so that the pauses begin anew


async def supervise(spec: trio_console.GuestSpec, serve: Callable[[trio_console.Guest], Awaitable[None]]) -> None:
    """Give ``serve`` a guest until it returns; another one each time that the guest is lost.

    What it raises besides comes out: a fault of its own would not be mended by another guest. So does a guest that
    cannot be started at all, unless that is a `GuestLostError`.
    """
    pause = FIRST_PAUSE
    while True:
        began = trio.current_time()
        try:
            async with trio_console.open_guest(spec, heartbeat=10) as guest:
                await serve(guest)
                return
        except trio_console.GuestLostError as exc:
            print(f"lost: {exc.reason}", flush=True)
        if trio.current_time() - began > HEALTHY:
            pause = FIRST_PAUSE
        # Many programs that have lost their guests at one moment shall not start them at one moment.
        await trio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)


async def main() -> None:
    jobs = ["echo one", "kill -9 $PPID", "echo two", "kill -9 $PPID", "echo three"]
    done = []

    async def serve(guest: trio_console.Guest) -> None:
        # A job is taken off the list before it is done: the one that kills the guest is not tried again.
        while jobs:
            result = await guest.run_process(jobs.pop(0), shell=True, capture_stdout=True)
            done.append(result.stdout.decode().strip())
            print(f"done: {done[-1]}", flush=True)

    await supervise(trio_console.ProcessGuest(), serve)
    assert done == ["one", "two", "three"]


if __name__ == "__main__":
    trio.run(main)
