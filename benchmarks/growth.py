"""How cost grows: clients 1 to 32 at E1, response lengths 16 to 256 on the endless reasoner. Ours and the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import Summary, summary
from benchmarks.sides import Work, pairs

CLIENTS: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
LENGTHS: tuple[int, ...] = (16, 32, 64, 128, 256)
PER_DEVICE = 64
"""Responses in the baseline's micro-batch: a client's whole step, the fastest split or level with it at both ends."""


def measure(
    kind: str,
    *,
    points: int | None,
    warm: int,
    rounds: int,
    kept: Callable[..., Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Pairs at every point. kind: `clients` or `length`; points: only the first so many.

    Returns point -> the baseline's (`first`) and our (`second`) rounds.
    """
    costs = {}
    for point in (CLIENTS if kind == "clients" else LENGTHS)[:points]:
        ours = Work("ours", "E1", clients=point) if kind == "clients" else Work("ours", "LENGTH", length=point)
        baseline = replace(ours, side="flower-trl", per_device=PER_DEVICE)

        def measure_point(baseline: Work = baseline, ours: Work = ours, point: int = point) -> Any:
            say(f"growth: {kind} {point}")
            return pairs(baseline, ours, warm=warm, rounds=rounds)

        costs[str(point)] = kept(f"growth-{kind}-{point}", measure_point)
    return costs


def curve(points: Mapping[str, Any], side: str, value: Callable[[Mapping[str, Any]], float]) -> dict[int, Summary]:
    """A value of one side's rounds over the points."""
    return {int(point): summary([value(cost) for cost in costs[side]["rounds"]]) for point, costs in points.items()}


def per_round(cost: Mapping[str, Any]) -> float:
    """CPU seconds of a round."""
    return float(cost["cpu"])


def per_token(cost: Mapping[str, Any]) -> float:
    """CPU microseconds per response token, sampled and trained on."""
    return 1e6 * float(cost["cpu"]) / int(cost["tokens_sampled"])


def draw(path: Path, points: Mapping[str, Any], xlabel: str) -> None:
    """CPU seconds a round, and microseconds a token, of both sides over the points; bars are the range."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "fedrlvr"
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, value, ylabel in (
        (axes[0], per_round, "CPU seconds a round"),
        (axes[1], per_token, "CPU µs a response token"),
    ):
        for side, label, colour in (("first", "Flower + TRL, tuned", "#b4552d"), ("second", "fedrlvr", "#2a6f97")):
            by_point = curve(points, side, value)
            xs, values = list(by_point), list(by_point.values())
            low = [v.median - v.low for v in values]
            high = [v.high - v.median for v in values]
            axis.errorbar(
                xs, [v.median for v in values], yerr=[low, high], marker="o", ms=4, capsize=2, label=label, color=colour
            )
        axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
        axis.set_xticks(list(by_point), [str(x) for x in by_point])
        axis.minorticks_off()
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].minorticks_off()
    axes[1].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
