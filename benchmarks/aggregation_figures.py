"""The figures of `scripts/bench aggregation`: FGRPO's weights over rounds, and defences against one hostile client."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.aggregation_cells import ATTACKS, DEFENCES, WEIGHTS
from benchmarks.aggregation_tables import DEFENDED, NAMES, Cells, honest_score, over_seeds


def draw(cells: Cells, root: Path) -> None:
    """Draw all figures into docs/figures below `root`."""
    draw_weights(cells, root)
    draw_robust(cells, root)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches, whose SVG is the same each time."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "fedrlvr"
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, root: Path, name: str) -> None:
    """Write a figure to docs/figures below `root`."""
    (root / "docs" / "figures").mkdir(exist_ok=True)
    figure.savefig(root / "docs" / "figures" / name, metadata={"Date": None}, facecolor="white")


def draw_weights(cells: Cells, root: Path) -> None:
    """FGRPO's weights over rounds by federation: mean over seeds, and from the smallest to the largest."""
    rows = [w for w in ("fgrpo", "cold") if any(("c", f"{f}/{w}") in cells for f in WEIGHTS)]
    columns = [f for f in WEIGHTS if any(("c", f"{f}/{w}") in cells for w in rows)]
    if not rows:
        return
    figure = new_figure(3 * len(columns), 2.6 * len(rows))
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharey=True)
    for axes_of_row, weights in zip(grid, rows, strict=True):
        for axes, federation in zip(axes_of_row, columns, strict=True):
            runs = cells.get(("c", f"{federation}/{weights}"))
            if runs is None:
                axes.set_axis_off()
                continue
            for client in runs[0]["weight"]:
                over = list(zip(*(run["weight"][client] for run in runs.values()), strict=True))
                xs = range(1, len(over) + 1)
                (line,) = axes.plot(xs, [fmean(values) for values in over], label=client)
                axes.fill_between(
                    xs, [min(v) for v in over], [max(v) for v in over], color=line.get_color(), alpha=0.15
                )
            axes.set(title=f"{federation}\n{NAMES[weights]}", xlabel="round")
            axes.title.set_fontsize(9)
            axes.legend(frameon=False, fontsize=7)
        axes_of_row[0].set_ylabel("weight")
    save_figure(figure, root, "aggregation_weights.svg")


def draw_robust(cells: Cells, root: Path) -> None:
    """pass@1 of the honest clients by defence and attack."""
    present = [d for d in DEFENCES if any(("d", f"{a}/{d}") in cells for a in ("nobody", *ATTACKS))]
    if not present:
        return
    figure = new_figure(7.5, 3.4)
    axes = figure.subplots()
    attacks = ("nobody", "sign", "scaled")
    for place, attack in enumerate(attacks):
        points = []
        for x, defence in enumerate(present):
            runs = {s: run for s, run in cells.get(("d", f"{attack}/{defence}"), {}).items() if "ended" not in run}
            if runs:
                points.append((x + 0.15 * (place - 1), over_seeds(runs, honest_score)))
        if points:
            halves = [score.half or 0.0 for _, score in points]
            means = [score.mean for _, score in points]
            axes.errorbar([x for x, _ in points], means, yerr=halves, fmt="o", markersize=4, capsize=2, label=attack)
    axes.set_xticks(range(len(present)), [DEFENDED.get(d, d).replace(", ", "\n") for d in present], fontsize=8)
    axes.set(ylabel="pass@1 of seven honest families, %", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8, title="hostile")
    save_figure(figure, root, "aggregation_robust.svg")
