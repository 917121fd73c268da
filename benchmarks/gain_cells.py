"""The cells of `scripts/bench gain`: what a federation, a synchronisation interval and an arm change in
examples/embedded.toml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "embedded.toml"
RUNS = ROOT / "runs" / "gain"
STEPS = 120
"""Local steps of a run."""
TAUS = (60, 20, 5)
"""Local steps between two synchronisations."""
EVALUATIONS = {60: 1, 20: 1, 5: 4}
"""Rounds between two evaluations, by tau."""
CHOICE_SEED = 100
"""Seed of the runs that settings are chosen by; no arm is run at it."""
RATES = ("1.5e-3", "3e-3", "6e-3")
RATES_ALONE = ("5e-4", "1e-3", "1.5e-3", "3e-3")
"""Learning rates to choose from where each site trains alone, without a mean that steadies it."""
RATES_PERSONAL = ("1e-3", "1.5e-3", "3e-3")
"""Learning rates to choose from where each site keeps a part of its adapter."""
PLAIN = "aggregation.server_learning_rate=1"
"""Plain averaging, whatever the default is."""
FIXED_STEPS = ("1", "1.5", "2", "2.5")
COMMON = [
    "data.public_size=256",
    "data.validation_size=1024",
    "data.test_size=1024",
    "federation.clients=['north', 'east', 'south', 'west']",
    "train.problems_per_step=4",
    "run.keep_checkpoints=2",
]
FEDERATIONS: dict[str, list[str]] = {
    "disjoint": ["data.train_size=4096", "partition.type=source"],
    "life": [
        "data.train_size=192",
        "partition.type=dirichlet",
        "partition.alpha=0.5",
        "federation.deviations={west = {template = 'Q: {{ prompt }}'}}",
    ],
}
"""Settings of each federation."""


@dataclass(frozen=True)
class Arm:
    """A LoRA rule with a server step.

    step: "1", "2", ... is a fixed step; `tuned` is the fixed step chosen on validation problems; `ratio`, `auto` and
    `clients` are the rules of `server_learning_rate = "auto"` with the agreement `none`, `mean` and `clients`; `search`
    is a line search by the sites (gain_search.py).
    public: what is done with the public problems, a key of `PUBLIC`; "" is nothing.
    """

    rule: str
    step: str
    public: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.rule, self.step, self.public)))


_EXCHANGES = ["coordination.type=pubswap", "coordination.public_problems=5", "coordination.exchanges=10"]
_FEWER = "train.local_steps=50"  # which with the ten public steps of a round are 60 optimizer steps
PUBLIC: dict[str, list[str]] = {
    "": [],
    "pooled": ["data.train_on_public=true"],
    "steps": [*_EXCHANGES, "coordination.swap=none", _FEWER],
    "balanced": [*_EXCHANGES, "coordination.swap=balanced", _FEWER],
}
"""Uses of the public problems at equal optimizer steps, at tau 60: `pooled` adds them to every client's own problems;
`steps` takes steps on them every five local steps; `balanced` also exchanges responses, which is PubSwap."""


AGREEMENTS = {"ratio": "none", "auto": "mean", "clients": "clients"}
CORE = [Arm("fedit", step) for step in ("1", "auto", "tuned", "clients", "2", "ratio")]
PRODUCTS = [Arm("flexlora", step) for step in ("1", "auto", "2")]
SEARCH = [Arm("fedit", "search")]
EXCHANGING = [Arm("fedit", "tuned", public) for public in PUBLIC if public]
FREQUENT = [Arm("fedit", step) for step in ("1", "auto")]
CELLS: list[tuple[str, int, Arm]] = [
    *((federation, tau, arm) for arm in CORE for tau in (60, 20) for federation in FEDERATIONS),
    *((federation, 5, arm) for arm in FREQUENT for federation in FEDERATIONS),
    *(("disjoint", 60, arm) for arm in EXCHANGING),
    *((federation, tau, arm) for arm in PRODUCTS for tau in (60, 20) for federation in FEDERATIONS),
    *((federation, tau, arm) for arm in SEARCH for tau in (60, 20) for federation in FEDERATIONS),
]
"""Federation, tau and arm, the most telling first."""


def schedule(tau: int) -> list[str]:
    """Rounds of a run that synchronises every `tau` local steps."""
    return [f"train.rounds={STEPS // tau}", f"train.local_steps={tau}", f"evaluate.every={EVALUATIONS[tau]}"]


def choosing(federation: str, tau: int, rule: str, public: str) -> list[str]:
    """Settings of the runs that a setting is chosen by: scored at the end, on validation problems."""
    shared = [*COMMON, *FEDERATIONS[federation], *schedule(tau), f"aggregation.type={rule}", *PUBLIC[public]]
    return [*shared, "evaluate.split=validation", "evaluate.every=0", f"run.seed={CHOICE_SEED}"]


def settings(federation: str, tau: int, arm: Arm, *, rate: str, tuned: str) -> list[str]:
    """What a cell changes in examples/embedded.toml.

    rate: the learning rate. tuned: the fixed server step chosen on validation problems.
    """
    step = []
    if arm.step in AGREEMENTS:
        step = ["aggregation.server_learning_rate=auto", f"aggregation.server_agreement={AGREEMENTS[arm.step]}"]
    elif arm.step != "search":
        step = [f"aggregation.server_learning_rate={tuned if arm.step == 'tuned' else arm.step}"]
    shared = [*COMMON, *FEDERATIONS[federation], *schedule(tau)]
    return [*shared, f"train.learning_rate={rate}", f"aggregation.type={arm.rule}", *step, *PUBLIC[arm.public]]


def directory_of(federation: str, tau: int, arm: Arm, tuned: str) -> Path:
    """A cell's sweep; a tuned step that equals a fixed one is the same runs."""
    step = tuned if arm.step == "tuned" else arm.step
    return RUNS / federation / f"tau-{tau}" / Arm(arm.rule, step, arm.public).name
