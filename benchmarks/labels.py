"""What a fifth of the labels is worth where problems recur: CARE, its controls and its rivals.

    scripts/bench labels                     all of it, in two processes of one thread
    scripts/bench labels --quick             two seeds of a few steps, tables on the screen alone: whether it works
    scripts/bench labels --federations life --arms labels random care
    scripts/bench labels --collect           the tables from what has been run

In `life` 192 problems of eight families are divided among four clients by Dirichlet(0.5), and every client takes 120
local steps of 4 problems x 8 responses with a synchronisation every 20, so that a problem is drawn about ten times. In
`pool` one client has 320 problems and takes 80 steps of 20. Every arm but `labels` may ask for the labels of 20 % of a
client's distinct problems, each paid for once and used whenever its problem is drawn.

    labels         every label
    random         labels by chance, the rest masked
    care           CARE as it is by default
    care-random    labels by chance, and CARE's trusted votes
    trapo          labels by chance, and votes trusted by the development of pass rates
    geomin         labels by chance, and votes trusted by hidden states (our reading of an abstract)
    oracle         labels by their true value, the rest masked
    care-gap       CARE with the authors' score, the corrective advantage gap
    care-even      CARE with the labels spread over the whole run

The primary outcome is the area under the curve of pass@1 on 1,024 held-out problems over local steps, CARE minus
random; the other comparisons and Holm's correction stand beside it. The learning rate is chosen for each federation and
arm by the score on 1,024 validation problems at the end of one run at seed 100.

Resumable: a cell is a sweep over seeds in runs/labels, and finished runs are not run again. Writes labels.json and
labels.md in docs/results, and labels.svg in docs/figures.
"""

from __future__ import annotations

import argparse
import json
import os

from benchmarks.cells import run_all, timed
from benchmarks.gain_choices import best
from benchmarks.labels_cells import ARMS, BASE, CELLS, FEDERATIONS, RATES, choosing, directory_of, settings
from benchmarks.labels_tables import write
from fedrlvr.reporting.scores import evaluations
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.simulation.sweep import sweep
from fedrlvr.simulation.sweep_plan import plan

COMMAND = "scripts/bench labels"
QUICK_SEEDS = 2


def choose(federation: str, arm: str) -> dict[str, float]:
    """The validation score at the end of a run for each learning rate, kept in the directory of the runs."""
    directory = directory_of(federation, arm) / "choice"
    kept = directory / "scores.json"
    if not kept.exists():
        what = plan(BASE, choosing(federation, arm), [f"train.learning_rate={','.join(RATES)}"], directory=directory)
        with timed(directory):
            sweep(what, command=COMMAND).check()
        scores = {}
        for value, planned in zip(RATES, what.federations, strict=True):
            curve = evaluations(read_metrics(planned.directory))
            scores[value] = curve[max(curve)][0].mean
        kept.write_text(json.dumps(scores), "utf-8")
    return dict(json.loads(kept.read_text("utf-8")))


def run_cell(federation: str, arm: str, seeds: int, quick: bool) -> None:
    """All seeds of one cell, as one cohort; its CPU seconds are added to what it took before."""
    directory = directory_of(federation, arm, quick=quick)
    rate = [] if quick else [f"train.learning_rate={best(choose(federation, arm))}"]
    what = plan(BASE, [*settings(federation, arm, quick=quick), *rate], seeds=seeds, directory=directory)
    if all(planned.finished for planned in what.federations):
        return
    with timed(directory):
        sweep(what, command=COMMAND).check()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, choices=range(2, 51), metavar="N")
    parser.add_argument("--federations", nargs="+", default=list(FEDERATIONS), choices=list(FEDERATIONS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, one thread each")
    parser.add_argument("--quick", action="store_true", help="two seeds of a few steps, nothing written to docs")
    parser.add_argument("--collect", action="store_true", help="only make the tables")
    chosen = parser.parse_args()
    seeds = QUICK_SEEDS if chosen.quick else chosen.seeds
    if not chosen.collect:
        wanted = [cell for cell in CELLS if cell[0] in chosen.federations and cell[1] in chosen.arms]
        run_all([(*cell, seeds, chosen.quick) for cell in wanted], run_cell, chosen.jobs)
    write(seeds, quick=chosen.quick)


if __name__ == "__main__":
    main()
