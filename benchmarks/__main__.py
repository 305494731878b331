"""Run the benchmarks: ``python -m benchmarks``, from the project's folder.

Each row is measured in a process of its own, and its contenders take turns. Results are printed as a table, and
written to a folder as ``results.json``, ``results.md`` and plots. What was measured beside other work is not kept.

With ``--against FOLDER`` this version is measured side by side with another one, such as a worktree of an older
commit: see `benchmarks._versions`. Status 1 if a row has become worse, 2 if the machine was too busy to tell.
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

from benchmarks import _report, _versions, machine_rows
from benchmarks._measure import measure
from benchmarks._surroundings import MOST_LOAD, OthersLoad, adopt_orphans, collect_orphans, handover
from benchmarks.rows import ROWS

#: Seconds that one process may take: the slowest row needs two minutes or so.
TIMEOUT = 900

#: Groups of rows that are counts more than times, or take minutes: compared with another version only when named.
COUNTED = ("system-calls", "teardown", "idle-guests", "idle-sessions", "peers", "scaling", "machines")


def machine() -> dict[str, Any]:
    """The machine and the versions on which the figures depend."""
    cpu = platform.processor()
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {"cores": os.cpu_count(), "cpu": cpu, "python": platform.python_version()}


def child(names: list[str], turns: int | None) -> None:
    """Measure rows in this process, and print the results."""
    results = []
    for name in names:
        before = handover()
        measured = measure(ROWS[name], turns)
        cost = (before + handover()) / 2
        results += [{**result, "handover": cost} for result in measured]
    print(json.dumps(results))


def run(names: list[str], turns: int | None) -> list[dict[str, Any]]:
    """Measure rows in processes of their own."""
    results: list[dict[str, Any]] = []
    for _, group in groupby(names, key=lambda name: ROWS[name].process or name):
        rows = list(group)
        print(f"==> {', '.join(rows)}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks", "--child", *rows]
        if turns is not None:
            command += ["--turns", str(turns)]
        others = OthersLoad()
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=TIMEOUT)
        collect_orphans()
        load = others.so_far()
        if done.returncode:
            raise SystemExit(f"measuring {rows} failed with status {done.returncode}: {' '.join(command)}")
        results += [{**result, "load": load} for result in json.loads(done.stdout.splitlines()[-1])]
    return results


def against(names: list[str], folder: pathlib.Path, pairs: int) -> list[_versions.Comparison]:
    """Compare rows with those of another version, and print each as it is measured."""
    found = []
    for name in names:
        for one in _versions.compare(ROWS[name], pathlib.Path.cwd(), folder.resolve(), pairs):
            found.append(one)
            told = f"{one.median:6.3f}  [{one.low:.3f} … {one.high:.3f}]  load {one.load:.2f}"
            print(f"{one.name + ', ' + one.statistic:32}{told}{'  WORSE' if one.worse else ''}", flush=True)
    return found


def verdict(found: list[_versions.Comparison]) -> int:
    """The exit status: 2 for a machine that was busy, 1 for a row that is worse."""
    loaded = [one.name for one in found if one.load > MOST_LOAD]
    if loaded:
        print(
            f"measured beside other work, and not to be kept: {', '.join(dict.fromkeys(loaded))}", file=sys.stderr
        )
        return 2
    return int(any(one.worse for one in found))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", help="names of rows, or how they begin; default: all")
    parser.add_argument("--turns", type=int, help="how often each contender is measured")
    parser.add_argument("--out", type=pathlib.Path, help="folder for results.json, results.md and plots")
    parser.add_argument("--against", type=pathlib.Path, metavar="FOLDER", help="another version, to compare with")
    parser.add_argument("--pairs", type=int, default=15, help="how often the two are measured (at least 6)")
    parser.add_argument("--list", action="store_true", help="print the names of all rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print("\n".join(ROWS))
        return
    if options.child:
        child(options.rows, options.turns)
        return
    adopt_orphans()
    skipped = COUNTED if options.against is not None and not options.rows else ()
    names = [
        name
        for name, row in ROWS.items()
        if name.startswith(tuple(options.rows) or "") and row.facts.get("group", "") not in skipped
    ]
    if any(ROWS[name].facts.get("group") == "machines" for name in names) and not machine_rows.can_be_measured():
        print("machine-…: left out, because QEMU is not installed (trio-console vm setup)", file=sys.stderr)
        names = [name for name in names if ROWS[name].facts.get("group") != "machines"]
    if not names:
        raise SystemExit(f"no row begins with any of {options.rows}; see --list")
    if options.against is not None:
        found = against(names, options.against, options.pairs)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            made = {"machine": machine(), "pairs": options.pairs, "rows": [one.as_json() for one in found]}
            (options.out / "against.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        raise SystemExit(verdict(found))
    report = {"machine": machine(), "rows": run(names, options.turns)}
    _report.show(report)
    if options.out is not None:
        _report.save(report, options.out)


if __name__ == "__main__":
    main()
