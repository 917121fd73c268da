"""The results of `scripts/bench gain` as tables, a figure and JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gain_cells import CELLS, CHOICE_SEED, EVALUATIONS, FEDERATIONS, ROOT, RUNS, STEPS, Arm, directory_of
from benchmarks.gain_choices import chosen_step
from benchmarks.gain_results import committed, committed_runs
from benchmarks.gain_sites import load_verdicts
from benchmarks.gain_sites_tables import site_tables
from benchmarks.recompute import holm, p_value
from benchmarks.tables import table
from fedrlvr.machine import description
from fedrlvr.reporting.scores import evaluations, totals
from fedrlvr.reporting.spread import Spread, spread
from fedrlvr.reporting.spread import paired as by_seed
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.version import __version__
from fedrlvr.zoo.generators import ALL

Run = dict[str, Any]
Runs = dict[int, Run]
"""The runs of a cell by seed."""
Cell = tuple[str, int, str]
"""Federation, tau and the arm's name."""
Cells = dict[Cell, Runs]
TARGETS = {"disjoint": 70.0, "life": 70.0}
"""Accuracy in % that synchronisations and bytes are counted up to."""
STEP_NAMES = {
    "1": "1 (plain averaging)",
    "2": "2",
    "tuned": "tuned on validation",
    "ratio": "ratio of norms",
    "auto": "auto, mean",
    "clients": "auto, clients",
    "search": "line search",
}
RULE_NAMES = {"fedit": "FedIT", "flexlora": "FlexLoRA"}


def load_choices() -> dict[str, dict[str, float]]:
    """Validation scores in % by value, by the choice's place under runs/gain/choices."""
    root = RUNS / "choices"
    return committed()["choices"] | {
        str(path.parent.relative_to(root)): {
            value: 100 * score for value, score in json.loads(path.read_text()).items()
        }
        for path in sorted(root.rglob("scores.json"))
    }


def load(seeds: int) -> Cells:
    """Every cell with the runs that are finished, here or in docs/results/gain.json, of at least two seeds."""
    cells: Cells = {}
    earlier = committed_runs()
    for federation, tau, arm in CELLS:
        is_chosen = (federation, tau, arm.name) in earlier or _choice(federation, tau, arm).exists()
        if arm.step == "tuned" and not is_chosen:
            continue
        tuned = chosen_step(federation, tau, arm) if arm.step == "tuned" else ""
        place = directory_of(federation, tau, arm, tuned) / "as-given"
        paths = {seed: place / f"seed-{seed}" for seed in range(seeds)}
        runs = {seed: run_of(path, tau) for seed, path in paths.items() if (path / "report.html").exists()}
        runs = dict(sorted({**earlier.get((federation, tau, arm.name), {}), **runs}.items()))
        if len(runs) > 1:
            cells[federation, tau, arm.name] = runs
    return cells


def _choice(federation: str, tau: int, arm: Arm) -> Path:
    return RUNS / "choices" / federation / f"tau-{tau}" / Arm(arm.rule, "step", arm.public).name / "scores.json"


def run_of(directory: Path, tau: int) -> Run:
    """A run's curve in % by local step, the applied server step by round, tokens, and bytes of a client by round."""
    records = read_metrics(directory)
    curve, sums = evaluations(records), totals(records)
    many = len(sums.bytes_up)
    by_round = [sum(client.get("bytes_up", 0) for client in record["clients"].values()) / many for record in records]
    return {
        "pass@1": {str(round_ * tau): 100 * overall.mean for round_, (overall, _) in curve.items()},
        "families": {name: 100 * score.mean for name, score in curve[max(curve)][1].items()},
        "step": [record["server_step"]["learning_rate"] for record in records if record.get("server_step")],
        "cosine": [
            record["server_step"]["mean_cosine"] for record in records if "mean_cosine" in record.get("server_step", {})
        ],
        "tokens_sampled": sums.tokens_sampled,
        "tokens_trained": sums.tokens_trained,
        "bytes_up": [round(sum(by_round[: index + 1])) for index in range(len(by_round))],
    }


def at(run: Run, step: int) -> float:
    """pass@1 in % after so many local steps."""
    return float(run["pass@1"][str(step)])


