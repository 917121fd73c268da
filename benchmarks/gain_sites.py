"""What each site gains, and what each contributes: the parts `sites` and `contribution` of `scripts/bench gain`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.cells import timed
from benchmarks.gain_cells import BASE, COMMON, FEDERATIONS, PLAIN, ROOT, RUNS, schedule
from benchmarks.gain_choices import chosen_rate, chosen_rate_alone, chosen_rate_personal
from benchmarks.gain_results import committed_verdicts, first_missing
from fedrlvr.server.saved_adapter import open_run
from fedrlvr.simulation.contribution import leave_one_out, measure
from fedrlvr.simulation.sweep import sweep
from fedrlvr.simulation.sweep_plan import plan
from fedrlvr.simulation.verdict import judge

TAU = 20
PERSONAL: dict[str, list[str]] = {
    "alone": ["federation.arm=local"],
    "finish": [PLAIN, "personal.type=finish", "personal.steps=20"],
    "mix": [PLAIN, "personal.type=mix", "personal.steps=20"],
    "fedsa": [PLAIN, "personal.type=fedsa"],
    "fedalt": ["personal.type=fedalt"],
}
"""Runs that the verdicts need: every site alone, and a federation for each kind of personal adapter."""
CONTRIBUTORS = [
    PLAIN,
    "federation.clients=['north', 'east', 'south', 'west', 'half', 'idle']",
    "federation.deviations={half = {wrong_labels = 0.5}, idle = {free_rider = true}}",
    "data.train_size=288",
    "train.rounds=3",
    "evaluate.every=0",
]
"""The life-like federation with two further sites: half of the labels of `half` are wrong, and `idle` returns its
adapter unchanged."""


def directory_of(federation: str, kind: str, seed: int) -> Path:
    """The run of a kind at a seed."""
    return RUNS / "sites" / federation / kind / "as-given" / f"seed-{seed}"


def run_sites(federation: str, kind: str, seeds: int) -> None:
    """All seeds of one kind, as one cohort."""
    directory = RUNS / "sites" / federation / kind
    rates = [f"train.learning_rate={chosen_rate(federation, TAU)}"]
    if kind == "alone":
        rates = [f"train.learning_rate={chosen_rate_alone(federation)}"]
    elif any(setting.startswith("personal.steps") for setting in PERSONAL[kind]):
        rates += [f"personal.learning_rate={chosen_rate_alone(federation)}"]
    else:
        rates = [f"train.learning_rate={chosen_rate_personal(federation, kind, PERSONAL[kind])}"]
    given = [*COMMON, *FEDERATIONS[federation], *schedule(TAU), *rates, "evaluate.every=0", *PERSONAL[kind]]
    # Every kind is compared with `alone`.
    needing = [other for other in PERSONAL if other != "alone"] if kind == "alone" else [kind]
    first = min(first_missing(committed_verdicts().get((federation, other), {})) for other in needing)
    if first >= seeds:
        return
    what = plan(BASE, [*given, f"run.seed={first}"], seeds=seeds - first, directory=directory)
    with timed(directory):
        if not all(planned.finished for planned in what.federations):
            sweep(what, command="scripts/bench gain").check()


def judge_sites(federation: str, kind: str, seeds: int) -> None:
    """The verdict on every run of a kind, against the runs that trained each site alone, with the cross-site matrix."""
    with timed(RUNS / "sites" / federation / kind):
        for seed in range(seeds):
            run = directory_of(federation, kind, seed)
            if (run / "report.html").exists() and not (run / "verdict.json").exists():
                judge(open_run(run), alone=directory_of(federation, "alone", seed), matrix=True)


def run_contribution(seeds: int) -> None:
    """Leave-one-out among six sites, two of which are no help; the tables go to docs/results."""
    directory = RUNS / "contribution"
    life = [setting for setting in FEDERATIONS["life"] if not setting.startswith(("federation.", "data.train_size"))]
    common = [setting for setting in COMMON if not setting.startswith("federation.")]
    rate = f"train.learning_rate={chosen_rate('life', TAU)}"
    given = [*common, *life, "train.local_steps=20", rate, *CONTRIBUTORS]
    directory.mkdir(parents=True, exist_ok=True)
    with timed(directory):
        _, result = measure(
            leave_one_out(BASE, given, seeds=seeds, directory=directory), command="scripts/bench gain contribution"
        )
    result.check()
    for ending in ("json", "md"):
        shutil.copyfile(directory / f"contribution.{ending}", ROOT / "docs" / "results" / f"contribution.{ending}")


def load_verdicts(seeds: int) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """verdict.json of every judged run, of docs/results/gain.json or here, by federation and kind, by seed."""
    verdicts = committed_verdicts()
    for federation in FEDERATIONS:
        for kind in PERSONAL:
            for seed in range(seeds):
                path = directory_of(federation, kind, seed) / "verdict.json"
                if path.exists():
                    verdicts.setdefault((federation, kind), {})[seed] = json.loads(path.read_text("utf-8"))
    return verdicts
