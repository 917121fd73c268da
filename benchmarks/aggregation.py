"""Aggregation rules, client weights and robust rules on the embedded reasoner.

    scripts/bench aggregation                  all of it, two processes of one thread
    scripts/bench aggregation --collect        the tables from what has been run
    scripts/bench aggregation --parts c --jobs 1

(a) seven rules at one rank, four of them at twice the learning rate, and what travels: float32, float16 or int8
(b) ranks 2, 4, 8 and 16 in one federation, beside rank 2 and rank 16 for all
(c) client weights where clients are even and where they are not (benchmarks/aggregation_data.py says how they differ)
(d) one hostile client of eight, without and with each defence, and each defence where nobody is hostile

Every run is examples/embedded.toml with 8 rounds of 3 local steps of 8 problems with 8 responses, in (d) of 2 steps of
4 problems; pass@1 is on held-out problems before, after 8 rounds and, but in (d), after 4. In (d) eight clients hold a
family each, and the last one, whose local training is honest, sends something else in its adapter's place:

    sign      start - (trained - start)           start: the round's adapter
    scaled    start + 100 (trained - start)
    nan       not a number, everywhere

Resumable: a cell is a sweep over seeds in runs/aggregation/<part>/<cell>, and finished runs are not run again. Writes
docs/results/aggregation.json and .md, and docs/figures/aggregation_weights.svg and aggregation_robust.svg.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from benchmarks.aggregation_data import DIFFICULTIES, FEDERATIONS, write_all
from benchmarks.cells import run_all, timed
from fedrlvr.aggregation import RULES
from fedrlvr.federation.messages import ARRAYS, adapter_to_arrays
from fedrlvr.federation.plan import Planned, plan
from fedrlvr.federation.run import Wrap
from fedrlvr.federation.strategy import FederatedRLVR
from fedrlvr.federation.sweep import sweep
from fedrlvr.federation.wrapping import WrappingStrategy

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "embedded.toml"
RUNS = ROOT / "runs" / "aggregation"
DATA = Path("runs") / "aggregation" / "data"
"""From the root, where scripts/bench runs; it is written down with each run, whose directory may be moved."""
ROUNDS, EVERY = 8, 4
COMMON = [
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
    "scales": ["data.reward='benchmarks.aggregation_data:scaled'"],
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
            data += ["data.name=jsonl", f"data.path={DATA / federation}", "data.instruction=''"]
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


def forged(start: np.ndarray, trained: np.ndarray, attack: Attack) -> np.ndarray:
    """What the hostile client sends in place of what it trained, in the same shape and type."""
    if attack == "nan":
        return np.full_like(trained, np.nan)
    times = -1.0 if attack == "sign" else TIMES_SCALED
    return (start + times * (trained - start)).astype(trained.dtype)


class Hostile(WrappingStrategy):
    """Has one client send something else than what it trained."""

    def __init__(self, inner: FederatedRLVR, client: str, attack: Attack) -> None:
        super().__init__(inner)
        self.client, self.attack = client, attack

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        start = adapter_to_arrays(self.inner.adapter)
        for reply in replies:
            if self.inner.clients[reply.metadata.src_node_id] == self.client:
                sent = reply.content.array_records[ARRAYS]
                for name in list(sent):
                    sent[name] = Array(forged(start[name].numpy(), sent[name].numpy(), self.attack))
        return self.inner.aggregate_train(server_round, replies)


def attack_of(part: str, cell: str) -> Attack | None:
    """What the hostile client of a cell does; None where nobody is hostile."""
    return next((attack for attack in ATTACKS if part == "d" and cell.startswith(f"{attack}/")), None)


def run_cell(part: str, cell: str, seeds: int) -> None:
    """All seeds of one cell, as one cohort; its CPU seconds are added to what it took before.

    An attack may end a run with an error, which is what this cell came to: it is written to failed.json.
    """
    directory = RUNS / part / cell
    attack = attack_of(part, cell)

    def wrap(one: Planned) -> Wrap:
        return lambda strategy: strategy if attack is None else Hostile(strategy, HOSTILE, attack)

    what = plan(BASE, PARTS[part][cell], seeds=seeds, directory=directory)
    ended = failed(directory)
    if all(one.finished or one.seed in ended for one in what.federations):
        return
    with timed(directory):
        result = sweep(what, command="scripts/bench aggregation", wrap=wrap)
    if attack is None:
        result.check()
    elif result.failures:
        reasons = {name.rpartition("-")[2]: str(error) for name, error in result.failures.items()}
        (directory / "failed.json").write_text(json.dumps(reasons, indent=1) + "\n", "utf-8")


def failed(directory: Path) -> dict[int, str]:
    """By seed, what ended a run of a cell with a hostile client."""
    path = directory / "failed.json"
    reasons = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {int(seed): str(reason) for seed, reason in reasons.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="only these of the parts")
    parser.add_argument("--seeds", type=int, choices=range(2, 21), metavar="N", help=f"else of each part {SEEDS}")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, one thread each")
    parser.add_argument("--collect", action="store_true", help="only make the tables")
    chosen = parser.parse_args()
    if not chosen.collect:
        os.chdir(ROOT)
        write_all(DATA)
        wanted = [(p, c) for p in chosen.parts for c in PARTS[p] if not chosen.cells or c in chosen.cells]
        run_all([(p, c, chosen.seeds or SEEDS[p]) for p, c in wanted], run_cell, chosen.jobs)
    from benchmarks.aggregation_tables import write

    write(chosen.seeds)


if __name__ == "__main__":
    main()
