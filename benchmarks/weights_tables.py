"""The results of `scripts/bench weights` as tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
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
from benchmarks.gain_tables import over, paired, shown
from benchmarks.recompute import holm, p_value
from benchmarks.tables import table
from benchmarks.weights_cells import ARMS, FEDERATIONS, REFERENCE, STEPS, cell_name

BENCH = "weights"
ARM_NAMES = {
    "examples": "examples",
    "equal": "equal",
    "default": "FGRPO as it comes (T = 1)",
    "reported": "FGRPO, T = 0.25, reported",
    "public": "FGRPO, T = 0.25, public",
    "public-shrunk": "FGRPO, T = 0.25, public and shrunk",
}
Cells = Mapping[tuple[str, str, str], Runs]
"""Runs by federation, arm and server step."""


def deviating(federation: str) -> list[str]:
    """The sites that are stalled, noisy or contradictory, or whose rewards are scaled down."""
    return [site for site, stated in FEDERATIONS[federation][0].items() if "weight = 1.0" not in stated]


def weight_of_deviating(federation: str, run: Run) -> float:
    """Share of the weight that the deviating sites have together, mean over the rounds."""
    columns = [run["weights"][site] for site in deviating(federation)]
    return fmean(sum(weight or 0.0 for weight in of_round) for of_round in zip(*columns, strict=True))


def comparisons(cells: Cells) -> list[tuple[tuple[str, str, str], list[float]]]:
    """Every arm minus weights by examples at the end, seed by seed, where there are two seeds of both."""
    rows = []
    for (federation, arm, step), runs in cells.items():
        reference = cells.get((federation, REFERENCE, step), {})
        gap = paired(runs, reference, end) if arm != REFERENCE else None
        if gap is not None and gap.half is not None:
            rows.append(((federation, arm, step), list(gap.by_seed.values())))
    return rows


def corrected(cells: Cells) -> dict[tuple[str, str, str], tuple[float, float]]:
    """p of each comparison, and p after Holm's correction over all comparisons of the tables."""
    rows = comparisons(cells)
    values = [p_value(differences) for _, differences in rows]
    return {key: pair for (key, _), pair in zip(rows, zip(values, holm(values), strict=True), strict=True)}


def federation_table(cells: Cells, federation: str, step: str) -> list[str]:
    """Every arm of a federation at one server step."""
    tested, rows = corrected(cells), []
    reference = cells.get((federation, REFERENCE, step), {})
    for arm in ARMS:
        runs = cells.get((federation, arm, step))
        if runs is None:
            continue
        measures: tuple[Callable[[Run], float], ...] = (end, worst_site, worst_family, area)
        row = [ARM_NAMES[arm], str(len(runs)), *(shown(over(runs, measure)) for measure in measures)]
        row.append("" if arm == REFERENCE else shown(paired(runs, reference, end), sign=True))
        row += [f"{p:.2g}" for p in tested.get((federation, arm, step), ())] or ["", ""]
        share = fmean(weight_of_deviating(federation, run) for run in runs.values()) if deviating(federation) else None
        rows.append([*row, "" if share is None else f"{share:.2f}"])
    if not rows:
        return []
    header = ["client weights", "n", "all", "worst site", "worst family", "area", "minus examples", "p", "p after Holm"]
    return [f"### {federation}, server step {step}", "", table([*header, "weight of the deviating sites"], rows)]


def write(scale: Scale, seeds: int) -> None:
    """Print the tables; at full scale also write docs/results/weights.{json,md}.

    Raises:
        SystemExit: no cell has two seeds yet.
    """
    keys = list(product(FEDERATIONS, ARMS, STEPS))
    by_name = load(BENCH, scale.name, (cell_name(*key) for key in keys), seeds)
    cells = {key: by_name[cell_name(*key)] for key in keys if cell_name(*key) in by_name}
    if not cells:
        raise SystemExit("no cell has two finished seeds yet")
    made, scores = provenance(BENCH, scale.name, seeds), choices(BENCH, scale.name, FEDERATIONS)
    text = "\n".join(_lines(cells, scores, about(made))).rstrip() + "\n"
    print(text)
    if scale.name != "full":
        return
    results = ROOT / "docs" / "results"
    (results / "weights.md").write_text(text, "utf-8")
    runs = [
        {"federation": federation, "arm": arm, "server_step": step, "seed": seed, **run}
        for (federation, arm, step), by_seed in cells.items()
        for seed, run in by_seed.items()
    ]
    tree = {**made, "choices": scores, "runs": runs}
    (results / "weights.json").write_text(json.dumps(tree, indent=1) + "\n", "utf-8")


def _lines(cells: Cells, scores: Mapping[str, Mapping[str, float]], opening: str) -> Sequence[str]:
    lines = [
        f"{opening} Holm's correction is over all {len(comparisons(cells))} differences of these tables.",
        "",
    ]
    for federation, step in product(FEDERATIONS, STEPS):
        lines += federation_table(cells, federation, step)
    rows = [
        [name, ", ".join(f"{rate}: {100 * score:.1f}" for rate, score in rates.items())]
        for name, rates in scores.items()
    ]
    title = f"### Learning rates: pass@1 in % on validation problems at the end of one run at seed {CHOICE_SEED}"
    return [*lines, title, "", table(["federation", "scores"], rows)]
