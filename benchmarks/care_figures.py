"""The figures of `scripts/bench care`: accuracy over steps, the picture of a collapse, calibration, gain by budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from benchmarks.care_cells import BUDGETS, JUDGED, ROOT, name
from benchmarks.care_data import (
    FAMILIES,
    Run,
    Runs,
    accuracies,
    added,
    course,
    over_seeds,
    recovered_over_seeds,
)
from fedrlvr.reporting.scores import calibration_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ROOT / "docs" / "figures"
DRAWN = {
    "labels": "black",
    "majority": "tab:red",
    "care-20": "tab:blue",
    "random-20": "tab:orange",
    "oracle-20": "tab:green",
    "entropy-20": "tab:purple",
    "random-pseudo-20": "tab:brown",
    "care-shared-20": "tab:cyan",
}
"""Arms of the figure of accuracies, and their colours."""
_ACROSS = {"oracle-20": "s", "entropy-20": "^", "probability-20": "v"}
"""Other selections at one budget, and their marks."""


def draw(cells: Mapping[str, Mapping[str, Runs]]) -> None:
    """Write the four figures of what is there."""
    FIGURES.mkdir(exist_ok=True)
    draw_accuracy(cells)
    draw_collapse(cells)
    draw_calibration(cells)
    draw_budget(cells)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _save(figure: Figure, called: str) -> None:
    figure.savefig(FIGURES / called, facecolor="white", metadata={"Software": None})


def _line(
    axes: Axes, runs: Runs, values: Callable[[Run], list[tuple[int, float]]], label: str, colour: str, style: str = "-"
) -> None:
    """The mean over seeds and its interval as a band."""
    by_seed = {seed: dict(values(run)) for seed, run in runs.items()}
    steps = sorted({step for curve in by_seed.values() for step in curve})
    points = [
        (step, over_seeds(runs, lambda run, step=step: dict(values(run)).get(step)))  # type: ignore[misc]
        for step in steps
    ]
    known = [(step, point) for step, point in points if point is not None]
    if known:
        xs, means = [step for step, _ in known], [point.mean for _, point in known]
        halves = [point.half or 0.0 for _, point in known]
        axes.plot(xs, means, style, color=colour, linewidth=1.5, label=label)
        low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)


def draw_accuracy(cells: Mapping[str, Mapping[str, Runs]]) -> None:
    """Held-out pass@1 over local steps: a row for each setting, a column for each kind of families."""
    figure = _figure(11, 3.3 * len(cells))
    grid = figure.subplots(len(cells), len(FAMILIES), squeeze=False, sharey="row")
    for row, (setting, arms) in zip(grid, cells.items(), strict=True):
        for axes, kind in zip(row, FAMILIES, strict=True):
            for arm, colour in DRAWN.items():
                if arm in arms:
                    _line(axes, arms[arm], lambda run, kind=kind: accuracies(run, kind), name(arm), colour)  # type: ignore[misc]
            axes.set(title=f"{setting}: {kind} families", xlabel="local steps")
        row[0].set_ylabel("held-out pass@1, %")
        row[0].legend(frameon=False, fontsize=7)
    _save(figure, "care_accuracy.png")


def draw_collapse(cells: Mapping[str, Mapping[str, Runs]]) -> None:
    """Reward against true accuracy, of the majority alone and of CARE."""
    pair = [arm for arm in ("majority", JUDGED) if any(arm in arms for arms in cells.values())]
    if not pair:
        return
    figure = _figure(4.5 * len(pair), 3.3 * len(cells))
    grid = figure.subplots(len(cells), len(pair), squeeze=False, sharey=True)
    for row, (setting, arms) in zip(grid, cells.items(), strict=True):
        for axes, arm in zip(row, pair, strict=True):
            runs = arms.get(arm, {})
            _line(axes, runs, lambda run: course(run, "reward"), "reward trained on", "tab:red", "--")
            _line(axes, runs, lambda run: course(run, "audited"), "true, in training", "black")
            for kind, colour in (("diffuse", "tab:green"), ("systematic", "tab:purple")):
                _line(axes, runs, lambda run, kind=kind: accuracies(run, kind), f"true, held out, {kind}", colour)  # type: ignore[misc]
            axes.set(title=f"{setting}: {name(arm)}", xlabel="local steps", ylim=(0, 100))
        row[0].set_ylabel("%")
    grid[0][0].legend(frameon=False, fontsize=7)
    _save(figure, "care_collapse.png")


def draw_calibration(cells: Mapping[str, Mapping[str, Runs]]) -> None:
    """P1 against the share of majorities that are right, by tenths; areas go by the number of problems."""
    judged = [(setting, arms[JUDGED]) for setting, arms in cells.items() if JUDGED in arms]
    if not judged:
        return
    figure = _figure(4 * len(judged), 3.8)
    for axes, (setting, runs) in zip(figure.subplots(1, len(judged), squeeze=False)[0], judged, strict=True):
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        for key, label, colour in (
            ("audit_calibration", "all problems", "tab:blue"),
            ("calibration", "labelled problems", "tab:orange"),
        ):
            tables = [run[key] for run in runs.values() if key in run]
            points = calibration_points(added(tables)) if tables else []
            many = max((n for *_, n in points), default=1)
            xs, ys, ns = ([point[i] for point in points] for i in range(3))
            axes.plot(xs, ys, color=colour, linewidth=1)
            axes.scatter(xs, ys, s=[8 + 70 * n / many for n in ns], color=colour, label=label, alpha=0.8)
        axes.set(title=f"{setting}: {name(JUDGED)}", xlabel="P1", xlim=(0, 1), ylim=(0, 1))
        axes.set_ylabel("share of majorities that are right")
        axes.legend(frameon=False, fontsize=8, markerscale=0.6)
    _save(figure, "care_calibration.png")


def draw_budget(cells: Mapping[str, Mapping[str, Runs]]) -> None:
    """The share of the labels' gain by budget: a row for each setting, a column for each kind of families."""
    cells = {setting: arms for setting, arms in cells.items() if "labels" in arms}
    if not cells:
        return
    figure = _figure(11, 3.1 * len(cells))
    grid = figure.subplots(len(cells), len(FAMILIES), squeeze=False)
    for row, (setting, arms) in zip(grid, cells.items(), strict=True):
        for axes, kind in zip(row, FAMILIES, strict=True):
            for way, colour, aside in (("care", "tab:blue", 0.98), ("random", "tab:orange", 1.02)):
                _points(axes, arms, kind, [f"{way}-{budget}" for budget in BUDGETS], name(way + "-20"), colour, aside)
            for arm, mark in _ACROSS.items():
                _points(axes, arms, kind, [arm], name(arm), "0.4", 1.06, mark)
            axes.axhline(100, color="black", linewidth=0.8)
            if "majority" in arms and (alone := recovered_over_seeds(arms["majority"], arms["labels"], kind)):
                axes.axhline(alone.mean, color="tab:red", linewidth=0.8, label=name("majority"))
            axes.set_xscale("log")
            axes.set_xticks(BUDGETS, [f"{budget} %" for budget in BUDGETS])
            axes.minorticks_off()
            axes.set(title=f"{setting}: {kind} families", xlabel="budget")
        row[0].set_ylabel("of the labels' gain, %")
        if row[0].get_legend_handles_labels()[0]:
            row[0].legend(frameon=False, fontsize=7)
    _save(figure, "care_budget.png")


def _points(
    axes: Axes,
    arms: Mapping[str, Runs],
    kind: str,
    names: list[str],
    label: str,
    colour: str,
    aside: float,
    mark: str = "o",
) -> None:
    """Means and intervals of some arms, joined; aside: so that they do not hide each other."""
    by_budget = [(int(arm.rpartition("-")[2]), arms[arm]) for arm in names if arm in arms]
    gains = [(budget, recovered_over_seeds(runs, arms["labels"], kind)) for budget, runs in by_budget]
    known = [(budget * aside, gain) for budget, gain in gains if gain is not None]
    if known:
        halves = [gain.half or 0.0 for _, gain in known]
        means = [gain.mean for _, gain in known]
        label = label.removesuffix(", 20 %")
        xs = [x for x, _ in known]
        axes.errorbar(xs, means, yerr=halves, fmt=f"-{mark}", color=colour, markersize=4, capsize=2, label=label)
