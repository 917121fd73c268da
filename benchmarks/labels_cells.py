"""The cells of `scripts/bench labels`: what a federation and an arm change in examples/embedded.toml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks import gain_cells
from benchmarks.gain_cells import BASE

__all__ = ["ARMS", "BASE", "CELLS", "COMPARISONS", "FEDERATIONS", "NAMES", "RATES", "Federation", "directory_of"]

RUNS = gain_cells.ROOT / "runs" / "labels"
CHOICE_SEED = gain_cells.CHOICE_SEED
RATES = gain_cells.RATES
QUICK_TAU = 3
"""Local steps between two synchronisations with `--quick`."""
BUDGET = 0.2
"""Share of the distinct problems that have a label in every arm that asks."""


@dataclass(frozen=True)
class Federation:
    """Clients, their problems, and a schedule of local steps.

    settings: all of it but the schedule. steps: local steps of a run; tau: between two synchronisations; every: rounds
    between two evaluations.
    """

    settings: tuple[str, ...]
    steps: int
    tau: int
    every: int

    def schedule(self, *, quick: bool) -> list[str]:
        """Rounds of a run; with `quick` two short ones and few held-out problems."""
        if quick:
            short = ["train.rounds=2", f"train.local_steps={QUICK_TAU}", "evaluate.every=1"]
            return [*short, "data.test_size=16", "data.validation_size=0", "data.public_size=0"]
        rounds, every = self.steps // self.tau, self.every
        return [f"train.rounds={rounds}", f"train.local_steps={self.tau}", f"evaluate.every={every}"]


FEDERATIONS = {
    "life": Federation((*gain_cells.COMMON, *gain_cells.FEDERATIONS["life"]), steps=120, tau=20, every=1),
    "pool": Federation(
        (
            "data.train_size=320",
            "data.validation_size=1024",
            "data.test_size=1024",
            "federation.clients=['all']",
            "train.problems_per_step=20",
            "train.optimizer_state=keep",
            "run.keep_checkpoints=2",
        ),
        steps=80,
        tau=8,
        every=2,
    ),
}
"""`life`: 192 problems of eight families at four clients by Dirichlet(0.5), each drawn about ten times. `pool`: one
client with 320 problems, each drawn five times."""


def _asking(kind: str, **more: str) -> tuple[str, ...]:
    settings = {"type": kind, "budget": f"{BUDGET:g}", "audit": "true", **more}
    return tuple(f"supervision.{key}={value}" for key, value in settings.items())


ARMS: dict[str, tuple[str, ...]] = {
    "labels": ("supervision.type=labels",),
    "random": _asking("random"),
    "care": _asking("care"),
    "care-random": _asking("care", selection="random"),
    "trapo": _asking("trapo"),
    "geomin": _asking("geomin"),
    "oracle": _asking("oracle"),
    "care-gap": _asking("care", score="gap"),
    "care-even": _asking("care", spend="even"),
}
"""Settings of each arm, the most telling first."""
NAMES = {
    "labels": "all labels",
    "random": "random, rest masked",
    "care": "CARE",
    "care-random": "random queries, CARE's trust",
    "trapo": "TraPO",
    "geomin": "GeoMin, our reading",
    "oracle": "oracle, rest masked",
    "care-gap": "CARE, score by the gap",
    "care-even": "CARE, budget spent evenly",
}
COMPARISONS = [
    ("care", "random"),
    ("care", "care-random"),
    ("care-random", "random"),
    ("oracle", "random"),
    ("trapo", "random"),
    ("geomin", "random"),
    ("care", "trapo"),
]
"""Differences that are corrected for each other by Holm; the first is the primary one."""
CELLS = [(federation, arm) for arm in ARMS for federation in FEDERATIONS]


def settings(federation: str, arm: str, *, quick: bool = False) -> list[str]:
    """What a cell changes in examples/embedded.toml, but for the learning rate."""
    place = FEDERATIONS[federation]
    return [*place.settings, *place.schedule(quick=quick), *ARMS[arm]]


def choosing(federation: str, arm: str) -> list[str]:
    """Settings of the runs that the learning rate is chosen by: scored at the end, on validation problems."""
    given = [item for item in settings(federation, arm) if not item.startswith("evaluate.")]
    return [*given, "evaluate.split=validation", "evaluate.every=0", f"run.seed={CHOICE_SEED}"]


def directory_of(federation: str, arm: str, *, quick: bool = False) -> Path:
    """A cell's sweep."""
    root = RUNS.with_name(f"{RUNS.name}-quick") if quick else RUNS
    return root / federation / arm
