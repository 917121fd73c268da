"""The server's step: fixed, tuned, agreement and line search, in two federations, over synchronisation intervals.

    scripts/bench gain                       all of it, in two processes of one thread
    scripts/bench gain --parts steps sites   some parts: steps, sites, contribution
    scripts/bench gain --collect             the tables from what has been run
    scripts/bench gain --federations disjoint --jobs 1 --seeds 5

Every run takes 120 local steps of 4 problems x 8 responses at each of four clients, and synchronises every tau of them.
In `disjoint` each client holds 1,024 problems of two families that no other client has. In `life` 192 problems of all
eight families are divided by Dirichlet(0.5), so that the clients' numbers of problems are unequal and each problem is
drawn many times; the prompts of one client are worded differently. Scores are pass@1 on 1,024 held-out problems, one
sample each, mean over the families.

The learning rate and FedIT's fixed server step are chosen for each federation and tau (and the step for each use of
the public problems), by the score on 1,024 validation problems at the end of one run at seed 100; the arms are run at
seeds from 0.

`sites` trains every site alone, and federations at tau 20 with each kind of personal adapter, and takes the verdict of
each. `contribution` leaves each of six sites out in turn, of which one has half of its labels wrong and one is idle.

Resumable: a cell is a sweep over seeds in runs/gain. Neither finished runs nor those in docs/results/gain.json are run
again. Writes docs/results/gain.json
and .md, and docs/figures/gain.svg.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.cells import run_all, timed
from benchmarks.gain_cells import BASE, CELLS, FEDERATIONS, Arm, directory_of, settings
from benchmarks.gain_choices import chosen_rate, chosen_step
from benchmarks.gain_results import committed_runs, first_missing
from benchmarks.gain_search import LineSearch
from benchmarks.gain_sites import PERSONAL, judge_sites, run_contribution, run_sites
from benchmarks.gain_tables import write
from fedrlvr.simulation.run import Wrap
from fedrlvr.simulation.sweep import sweep
from fedrlvr.simulation.sweep_plan import Planned, plan


def run_cell(federation: str, tau: int, arm: Arm, seeds: int) -> None:
    """All seeds of one cell, as one cohort; its CPU seconds are added to what it took before."""
    tuned = chosen_step(federation, tau, arm) if arm.step == "tuned" else ""
    directory = directory_of(federation, tau, arm, tuned)

    def wrap(planned: Planned) -> Wrap:
        return LineSearch

    given = settings(federation, tau, arm, rate=chosen_rate(federation, tau), tuned=tuned)
    first = first_missing(committed_runs().get((federation, tau, arm.name), {}))
    if first >= seeds:
        return
    what = plan(BASE, [*given, f"run.seed={first}"], seeds=seeds - first, directory=directory)
    if all(planned.finished for planned in what.federations):
        return
    with timed(directory):
        sweep(what, command="scripts/bench gain", wrap=wrap if arm.step == "search" else None).check()


PARTS = ("steps", "sites", "contribution")


def run_steps(chosen: argparse.Namespace) -> None:
    """The cells of the server's step and of public problems, with the choices that they need."""
    cells = [cell for cell in CELLS if cell[0] in chosen.federations]
    cells = [cell for cell in cells if not chosen.arms or cell[2].name in chosen.arms]
    run_all(dict.fromkeys((federation, tau) for federation, tau, _ in cells), chosen_rate, chosen.jobs)
    run_all([cell for cell in cells if cell[2].step == "tuned"], chosen_step, chosen.jobs)
    run_all([(*cell, chosen.seeds) for cell in cells], run_cell, chosen.jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--kinds", nargs="+", default=list(PERSONAL), choices=list(PERSONAL))
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 21), metavar="N")
    parser.add_argument("--federations", nargs="+", default=list(FEDERATIONS), choices=list(FEDERATIONS))
    parser.add_argument("--arms", nargs="+", help="names such as fedit-auto; all of them by default")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, one thread each")
    parser.add_argument("--collect", action="store_true", help="only make the tables")
    chosen = parser.parse_args()
    if not chosen.collect:
        if "steps" in chosen.parts:
            run_steps(chosen)
        if "sites" in chosen.parts:
            wanted = [(federation, kind) for kind in chosen.kinds for federation in chosen.federations]
            run_all([(*cell, chosen.seeds) for cell in wanted], run_sites, chosen.jobs)
            run_all([(*cell, chosen.seeds) for cell in wanted if cell[1] != "alone"], judge_sites, chosen.jobs)
        if "contribution" in chosen.parts:
            run_all([(chosen.seeds,)], run_contribution, 1)
    write(seeds=chosen.seeds)


if __name__ == "__main__":
    main()
