"""CARE on the embedded reasoner: what a share of the labels is worth, and when majority votes alone go wrong.

    scripts/bench care                     all of it: 32 cells of 5 seeds, two processes of one thread
    scripts/bench care --collect           the tables from what has been run
    scripts/bench care --settings central --only 'labels|majority|-20$' --jobs 1

central    one client with all eight families: 10 rounds of 8 local steps, held-out pass@1 every second round
four       four clients with two families each: 3 rounds of 12 local steps, held-out pass@1 every round

Every step takes 20 problems a client with 8 responses each, so that 5, 10, 20 and 40 % of a step are 1, 2, 4 and 8
problems, and no problem is drawn twice: a label paid for is used once. AdamW at 3e-3 on rank 8; its moments are kept
from round to round in `central`, where a round is no more than a place to evaluate at, and start afresh in `four`, as
they do by default. Scores are sampled pass@1 on 128 held-out problems of each family.

    labels, majority                every label; none
    care, random                    at 5, 10, 20 and 40 % of the labels; the rest of `random` is masked
    oracle, entropy, probability    at 20 %, by the number that each is named for, the rest masked
    random-pseudo, entropy-pseudo   at 20 %, the rest trained on as voted
    care-untrusted                  at 20 %, no majority trusted: masked but for the labels
    care-floor                      at 20 %, no majority trusted whose P1 is below 0.5
    care-shared                     at 20 %, the clients' probes averaged (`four` alone)

All measure what only an experiment can (`supervision.audit`). Resumable: a cell is a sweep over seeds in
runs/care/<setting>/<arm>, and finished runs are not run again; the most telling cells come first. Writes
docs/results/care.json and .md, and docs/figures/care_accuracy.png, care_collapse.png, care_calibration.png and
care_budget.png.
"""

from __future__ import annotations

import argparse
import os
import re

from benchmarks.care_cells import BASE, CELLS, SETTINGS, directory_of, overrides
from benchmarks.care_tables import write
from benchmarks.cells import run_all, timed
from fedrlvr.simulation.sweep_plan import plan


def run_cell(setting: str, arm: str, seeds: int) -> None:
    """All seeds of one cell, as one cohort; its CPU seconds are added to what it took before."""
    from fedrlvr.simulation.sweep import sweep

    directory = directory_of(setting, arm)
    what = plan(BASE, overrides(setting, arm), seeds=seeds, directory=directory)
    if all(planned.finished for planned in what.federations):
        return
    with timed(directory):
        sweep(what, command="scripts/bench care").check()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 21), metavar="N")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--only", default="", metavar="REGEX", help="only cells whose setting/arm it is found in")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, one thread each")
    parser.add_argument("--collect", action="store_true", help="only make the tables")
    chosen = parser.parse_args()
    if not chosen.collect:
        wanted = [(s, a) for s, a in CELLS if s in chosen.settings and re.search(chosen.only, f"{s}/{a}")]
        if not wanted:
            parser.error(f"no cell is called {chosen.only!r}; they are {', '.join('/'.join(c) for c in CELLS)}")
        run_all([(*cell, chosen.seeds) for cell in wanted], run_cell, chosen.jobs)
    write(chosen.seeds)


if __name__ == "__main__":
    main()
