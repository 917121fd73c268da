"""The results of `scripts/bench methods` as tables, a figure and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from statistics import fmean

from benchmarks.eight import (
    CHOICE_SEED,
    ROOT,
    Run,
    Runs,
    Scale,
    about,
    area,
    choices,
    end,
    load,
    provenance,
    worst_family,
    worst_site,
)
from benchmarks.factorial import Switched, effects_over_seeds, subsets
from benchmarks.gain_tables import over, paired, shown
from benchmarks.methods_cells import ALL_LABELS, FACTORS, cell_name, names
from benchmarks.recompute import holm, p_value
from benchmarks.tables import table
from fedrlvr.reporting.sweep_table import Spread

BENCH = "methods"
FACTOR_NAMES = {"pubswap": "PubSwap", "fgrpo": "FGRPO", "care": "CARE"}
MEASURES: dict[str, Callable[[Run], float]] = {
    "all": end,
    "worst site": worst_site,
    "worst family": worst_family,
    "area": area,
}
LOST, GAINED = 1.0, 5.0
"""The goal: at most so many points below FedAvg with all labels, and at least so many above FedAvg at a fifth."""
Cells = Mapping[str, Runs]


def label(name: str) -> str:
    """A cell as the tables say it."""
    if name == ALL_LABELS:
        return "FedAvg, all labels"
    if name == cell_name(frozenset()):
        return "FedAvg, a fifth of the labels"
    return " + ".join(FACTOR_NAMES[factor] for factor in name.split("+"))


def cell_table(cells: Cells) -> list[str]:
    """Scores of every cell."""
    low, high = (cells.get(name, {}) for name in (cell_name(frozenset()), ALL_LABELS))
    rows = []
    for name, runs in cells.items():
        scores = [shown(over(runs, measure)) for measure in MEASURES.values()]
        gaps = [shown(paired(runs, other, end), sign=True) if runs is not other else "" for other in (high, low)]
        rows.append([label(name), str(len(runs)), *scores, *gaps])
    header = ["", "n", *MEASURES, "minus all labels", "minus a fifth"]
    return ["### Scores at the end", "", table(header, rows)]


def cost_table(cells: Cells) -> list[str]:
    """What every cell cost, over all sites, mean over the seeds."""
    keys = {
        "labels": 1,
        "tokens_sampled": 1000,
        "tokens_trained": 1000,
        "optimizer_steps": 1,
        "bytes_up": 1000,
        "bytes_down": 1000,
    }
    rows = [
        [label(name), *(f"{fmean(run[key] / unit for run in runs.values()):,.0f}" for key, unit in keys.items())]
        for name, runs in cells.items()
    ]
    header = ["", "labels", "kilotokens sampled", "kilotokens trained", "optimizer steps of a site", "kB up", "kB down"]
    return ["### Costs: labels and tokens of all sites, bytes of one site", "", table(header, rows)]


def goal_lines(cells: Cells) -> list[str]:
    """The primary outcome, and whether its two goals are met."""
    together = cells.get(cell_name(frozenset(FACTORS)), {})
    rows = []
    for text, other, least in (
        (f"all three minus FedAvg with all labels, at least -{LOST:g}", ALL_LABELS, -LOST),
        (f"all three minus FedAvg at a fifth, at least +{GAINED:g}", cell_name(frozenset()), GAINED),
    ):
        gap = paired(together, cells.get(other, {}), end)
        if gap is None or gap.half is None:
            return []
        verdict = "met" if gap.mean - gap.half >= least else "missed" if gap.mean + gap.half < least else "open"
        rows.append([text, shown(gap, sign=True), f"{gap.mean - gap.half:+.1f} to {gap.mean + gap.half:+.1f}", verdict])
    return ["### Primary outcome: pass@1 at the end", "", table(["goal", "points", "interval", "verdict"], rows)]


def effect_lines(cells: Cells) -> list[str]:
    """Main effects and interactions of each measure; p after Holm's correction over the seven effects of it."""
    design = {switched: cells[cell_name(switched)] for switched in subsets(FACTORS) if cell_name(switched) in cells}
    if len(design) < 2 ** len(FACTORS):
        return []
    by_measure: dict[str, Mapping[Switched, Spread]] = {}
    for name, measure in MEASURES.items():
        values = {cell: {seed: measure(run) for seed, run in runs.items()} for cell, runs in design.items()}
        by_measure[name] = effects_over_seeds(FACTORS, values)
    primary = by_measure["all"]
    tested = [p_value(list(value.by_seed.values())) if value.half is not None else 1.0 for value in primary.values()]
    rows = [
        [
            " x ".join(FACTOR_NAMES[factor] for factor in FACTORS if factor in term),
            *(shown(by_measure[name][term], sign=True) for name in MEASURES),
            f"{after:.2g}",
        ]
        for term, after in zip(primary, holm(tested), strict=True)
    ]
    header = ["effect", *MEASURES, "p of all, after Holm"]
    return ["### Main effects and interactions, in points", "", table(header, rows)]


def write(scale: Scale, seeds: int) -> None:
    """Print the tables; at full scale also write docs/results/methods.{json,md} and the figure.

    Raises:
        SystemExit: no cell has two seeds yet.
    """
    cells = load(BENCH, scale.name, names(), seeds)
    if not cells:
        raise SystemExit("no cell has two finished seeds yet")
    made, scores = provenance(BENCH, scale.name, seeds), choices(BENCH, scale.name, names())
    lines = [about(made), "", *goal_lines(cells), *cell_table(cells), *effect_lines(cells), *cost_table(cells)]
    rows = [
        [label(name), ", ".join(f"{rate}: {100 * score:.1f}" for rate, score in rates.items())]
        for name, rates in scores.items()
    ]
    title = f"### Learning rates: pass@1 in % on validation problems at the end of one run at seed {CHOICE_SEED}"
    text = "\n".join([*lines, title, "", table(["", "scores"], rows)]).rstrip() + "\n"
    print(text)
    if scale.name != "full":
        return
    results = ROOT / "docs" / "results"
    (results / "methods.md").write_text(text, "utf-8")
    runs = [{"cell": name, "seed": seed, **run} for name, by_seed in cells.items() for seed, run in by_seed.items()]
    (results / "methods.json").write_text(
        json.dumps({**made, "choices": scores, "runs": runs}, indent=1) + "\n", "utf-8"
    )
    draw(cells)


def draw(cells: Cells) -> None:
    """Curves of pass@1 over rounds, a panel without and one with CARE; both references in each."""
    from benchmarks.aggregation_figures import new_figure, save_figure

    picture = new_figure(9.6, 3.4)
    panels = picture.subplots(1, 2, sharey=True)
    for axes, has_care in zip(panels, (False, True), strict=True):
        design = [cell_name(cell) for cell in subsets(FACTORS) if ("care" in cell) == has_care]
        for name in dict.fromkeys([ALL_LABELS, cell_name(frozenset()), *design]):
            if (runs := cells.get(name)) is None:
                continue
            rounds = sorted(int(round_) for round_ in next(iter(runs.values()))["pass@1"])
            means = [fmean(run["pass@1"][str(round_)] for run in runs.values()) for round_ in rounds]
            axes.plot(rounds, means, marker=".", label=label(name))
        axes.set(title="labels chosen by CARE" if has_care else "labels chosen at random", xlabel="round")
        axes.legend(frameon=False, fontsize=7)
    panels[0].set_ylabel("pass@1, %")
    save_figure(picture, ROOT, "methods.svg")
