"""The soak as a program: ``python -m tests.soak [SECONDS] [--clients N] [--seed N]``, or ``make soak``.

It ends with an error as soon as something was cut off or left behind. Two faults that it must find are in the
table of mutants: output that is passed on for a fixed time after the exit, and a kill of the leader alone. This
puts them in, and runs the short soak of the tests::

    python -m tests.mutants "soak:"
"""

from __future__ import annotations

import argparse
import sys
import time

import trio

from tests.soak._soak import soak


def main() -> int:
    parser = argparse.ArgumentParser(description="Commands of many clients at once.")
    parser.add_argument("seconds", nargs="?", type=float, default=60.0, help="(default 60)")
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="(default 8)")
    parser.add_argument("--seed", type=int, default=time.time_ns(), metavar="N", help="(default: from the clock)")
    args = parser.parse_args()
    print(f"soaking for {args.seconds:g} seconds with {args.clients} clients and seed {args.seed}", flush=True)
    done = trio.run(lambda: soak(args.seconds, clients=args.clients, seed=args.seed))
    for name, count in sorted(done.items()):
        print(f"{count:6} x {name}")
    print("nothing was left, and nothing was cut off")
    return 0


if __name__ == "__main__":
    sys.exit(main())
