"""The hostile soak as a program: ``python -m tests.hostile [SECONDS]``, or ``make hostile``."""

from __future__ import annotations

import argparse
import signal
import sys
import time

import trio

from tests.hostile._attacks import ATTACKS
from tests.hostile._delays import delays
from tests.hostile._pings import quantile
from tests.hostile._soak import MOST_MEMORY, hostile_soak, pings_beside


async def measure_each(seconds: float, names: list[str] | None, hostile: int, seed: int) -> None:
    attacks = [None, *(names or [one.__name__ for one in ATTACKS])]
    for attack in attacks:
        row = await delays(attack, seconds, hostile=hostile, seed=seed)
        used = ", ".join(f"{who} {part:.2f}" for who, part in row.used.items())
        print(f"{row.begun:5} x {row.attack:34} {in_ms(row.pings)} | processors: {used}", flush=True)


def print_round(alone: list[float], beside: list[float]) -> None:
    """Print a line for a round, so that a long soak tells how far it is."""
    if alone and beside:
        print(f"a round: alone {in_ms(alone)}; beside the attacks {in_ms(beside)}", flush=True)


def in_ms(pings: list[float]) -> str:
    parts = ", ".join(f"p{100 * part:g} {1e3 * quantile(pings, part):.1f}" for part in (0.5, 0.95, 0.99))
    return f"{len(pings)}, {parts}, most {1e3 * pings[-1]:.1f} ms"


def main() -> int:
    # Who ends this program ends the relay and the hostile clients as well, as by Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    parser = argparse.ArgumentParser(description="Honest clients of a relay beside hostile ones.")
    parser.add_argument("seconds", nargs="?", type=float, default=60.0, help="(default 60)")
    parser.add_argument("--honest", type=int, default=8, metavar="N", help="honest clients (default 8)")
    parser.add_argument("--hostile", type=int, default=8, metavar="N", help="and hostile ones (default 8)")
    parser.add_argument(
        "--quiet",
        type=float,
        default=10.0,
        help="seconds without attacks before each five minutes of them (default 10)",
    )
    parser.add_argument("--seed", type=int, default=time.time_ns(), metavar="N", help="(default: from the clock)")
    parser.add_argument("--each", type=float, metavar="SECONDS", help="measure pings beside each attack instead")
    parser.add_argument(
        "--attack", action="append", metavar="NAME", help="with --each: only this one (again: more)"
    )
    parser.add_argument("--pings", action="store_true", help="print only the seconds of each ping")
    args = parser.parse_args()
    if args.pings:
        pings = trio.run(lambda: pings_beside(args.hostile, args.seconds, honest=args.honest, seed=args.seed))
        print(*pings, sep="\n")
        return 0
    if args.each:
        trio.run(measure_each, args.each, args.attack, args.hostile, args.seed)
        return 0
    print(f"attacking for {args.seconds:g} seconds with seed {args.seed}", flush=True)
    figures = trio.run(
        lambda: hostile_soak(
            args.seconds,
            honest=args.honest,
            hostile=args.hostile,
            quiet=args.quiet,
            seed=args.seed,
            note_round=print_round,
        )
    )
    for name, count in (*sorted(figures.done.items()), *sorted(figures.attacks.items())):
        print(f"{count:6} x {name}")
    for name, pings in (("alone", figures.quiet), ("beside the attacks", figures.beside)):
        if pings:
            print(f"pings {name}: {in_ms(pings)}")
    if figures.quiet and figures.beside:
        print(f"p99 beside the attacks / alone: {figures.ratio:.1f}")
    for who, grown in figures.memory.items():
        print(f"the {who} has grown by at most {grown:.0f} MiB (bound: {MOST_MEMORY})")
    print("no honest client has lost anything or was refused, and nothing was left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