def end(run: Run) -> float:
    """pass@1 in % at the end of a run."""
    return at(run, STEPS)


def area(run: Run) -> float:
    """Area under the curve of pass@1 over local steps by the trapezoid rule, by its length: a mean in %."""
    points = sorted((int(step), score) for step, score in run["pass@1"].items())
    parts = [(b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)]
    return sum(parts) / (points[-1][0] - points[0][0])


def kind(error: str) -> Callable[[Run], float]:
    """pass@1 in % at the end, mean over the families whose errors are of this kind."""
    names = [family.name for family in ALL if family.error == error]
    return lambda run: sum(run["families"][name] for name in names) / len(names)


def over(runs: Runs, value: Callable[[Run], float], seeds: Iterable[int] | None = None) -> Spread | None:
    return spread({seed: value(run) for seed, run in runs.items() if seeds is None or seed in seeds})


def paired(
    runs: Runs, others: Runs, value: Callable[[Run], float], seeds: Iterable[int] | None = None
) -> Spread | None:
    """The difference of two arms, seed by seed."""
    return by_seed({seed: run for seed, run in runs.items() if seeds is None or seed in seeds}, others, value)


def shown(value: Spread | None, *, sign: bool = False) -> str:
    if value is None:
        return ""
    half = "" if value.half is None else f" ± {value.half:.1f}"
    return f"{value.mean:+.1f}{half}" if sign else f"{value.mean:.1f}{half}"


def label(name: str) -> str:
    """An arm as the tables say it."""
    rule, step, *public = name.split("-")
    return " ".join([RULE_NAMES[rule] + ",", STEP_NAMES[step], *public])


def step_table(cells: Cells, federation: str, tau: int) -> list[str]:
    """Every server step at one tau in one federation."""
    rows = []
    for (f, t, name), runs in cells.items():
        if (f, t) != (federation, tau) or name.count("-") > 1:
            continue
        rule = name.split("-")[0]
        plain, tuned = (cells.get((f, t, f"{rule}-{step}"), {}) for step in ("1", "tuned"))
        same = name in (f"{rule}-1",)
        rows.append(
            [
                label(name),
                str(len(runs)),
                shown(over(runs, lambda run: at(run, max(tau, tau * EVALUATIONS[tau])))),
                shown(over(runs, end)),
                shown(over(runs, area)),
                "" if same else shown(paired(runs, plain, end), sign=True),
                "" if name == f"{rule}-tuned" else shown(paired(runs, tuned, end), sign=True),
                reached(runs, tau, TARGETS[federation]),
                " ".join(f"{value:.2f}" for value in mean_by_round(runs, "step")[:6]),
            ]
        )
    if not rows:
        return []
    first = max(tau, tau * EVALUATIONS[tau])
    header = ["server step", "n", f"after {first} steps", f"after {STEPS}", "area", "end minus step 1"]
    header += ["end minus tuned", f"syncs, kB up to {TARGETS[federation]:.0f} %", "step by round"]
    return [f"### {federation}, tau = {tau}", "", table(header, rows)]


def mean_by_round(runs: Runs, key: str) -> list[float]:
    """The mean over seeds of a number of each round."""
    return [sum(values) / len(values) for values in zip(*(run[key] for run in runs.values()), strict=False)]


