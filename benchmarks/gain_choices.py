"""Settings that `scripts/bench gain` chooses on validation problems: the learning rate, and the fixed server step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cells import timed
from benchmarks.gain_cells import BASE, FIXED_STEPS, PLAIN, RATES, RATES_ALONE, RATES_PERSONAL, RUNS, Arm, choosing
from benchmarks.gain_results import committed_choice
from fedrlvr.reporting.scores import evaluations
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.simulation.sweep import sweep
from fedrlvr.simulation.sweep_plan import plan

CHOICES = RUNS / "choices"


def choose(federation: str, tau: int, arm: Arm, rate: str = "") -> dict[str, float]:
    """The validation score at the end of a run for each learning rate, or with a rate for each fixed server step.

    arm: its rule and its use of the public problems count.
    """
    kind, values = ("step", FIXED_STEPS) if rate else ("rate", RATES)
    given, key = choosing(federation, tau, arm.rule, arm.public), "train.learning_rate"
    if rate:
        given, key = [*given, f"train.learning_rate={rate}"], "aggregation.server_learning_rate"
    else:
        given = [*given, PLAIN]
    return _scored(key, values, given, CHOICES / federation / f"tau-{tau}" / Arm(arm.rule, kind, arm.public).name)


def _last(records: list[dict[str, Any]]) -> float:
    """The last score of the global adapter, or of the sites' own where no adapter is everybody's."""
    curve = evaluations(records)
    return curve[max(curve)][0].mean


def _scored(key: str, values: tuple[str, ...], given: list[str], directory: Path) -> dict[str, float]:
    """The score at the end of a run for each value of a setting, kept in the directory of the runs."""
    kept = directory / "scores.json"
    if (known := committed_choice(str(directory.relative_to(CHOICES)))) is not None and set(known) == set(values):
        return known
    if not kept.exists():
        what = plan(BASE, given, [f"{key}={','.join(values)}"], directory=directory)
        with timed(directory):
            sweep(what, command="scripts/bench gain").check()
        scores = {}
        for value, planned in zip(values, what.federations, strict=True):
            scores[value] = _last(read_metrics(planned.directory))
        kept.write_text(json.dumps(scores), "utf-8")
    return dict(json.loads(kept.read_text("utf-8")))


def best(scores: dict[str, float]) -> str:
    """The value of the highest score; of equal ones the smallest."""
    return max(scores, key=lambda value: (scores[value], -float(value)))


def chosen_rate(federation: str, tau: int) -> str:
    """The learning rate chosen at this tau, with FedIT and a server step of 1; it serves every arm."""
    return best(choose(federation, tau, Arm("fedit", "")))


def chosen_step(federation: str, tau: int, arm: Arm) -> str:
    """The fixed server step chosen at this tau for the arm's rule and use of the public problems."""
    return best(choose(federation, tau, arm, chosen_rate(federation, tau)))


def chosen_rate_alone(federation: str) -> str:
    """The learning rate chosen for training each site alone, scored on the sites' own validation problems."""
    given = [*choosing(federation, 20, "fedit", ""), "federation.arm=local"]
    return best(_scored("train.learning_rate", RATES_ALONE, given, CHOICES / federation / "alone-rate"))


def chosen_rate_personal(federation: str, kind: str, settings: list[str]) -> str:
    """The learning rate chosen for a kind of personal adapter that trains in every round (`settings`), scored on the
    sites' own validation problems."""
    given = [*choosing(federation, 20, "fedit", ""), *settings]
    place = CHOICES / federation / f"{kind}-rate"
    return best(_scored("train.learning_rate", RATES_PERSONAL, given, place))
