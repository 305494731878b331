"""Run the mutants of the table, two at a time, and print which tests found them.

    python -m tests.mutants [--check | --sample | --record | --discover MODULE ...] [PATTERN...]

The exit status is 1 if a mutant survives, is stale or invalid, is found although the table says that it is not a
fault, is not found by the assert that the table names, or has a finder that fails without it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import math
import pathlib
import statistics
import sys
import tempfile
from typing import TYPE_CHECKING

from tests.mutants import discover, table
from tests.mutants.run import BOUND, EQUIVALENT, FOUND, HUNG, SURVIVED, Outcome, Tree, Verdict, spread
from tests.tools.nights import tonight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.mutants.table import Mutant


def main() -> int:
    arguments = _arguments()
    mutants = table.load()
    wrong = table.check(mutants)
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
        print(f"{len(wrong)} entries of the table are wrong: see docs/testing.md", file=sys.stderr)
        return 1
    print(f"{len(mutants)} mutants in the table, none stale", flush=True)
    if arguments.check:
        return 0
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="m", ignore_cleanup_errors=True))
        trees = [
            Tree(pathlib.Path(temporary, str(number)), bound=arguments.bound) for number in range(arguments.jobs)
        ]
        if arguments.discover:
            return discover.discover(arguments, trees, mutants)
        if arguments.refind:
            return discover.refind(_chosen(mutants, arguments), trees, add=arguments.add)
        return _run(trees, _chosen(mutants, arguments), mutants, record=arguments.record)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only that none is stale")
    parser.add_argument("--sample", action="store_true", help="of each module the one that is found the soonest")
    parser.add_argument("--tonight", action="store_true", help="every second, and the others in the next night")
    parser.add_argument("--record", action="store_true", help="write the seconds into the table")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default 2)")
    parser.add_argument("--bound", type=float, default=BOUND, help=f"seconds for each (default {BOUND:g})")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="only those with this in their names")
    discover.add_arguments(parser)
    return parser.parse_args()


def _chosen(mutants: list[Mutant], arguments: argparse.Namespace) -> list[Mutant]:
    chosen = [
        mutant for mutant in mutants if not arguments.patterns or any(p in mutant.id for p in arguments.patterns)
    ]
    if arguments.sample:
        slowest_first = sorted(chosen, key=lambda mutant: -(mutant.seconds or math.inf))
        soonest = {m.module: m for m in slowest_first if not (m.equivalent or m.hangs or m.machines)}
        chosen = [mutant for mutant in chosen if soonest.get(mutant.module) is mutant]
    return chosen[tonight(2) :: 2] if arguments.tonight else chosen


def _run(trees: list[Tree], chosen: list[Mutant], everything: list[Mutant], *, record: bool) -> int:
    finders = [mutant.finder for mutant in chosen if mutant.finder]
    print(f"{len(chosen)} of them are run; first their finders without them", flush=True)
    bad = [line for lines in spread(trees, _halves(finders, len(trees)), Tree.failing) for line in lines]
    if bad:
        print("these fail without any mutant:", *bad, sep="\n", file=sys.stderr)
        return 1
    outcomes: dict[str, Outcome] = {}
    for mutant, outcome in zip(chosen, spread(trees, chosen, judge), strict=True):
        outcomes[mutant.id] = outcome
        print(f"{outcome.verdict.word:10} {outcome.seconds:5.1f} s  {mutant.id}  {outcome.by}", flush=True)
    print(*_summary(outcomes.values()), sep="\n")
    if record:
        done = {key: round(outcome.seconds, 1) for key, outcome in outcomes.items() if outcome.verdict.good}
        table.save(dataclasses.replace(m, seconds=done.get(m.id, m.seconds)) for m in everything)
    survivors = [key for key, outcome in outcomes.items() if not outcome.verdict.good]
    if survivors:
        print(f"{len(survivors)} not as the table says:", *survivors, sep="\n    ", file=sys.stderr)
    return 1 if survivors else 0


def judge(tree: Tree, mutant: Mutant) -> Outcome:
    """Run one mutant; of an equivalent one with a finder, that the finder passes."""
    if not mutant.equivalent:
        return tree.run(mutant, mutant.finder)
    if not mutant.finder:
        return Outcome(EQUIVALENT, 0.0, mutant.equivalent)
    outcome = tree.run(mutant, mutant.finder)
    if outcome.verdict is SURVIVED:
        return outcome._replace(verdict=EQUIVALENT, by=mutant.equivalent)
    if outcome.verdict in (FOUND, HUNG):
        return outcome._replace(verdict=Verdict("A FAULT", False))
    return outcome


def _halves(finders: list[tuple[str, ...]], count: int) -> list[list[tuple[str, ...]]]:
    """As many parts as there are trees, the same finder never in two."""
    distinct = sorted(set(finders))
    return [distinct[number::count] for number in range(count)]


def _summary(outcomes: Iterable[Outcome]) -> Iterator[str]:
    outcomes = list(outcomes)
    words = collections.Counter(outcome.verdict.word for outcome in outcomes)
    yield ", ".join(f"{count} {word}" for word, count in words.most_common())
    seconds = [outcome.seconds for outcome in outcomes if outcome.verdict in (FOUND, HUNG)]
    if seconds:
        yield f"seconds to find one: median {statistics.median(seconds):.1f}, longest {max(seconds):.1f}"


if __name__ == "__main__":
    sys.exit(main())
