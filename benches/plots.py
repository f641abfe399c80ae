"""`make plots`: the curves of docs/plots, from what `make bench-scale` and `make bench-stress` left in benches/out.

    make plots BENCH="[--from DIR] [--to DIR]"

Of each cell the newest measurement of a driver counts, or their median with `--median`. The same figures make the same files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")

from cluster import HERE, OUT
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

Row = dict[str, Any]
#: Readable on white and on black alike, whatever the page is.
INK = "#808080"
COLORS = {"c": "#d9822b", "python": "#3b8ad9", "rust": "#b0569c"}
OTHERS = ["#2f9e69", "#9a7b4f", "#c2504d"]
NAMES = {"c": "C", "python": "Python", "rust": "Rust", "hraft-wal": "hashicorp/raft"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raftify",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


#: Points between two names one above the other.
LINE = 10.0


def rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def count(value: float, _: object = None) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"


def size(value: float, _: object = None) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g} B"


def curves(scale: list[Row], sweep: str, x: str, y: str, combined: bool) -> dict[str, list[tuple[float, float]]]:
    """By driver: points in the order of x."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in scale:
        if row["sweep"] == sweep:
            found[row["driver"]][row[x]].append(row[y])
    return {
        driver: sorted((at, median(values) if combined else values[-1]) for at, values in points.items())
        for driver, points in sorted(found.items())
    }


def draw(
    axes: Axes, lines: dict[str, list[tuple[float, float]]], style: str = "-", label: str = "{}", within: str = "left"
) -> None:
    """Each line with its name at its end: no legend to look up. One that ends before the others has it below, aligned as `within` says."""
    last = max(x for points in lines.values() for x, _ in points)
    others = [name for name in lines if name not in COLORS]
    for driver, points in lines.items():
        color = COLORS.get(driver) or OTHERS[others.index(driver) % len(OTHERS)]
        x, y = zip(*points)
        axes.plot(x, y, style, color=color, marker="o")
        name = label.format(NAMES.get(driver, driver))
        at, align = ((7, 0), "left") if x[-1] == last else ((0, -12), within)
        axes.annotate(
            name, (x[-1], y[-1]), at, textcoords="offset points", color=color, va="center", ha=align, fontsize=9
        )


def spread(axes: Axes) -> None:
    """Moves names at the ends of lines apart, once the scales are set."""
    names = [it for it in axes.texts if isinstance(it, Annotation) and it.get_position() == (7, 0)]
    heights = {name: axes.transData.transform(name.xy)[1] * 72 / axes.figure.dpi for name in names}
    taken: list[float] = []
    for name in sorted(names, key=lambda name: heights[name]):
        at = max([heights[name], *(other + LINE for other in taken)])
        taken.append(at)
        name.set_position((7, at - heights[name]))


def spread_all(figure: Figure) -> None:
    figure.draw_without_rendering()
    for axes in figure.axes:
        spread(axes)


def dress(axes: Axes, title: str, x: str, y: str, log: str = "") -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True)
    if "x" in log:
        axes.set_xscale("log", base=2)
    if "y" in log:
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(count))
    axes.xaxis.set_major_formatter(FuncFormatter(count))
    axes.yaxis.set_minor_formatter(NullFormatter())


def ticks(axes: Axes, lines: dict[str, list[tuple[float, float]]]) -> None:
    """Exactly where something was measured."""
    axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=8.5)


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    pyplot.close(figure)
    print(path, f"{path.stat().st_size} bytes")


def in_flight(scale: list[Row], to: Path, combined: bool) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    rates = curves(scale, "inflight", "inflight", "rate", combined)
    draw(left, rates)
    dress(left, "Three nodes, 128 B", "proposals in flight", "proposals a second", "xy")
    ticks(left, rates)
    draw(right, curves(scale, "inflight", "inflight", "p50_ms", combined), "-", "{} p50")
    draw(right, curves(scale, "inflight", "inflight", "p99_ms", combined), ":", "{} p99")
    dress(right, "Latency, the same runs", "proposals in flight", "ms", "xy")
    ticks(right, rates)
    spread_all(figure)
    save(figure, to / "in_flight.svg")


