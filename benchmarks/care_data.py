"""What a run of `scripts/bench care` came to, and the measures taken of runs: gain recovered, collapse, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.care_cells import BATCH
from fedrlvr.reporting.scores import evaluations
from fedrlvr.reporting.spread import Spread, spread
from fedrlvr.zoo.generators import ALL

Run = dict[str, Any]
Runs = Mapping[int, Run]
"""By seed."""

FAMILIES: dict[str, list[str]] = {
    "all": [family.name for family in ALL],
    **{error: [family.name for family in ALL if family.error == error] for error in ("diffuse", "systematic")},
}
"""All of them; those whose mistakes differ, so that the majority is often right; and those of one misconception each,
where it is often wrong."""
FALL = 2.0
"""Points below its start from which on an accuracy counts as fallen."""
_PHASES = ("seconds_sample", "seconds_grade", "seconds_train", "seconds_probes")
_SERIES = (
    "reward",
    "majority_right",
    "share_query",
    "share_known",
    "share_reliable",
    "share_masked",
    "audit_majority_right",
    "audit_reliable_right",
    "audit_gap_correlation",
)


def summary(records: Sequence[Mapping[str, Any]], arm: str, local_steps: int) -> Run:
    """A run's scores by local step, its clients' mean numbers by round, and what it cost.

    records: the lines of metrics.jsonl.
    """
    rounds = [record for record in records if record["round"]]
    scores = {
        str(round_ * local_steps): {source: score.mean for source, score in by_source.items()}
        for round_, (_, by_source) in sorted(evaluations(records).items())
    }
    reports = [numbers for record in rounds for numbers in record["clients"].values()]

    def total(key: str) -> float:
        return sum(numbers.get(key) or 0 for numbers in reports)

    drawn = BATCH * local_steps * len(reports)
    run: Run = {
        "pass@1": scores,
        "steps": [record["round"] * local_steps for record in rounds],
        "drawn": drawn,
        "labels": drawn if arm == "labels" else int(total("labels_asked")),
        "tokens_sampled": int(total("tokens_sampled")),
        "tokens_trained": int(total("tokens_trained")),
        "seconds_step": sum(map(total, _PHASES)) / (local_steps * len(reports)),
    }
    if total("seconds_probes"):
        run["seconds_probes"] = total("seconds_probes") / (local_steps * len(reports))
    # `pass@1` is taken: what training samples truly came to is `audited`.
    for key, named in {"audited": "pass@1", **{key: key for key in _SERIES}}.items():
        means = [_mean(numbers.get(named) for numbers in record["clients"].values()) for record in rounds]
        if any(mean is not None for mean in means):
            run[key] = means
    for key in ("calibration", "audit_calibration"):
        tables = [numbers[key] for numbers in reports if key in numbers]
        if tables:
            run[key] = added(tables)
    return run


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


# Numbers of one run, in % or points.


def accuracies(run: Run, kind: str) -> list[tuple[int, float]]:
    """Held-out pass@1 by local step, the mean over the families of a kind."""
    return [
        (int(step), 100 * fmean(by_source[family] for family in FAMILIES[kind]))
        for step, by_source in run["pass@1"].items()
    ]


def course(run: Run, key: str) -> list[tuple[int, float]]:
    """A number by the last step of its round, where there is one; in %."""
    pairs = zip(run["steps"], run.get(key, []), strict=False)
    return [(step, 100 * value) for step, value in pairs if value is not None]


def start(run: Run, kind: str) -> float:
    return accuracies(run, kind)[0][1]


def last(run: Run, kind: str) -> float:
    return accuracies(run, kind)[-1][1]


def worst(run: Run, kind: str) -> float:
    """The lowest after the start."""
    return min(value for _, value in accuracies(run, kind)[1:])


def recovered(run: Run, full: Run, kind: str) -> float | None:
    """Its gain as a share of the gain with all labels, in %; None where labels gained nothing."""
    gain = last(full, kind) - start(full, kind)
    return 100 * (last(run, kind) - start(run, kind)) / gain if gain > 0 else None


def collapse(accuracy: Sequence[tuple[int, float]], reward: Sequence[tuple[int, float]]) -> int | None:
    """The first step at which an accuracy is more than `FALL` points below its first value while the reward of the
    round is above that of the first round; None if there is none.

    accuracy, reward: (step, %) in order.
    """
    before = accuracy[0][1]
    rewards = dict(reward)
    for step, value in accuracy[1:]:
        if value < before - FALL and step in rewards and rewards[step] > reward[0][1]:
            return step
    return None


def collapse_of(run: Run, kind: str, *, at_the_end: bool = False) -> int | None:
    """By held-out accuracy, of all families or of a kind; `audited`: by that of the responses trained on.

    at_the_end: in the last round, whatever was before.
    """
    accuracy = course(run, "audited") if kind == "audited" else accuracies(run, kind)
    if at_the_end:
        accuracy = [accuracy[0], accuracy[-1]] if accuracy else []
    return collapse(accuracy, course(run, "reward")) if accuracy else None


# Calibration: ten bins of P1.

Table = dict[str, list[float]]
"""n, sum (of P1) and right, by bin."""


def added(tables: Iterable[Mapping[str, Sequence[float]]]) -> Table:
    """Bin by bin."""
    listed = list(tables)
    return {
        key: [sum(column) for column in zip(*(t[key] for t in listed), strict=True)] for key in ("n", "sum", "right")
    }


def calibration_error(table: Mapping[str, Sequence[float]]) -> float | None:
    """By how much P1 and the share that is right differ, mean over problems, in points (Guo et al., arXiv 1706.04599);
    None without a problem."""
    many = sum(table["n"])
    apart = sum(abs(expected - right) for expected, right in zip(table["sum"], table["right"], strict=True))
    return 100 * apart / many if many else None


# Over seeds.


def over_seeds(runs: Runs, value: Callable[[Run], float | None]) -> Spread | None:
    """A number's mean and interval over the seeds that have it; None if none has."""
    values = {seed: value(run) for seed, run in runs.items()}
    return spread({seed: number for seed, number in values.items() if number is not None and math.isfinite(number)})


def recovered_over_seeds(runs: Runs, full: Runs, kind: str) -> Spread | None:
    """`recovered`, seed by seed."""
    shares = {seed: recovered(run, full[seed], kind) for seed, run in runs.items() if seed in full}
    return spread({seed: share for seed, share in shares.items() if share is not None})


def collapsed(runs: Runs, kind: str, *, at_the_end: bool = False) -> dict[int, int]:
    """By seed the step of its collapse; seeds without one are left out."""
    steps = {seed: collapse_of(run, kind, at_the_end=at_the_end) for seed, run in runs.items()}
    return {seed: step for seed, step in steps.items() if step is not None}