def reached(runs: Runs, tau: int, target: float) -> str:
    """Synchronisations and kB up until the mean curve over the seeds has reached an accuracy."""
    for step in sorted(int(step) for step in next(iter(runs.values()))["pass@1"]):
        if sum(at(run, step) for run in runs.values()) / len(runs) >= target:
            up = sum(run["bytes_up"][step // tau] for run in runs.values()) / len(runs)
            return f"{step // tau}, {up / 1000:,.0f}"
    return "not reached"


def goal_lines(cells: Cells) -> list[str]:
    """The goals that were set for the automatic step, and what came out."""
    rows = []
    for federation in FEDERATIONS:
        for tau in (60, 20):
            for rule in RULE_NAMES:
                for step in ("auto", "clients"):
                    auto, tuned = (cells.get((federation, tau, f"{rule}-{s}"), {}) for s in (step, "tuned"))
                    gap = paired(auto, tuned, end)
                    if gap is None or gap.half is None:
                        continue
                    verdict = "met" if gap.mean - gap.half > -2 else "missed"
                    rows.append(
                        [
                            f"{federation}, tau = {tau}, {RULE_NAMES[rule]}, {STEP_NAMES[step]}",
                            shown(gap, sign=True),
                            f"{gap.mean - gap.half:+.1f}",
                            verdict,
                        ]
                    )
    lines = ["### Goal: at the end, the lower bound of auto minus the tuned fixed step is above -2 points", ""]
    lines += [table(["column", "difference", "lower bound", "goal"], rows)] if rows else []
    rows = []
    for tau in (60, 20):
        for step in ("auto", "clients"):
            auto, plain = (cells.get(("disjoint", tau, f"fedit-{s}"), {}) for s in (step, "1"))
            gap = paired(auto, plain, lambda run, tau=tau: at(run, tau))  # type: ignore[misc]
            if gap is not None:
                verdict = "met" if gap.mean >= 15 else "missed"
                rows.append([f"tau = {tau}, {STEP_NAMES[step]}", shown(gap, sign=True), verdict])
    if rows:
        lines += ["### Goal: with disjoint families, 15 points above step 1 after one synchronisation", ""]
        lines += [table(["column", "difference", "goal"], rows)]
    return lines


EXCHANGING = {
    "fedit-tuned": "no public problem",
    "fedit-tuned-pooled": "added to everybody's own problems",
    "fedit-tuned-steps": "public steps",
    "fedit-tuned-balanced": "public steps, balanced swap",
}
CONFIRMING = range(5, 10)
"""Seeds that the primary outcome of the exchanges is taken from; the earlier ones were looked at before."""


def exchange_table(cells: Cells) -> list[str]:
    """What public problems add on top of the tuned server step."""
    here = {name: cells.get(("disjoint", 60, name), {}) for name in EXCHANGING}
    rows = []
    for name, runs in here.items():
        if not runs:
            continue
        base = here["fedit-tuned"]
        cost = [f"{over(runs, lambda run, k=k: run[k] / 1000).mean:,.0f}" for k in ("tokens_sampled", "tokens_trained")]  # type: ignore[misc, union-attr]
        up = over(runs, lambda run: run["bytes_up"][-1] / 1000)
        assert up is not None
        values = [over(runs, kind("systematic")), over(runs, kind("diffuse")), over(runs, end), over(runs, area)]
        gap = "" if name == "fedit-tuned" else shown(paired(runs, base, end), sign=True)
        rows.append(
            [EXCHANGING[name], str(len(runs)), *(shown(value) for value in values), gap, *cost, f"{up.mean:,.0f}"]
        )
    if len(rows) < 2:
        return []
    header = [
        "public problems",
        "n",
        "systematic",
        "diffuse",
        "all",
        "area",
        "minus none",
        "kilotokens sampled",
        "trained",
        "kB up",
    ]
    lines = [
        "### Public problems on top of the tuned step: disjoint, tau = 60, 120 optimizer steps each",
        "",
        table(header, rows),
    ]
    return lines + primary(here)


def primary(here: Mapping[str, Runs]) -> list[str]:
    """Balanced swap minus public steps on the systematic families, at the seeds kept for it, and its companions."""
    pairs = [
        ("balanced swap minus public steps, systematic (primary)", "balanced", "steps", "systematic"),
        ("balanced swap minus public steps, diffuse", "balanced", "steps", "diffuse"),
        ("balanced swap minus pooled, systematic", "balanced", "pooled", "systematic"),
        ("public steps minus pooled, systematic", "steps", "pooled", "systematic"),
    ]
    gaps = []
    for text, first, second, error in pairs:
        runs, others = (here[f"fedit-tuned-{name}"] for name in (first, second))
        gap = paired(runs, others, kind(error), CONFIRMING)
        if gap is None or gap.half is None:
            return []
        gaps.append((text, gap))
    corrected = holm([p_value(list(gap.by_seed.values())) for _, gap in gaps])
    rows = [
        [text, shown(gap, sign=True), f"{p_value(list(gap.by_seed.values())):.2g}", f"{after:.2g}"]
        for (text, gap), after in zip(gaps, corrected, strict=True)
    ]
    seeds = f"seeds {CONFIRMING[0]} to {CONFIRMING[-1]}"
    return [
        f"### Outcomes of the exchanges, {seeds}, at the end",
        "",
        table(["difference", "points", "p", "p after Holm"], rows),
    ]


def choice_table(choices: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Validation scores behind every choice."""
    rows = [
        [place.replace("/", ", "), ", ".join(f"{value}: {score:.1f}" for value, score in scores.items())]
        for place, scores in choices.items()
    ]
    title = f"### Choices: pass@1 in % on validation problems at the end of one run at seed {CHOICE_SEED}"
    return [title, "", table(["choice", "scores"], rows)]


def write(seeds: int) -> None:
    """Make docs/results/gain.{json,md} and the figure of every cell that has finished runs.

    Raises:
        SystemExit: no cell has two seeds yet.
    """
    cells, choices = load(max(seeds, CONFIRMING[-1] + 1)), load_choices()
    if not cells:
        raise SystemExit("no cell has two finished seeds yet")
    spent = [json.loads(path.read_text())["cpu"] for path in RUNS.rglob("seconds.json")]
    about = (
        f"`scripts/bench gain`, {datetime.date.today()}, fedrlvr {__version__}, {description()}, one torch thread a "
        f"process; runs still on this machine took {sum(spent) / 3600:.1f} CPU hours. pass@1 in %, 1,024 held-out "
        "problems, one sample each, mean over the families; mean and 95 % interval (Student's t) over n seeds from 0; "
        "differences are paired by seed."
    )
    parts: list[Sequence[str]] = [[about, ""]]
    parts += [step_table(cells, federation, tau) for federation in FEDERATIONS for tau in EVALUATIONS]
    verdicts = load_verdicts(seeds)
    parts += [goal_lines(cells), exchange_table(cells), site_tables(verdicts), choice_table(choices)]
    text = "\n".join(line for part in parts for line in part).rstrip() + "\n"
    results = ROOT / "docs" / "results"
    (results / "gain.md").write_text(text, "utf-8")
    runs = [
        {"federation": federation, "tau": tau, "arm": arm, "seed": seed, **run}
        for (federation, tau, arm), by_seed in cells.items()
        for seed, run in by_seed.items()
    ]
    sites = [
        {"federation": federation, "kind": kind, "seed": seed, **verdict}
        for (federation, kind), by_seed in verdicts.items()
        for seed, verdict in by_seed.items()
    ]
    tree = {"about": about, "choices": choices, "runs": runs, "sites": sites}
    (results / "gain.json").write_text(json.dumps(tree, indent=1) + "\n")
    draw(cells)
    print(text)


def draw(cells: Cells) -> None:
    """Curves of pass@1 over local steps, a panel for each federation and tau."""
    from benchmarks.aggregation_figures import new_figure, save_figure

    picture = new_figure(9.6, 5.4)
    grid = picture.subplots(len(FEDERATIONS), 2, squeeze=False, sharex=True)
    for axes_of_row, federation in zip(grid, FEDERATIONS, strict=True):
        for axes, tau in zip(axes_of_row, (60, 20), strict=True):
            for step in ("1", "tuned", "ratio", "auto", "clients"):
                runs = cells.get((federation, tau, f"fedit-{step}"))
                if runs is None:
                    continue
                xs = sorted(int(x) for x in next(iter(runs.values()))["pass@1"])
                axes.plot(
                    xs,
                    [sum(at(run, x) for run in runs.values()) / len(runs) for x in xs],
                    marker=".",
                    label=STEP_NAMES[step],
                )
            axes.set(title=f"{federation}, {tau} local steps a round")
            axes.title.set_fontsize(9)
            if axes.has_data():
                axes.legend(frameon=False, fontsize=7)
        axes_of_row[0].set_ylabel("pass@1, %")
    for axes in grid[-1]:
        axes.set_xlabel("local steps")
    save_figure(picture, ROOT, "gain.svg")
