"""Recomputes from the committed JSON what the pages of docs/measurements claim beyond the tables, and corrects it.

    scripts/bench recompute          writes docs/results/recompute.md; seconds, nothing is trained

PubSwap by kind of problem family, optimizer steps and trained tokens of its arms; p values of the LoRA rules and of
FGRPO's options, with Holm's correction over all comparisons of a table; the cohort's share of a round's phases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mpmath import betainc

from benchmarks.aggregation_tables import mean_score, worst_score
from benchmarks.care_data import FAMILIES
from benchmarks.pubswap_cells import STEPS, STRETCH
from fedrlvr.reporting.spread import spread

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
TAU = 60
"""Local steps between synchronisations in the arms looked at."""

Runs = Mapping[int, dict[str, Any]]
"""A cell's runs by seed."""


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p of a paired t test: P(|T| > t) with n - 1 degrees of freedom. 1 where all differences are equal."""
    freedom = len(differences) - 1
    deviation = stdev(differences)
    if deviation == 0:
        return 1.0
    t = fmean(differences) / (deviation / len(differences) ** 0.5)
    return float(betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p of each: the running maximum of (m - rank) p, at most 1."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected


def differences(runs: Runs, others: Runs, value: Callable[[dict[str, Any]], float]) -> list[float]:
    """One cell minus another, seed by seed."""
    return [value(runs[seed]) - value(others[seed]) for seed in sorted(runs)]


def _cells(name: str, *keys: str) -> dict[tuple[Any, ...], dict[int, dict[str, Any]]]:
    cells: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for run in json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["runs"]:
        cells.setdefault(tuple(run[key] for key in keys), {})[run["seed"]] = run
    return cells


def _points(values: Sequence[float]) -> str:
    result = spread(dict(enumerate(values)))
    assert result is not None
    return f"{result.mean:+.1f} ± {result.half:.1f}"


def _table(title: str, header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"## {title}", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def pubswap() -> list[str]:
    """Differences by kind of family, and what the arms cost."""
    cells = _cells("pubswap", "tau", "arm")
    rows = []
    for arm, other in (("balanced", "none"), ("none", "fedavg"), ("balanced", "fedavg")):
        for kind in ("systematic", "diffuse"):
            row = [f"{arm} minus {other}", kind]
            for step in (STEPS // 2, STEPS):

                def score(run: dict[str, Any], step: int = step, kind: str = kind) -> float:
                    return 100 * fmean(run["pass@1"][str(step)][family] for family in FAMILIES[kind])

                row.append(_points(differences(cells[TAU, arm], cells[TAU, other], score)))
            rows.append(row)
    title = f"PubSwap at tau = {TAU} by kind of family, points of pass@1"
    lines = _table(title, ["arms", "families", f"after {STEPS // 2} steps", f"after {STEPS} steps"], rows)
    lines += ["The split by kind was found by looking at these runs; it awaits confirmation on other seeds.", ""]
    rows = []
    tokens = {arm: fmean(run["tokens_trained"] for run in cells[TAU, arm].values()) for _, arm in cells if _ == TAU}
    for arm in ("fedavg", "none", "balanced"):
        public = 0 if arm == "fedavg" else STEPS // STRETCH
        more = f"{100 * (tokens[arm] / tokens['fedavg'] - 1):+.1f} %"
        rows.append([arm, str(STEPS), str(public), str(STEPS + public), f"{tokens[arm] / 1000:.0f}", more])
    header = ["arm", "local steps", "public steps", "optimizer steps", "tokens trained, thousands", "against fedavg"]
    return [
        *lines,
        *_table(f"PubSwap at tau = {TAU}: what the arms cost a client or, tokens, all clients", header, rows),
    ]


def aggregation() -> list[str]:
    """p values of the rules' table and of FGRPO's, each corrected over all of its comparisons."""
    cells = _cells("aggregation", "part", "cell")
    slow = ("ffa", "rolora", "flora", "fedex", "hetlora", "flexlora", "float16", "int8", "faster/fedit")
    pairs = [(cell, "fedit") for cell in slow] + [
        (f"faster/{rule}", "faster/fedit") for rule in ("ffa", "rolora", "flora")
    ]
    values = [differences(cells["a", cell], cells["a", other], mean_score) for cell, other in pairs]
    corrected = holm([p_value(value) for value in values])
    rows = [
        [f"{cell} minus {other}", _points(value), f"{p_value(value):.2g}", f"{holms:.2g}"]
        for (cell, other), value, holms in zip(pairs, values, corrected, strict=True)
    ]
    header = ["comparison", "points", "p", "p after Holm"]
    lines = _table(f"LoRA rules, precisions and learning rates: {len(rows)} comparisons", header, rows)
    rows, p_values = [], []
    for part, cell in cells:
        federation, _, weights = cell.partition("/")
        if part == "c" and weights not in ("examples", "equal"):
            for name, value in (("mean", mean_score), ("worst client", worst_score)):
                points = differences(cells[part, cell], cells[part, f"{federation}/examples"], value)
                rows.append([f"{federation}: {weights}, {name}", _points(points)])
                p_values.append(p_value(points))
    rows = [[*row, f"{p:.2g}", f"{h:.2g}"] for row, p, h in zip(rows, p_values, holm(p_values), strict=True)]
    rows.sort(key=lambda row: float(row[-1]))
    title = f"FGRPO against weights by examples: {len(rows)} comparisons (cold: temperature 0.25)"
    return [*lines, *_table(title, header, rows)]


def cohort() -> list[str]:
    """A round of E2 with clients one after another against one in a cohort, by phase."""
    row = json.loads((RESULTS / "speed.json").read_text("utf-8"))["E2"]["found"]["rows"]["clients one after another"]
    apart, together = (row[side]["rounds"][0]["phases"] for side in ("first", "second"))
    rows = [
        [phase, f"{apart[phase]:.1f}", f"{together[phase]:.1f}", f"{apart[phase] / together[phase]:.2f}"]
        for phase in ("sample", "KL to the base", "train")
    ]
    title = "The cohort at the shape of SmolLM2-135M (E2), one pair of rounds, CPU-s"
    return _table(title, ["phase", "one after another", "cohort", "ratio"], rows)


def page() -> str:
    """All of it."""
    about = (
        "`scripts/bench recompute`, from the runs in pubswap.json, aggregation.json and speed.json; nothing is "
        "trained. Mean and 95 % interval (Student's t) over five seeds; p of a paired t test, two-sided."
    )
    return "\n".join([about, "", *pubswap(), *aggregation(), *cohort()]).rstrip() + "\n"


if __name__ == "__main__":
    (RESULTS / "recompute.md").write_text(page(), "utf-8")
    print(page())
