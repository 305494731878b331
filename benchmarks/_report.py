"""Results as a table in the terminal, as Markdown, as JSON, and as plots."""

from __future__ import annotations

import json
import statistics
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks._surroundings import MOST_LOAD

if TYPE_CHECKING:
    import pathlib

__all__ = ["merged", "save", "show"]

_SIZES = {16: "16 B", 256: "256 B", 4096: "4 KiB", 65536: "64 KiB", 1048576: "1 MiB"}


# --- words ------------------------------------------------------------------------------------------


def _number(value: float, unit: str) -> str:
    """A value with three digits, in the unit that suits it."""
    if unit == "s":
        scale, name = (1e6, "µs") if value < 1e-3 else (1e3, "ms") if value < 1 else (1, "s")
        return f"{value * scale:.3g} {name}"
    if unit.endswith("/s") and value >= 1e4 and not unit.startswith("MiB"):
        return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _value(row: dict[str, Any], name: str) -> str:
    values = row["values"][name]
    text = _number(statistics.median(values), row["unit"])
    if len(values) > 1:
        text += f" ({_number(min(values), row['unit'])} … {_number(max(values), row['unit'])})"
    return text


def _others(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}{'*' if name in row['peers'] else ''} {_number(statistics.median(values), row['unit'])}"
        for name, values in row["values"].items()
        if name != row["ours"]
    )


def _ratio(row: dict[str, Any]) -> str:
    if "ratio" not in row:
        return ""
    low, high = row["ratio_range"]
    return f"{row['ratio']:.2f}x ({low:.2f} … {high:.2f})"


def _bar(row: dict[str, Any]) -> str:
    sign = "≥" if row["higher_is_better"] else "≤"
    if row["bar"] is not None:
        return f"{sign} {row['bar']:g}x"
    return "" if row["limit"] is None else f"≤ {_number(row['limit'], row['unit'])}"


def _cells(row: dict[str, Any]) -> list[str]:
    title = row["title"] + ("" if row["statistic"] == "median" else f", {row['statistic']}")
    met = "" if "met" not in row else "yes" if row["met"] else "no"
    ours = f"{_value(row, row['ours'])} {'' if row['unit'] == 's' else row['unit']}".strip()
    return [title, ours, _others(row), _ratio(row), _bar(row), met, _surroundings(row)]


_HEADS = [
    "row",
    "ours: median (range)",
    "others (* peers)",
    "ratio to the best peer",
    "bar",
    "met",
    "load, hand-over",
]


def _surroundings(row: dict[str, Any]) -> str:
    """The processors that other programs kept busy, and what two threads need to wake each other once."""
    return f"{row['load']:.2f}, {_number(row['handover'], 's')}" if "load" in row else ""


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return f"{machine['cores']} cores, {machine['cpu']}, Python {machine['python']}"


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title=_machine(report))
    for head in _HEADS:
        table.add_column(head, overflow="fold")
    for row in report["rows"]:
        cells = _cells(row)
        table.add_row(*cells, style="" if row.get("met", True) else "bold red")
    Console().print(table)


def save(report: dict[str, Any], folder: pathlib.Path) -> None:
    """Write ``results.json``, ``results.md`` and the plots; rows that were not measured this time stay.

    What was measured beside other work is not kept, but for rows that are about that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    loaded = [row["name"] for row in report["rows"] if row.get("load", 0) > MOST_LOAD and not row.get("busy")]
    if loaded:
        print(f"measured beside other work, and not kept: {', '.join(dict.fromkeys(loaded))}", file=sys.stderr)
        report = {**report, "rows": [row for row in report["rows"] if row["name"] not in loaded]}
    former = folder / "results.json"
    if former.exists():
        report = merged(report, json.loads(former.read_text(encoding="utf-8")))
    (folder / "results.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [f"Measured on: {_machine(report)}.", ""]
    lines += ["| " + " | ".join(cells) + " |" for cells in (_HEADS, ["---"] * len(_HEADS))]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in report["rows"]]
    notes = {row["note"]: row["name"] for row in report["rows"] if row["note"]}
    lines += ["", *(f"* `{name}` and the like: {note}." for note, name in notes.items())]
    (folder / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _plot(report, folder)


def merged(report: dict[str, Any], former: dict[str, Any]) -> dict[str, Any]:
    """The former results, if they are of the same machine, with the new ones in their places."""
    if former["machine"] != report["machine"]:
        return report
    new = {(row["name"], row["statistic"]): row for row in report["rows"]}
    rows = [new.pop((row["name"], row["statistic"]), row) for row in former["rows"]]
    return {**report, "rows": [*rows, *new.values()]}


# --- plots ------------------------------------------------------------------------------------------


def _plot(report: dict[str, Any], folder: pathlib.Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    for group, title in (
        ("to-trio", "A device's thread sends, a trio task receives"),
        ("to-thread", "A trio task sends, a device's thread receives"),
    ):
        rows = [row for row in report["rows"] if row.get("group") == group and row["when"] != "fresh"]
        if rows:
            figure = _throughput(plt, rows, f"{title}\n{_machine(report)}")
            figure.savefig(folder / f"{group}.png")
            plt.close(figure)
    rows = [row for row in report["rows"] if row["bar"] is not None]
    if rows:
        figure = _against_bars(plt, rows, f"Against the best peer\n{_machine(report)}")
        figure.savefig(folder / "bars.png")
        plt.close(figure)


def _throughput(plt: Any, rows: list[dict[str, Any]], title: str) -> Any:
    """Bytes per second by chunk size, a line for each way."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    sizes = [row["size"] for row in rows]
    for name in rows[0]["values"]:
        speeds = [statistics.median(row["values"][name]) * row["size"] / 2**20 for row in rows]
        ours = name == rows[0]["ours"]
        axes.plot(sizes, speeds, marker="o", label=name, linewidth=2.5 if ours else 1.2, zorder=3 if ours else 2)
    axes.set(xscale="log", yscale="log", xlabel="bytes per chunk", ylabel="MiB/s", title=title)
    axes.set_xticks(sizes, [_SIZES[size] for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _against_bars(plt: Any, rows: list[dict[str, Any]], title: str) -> Any:
    """How far each row is beyond its bar: 1 is the bar."""
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(rows) + 1.2), layout="constrained")
    names, lengths, colours = [], [], []
    for row in reversed(rows):
        beyond = row["ratio"] / row["bar"] if row["higher_is_better"] else row["bar"] / row["ratio"]
        names.append(_cells(row)[0])
        lengths.append(beyond)
        colours.append("tab:green" if beyond >= 1 else "tab:red")
    axes.barh(names, lengths, color=colours)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="times the bar (right of the line: met)", title=title)
    axes.tick_params(axis="y", labelsize=7)
    return figure
