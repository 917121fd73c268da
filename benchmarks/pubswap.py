"""PubSwap against FedAvg, FedProx and its own ablations, on the embedded reasoner, over seeds and local steps.

    scripts/bench pubswap                  all of it: 19 cells of 5 seeds, two processes of one thread
    scripts/bench pubswap --collect        the tables from what has been run
    scripts/bench pubswap --jobs 1 --seeds 5 --taus 60

Four clients with two problem families each. Every arm takes 120 local steps, synchronises every tau of them, and
samples 600 groups of 8 responses a client: 5 private problems a step, or 4 and, every 5 steps, an exchange of 5 public
problems with one public step. Everybody holds the same private problems, and the public ones are of all families.
Pass@1 is on 256 held-out problems of each family, for the adapter after the last synchronisation, and after 60 steps.

Resumable: a cell (tau, arm) is a sweep over seeds in runs/pubswap, and finished runs are not run again. Each client's
adapter before averaging is kept at steps 60 and 120; how far they are apart and what they score on their own and on
others' families is the table of drift. Writes docs/results/pubswap.json and .md, and docs/figures/pubswap.svg.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, Message, MetricRecord

from benchmarks.cells import run_all, timed
from benchmarks.pubswap_cells import AFTERWARDS, ARMS, BASE, HALF, RUNS, STEPS, TAUS, settings
from benchmarks.pubswap_tables import write
from fedrlvr.policy.peft_format import save_peft
from fedrlvr.server.strategy import FederatedRLVR, WrappingStrategy
from fedrlvr.simulation.run import Wrap
from fedrlvr.simulation.sweep import sweep
from fedrlvr.simulation.sweep_plan import Planned, plan
from fedrlvr.wire.messages import ARRAYS, arrays_to_adapter


class BeforeAveraging(WrappingStrategy):
    """Writes each client's adapter down before it is averaged, in the rounds that end at steps 60 and 120."""

    def __init__(self, inner: FederatedRLVR, directory: Path, rounds: set[int]) -> None:
        super().__init__(inner)
        self.directory, self.rounds = directory, rounds

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        if server_round in self.rounds:
            for reply in replies:
                client = self.inner.clients[reply.metadata.src_node_id]
                adapter = arrays_to_adapter(reply.content.array_records[ARRAYS], self.inner.adapter, place=client)
                save_peft(adapter, self.directory / "local" / f"round-{server_round}" / client, base_name="embedded")
        return self.inner.aggregate_train(server_round, replies)


def run_cell(tau: int, arm: str, seeds: int) -> None:
    """All seeds of one cell, as one cohort; its CPU seconds are added to what it took before."""
    directory = RUNS / f"tau-{tau}" / arm
    rounds = {HALF // tau, STEPS // tau}

    def wrap(planned: Planned) -> Wrap:
        return lambda strategy: BeforeAveraging(strategy, planned.directory, rounds)

    what = plan(BASE, settings(tau, arm), seeds=seeds, directory=directory)
    if all(planned.finished for planned in what.federations):
        return
    with timed(directory):
        sweep(what, command="scripts/bench pubswap", wrap=wrap).check()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 21), metavar="N")
    parser.add_argument("--taus", type=int, nargs="+", default=list(TAUS), choices=TAUS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, one thread each")
    parser.add_argument("--collect", action="store_true", help="only make the tables")
    chosen = parser.parse_args()
    if not chosen.collect:
        wanted = [(tau, arm) for tau in chosen.taus for arm in chosen.arms if tau in AFTERWARDS.get(arm, TAUS)]
        run_all([(*cell, chosen.seeds) for cell in wanted], run_cell, chosen.jobs)
    write(seeds=chosen.seeds)


if __name__ == "__main__":
    main()
