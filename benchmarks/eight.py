"""The federation of eight sites that `scripts/bench weights` and `methods` share: its settings at two scales, how a
cell is run at several seeds, how its learning rate is chosen, and what is read from its runs.

One task in common: problems of all eight families are divided by Dirichlet(0.5) among eight sites, so that each site
has about 50 (at full scale) and draws each of them many times; the prompts of site-4 are worded differently.
"""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.cells import timed
from fedrlvr.machine import description, package_version
from fedrlvr.reporting.scores import evaluations, label_lines, totals
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.simulation.sweep import sweep
from fedrlvr.simulation.sweep_plan import plan
from fedrlvr.version import __version__

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "embedded.toml"
SITES = [f"site-{number}" for number in range(1, 9)]
CHOICE_SEED = 100
"""Seed of the runs that learning rates are chosen by; no cell is run at it."""
WORDED = {"site-4": "{template = 'Q: {{ prompt }}'}"}
"""Deviations of every federation here."""

Run = dict[str, Any]
Runs = Mapping[int, Run]
"""The runs of a cell by seed."""


@dataclass(frozen=True)
class Scale:
    """How large the runs are.

    problems: training problems of all sites. public, held_out: sizes of the public and the held-out set.
    rounds, steps: rounds, and optimizer steps of a site in each. exchanges: in a round, with one public step each.
    batch: problems of a local step. group: responses to a problem. labels: that a site may ask for in a run, in arms
    that ask. rates: learning rates to choose from.
    """

    name: str
    seeds: int
    problems: int
    public: int
    held_out: int
    rounds: int
    steps: int
    exchanges: int
    batch: int
    group: int
    labels: int
    rates: tuple[str, ...]
    every: int

    def settings(self, deviations: Mapping[str, str]) -> list[str]:
        """What the federation changes in examples/embedded.toml. deviations: inline TOML by site."""
        stated = ", ".join(f"{site} = {table}" for site, table in (WORDED | dict(deviations)).items())
        return [
            f"data.train_size={self.problems}",
            f"data.public_size={self.public}",
            f"data.validation_size={self.held_out}",
            f"data.test_size={self.held_out}",
            "partition.type=dirichlet",
            "partition.alpha=0.5",
            f"federation.clients={SITES}",
            f"federation.deviations={{{stated}}}",
            f"sampling.group_size={self.group}",
            f"train.rounds={self.rounds}",
            f"train.problems_per_step={self.batch}",
            f"evaluate.every={self.every}",
            "run.keep_checkpoints=2",
            "run.responses=0",
        ]

    def exchanging(self, swap: str, public_problems: int) -> list[str]:
        """Settings of exchanges whose public steps take the place of as many local ones."""
        return [
            "coordination.type=pubswap",
            f"coordination.swap={swap}",
            f"coordination.exchanges={self.exchanges}",
            f"coordination.public_problems={public_problems}",
            f"train.local_steps={self.steps - self.exchanges}",
        ]


FULL = Scale("full", 5, 400, 64, 1024, 6, 20, 4, 5, 8, 10, ("1.5e-3", "3e-3", "6e-3"), 2)
QUICK = Scale("quick", 2, 80, 16, 64, 2, 3, 1, 2, 4, 2, ("3e-3", "6e-3"), 1)
SCALES = {scale.name: scale for scale in (FULL, QUICK)}


def directory_of(bench: str, scale: str, kind: str, name: str) -> Path:
    """The directory of a cell (kind `cells`) or of a choice (`choices`)."""
    return ROOT / "runs" / (bench if scale == "full" else f"{bench}-{scale}") / kind / name


def run_choice(bench: str, scale: str, name: str, settings: Sequence[str]) -> None:
    """The validation score of each learning rate at the end of a run of these settings, written once."""
    directory, rates = directory_of(bench, scale, "choices", name), SCALES[scale].rates
    kept = directory / "scores.json"
    if kept.exists():
        return
    given = [*settings, "evaluate.split=validation", "evaluate.every=0", f"run.seed={CHOICE_SEED}"]
    what = plan(BASE, given, [f"train.learning_rate={','.join(rates)}"], directory=directory)
    with timed(directory):
        sweep(what, command=f"scripts/bench {bench}").check()
    scores = {}
    for rate, planned in zip(rates, what.federations, strict=True):
        curve = evaluations(read_metrics(planned.directory))
        scores[rate] = curve[max(curve)][0].mean
    kept.write_text(json.dumps(scores), "utf-8")


