"""How results are computed from measurements: which values are compared, and when a bar is met."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import _report, _versions, peer_rows, scaling_rows
from benchmarks._measure import Row, Statistic, measure
from benchmarks._surroundings import OthersLoad, handover
from benchmarks.rows import ROWS
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).parents[1]

OURS = ("trio_console, tasks", "trio_console, threads", "trio_console, relay", "trio alone")


def turns(*values: Sequence[float]) -> Callable[[], Sequence[float]]:
    """A contender that measures these values, one in each turn."""
    left = iter(values)
    return lambda: next(left)


def result(*, higher_is_better: bool, bar: float | None = None, limit: float | None = None) -> dict[str, Any]:
    contenders = {
        "ours": turns([10.0], [40.0], [30.0]),
        "fast": turns([5.0], [10.0], [20.0]),
        "slow": turns([2.0], [20.0], [10.0]),
        "not a peer": turns([1000.0], [0.001], [1000.0]),
    }
    row = Row(
        "row",
        "a row",
        "x/s",
        contenders,
        peers=("fast", "slow"),
        higher_is_better=higher_is_better,
        statistics=[Statistic(bar=bar, limit=limit)],
        turns=3,
    )
    [made] = measure(row)
    return made


def test_a_turn_is_compared_with_the_best_peer_of_that_turn() -> None:
    made = result(higher_is_better=True)
    assert made["ratio"] == 2  # the median of 10/5, 40/20 and 30/20
    assert made["ratio_range"] == [1.5, 2]


def test_of_times_the_best_is_the_shortest() -> None:
    assert result(higher_is_better=False)["ratio"] == 4  # of 10/2, 40/10 and 30/10


@pytest.mark.parametrize(("bar", "met"), [(1.9, True), (2.0, True), (2.1, False)])
def test_a_rate_meets_its_bar_from_there_on(bar: float, met: bool) -> None:
    assert result(higher_is_better=True, bar=bar)["met"] is met


@pytest.mark.parametrize(("bar", "met"), [(3.9, False), (4.0, True), (4.1, True)])
def test_a_time_meets_its_bar_up_to_there(bar: float, met: bool) -> None:
    assert result(higher_is_better=False, bar=bar)["met"] is met


@pytest.mark.parametrize(("limit", "met"), [(29.0, False), (30.0, True)])
def test_a_limit_is_one_for_our_median(limit: float, met: bool) -> None:
    assert result(higher_is_better=False, limit=limit)["met"] is met


def test_each_statistic_is_a_quantile_of_each_turn() -> None:
    row = Row(
        "row",
        "a row",
        "s",
        {"ours": turns([1, 2, 3, 4], [8, 7, 6, 5])},
        statistics=[Statistic("p50", 0.5), Statistic("p99", 0.99)],
        turns=2,
    )
    assert [made["values"]["ours"] for made in measure(row)] == [[3, 7], [4, 8]]


def test_what_was_measured_can_be_read_and_seen(tmp_path: pathlib.Path) -> None:
    row = result(higher_is_better=True, bar=1.0) | {"group": "to-trio", "size": 16, "when": "after small traffic"}
    report = {"machine": {"cores": 2, "cpu": "a processor", "python": "3.11"}, "rows": [row]}
    (tmp_path / "report").write_text(json.dumps(report), encoding="utf-8")
    # In a process of its own: what draws the plots keeps its fonts open.
    program = (
        "import json, pathlib; from benchmarks import _report;"
        "report = json.loads(pathlib.Path('report').read_text());"
        "_report.show(report); _report.save(report, pathlib.Path('made'))"
    )
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, check=True, timeout=HANG)
    made = tmp_path / "made"
    assert "2.00x (1.50 … 2.00)" in (made / "results.md").read_text(encoding="utf-8")
    assert {path.name for path in made.iterdir()} == {"results.json", "results.md", "to-trio.png", "bars.png"}


def test_results_of_other_rows_stay() -> None:
    machine = {"cores": 2, "cpu": "a processor", "python": "3.11"}
    first, second = ({"name": name, "statistic": "median", "values": [1]} for name in ("first", "second"))
    again = first | {"values": [2]}
    former = {"machine": machine, "rows": [first, second]}
    assert _report.merged({"machine": machine, "rows": [again]}, former)["rows"] == [again, second]
    elsewhere = {"machine": machine | {"cores": 4}, "rows": [again]}
    assert _report.merged(elsewhere, former) == elsewhere


def test_every_row_has_its_peers_among_its_contenders() -> None:
    for row in ROWS.values():
        assert set(row.peers) <= set(row.contenders), row.name


def test_the_interval_of_fifteen_ratios_goes_from_the_fourth_to_the_twelfth() -> None:
    # By the tables for the sign test: P(at most 3 heads in 15 tosses) = 0.0176, at most 4: 0.0592.
    assert _versions.interval(list(range(1, 16))) == (4, 12)


def test_six_values_are_the_fewest_that_make_an_interval() -> None:
    assert _versions.interval([5, 1, 4, 2, 6, 3]) == (1, 6)
    with pytest.raises(ValueError, match="at least 6 values, not 5"):
        _versions.interval([1, 2, 3, 4, 5])


#: Rows of a version whose "measurements" are read from a file.
_ROWS = """
import dataclasses, pathlib
@dataclasses.dataclass
class Row:
    contenders: dict
    warm_up: object = None
