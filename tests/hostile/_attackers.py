"""A program of hostile clients: ``python -m tests.hostile._attackers SOCKET FOLDER CLIENTS SEED``.

It attacks until it is killed, and prints after each attack which it was.
"""

from __future__ import annotations

import os
import random
import sys
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
        with trio.move_on_after(10 * target.seconds):
            try:
                await one(target)
            except* (OSError, trio.BrokenResourceError, AssertionError):
                await trio.sleep(REFUSED)  # it was refused or cut, as it should be
        print(one.__name__, flush=True)


async def main() -> None:
    path, folder, count, seed = sys.argv[1:]
    os.nice(10)  # the processor is not what they are to take, but what the relay and the agent have of it
    async with trio.open_nursery() as nursery:
        for number in range(int(count)):
            choice = random.Random(f"{seed}/{number}")
            nursery.start_soon(attack, Target(path, Path(folder), choice, HOLD), ATTACKS)


if __name__ == "__main__":
    trio.run(main)
