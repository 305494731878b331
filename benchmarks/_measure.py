"""How a row is measured: contenders side by side, one turn each, as often as the row says.

The machine is noisy and its speed drifts, so contenders take turns, and only values of the same turn are compared.
A ratio is the median of the ratios of all turns, and is reported with its spread.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Row", "Statistic", "measure", "quantile"]


@dataclass(frozen=True)
class Statistic:
    """A number that is computed from the samples of a turn, and the bar that it must reach.

    Attributes:
        name: as in the table.
        q: the quantile of a turn's samples.
        bar: the ratio of ours to the best peer that is wanted, or `None` to just state it.
        limit: the value of ours that is not to be exceeded.
    """

    name: str = "median"
    q: float = 0.5
    bar: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the results (one for each statistic).

    Attributes:
        name: to ask for it on the command line.
        title: what was done.
        unit: of the values.
        contenders: by name, what makes one turn's samples; the first is ours.
        peers: whom to compare with: the best of them counts. All others are for information.
        higher_is_better: rates; otherwise times.
        statistics: see `Statistic`.
        turns: how often each contender is measured; what is measured once is so whatever is asked for.
        warm_up: called once before anything is measured.
        note: what a reader must know to judge it.
        process: rows of one name are measured in one process; by default each has its own.
        facts: more about it, for the plots.
    """

    name: str
    title: str
    unit: str
    contenders: Mapping[str, Callable[[], Sequence[float]]]
    peers: Sequence[str] = ()
    higher_is_better: bool = True
    statistics: Sequence[Statistic] = (Statistic(),)
    turns: int = 7
    warm_up: Callable[[], object] | None = None
    note: str = ""
    process: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def measure(row: Row, turns: int | None = None) -> list[dict[str, Any]]:
    """Measure a row; return a JSON-ready result for each of its statistics."""
    if row.warm_up is not None:
        row.warm_up()
    samples: dict[str, list[Sequence[float]]] = {name: [] for name in row.contenders}
    for _ in range(row.turns if turns is None else min(turns, row.turns)):
        for name, contender in row.contenders.items():
            samples[name].append(contender())
    return [_result(row, each, samples) for each in row.statistics]


def _result(row: Row, statistic: Statistic, samples: Mapping[str, list[Sequence[float]]]) -> dict[str, Any]:
    values = {name: [quantile(turn, statistic.q) for turn in turns] for name, turns in samples.items()}
    ours = next(iter(values))
    result: dict[str, Any] = {
        "name": row.name,
        "title": row.title,
        "statistic": statistic.name,
        "unit": row.unit,
        "higher_is_better": row.higher_is_better,
        "values": values,
        "ours": ours,
        "peers": list(row.peers),
        "bar": statistic.bar,
        "limit": statistic.limit,
        "note": row.note,
        **row.facts,
    }
    if row.peers:
        best: Final = max if row.higher_is_better else min
        ratios = [
            value / best(values[peer][turn] for peer in row.peers) for turn, value in enumerate(values[ours])
        ]
        result["ratio"] = statistics.median(ratios)
        result["ratio_range"] = [min(ratios), max(ratios)]
        if statistic.bar is not None:
            ahead = result["ratio"] >= statistic.bar
            result["met"] = ahead if row.higher_is_better else result["ratio"] <= statistic.bar
    if statistic.limit is not None:
        result["met"] = statistics.median(values[ours]) <= statistic.limit
    return result
