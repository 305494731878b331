"""The hostile soak as a program: ``python -m tests.hostile [SECONDS]``, or ``make hostile``."""

from __future__ import annotations

import argparse
import sys
import time

import trio

from tests.hostile._soak import MOST_MEMORY, Figures, hostile_soak


def main() -> int:
    parser = argparse.ArgumentParser(description="Honest clients of a relay beside hostile ones.")
    parser.add_argument("seconds", nargs="?", type=float, default=60.0, help="(default 60)")
    parser.add_argument("--honest", type=int, default=8, metavar="N", help="honest clients (default 8)")
    parser.add_argument("--hostile", type=int, default=8, metavar="N", help="and hostile ones (default 8)")
    parser.add_argument("--quiet", type=float, default=10.0, help="seconds without attacks before (default 10)")
    parser.add_argument("--seed", type=int, default=time.time_ns(), metavar="N", help="(default: from the clock)")
    args = parser.parse_args()
    print(f"attacking for {args.seconds:g} seconds with seed {args.seed}", flush=True)
    figures = trio.run(
        lambda: hostile_soak(
            args.seconds, honest=args.honest, hostile=args.hostile, quiet=args.quiet, seed=args.seed
        )
    )
    for name, count in (*sorted(figures.done.items()), *sorted(figures.attacks.items())):
        print(f"{count:6} x {name}")
    for name, pings in (("alone", figures.quiet), ("beside the attacks", figures.beside)):
        if len(pings) > 1:
            median = sorted(pings)[len(pings) // 2]
            print(
                f"pings {name}: {len(pings)}, median {1e3 * median:.1f} ms, p99 {1e3 * Figures.p99(pings):.1f} ms"
            )
    for who, grown in figures.memory.items():
        print(f"the {who} has grown by at most {grown:.0f} MiB (bound: {MOST_MEMORY})")
    print("no honest client has lost anything or was refused, and nothing was left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
