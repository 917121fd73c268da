"""The three methods together: a 2^3 design of PubSwap, FGRPO and CARE in a life-like federation with stalled sites.

    scripts/bench methods                      all of it, in two processes of one thread
    scripts/bench methods --quick              tiny runs of all cells by the same code
    scripts/bench methods --cells all-labels fedavg pubswap+fgrpo+care
    scripts/bench methods --collect            the tables from what has been run

Eight sites share one task and about 400 problems (benchmarks/eight.py); one of them returns what it was sent, and one
holds problems that nobody can solve. Every cell of the design has labels for a fifth of the problems, chosen by CARE or
at random; `fedavg` is FedAvg at a fifth of the labels, and `all-labels` FedAvg with all of them. All cells take 120
optimizer steps at each site, synchronise every 20 of them, and have the automatic server step.

The learning rate is chosen for each cell on validation problems, at seed 100. Resumable: finished runs in runs/methods
are not run again. Writes docs/results/methods.json and .md, and a figure; --quick only prints its
tables.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.cells import run_all
from benchmarks.eight import FULL, QUICK, SCALES, run_cell, run_choice
from benchmarks.methods_cells import cell_settings, names
from benchmarks.methods_tables import BENCH, write


def choose(scale: str, name: str) -> None:
    """Choose the learning rate of a cell."""
    run_choice(BENCH, scale, name, cell_settings(SCALES[scale], name))


def run_one(scale: str, name: str, seeds: int) -> None:
    """Run a cell at all seeds."""
    run_cell(BENCH, scale, name, name, cell_settings(SCALES[scale], name), seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny runs, whose results are not kept in docs")
    parser.add_argument("--seeds", type=int, choices=range(2, 21), metavar="N")
    parser.add_argument("--cells", nargs="+", default=names(), choices=names())
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, one thread each")
    parser.add_argument("--collect", action="store_true", help="only make the tables")
    chosen = parser.parse_args()
    scale = QUICK if chosen.quick else FULL
    seeds = chosen.seeds or scale.seeds
    if not chosen.collect:
        run_all([(scale.name, name) for name in chosen.cells], choose, chosen.jobs)
        run_all([(scale.name, name, seeds) for name in chosen.cells], run_one, chosen.jobs)
    write(scale, seeds)


if __name__ == "__main__":
    main()
