"""Two versions of the project, measured side by side: this folder's and another's.

For every row each version has a process of its own, started in its own folder with its own rows, of which only the
first contender (ours) is measured. The two take turns, and the first one changes with each pair, so that a machine
whose speed drifts favours neither. New processes are started for every fifth pair, so that chance properties of a
process (addresses, the state of its allocator) are not taken for a difference between the versions.

A pair gives a ratio, above 1 if this folder's version is better. The interval reported with the median contains
the true median in 95 of 100 cases, for any distribution of the ratios (only their order counts). A row has become
worse when the whole interval lies below `WORSE`.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from benchmarks._measure import quantile
from benchmarks._surroundings import OthersLoad, collect_orphans

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator, Sequence

    from benchmarks._measure import Row

__all__ = ["WORSE", "Comparison", "compare", "interval"]

#: A row fails when the interval of its ratio lies wholly below this.
WORSE: Final = 0.97

#: Pairs that are measured by the same two processes.
_PAIRS_A_PROCESS: Final = 5

#: Seconds that one turn of a row may take.
_TURN_TIMEOUT: Final = 120

#: Seconds that a process may take to end by itself.
_END_TIMEOUT: Final = 10

#: The other side of `_Version`: it measures a turn for each line that it reads. It is text, because the other
#: version's folder may not have this module.
_CHILD: Final = """
import json, os, sys
from benchmarks.rows import ROWS
for module in map(sys.modules.get, ("benchmarks.rows", "trio_console")):
    if module is not None and not os.path.realpath(module.__file__).startswith(os.getcwd() + os.sep):
        sys.exit(f"{module.__name__} was taken from {module.__file__}, not from {os.getcwd()}")
row = ROWS[sys.argv[1]]
ours = next(iter(row.contenders.values()))
if row.warm_up is not None:
    row.warm_up()
ours()
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(list(ours())), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A statistic of a row in two versions.

    Attributes:
        name, statistic: of the row.
        ratios: one for each pair, in the order in which they were measured; above 1, this version is better.
        median: of the ratios.
        low, high: the 95 % interval of that median.
        worse: the interval lies wholly below `WORSE`.
        load: processors that other programs kept busy meanwhile; see `OthersLoad`.
    """

    name: str
    statistic: str
    ratios: list[float]
    median: float
    low: float
    high: float
    worse: bool
    load: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median: from one order statistic to the one opposite.

    The values below the true median are as many as heads in so many tosses of a coin; so the smallest ranks that
    are left out are those of which fewer are expected in at most 2.5 of 100 cases.

    Raises:
        ValueError: there are fewer than 6 values: not even the smallest and the largest make such an interval.
    """
    count = len(values)
    ordered = sorted(values)
    rank, below = 0, 0.5**count
    while below + math.comb(count, rank + 1) * 0.5**count <= 0.025:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    if below > 0.025:
        raise ValueError(f"an interval of 95 % takes at least 6 values, not {count}")
    return ordered[rank], ordered[count - 1 - rank]


class _Version:
    """A process that measures one row of the version in a folder, one turn for each request."""

    def __init__(self, folder: pathlib.Path, row: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(folder)}
        command = [sys.executable, "-c", _CHILD, row]
        self._what = f"{row} in {folder}"
        self._process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self._line()  # it is ready
        except BaseException:
            self.close()
            raise

    def turn(self) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return [float(value) for value in json.loads(self._line())]

    def _line(self) -> str:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(_TURN_TIMEOUT):
                raise SystemExit(f"{self._what}: a turn took more than {_TURN_TIMEOUT} s")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._what}: ended with status {self._process.wait()}")
        return line

    def close(self) -> None:
        """End the process, and wait for it, so that its time counts as this program's."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()  # ends its loop
            try:
                self._process.wait(_END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()


def _pairs(
    row: Row, here: pathlib.Path, there: pathlib.Path, pairs: int
) -> Iterator[tuple[list[float], list[float]]]:
    """Turns of both versions. In each tuple ours is first, also if it was measured second."""
    done = 0
    while done < pairs:
        first, second = (here, there) if done // _PAIRS_A_PROCESS % 2 else (there, here)
        versions = {}
        try:
            for folder in (first, second):
                versions[folder] = _Version(folder, row.name)
            for _ in range(min(_PAIRS_A_PROCESS, pairs - done)):
                order = (here, there) if done % 2 else (there, here)
                turns = {folder: versions[folder].turn() for folder in order}
                yield turns[here], turns[there]
                done += 1
        finally:
            for version in versions.values():
                version.close()


def compare(row: Row, here: pathlib.Path, there: pathlib.Path, pairs: int) -> Iterator[Comparison]:
    """Measure a row in both folders; a comparison for each of its statistics."""
    others = OthersLoad()
    turns = list(_pairs(row, here, there, pairs))
    collect_orphans()
    load = others.so_far()
    for statistic in row.statistics:
        ratios = []
        for ours, theirs in turns:
            ratio = quantile(ours, statistic.q) / quantile(theirs, statistic.q)
            ratios.append(ratio if row.higher_is_better else 1 / ratio)
        low, high = interval(ratios)
        yield Comparison(
            row.name, statistic.name, ratios, statistics.median(ratios), low, high, high < WORSE, load
        )
