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

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from benchmarks.aggregation_cells import (
    BASE,
    DATA,
    HOSTILE,
    PARTS,
    ROOT,
    RUNS,
    SEEDS,
    TIMES_SCALED,
    Attack,
    attack_of,
    failed,
)
from benchmarks.aggregation_data import write_all
from benchmarks.aggregation_figures import draw
from benchmarks.aggregation_tables import write
from benchmarks.cells import run_all, timed
from fedrlvr.server.strategy import FederatedRLVR, WrappingStrategy
from fedrlvr.simulation.run import Wrap
from fedrlvr.simulation.sweep import sweep
from fedrlvr.simulation.sweep_plan import Planned, plan
from fedrlvr.wire.messages import ARRAYS, adapter_to_arrays


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


def run_cell(part: str, cell: str, seeds: int) -> None:
    """All seeds of one cell, as one cohort; its CPU seconds are added to what it took before.

    An attack may end a run with an error, which is what this cell came to: it is written to failed.json.
    """
    directory = RUNS / part / cell
    attack = attack_of(part, cell)

    def wrap(planned: Planned) -> Wrap:
        return lambda strategy: strategy if attack is None else Hostile(strategy, HOSTILE, attack)

    what = plan(BASE, PARTS[part][cell], seeds=seeds, directory=directory)
    ended = failed(directory)
    if all(planned.finished or planned.seed in ended for planned in what.federations):
        return
    with timed(directory):
        result = sweep(what, command="scripts/bench aggregation", wrap=wrap)
    if attack is None:
        result.check()
    elif result.failures:
        reasons = {name.rpartition("-")[2]: str(error) for name, error in result.failures.items()}
        (directory / "failed.json").write_text(json.dumps(reasons, indent=1) + "\n", "utf-8")


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
    write(draw, chosen.seeds)


if __name__ == "__main__":
    main()
