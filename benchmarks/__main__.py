"""Run the benchmarks: ``python -m benchmarks``, from the project's folder.

Each row is measured in a process of its own, its contenders by turns. Results go to the terminal as a table, and
into a folder as ``results.json``, ``results.md`` and plots.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
from itertools import groupby
from typing import Any

from benchmarks import _report
from benchmarks._measure import measure
from benchmarks.rows import ROWS

#: Seconds that one process may take: the slowest row needs two minutes or so.
TIMEOUT = 900


def machine() -> dict[str, Any]:
    """What the figures depend on, and nothing else."""
    cpu = platform.processor()
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {"cores": os.cpu_count(), "cpu": cpu, "python": platform.python_version()}


def child(names: list[str], turns: int | None) -> None:
    """Measure rows in this process, and print what came of it."""
    print(json.dumps([result for name in names for result in measure(ROWS[name], turns)]))


def run(names: list[str], turns: int | None) -> list[dict[str, Any]]:
    """Measure rows in processes of their own."""
    results: list[dict[str, Any]] = []
    for _, group in groupby(names, key=lambda name: ROWS[name].process or name):
        rows = list(group)
        print(f"==> {', '.join(rows)}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks", "--child", *rows]
        if turns is not None:
            command += ["--turns", str(turns)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=TIMEOUT)
        if done.returncode:
            raise SystemExit(f"measuring {rows} failed with status {done.returncode}: {' '.join(command)}")
        results += json.loads(done.stdout.splitlines()[-1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", help="names of rows, or how they begin; default: all")
    parser.add_argument("--turns", type=int, help="how often each contender is measured")
    parser.add_argument("--out", type=pathlib.Path, help="folder for results.json, results.md and plots")
    parser.add_argument("--list", action="store_true", help="print the names of all rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(ROWS))
        return
    if options.child:
        child(options.rows, options.turns)
        return
    names = [name for name in ROWS if not options.rows or name.startswith(tuple(options.rows))]
    if not names:
        raise SystemExit(f"no row begins with any of {options.rows}; see --list")
    report = {"machine": machine(), "rows": run(names, options.turns)}
    _report.show(report)
    if options.out is not None:
        _report.save(report, options.out)


if __name__ == "__main__":
    main()