def payload(scale: list[Row], to: Path, combined: bool) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    rates = curves(scale, "payload", "payload", "rate", combined)
    draw(left, rates, within="right")
    dress(left, "Three nodes, up to 256 in flight", "size of a command", "proposals a second", "xy")
    bytes_a_second = {driver: [(x, x * y / 1e6) for x, y in points] for driver, points in rates.items()}
    draw(right, bytes_a_second)
    dress(right, "The same as bytes", "size of a command", "MB of commands a second", "x")
    for axes in (left, right):
        ticks(axes, rates)
        axes.xaxis.set_major_formatter(FuncFormatter(size))
    spread_all(figure)
    save(figure, to / "payload.svg")


def nodes(scale: list[Row], to: Path, combined: bool) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    rates = curves(scale, "nodes", "nodes", "rate", combined)
    draw(left, rates)
    dress(left, "128 B, 256 in flight, all nodes on two cores", "nodes", "proposals a second")
    draw(right, curves(scale, "nodes", "nodes", "cpu_us", combined))
    dress(right, "Processor time of all nodes", "nodes", "µs a proposal")
    for axes in (left, right):
        ticks(axes, rates)
        axes.set_ylim(bottom=0)
    spread_all(figure)
    save(figure, to / "nodes.svg")


def newest(stress: list[Row], scenario: str, series: str) -> Any:
    found = [row["points"] for row in stress if row["scenario"] == scenario and row.get("series") == series]
    return found[-1] if found else None


def failover(stress: list[Row], to: Path) -> None:
    served, timeout = newest(stress, "failover", "served"), newest(stress, "failover", "election timeout")
    if not served:
        return
    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    times = sorted(value / timeout for value in served)
    axes.step(
        [0, *times], [0, *(100 * (n + 1) / len(times) for n in range(len(times)))], where="post", color=COLORS["c"]
    )
    title = f"{len(times)} times kill -9 of the leader"
    dress(axes, title, "election timeouts until a proposal has succeeded again", "% of the kills")
    axes.set_xlim(0, max(4.2, times[-1] + 0.2))
    axes.set_ylim(0, 102)
    for at, part, name in ((2, 95, "goal: 95 %"), (4, 100, "goal: all")):
        axes.plot([at], [part], "x", color=INK, markersize=7)
        axes.annotate(
            name,
            (at, part),
            (6, -12),
            textcoords="offset points",
            color=INK,
            ha="left" if at < 4 else "right",
            fontsize=9,
        )
    save(figure, to / "failover.svg")


def catching_up(stress: list[Row], to: Path) -> None:
    found = [row for row in stress if row["scenario"] == "catching up" and "series" in row]
    if not found:
        return
    row = max(found, key=lambda row: (row["points"][-1][1], row["at"]))
    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    for column, name, color in ((1, "in its log", COLORS["python"]), (2, "applied", COLORS["c"])):
        points = [(point[0], point[column]) for point in row["points"]]
        x, y = zip(*points)
        axes.plot(x, y, color=color)
        middle = len(points) * 2 // 3
        side = (-8, 4) if column == 1 else (8, -10)
        align = "right" if column == 1 else "left"
        axes.annotate(name, points[middle], side, textcoords="offset points", color=color, ha=align, fontsize=9)
    dress(axes, f"A member that comes back {row['series']}", "seconds since it was started", "entries")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    save(figure, to / "catching_up.svg")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, default=OUT, help="where scale.jsonl and stress.jsonl are")
    parser.add_argument("--to", type=Path, default=HERE.parent / "docs" / "plots")
    parser.add_argument("--median", action="store_true", help="of all measurements of a cell, not the newest alone")
    args = parser.parse_args()
    scale, stress = rows(args.source / "scale.jsonl"), rows(args.source / "stress.jsonl")
    args.to.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        swept = {row["sweep"] for row in scale}
        for sweep, plot in (("inflight", in_flight), ("payload", payload), ("nodes", nodes)):
            if sweep in swept:
                plot(scale, args.to, args.median)
        failover(stress, args.to)
        catching_up(stress, args.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