ROWS = {"row": Row({"ours": lambda: [float(pathlib.Path("speed").read_text())], "peer": lambda: 1 / 0})}
"""


def version(folder: pathlib.Path, speed: float) -> pathlib.Path:
    package = folder / "benchmarks"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "rows.py").write_text(_ROWS, encoding="utf-8")
    (folder / "speed").write_text(str(speed), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("higher_is_better", "here", "there", "ratio"),
    [(True, 96.0, 100.0, 0.96), (False, 100.0, 96.0, 0.96), (True, 98.0, 100.0, 0.98), (False, 1.0, 2.0, 2.0)],
)
def test_a_row_is_worse_when_its_whole_interval_lies_below_the_bar(
    tmp_path: pathlib.Path, higher_is_better: bool, here: float, there: float, ratio: float
) -> None:
    row = Row("row", "a row", "x", {"ours": turns()}, higher_is_better=higher_is_better)
    [one] = _versions.compare(row, version(tmp_path / "here", here), version(tmp_path / "there", there), 6)
    assert one.ratios == [pytest.approx(ratio)] * 6
    assert one.median == statistics.median(one.ratios)
    assert one.worse is (ratio < 0.97)


def test_what_others_keep_busy_is_not_what_we_do() -> None:
    others = OthersLoad()
    subprocess.run([sys.executable, "-c", "for _ in range(2_000_000): pass"], check=True, timeout=HANG)
    # Whatever runs on this machine, at most all processors are busy.
    assert 0 <= others.so_far() <= (os.cpu_count() or 1)


ORPHAN = """
import os, subprocess, sys
from benchmarks._surroundings import adopt_orphans, collect_orphans
adopt_orphans()
busy = [sys.executable, "-c", "for _ in range(5_000_000): pass"]
subprocess.run(["sh", "-c", '"$@" & exit', "sh", *busy], check=True)
before = os.times().children_user
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # it has ended
collect_orphans()
print(os.times().children_user > before)
"""


def test_what_an_orphan_has_used_is_ours() -> None:
    command = [sys.executable, "-c", ORPHAN]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=HANG)
    assert done.stdout == "True\n"


def test_a_hand_over_takes_some_time_and_leaves_nothing() -> None:
    assert (
        handover(batches=3, n=20) > 0
    )  # (that no descriptor and no thread is left is looked at after every test)


@pytest.mark.parametrize(("load", "busy", "kept"), [(0.2, False, True), (0.21, False, False), (0.21, True, True)])
def test_what_was_measured_beside_other_work_is_not_kept(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], load: float, busy: bool, kept: bool
) -> None:
    row = result(higher_is_better=True) | {"load": load, "handover": 9e-6, "busy": busy}
    report = {"machine": {"cores": 2, "cpu": "a processor", "python": "3.11"}, "rows": [row]}
    _report.save(report, tmp_path)
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == kept
    assert ("9 µs" in (tmp_path / "results.md").read_text()) == kept
    assert ("not kept: row" in capsys.readouterr().err) != kept


# Contenders do the work of their rows


#: In the gate each contender does the shortest work; all of it is done at night.
CONTENDERS = [
    pytest.param(name, what, marks=() if what == "true" else pytest.mark.nightly)
    for name in (*OURS, *peer_rows.PEERS)
    for what in peer_rows.WORK
    if peer_rows.can(name, what)
]


@pytest.mark.parametrize(("name", "what"), CONTENDERS)
def test_a_contender_does_the_work_of_its_row(name: str, what: str) -> None:
    size = 3 if peer_rows.WORK[what].unit == "s" else 8 * 2**20
    turn = peer_rows.contender(name, what, size)
    values = turn()
    assert len(values) == (3 if peer_rows.WORK[what].unit == "s" else 1)
    assert min(values) > 0


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["relay-clients", "sessions", "guests-tasks", "guests-threads"])
def test_a_scaling_row_measures_the_few_and_the_many_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_rows, "SECONDS", 0.1)
    numbers = {"CLIENTS": (3, 1), "SESSIONS": (3, 1), "GUESTS": (3, 1)}
    for constant, few in numbers.items():
        monkeypatch.setattr(scaling_rows, constant, few)
    rate, wait = (row for row in scaling_rows.rows() if row.name.startswith(f"{name}-"))
    for contender, turn in rate.contenders.items():
        [calls] = turn()
        waits = wait.contenders[contender]()
        assert calls * 0.1 == pytest.approx(len(waits))
        assert min(waits) > 0


def test_a_version_that_fails_is_named(tmp_path: pathlib.Path) -> None:
    row = Row("row", "a row", "x", {"ours": turns()})
    here, there = version(tmp_path / "here", 1), version(tmp_path / "there", 1)
    shutil.rmtree(there / "benchmarks")
    with pytest.raises(SystemExit, match=f"row in {there}: ended with status 1"):
        list(_versions.compare(row, here, there, 6))
