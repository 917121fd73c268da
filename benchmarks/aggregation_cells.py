"""The cells of `scripts/bench aggregation`, by part, and what each changes in examples/embedded.toml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from benchmarks.aggregation_data import DIFFICULTIES, FEDERATIONS
from fedrlvr.aggregation import RULES

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "embedded.toml"
RUNS = ROOT / "runs" / "aggregation"
DATA = Path("runs") / "aggregation" / "data"
"""From the root, where scripts/bench runs; it is written down with each run, whose directory may be moved."""
ROUNDS, EVERY = 8, 4
COMMON = [
    "aggregation.server_learning_rate=1",  # the default when the results were made
    f"train.rounds={ROUNDS}",
    "train.local_steps=3",
    "train.problems_per_step=8",
    f"evaluate.every={EVERY}",
    "data.train_size=4096",
    "run.keep_checkpoints=2",
]
SEEDS = {"a": 5, "b": 3, "c": 5, "d": 3}
"""Of each part; seeds are 0, 1, ..."""

FASTER = ("fedit", "ffa", "rolora", "flora")
"""Run at twice the learning rate too: added once the others had been seen, three of these having ended far lower."""
MIXED = "lora.rank={north=2, east=4, south=8, west=16}"
FGRPO = {
    "fgrpo": [],
    "zscore": ["aggregation.fgrpo_gain=zscore"],
    "window": ["aggregation.fgrpo_baseline=window"],
    "positive": ["aggregation.fgrpo_shape=positive"],
    "cold": ["aggregation.fgrpo_temperature=0.25"],
}
"""FGRPO as it comes, and with one option other than that."""
WEIGHTS = {
    "even": ("examples", "equal", "fgrpo", "cold"),
    "scales": ("examples", "fgrpo"),
    "difficulty": ("examples", *FGRPO),
    "wrong_labels": ("examples", *FGRPO),
}
"""By federation. Where all clients hold as many problems, `equal` is `examples` but for rounding: once is enough. Gains
are free of the scale of rewards, so `scales` has no options; in `even` the one is tried that helped elsewhere."""
FEDERATION = {
    "even": [],
    "scales": ["data.rewards='benchmarks.aggregation_data:scaled'"],
    "difficulty": [f"federation.clients={list(DIFFICULTIES)}"],
    "wrong_labels": [],
}
Attack = Literal["sign", "scaled", "nan"]
ATTACKS: tuple[Attack, ...] = ("sign", "scaled", "nan")
TIMES_SCALED = 100.0
EIGHT = [f"client-{number}" for number in range(1, 9)]
HOSTILE = EIGHT[-1]
DEFENCES = {
    "none": [],
    "clip": ["aggregation.robust=clip"],
    "median": ["aggregation.robust=median"],
    "trimmed_mean": ["aggregation.robust=trimmed_mean"],
    "krum": ["aggregation.robust=krum"],
    "left_out": ["aggregation.largest_change=3", "federation.quorum=0.5"],
}
CHECKED = ["federation.quorum=0.5"]
"""A reply that is not finite is refused whatever the defence; with this the round goes on without it."""


def _rules() -> dict[str, list[str]]:
    four = [*COMMON, "data.test_size=2048"]
    cells = {rule: [*four, f"aggregation.type={rule}"] for rule in RULES}
    cells |= {precision: [*four, f"aggregation.precision={precision}"] for precision in ("float16", "int8")}
    return cells | {f"faster/{r}": [*four, f"aggregation.type={r}", "train.learning_rate=6e-3"] for r in FASTER}


def _ranks() -> dict[str, list[str]]:
    four = [*COMMON, "data.test_size=2048"]
    cells = {f"mixed/{rule}": [*four, MIXED, f"aggregation.type={rule}"] for rule in ("flora", "hetlora", "flexlora")}
    for rank, rule in ((2, "fedit"), (16, "fedit"), (16, "flexlora")):
        cells[f"{rank}/{rule}"] = [*four, f"lora.rank={rank}", f"aggregation.type={rule}"]
    return cells


def _weights() -> dict[str, list[str]]:
    cells = {}
    for federation, weightings in WEIGHTS.items():
        data = ["data.test_size=2048", *FEDERATION[federation]]
        if federation in FEDERATIONS:
            data += ["data.name=jsonl", f"data.path={DATA / federation}", "prompt.instruction=''"]
        for weights in weightings:
            options = ["aggregation.weights=fgrpo", *FGRPO[weights]] if weights in FGRPO else None
            cells[f"{federation}/{weights}"] = [*COMMON, *data, *(options or [f"aggregation.weights={weights}"])]
    first = ("examples", "equal", "fgrpo")  # the question itself before its options, and these where they may help
    return dict(sorted(cells.items(), key=lambda cell: (not cell[0].endswith(first), cell[0].startswith("even"))))


def _hostile() -> dict[str, list[str]]:
    eight = [
        *COMMON,
        "train.local_steps=2",
        "train.problems_per_step=4",
        "evaluate.every=0",
        "data.test_size=1024",
        f"federation.clients={EIGHT}",
    ]
    cells: dict[str, list[str]] = {}
    for attack in ("nobody", "sign", "scaled"):
        cells |= {f"{attack}/{defence}": [*eight, *DEFENCES[defence]] for defence in DEFENCES}
    return cells | {"nan/none": eight, "nan/quorum": [*eight, *CHECKED]}


PARTS = {"a": _rules(), "b": _ranks(), "c": _weights(), "d": _hostile()}
"""What each cell changes in examples/embedded.toml."""


def attack_of(part: str, cell: str) -> Attack | None:
    """What the hostile client of a cell does; None where nobody is hostile."""
    return next((attack for attack in ATTACKS if part == "d" and cell.startswith(f"{attack}/")), None)


def failed(directory: Path) -> dict[int, str]:
    """By seed, what ended a run of a cell with a hostile client."""
    path = directory / "failed.json"
    reasons = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {int(seed): str(reason) for seed, reason in reasons.items()}
