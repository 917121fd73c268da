"""The cells of `scripts/bench care`: an arm in a setting, and what it changes in examples/embedded.toml."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "embedded.toml"
RUNS = ROOT / "runs" / "care"
BATCH = 20
COMMON = [
    "aggregation.server_learning_rate=1",  # the default when the results were made
    "data.train_size=4096",
    "data.test_size=1024",
    f"train.problems_per_step={BATCH}",
    "run.keep_checkpoints=2",
]
SETTINGS = {
    "central": [
        "federation.clients=['all']",
        "train.rounds=10",
        "train.local_steps=8",
        "evaluate.every=2",
        "train.optimizer_state=keep",
    ],
    "four": [
        "federation.clients=['north', 'east', 'south', 'west']",
        "train.rounds=3",
        "train.local_steps=12",
        "evaluate.every=1",
    ],
}
BUDGETS = (5, 10, 20, 40)
"""In % of a step's problems."""


AS_MEASURED = {
    "care": ["supervision.score=gap", "supervision.min_auc=0", "supervision.probe_learning_rate=1e-4"],
    "oracle": ["supervision.score=gap"],
}
"""Settings of a kind of supervision whose defaults were others when the results were made (fedrlvr 0.5.0)."""
VOTE_FREE_STEPS = 20
"""Local steps without trust in votes, of every arm of CARE."""
STEPS = {"central": 80, "four": 36}
"""Local steps of a run."""


def _asking(kind: str, budget: int = 20, **more: str) -> list[str]:
    settings = {"type": kind, "budget": f"{budget / 100:g}", "audit": "true", **more}
    return [f"supervision.{key}={value}" for key, value in settings.items()]


ARMS: dict[str, list[str]] = {
    "labels": ["supervision.type=labels"],
    "majority": ["supervision.type=majority", "supervision.audit=true"],
    **{f"{kind}-{budget}": _asking(kind, budget) for budget in BUDGETS for kind in ("care", "random")},
    **{f"{kind}-20": _asking(kind) for kind in ("oracle", "entropy", "probability")},
    **{f"{kind}-pseudo-20": _asking(kind, rest="pseudo") for kind in ("random", "entropy")},
    "care-untrusted-20": _asking("care", trusted="0"),
    "care-floor-20": _asking("care", min_reliability="0.5"),
    "care-shared-20": _asking("care", share_probes="true"),
}
"""Settings of each arm; its name ends with its budget."""
JUDGED = "care-20"
FIRST = ("labels", "majority", "care-20", "random-20")
_REST = [f"{kind}-{budget}" for budget in (10, 5, 40) for kind in ("care", "random")]
CELLS: list[tuple[str, str]] = [
    *((setting, arm) for setting in SETTINGS for arm in FIRST),
    *(("central", arm) for arm in ("oracle-20", "care-floor-20")),
    *(("four", arm) for arm in ("care-shared-20", "care-floor-20")),
    *(("central", arm) for arm in (*_REST, "entropy-20", "random-pseudo-20")),
    *(("four", arm) for arm in _REST),
    *(("central", arm) for arm in ("probability-20", "care-untrusted-20", "entropy-pseudo-20")),
    *(("four", arm) for arm in ("oracle-20", "care-untrusted-20", "random-pseudo-20")),
]
"""Setting and arm, the most telling first."""


def overrides(setting: str, arm: str) -> list[str]:
    """What a cell changes in examples/embedded.toml."""
    kind = arm.partition("-")[0]
    given = [*COMMON, *SETTINGS[setting], *ARMS[arm], *AS_MEASURED.get(kind, [])]
    return [*given, f"supervision.vote_free_share={VOTE_FREE_STEPS / STEPS[setting]}"] if kind == "care" else given


def directory_of(setting: str, arm: str) -> Path:
    return RUNS / setting / arm


def name(arm: str) -> str:
    """As tables and legends say it."""
    kind, _, budget = arm.rpartition("-")
    if not kind:
        return {"labels": "all labels", "majority": "majority alone"}[arm]
    words = {
        "care": "CARE",
        "care-untrusted": "CARE, none trusted",
        "care-floor": "CARE, trusting from P1 = 0.5",
        "care-shared": "CARE, probes averaged",
        "probability": "lowest probability",
    }
    return f"{words.get(kind, kind.replace('-pseudo', ', rest as voted'))}, {budget} %"
