"""A program of hostile clients: ``python -m tests.hostile._attackers SOCKET FOLDER CLIENTS SEED [ATTACK...]``.

It attacks until it is killed or its input ends, and prints at the beginning of each attack which it is.
"""

from __future__ import annotations

import os
import random
import sys
from contextlib import suppress
from pathlib import Path

import trio

from tests.hostile._attacks import ATTACKS, Attack, Target

#: Seconds that an attack holds on to what it has got.
HOLD = 1.0

#: Seconds before the next one, where the relay has refused the client.
REFUSED = 0.05


async def attack(target: Target, attacks: tuple[Attack, ...]) -> None:
    while True:
        one = target.choice.choice(attacks)
        print(one.__name__, flush=True)
        with trio.move_on_after(10 * target.seconds):
            try:
                await one(target)
            except* (OSError, trio.BrokenResourceError, AssertionError):
                await trio.sleep(REFUSED)  # it was refused or cut, as it should be


def make_room() -> None:
    """Take the processor only where nothing else wants it.

    It is not what the attacks are to take, but what the relay and the agent have of it: these two need not be on
    the machine of hostile clients.
    """
    os.nice(19)
    os.setsid()
    with suppress(OSError):  # the kernel does not group by sessions
        Path("/proc/self/autogroup").write_text("19")


async def main() -> None:
    path, folder, count, seed, *names = sys.argv[1:]
    attacks = tuple(one for one in ATTACKS if not names or one.__name__ in names)
    make_room()
    async with trio.open_nursery() as nursery:
        for number in range(int(count)):
            choice = random.Random(f"{seed}/{number}")
            nursery.start_soon(attack, Target(path, Path(folder), choice, HOLD), attacks)
        # Nobody writes there, so this is its end: whoever wanted the attacks has gone.
        await trio.lowlevel.wait_readable(sys.stdin.fileno())
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
