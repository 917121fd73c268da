"""The results of `scripts/bench labels` as tables, a figure and JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gain_cells import ROOT
from benchmarks.gain_tables import Run, Runs, area, over, paired, run_of, shown
from benchmarks.labels_cells import (
    BUDGET,
    CELLS,
    CHOICE_SEED,
    COMPARISONS,
    FEDERATIONS,
    NAMES,
    QUICK_TAU,
    directory_of,
)
from benchmarks.recompute import holm, p_value
from benchmarks.tables import table
from fedrlvr.machine import description
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.version import __version__

Cells = Mapping[tuple[str, str], Runs]
"""The runs of a federation and an arm by seed."""


def record_of(directory: Path, tau: int) -> Run:
    """A run's curve, tokens and bytes as `run_of` has them, with its labels.

    labels: in all clients' ledgers at the end; None where every label is at hand. trusted: share of the problems whose
    vote was trusted; trusted_right: of these, the share whose majority was right. auc: of the probes at the end, mean
    over the clients that have one.
    """
    rounds = [record["clients"].values() for record in read_metrics(directory) if record["round"]]
    every = [numbers for clients in rounds for numbers in clients]
    held = [numbers["labels_total"] for numbers in rounds[-1] if "labels_total" in numbers]
    votes = [
        (numbers["share_reliable"], numbers["audit_reliable_right"])
        for numbers in every
        if numbers.get("share_reliable") and numbers.get("audit_reliable_right") is not None
    ]
    trusted = sum(share for share, _ in votes)
    aucs = [numbers["probe_auc"] for numbers in rounds[-1] if numbers.get("probe_auc") is not None]
    return run_of(directory, tau) | {
        "labels": sum(held) if held else None,
        "trusted": trusted / len(every),
        "trusted_right": sum(share * right for share, right in votes) / trusted if trusted else None,
        "auc": sum(aucs) / len(aucs) if aucs else None,
    }


def load(seeds: int, *, quick: bool) -> dict[tuple[str, str], Runs]:
    """Every cell with the runs that are finished, of at least two seeds."""
    cells: dict[tuple[str, str], Runs] = {}
    for federation, arm in CELLS:
        place = directory_of(federation, arm, quick=quick) / "as-given"
        paths = {seed: place / f"seed-{seed}" for seed in range(seeds)}
        tau = QUICK_TAU if quick else FEDERATIONS[federation].tau
        runs = {seed: record_of(path, tau) for seed, path in paths.items() if (path / "report.html").exists()}
        if len(runs) > 1:
            cells[federation, arm] = runs
    return cells


def final(run: Run) -> float:
    """pass@1 in % at the end."""
    return float(run["pass@1"][max(run["pass@1"], key=int)])


def _known(runs: Runs, key: str, factor: float = 1.0) -> str:
    """Mean of a number over the seeds that have it."""
    values = [run[key] * factor for run in runs.values() if run[key] is not None]
    return f"{sum(values) / len(values):,.0f}" if values else ""


def arm_table(cells: Cells, federation: str) -> list[str]:
    """Every arm of one federation, with its labels, tokens and bytes."""
    rows = []
    for (place, arm), runs in cells.items():
        if place != federation:
            continue
        others = cells.get((federation, "random"), {})
        against = ["", ""] if arm == "random" else [shown(paired(runs, others, by), sign=True) for by in (area, final)]
        auc = [run["auc"] for run in runs.values() if run["auc"] is not None]
        rows.append(
            [
                NAMES[arm],
                str(len(runs)),
                shown(over(runs, area)),
                shown(over(runs, final)),
                *against,
                _known(runs, "labels"),
                _known(runs, "trusted", 100),
                _known(runs, "trusted_right", 100),
                f"{sum(auc) / len(auc):.2f}" if auc else "",
                _known(runs, "tokens_sampled", 1e-3),
                _known(runs, "tokens_trained", 1e-3),
                f"{sum(run['bytes_up'][-1] for run in runs.values()) / len(runs) / 1000:,.0f}",
            ]
        )
    if not rows:
        return []
    header = ["", "n", "area", "end", "area minus random", "end minus random", "labels", "trusted, %"]
    header += ["trusted right, %", "AUC of P1", "kilotokens sampled", "trained", "kB up"]
    return [f"### {federation}, {FEDERATIONS[federation].steps} local steps", "", table(header, rows)]


def comparison_table(cells: Cells, federation: str, value: Callable[[Run], float] = area) -> list[str]:
    """Differences of the area, by seed, with Holm's correction over those that can be taken."""
    gaps = []
    for first, second in COMPARISONS:
        runs, others = (cells.get((federation, arm), {}) for arm in (first, second))
        gap = paired(runs, others, value) if runs and others else None
        if gap is not None and gap.half is not None:
            gaps.append((f"{NAMES[first]} minus {NAMES[second]}", gap))
    if not gaps:
        return []
    raw = [p_value(list(gap.by_seed.values())) for _, gap in gaps]
    rows = [
        [text, shown(gap, sign=True), f"{p:.2g}", f"{corrected:.2g}"]
        for (text, gap), p, corrected in zip(gaps, raw, holm(raw), strict=True)
    ]
    return [f"### {federation}: differences of the area", "", table(["", "points", "p", "p after Holm"], rows)]


