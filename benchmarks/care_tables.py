"""What `scripts/bench care` found, as tables: scores, labels paid, collapse, the probes, and the goals."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from statistics import fmean

from benchmarks.care_cells import ARMS, BASE, CELLS, JUDGED, ROOT, SETTINGS, directory_of, name, overrides
from benchmarks.care_data import (
    FALL,
    FAMILIES,
    Run,
    Runs,
    accuracies,
    added,
    calibration_error,
    collapse_of,
    collapsed,
    course,
    last,
    over_seeds,
    recovered_over_seeds,
    start,
    summary,
    worst,
)
from benchmarks.care_figures import draw
from fedrlvr import __version__
from fedrlvr.config import load_config
from fedrlvr.machine import description
from fedrlvr.reporting.spread import Spread, paired
from fedrlvr.server.metrics_log import read_metrics

Arms = Mapping[str, Runs]
"""By name, the runs of one setting."""
Cells = Mapping[str, Arms]
"""By setting."""

GAIN_WANTED, AHEAD_WANTED, PROBES_ALLOWED = 95.0, 2.0, 10.0
"""Of the labels' gain, %; points ahead of random at the same budget; of a step, %."""
RESULTS = ROOT / "docs" / "results"


def write(seeds: int) -> None:
    """Make results and figures of every cell that has all seeds.

    Raises:
        SystemExit: none has.
    """
    cells = _collected(seeds)
    if not cells:
        raise SystemExit("no cell is finished yet")
    present = [(setting, arm) for setting, arms in cells.items() for arm in arms]
    cpu = {cell: json.loads((directory_of(*cell) / "seconds.json").read_text("utf-8"))["cpu"] for cell in present}
    about = (
        f"`scripts/bench care --seeds {seeds}`, {datetime.date.today()}, {description()}, one torch thread a process, "
        f"{sum(cpu.values()) / 3600:.1f} CPU hours; fedrlvr {__version__}, torch {version('torch')}. Seeds 0 to "
        f"{seeds - 1}: mean and 95 % interval (Student's t) over seeds; differences and shares of a gain are taken "
        f"seed by seed. pass@1 in %, sampled once a problem, mean over families, 128 held-out problems each. "
        f"{len(present)} of {len(CELLS)} cells."
    )
    lines = [about, ""]
    for setting, arms in cells.items():
        lines += [f"## {setting}", "", *goals(setting, arms), ""]
        for kind in FAMILIES:
            lines += [*score_table(setting, kind, arms), ""]
        lines += [*collapse_table(setting, arms), "", *judge_table(setting, arms), ""]
        lines += [*cost_table(setting, arms, {arm: cpu[setting, arm] for arm in arms}), ""]
    (RESULTS / "care.md").write_text("\n".join(lines).rstrip() + "\n", "utf-8")
    rows = [
        {"setting": setting, "arm": arm, "seed": seed, **run}
        for setting, arms in cells.items()
        for arm, runs in arms.items()
        for seed, run in runs.items()
    ]
    seconds = {f"{setting}/{arm}": round(value, 1) for (setting, arm), value in cpu.items()}
    results = {"about": about, "families": FAMILIES, "cpu_seconds": seconds, "runs": rows}
    (RESULTS / "care.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    draw(cells)
    print("\n".join(lines))


def _collected(seeds: int) -> Cells:
    cells: dict[str, dict[str, Runs]] = {}
    for setting in SETTINGS:
        for arm in (arm for arm in ARMS if (setting, arm) in CELLS):
            places = {seed: directory_of(setting, arm) / "as-given" / f"seed-{seed}" for seed in range(seeds)}
            if all((place / "report.html").exists() for place in places.values()):
                steps = load_config(BASE, overrides(setting, arm)).train.local_steps
                by_seed = {seed: summary(read_metrics(place), arm, steps) for seed, place in places.items()}
                cells.setdefault(setting, {})[arm] = by_seed
    return cells


def rival(arm: str) -> str | None:
    """Random selection at the same budget, the rest masked."""
    kind, _, budget = arm.rpartition("-")
    return f"random-{budget}" if kind and kind != "random" else None


def shown(value: Spread | None, sign: bool = False, digits: int = 1) -> str:
    """A mean with half of its interval; nothing for None."""
    if value is None:
        return ""
    half = f" ± {value.half:.{digits}f}" if value.half is not None else ""
    return f"{value.mean:+.{digits}f}{half}" if sign else f"{value.mean:.{digits}f}{half}"


def _table(title: str, header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"### {title}", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _of(measure: Callable[[Run, str], float], kind: str) -> Callable[[Run], float]:
    return lambda run: measure(run, kind)


def score_table(setting: str, kind: str, arms: Arms) -> list[str]:
    """Scores of the families of a kind, and what each arm is ahead of others by."""
    rows = []
    for arm, runs in arms.items():
        row = [name(arm), *(shown(over_seeds(runs, _of(measure, kind))) for measure in (start, worst, last))]
        for other in ("labels", "majority", rival(arm)):
            compared = other is not None and other in arms and other != arm
            row.append(shown(paired(runs, arms[other], _of(last, kind)), sign=True) if compared and other else "")
        full = arms.get("labels")
        row.append(shown(recovered_over_seeds(runs, full, kind)) if full and arm != "labels" else "")
        rows.append(row)
    which = f"{kind} families: {', '.join(FAMILIES[kind])}" if kind != "all" else "all families"
    header = ["arm", "start", "worst round", "last round", "minus all labels", "minus majority alone"]
    header += ["minus random at its budget", "of the labels' gain, %"]
    return _table(f"{setting}: pass@1, {which}", header, rows)


def collapse_table(setting: str, arms: Arms) -> list[str]:
    """Who fell below the start while its reward rose, when, and how it ended."""
    rows = []
    for arm, runs in arms.items():
        for kind in (*FAMILIES, "audited"):
            if kind == "audited" and not any(course(run, "audited") for run in runs.values()):
                continue
            fallen = collapsed(runs, kind)
            if kind != "all" and not fallen and arm not in ("majority", JUDGED):
                continue
            steps = sorted(fallen.values())
            when = "never" if not steps else f"{steps[0]}" if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"
            row = [name(arm), "all, in training" if kind == "audited" else kind, f"{len(fallen)} of {len(runs)}", when]
            row.append(f"{len(collapsed(runs, kind, at_the_end=True))}")
            row.append(shown(over_seeds(runs, lambda run, kind=kind: _change(run, kind)), sign=True))  # type: ignore[misc]
            row.append(shown(over_seeds(runs, lambda run: _moved(course(run, "reward"))), sign=True))
            rows.append(row)
    title = f"{setting}: collapse, more than {FALL:g} points below the start while the reward is above its first round"
    header = [
        "arm",
        "families",
        "seeds",
        "first at step",
        "at the end",
        "accuracy, last minus first",
        "reward, last minus first",
    ]
    return _table(title, header, rows)


def _change(run: Run, kind: str) -> float | None:
    return _moved(course(run, "audited") if kind == "audited" else accuracies(run, kind))


def _moved(values: list[tuple[int, float]]) -> float | None:
    return values[-1][1] - values[0][1] if values else None


def judge_table(setting: str, arms: Arms) -> list[str]:
    """How right majorities and probes were: means over rounds and clients."""
    rows = []
    for arm, runs in arms.items():
        row = [name(arm)]
        for key in ("audit_majority_right", "majority_right", "audit_reliable_right"):
            row.append(shown(over_seeds(runs, lambda run, key=key: _over_rounds(run, key))))  # type: ignore[misc]
        correlation = over_seeds(runs, lambda run: _hundredth(_over_rounds(run, "audit_gap_correlation")))
        row.append(shown(correlation, sign=True, digits=2))
        for key in ("calibration", "audit_calibration"):
            tables = [run[key] for run in runs.values() if key in run]
            error = calibration_error(added(tables)) if tables else None
            row.append(f"{error:.1f}" if error is not None else "")
        for key in ("share_query", "share_known", "share_reliable", "share_masked"):
            row.append(shown(over_seeds(runs, lambda run, key=key: _over_rounds(run, key))).partition(" ")[0])  # type: ignore[misc]
        if any(row[1:]):
            rows.append(row)
    header = ["arm", "majority right, all", "of labelled", "of trusted", "S and true gap, correlation"]
    header += ["P1 off, labelled, points", "P1 off, all", "query", "known", "trusted", "masked"]
    return _table(f"{setting}: majorities and probes; shares in % of the problems, means over rounds", header, rows)


def _over_rounds(run: Run, key: str) -> float | None:
    values = [value for _, value in course(run, key)]
    return fmean(values) if values else None


def _hundredth(value: float | None) -> float | None:
    return None if value is None else value / 100


def cost_table(setting: str, arms: Arms, cpu: Mapping[str, float]) -> list[str]:
    """Labels paid, tokens (thousands) and seconds."""
    rows = []
    for arm, runs in arms.items():
        paid = over_seeds(runs, lambda run: float(run["labels"]))
        share = over_seeds(runs, lambda run: 100 * run["labels"] / run["drawn"])
        tokens = [
            over_seeds(runs, lambda run: run["tokens_sampled"] / 1000),
            over_seeds(runs, lambda run: run["tokens_trained"] / 1000),
        ]
        step = over_seeds(runs, lambda run: 1000 * run["seconds_step"])
        probes = over_seeds(runs, lambda run: 1000 * run["seconds_probes"] if "seconds_probes" in run else None)
        row = [name(arm), shown(paid, digits=0), shown(share).partition(" ")[0]]
        row += [shown(cost, digits=0).partition(" ")[0] for cost in (*tokens, step)]
        row += [shown(probes).partition(" ")[0], shown(over_seeds(runs, probes_share)), f"{cpu[arm] / len(runs):.0f}"]
        rows.append(row)
    header = ["arm", "labels paid", "% of the problems", "tokens sampled, k", "trained, k"]
    header += ["ms a client's step", "of it probes", "%", "CPU-s a run"]
    return _table(f"{setting}: what it took", header, rows)


def probes_share(run: Run) -> float | None:
    """What goes to the probes of a step's seconds, in %."""
    return 100 * run["seconds_probes"] / run["seconds_step"] if "seconds_probes" in run else None


def goals(setting: str, arms: Arms) -> list[str]:
    """What was aimed at, and what came of it; from the numbers alone."""
    care = arms.get(JUDGED)
    if care is None:
        return [f"{name(JUDGED)} is not finished yet."]
    lines = []
    if "labels" in arms:
        gain = recovered_over_seeds(care, arms["labels"], "all")
        text = f"{name(JUDGED)} recovers {shown(gain)} % of the gain of all labels; aim: at least {GAIN_WANTED:g} %"
        lines.append(_verdict(text, gain is not None and gain.mean >= GAIN_WANTED))
    if "random-20" in arms:
        ahead = paired(care, arms["random-20"], _of(last, "all"))
        text = f"{name(JUDGED)} minus random at 20 %: {shown(ahead, sign=True)} points; aim: at least {AHEAD_WANTED:+g}"
        lines.append(_verdict(f"{text} with an interval that excludes 0", _clearly_ahead(ahead)))
    if "majority" in arms:
        lines += [_collapse_goal(kind, care, arms["majority"]) for kind in FAMILIES]
    share = over_seeds(care, probes_share)
    if share is not None:
        text = f"The probes take {shown(share)} % of a step's time; aim: at most {PROBES_ALLOWED:g} %"
        lines.append(_verdict(text, share.mean <= PROBES_ALLOWED))
    if "care-shared-20" in arms:
        ahead = paired(arms["care-shared-20"], care, _of(last, "all"))
        lines.append(f"- Averaged probes minus local ones: {shown(ahead, sign=True)} points.")
    return lines


def _clearly_ahead(ahead: Spread | None) -> bool:
    """By enough, and by more than half of the interval, without which nothing is excluded."""
    return ahead is not None and ahead.half is not None and ahead.mean >= AHEAD_WANTED and ahead.mean - ahead.half > 0


def _collapse_goal(kind: str, runs: Runs, majority: Runs) -> str:
    collapsed = [seed for seed, run in majority.items() if collapse_of(run, kind) is not None]
    ours = [seed for seed, run in runs.items() if collapse_of(run, kind) is not None]
    where = "all families" if kind == "all" else f"the {kind} families"
    if not collapsed:
        return (
            f"- On {where} the majority alone collapses in none of {len(majority)} seeds, so that nothing is shown; "
            f"{name(JUDGED)} in {len(ours)} of {len(runs)}."
        )
    text = (
        f"On {where} the majority alone collapses in {len(collapsed)} of {len(majority)} seeds, {name(JUDGED)} in "
        f"{len(ours)} of {len(runs)}; aim: none"
    )
    return _verdict(text, not ours)


def _verdict(text: str, met: bool) -> str:
    return f"- {text}: **{'met' if met else 'missed'}**."


if __name__ == "__main__":
    raise SystemExit("scripts/bench care --collect")