def choices(bench: str, scale: str, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """The validation scores by choice and learning rate, as far as they are there."""
    paths = {name: directory_of(bench, scale, "choices", name) / "scores.json" for name in names}
    return {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}


def best(scores: Mapping[str, float]) -> str:
    """The rate of the highest score; of equal ones the smallest."""
    return max(scores, key=lambda rate: (scores[rate], -float(rate)))


def run_cell(bench: str, scale: str, name: str, choice: str, settings: Sequence[str], seeds: int) -> None:
    """All seeds of one cell as one sweep, at the learning rate of a choice; finished runs are not run again."""
    rate = best(choices(bench, scale, [choice])[choice])
    directory = directory_of(bench, scale, "cells", name)
    what = plan(BASE, [*settings, f"train.learning_rate={rate}"], seeds=seeds, directory=directory)
    if not all(planned.finished for planned in what.federations):
        with timed(directory):
            sweep(what, command=f"scripts/bench {bench}").check()


def load(bench: str, scale: str, names: Iterable[str], seeds: int) -> dict[str, Runs]:
    """The finished runs of each cell that has at least two."""
    cells: dict[str, Runs] = {}
    for name in names:
        place = directory_of(bench, scale, "cells", name) / "as-given"
        paths = {seed: place / f"seed-{seed}" for seed in range(seeds)}
        runs = {seed: run_of(path) for seed, path in paths.items() if (path / "report.html").exists()}
        if len(runs) > 1:
            cells[name] = runs
    return cells


def run_of(directory: Path) -> Run:
    """A run's curve in % by round, the worst site and family at the end, client weights, and what it cost."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    records = read_metrics(directory)
    curve, sums = evaluations(records), totals(records)
    last = records[-1]["evaluate"]
    sites = {
        site: 100 * sum(s["total"] for s in sources.values()) / sum(s["n"] for s in sources.values())
        for site, sources in last.items()
        if sources
    }
    families = {name: 100 * score.mean for name, score in curve[max(curve)][1].items()}
    train, coordination = config["train"], config["coordination"]
    public = coordination.get("exchanges", 0) * coordination.get("public_steps", 0)
    asked = [line for line in label_lines(records) if line.client is None]
    return {
        "pass@1": {str(round_): 100 * overall.mean for round_, (overall, _) in curve.items()},
        "families": families,
        "sites": sites,
        "weights": {
            site: [record["clients"].get(site, {}).get("weight") for record in records if record["round"]]
            for site in config["federation"]["clients"]
        },
        "labels": asked[0].held if asked else config["data"]["train_size"],
        "tokens_sampled": sums.tokens_sampled,
        "tokens_trained": sums.tokens_trained,
        "optimizer_steps": train["rounds"] * (train["local_steps"] * train["updates_per_batch"] + public),
        "bytes_up": round(sum(sums.bytes_up.values()) / len(sums.bytes_up)),
        "bytes_down": round(sum(sums.bytes_down.values()) / len(sums.bytes_down)),
        "learning_rate": train["learning_rate"],
    }


def end(run: Run) -> float:
    """pass@1 in % at the end of a run, mean over the families."""
    return float(run["pass@1"][max(run["pass@1"], key=int)])


def area(run: Run) -> float:
    """Area under the curve of pass@1 over rounds by the trapezoid rule, by its length: a mean in %."""
    points = sorted((int(round_), score) for round_, score in run["pass@1"].items())
    parts = [(b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)]
    return float(sum(parts) / (points[-1][0] - points[0][0]))


def worst_site(run: Run) -> float:
    """Lowest pass@1 in % of the sites, each on its own held-out problems."""
    return float(min(run["sites"].values()))


def worst_family(run: Run) -> float:
    """Lowest pass@1 in % of the problem families."""
    return float(min(run["families"].values()))


def cpu_seconds(bench: str, scale: str) -> float:
    """CPU seconds of the runs that are still on this machine."""
    root = directory_of(bench, scale, "cells", "").parent
    return float(sum(json.loads(path.read_text("utf-8"))["cpu"] for path in root.rglob("seconds.json")))


def provenance(bench: str, scale: str, seeds: int) -> dict[str, Any]:
    """What results say of their making: command, commit, date, seeds, versions, machine and CPU seconds."""
    given = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(given, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": f"scripts/bench {bench}{' --quick' if scale == 'quick' else ''} --seeds {seeds}",
        "commit": commit or "unknown",
        "date": datetime.date.today().isoformat(),
        "seeds": list(range(seeds)),
        "versions": {"fedrlvr": __version__, **{n: package_version(n) for n in ("torch", "transformers", "flwr")}},
        "machine": description(),
        "cpu_seconds": round(cpu_seconds(bench, scale)),
    }


def about(made: Mapping[str, Any]) -> str:
    """The provenance as a sentence for a table."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        f"`{made['command']}`, {made['date']}, commit {made['commit']}, {versions}, {made['machine']}, one thread a "
        f"process, {made['cpu_seconds'] / 3600:.2f} CPU hours of runs that are still on this machine. pass@1 in %, one "
        f"sample each, mean over the families; mean and 95 % interval (Student's t) over n = {len(made['seeds'])} "
        "seeds; differences are paired by seed."
    )
