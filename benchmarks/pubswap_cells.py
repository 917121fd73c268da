"""The cells of `scripts/bench pubswap`: an arm at a tau, and what it changes in examples/embedded.toml."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "embedded.toml"
RUNS = ROOT / "runs" / "pubswap"
TAUS = (60, 20, 5)
STEPS, HALF, STRETCH = 120, 60, 5
PRIVATE, PUBLIC = 4, 5
COMMON = [
    "aggregation.server_learning_rate=1",  # the default when the results were made
    "data.train_size=4096",
    "data.public_size=256",
    "data.test_size=2048",
    "federation.clients=['north', 'east', 'south', 'west']",
    "run.keep_checkpoints=2",
]
FEDPROX_MU, MILD_MU = 0.01, 0.001
ARMS: dict[str, list[str]] = {
    "fedavg": [f"train.problems_per_step={PRIVATE + PUBLIC // STRETCH}"],
    "fedprox": [f"train.problems_per_step={PRIVATE + PUBLIC // STRETCH}", f"train.proximal_mu={FEDPROX_MU}"],
    "fedprox_mild": [f"train.problems_per_step={PRIVATE + PUBLIC // STRETCH}", f"train.proximal_mu={MILD_MU}"],
    **{
        swap: [
            f"train.problems_per_step={PRIVATE}",
            "coordination.type=pubswap",
            f"coordination.swap={swap}",
            f"coordination.public_problems={PUBLIC}",
        ]
        for swap in ("none", "random", "full", "balanced")
    },
}
"""Settings of each arm; exchanges follow from tau."""
AFTERWARDS = {"fedprox_mild": (60,)}
"""Arms that were added once the others had been seen, and the taus they were run at."""


def settings(tau: int, arm: str) -> list[str]:
    """What a cell changes in examples/embedded.toml."""
    exchanges = [f"coordination.exchanges={tau // STRETCH}"] if "coordination.type=pubswap" in ARMS[arm] else []
    rounds = [f"train.rounds={STEPS // tau}", f"train.local_steps={tau}", f"evaluate.every={HALF // tau}"]
    return [*COMMON, *rounds, *ARMS[arm], *exchanges]
