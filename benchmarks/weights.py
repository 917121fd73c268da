"""Client weights where they can matter: eight sites of which some are stalled, mis-scaled, noisy or contradictory.

    scripts/bench weights                              all of it, in two processes of one thread
    scripts/bench weights --quick                      tiny runs of two federations by the same code
    scripts/bench weights --federations stalled-4 --arms examples reported public
    scripts/bench weights --collect                    the tables from what has been run

Federations: `plain` is the life-like one of benchmarks/eight.py. In `stalled-4` and `stalled-6` half of the stalled
sites return what they were sent, and half hold problems that nobody can solve. In `scales` rewards are 1 to 0.03, with
a KL term and without division by the standard deviation. In `noisy` three graders flip 30 % of the rewards. In
`interference` two sites hold the prompts of two others with answers that contradict theirs.
Arms: weights by `examples`, `equal`, FGRPO as it comes (`default`), and at a temperature of 0.25 by `reported` rewards,
by the server's grades of `public` responses, and by these with shrinkage. Every arm takes the same public steps.

The learning rate is chosen for each federation on validation problems, at seed 100. Resumable: finished runs in
runs/weights are not run again. Writes docs/results/weights.json and .md; --quick only prints its tables.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.cells import run_all
from benchmarks.eight import FULL, QUICK, SCALES, run_cell, run_choice
from benchmarks.weights_cells import ARMS, FEDERATIONS, STEPS, cell_name, cell_settings, cells, choice_settings
from benchmarks.weights_tables import BENCH, write

QUICKLY = {"federations": ["stalled-4"], "arms": ["examples", "reported", "public-shrunk"], "steps": ["auto"]}
"""What --quick runs unless it is told otherwise."""


def choose(scale: str, federation: str) -> None:
    """Choose the learning rate of a federation, which serves all of its arms."""
    run_choice(BENCH, scale, federation, choice_settings(SCALES[scale], federation))


def run_arm(scale: str, federation: str, arm: str, step: str, seeds: int) -> None:
    """Run one arm of a federation at one server step, at all seeds."""
    given = cell_settings(SCALES[scale], federation, arm, step)
    run_cell(BENCH, scale, cell_name(federation, arm, step), federation, given, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny runs, whose results are not kept in docs")
    parser.add_argument("--seeds", type=int, choices=range(2, 21), metavar="N")
    parser.add_argument("--federations", nargs="+", choices=list(FEDERATIONS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS))
    parser.add_argument("--steps", nargs="+", choices=list(STEPS))
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, one thread each")
    parser.add_argument("--collect", action="store_true", help="only make the tables")
    chosen = parser.parse_args()
    scale = QUICK if chosen.quick else FULL
    seeds = chosen.seeds or scale.seeds
    every = QUICKLY if chosen.quick else {"federations": list(FEDERATIONS), "arms": list(ARMS), "steps": list(STEPS)}
    federations, arms, steps = (getattr(chosen, name) or every[name] for name in ("federations", "arms", "steps"))
    if not chosen.collect:
        run_all([(scale.name, federation) for federation in federations], choose, chosen.jobs)
        run_all([(scale.name, *cell, seeds) for cell in cells(federations, arms, steps)], run_arm, chosen.jobs)
    write(scale, seeds)


if __name__ == "__main__":
    main()