def load_choices() -> dict[str, dict[str, float]]:
    """Validation scores in % by learning rate, by federation and arm."""
    choices = {}
    for federation, arm in CELLS:
        path = directory_of(federation, arm) / "choice" / "scores.json"
        if path.exists():
            scores = json.loads(path.read_text("utf-8"))
            choices[f"{federation}, {NAMES[arm]}"] = {rate: 100 * score for rate, score in scores.items()}
    return choices


def choice_table(choices: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Validation scores behind every learning rate."""
    if not choices:
        return []
    rows = [
        [place, ", ".join(f"{rate}: {score:.1f}" for rate, score in scores.items())]
        for place, scores in choices.items()
    ]
    title = f"### Learning rates: pass@1 in % on validation problems at the end of one run at seed {CHOICE_SEED}"
    return [title, "", table(["", "scores"], rows)]


def write(seeds: int, *, quick: bool) -> None:
    """Make docs/results/labels.{json,md} and the figure of every cell with finished runs; `quick` prints alone.

    Raises:
        SystemExit: no cell has two seeds yet.
    """
    cells = load(seeds, quick=quick)
    if not cells:
        raise SystemExit("no cell has two finished seeds yet")
    root = directory_of("", "", quick=quick)
    spent = sum(json.loads(path.read_text("utf-8"))["cpu"] for path in root.rglob("seconds.json"))
    about = (
        f"`scripts/bench labels{' --quick' if quick else ''}`, {datetime.date.today()}, fedrlvr {__version__}, "
        f"{description()}, one torch thread a process, {spent / 3600:.2f} CPU hours. pass@1 in % on held-out problems, "
        "one sample each, mean over the families; area under its curve over local steps, by their number; mean and "
        "95 % interval (Student's t) over n seeds from 0; differences are paired by seed. Arms that ask have labels "
        f"for {100 * BUDGET:g} % of each client's distinct problems, rounded up."
    )
    choices = {} if quick else load_choices()
    lines = [about, ""]
    for federation in FEDERATIONS:
        lines += arm_table(cells, federation) + comparison_table(cells, federation)
    text = "\n".join([*lines, *choice_table(choices)]).rstrip() + "\n"
    print(text)
    if quick:
        return
    results = ROOT / "docs" / "results"
    (results / "labels.md").write_text(text, "utf-8")
    runs: list[dict[str, Any]] = [
        {"federation": federation, "arm": arm, "seed": seed, **run}
        for (federation, arm), by_seed in cells.items()
        for seed, run in by_seed.items()
    ]
    tree = {"about": about, "choices": choices, "runs": runs}
    (results / "labels.json").write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
    draw(cells)


def draw(cells: Cells) -> None:
    """Curves of pass@1 over local steps, a panel for each federation."""
    from benchmarks.aggregation_figures import new_figure, save_figure

    picture = new_figure(9.6, 3.4)
    for axes, federation in zip(picture.subplots(1, len(FEDERATIONS), squeeze=False)[0], FEDERATIONS, strict=True):
        for (place, arm), runs in cells.items():
            if place == federation:
                steps = sorted(int(step) for step in next(iter(runs.values()))["pass@1"])
                means = [sum(run["pass@1"][str(step)] for run in runs.values()) / len(runs) for step in steps]
                axes.plot(steps, means, marker=".", label=NAMES[arm])
        axes.set(title=federation, xlabel="local steps")
        axes.title.set_fontsize(9)
        if axes.has_data():
            axes.legend(frameon=False, fontsize=7)
    picture.axes[0].set_ylabel("pass@1, %")
    save_figure(picture, ROOT, "labels.svg")
