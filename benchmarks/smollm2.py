"""A real language model on a CPU: SmolLM2-135M learns sums, alone, together, and with exchanges.

    fedrlvr model fetch smollm2 models/smollm2     once
    scripts/bench smollm2                          all of it, in two processes of one thread
    scripts/bench smollm2 --parts arms --arms alone federated --seeds 2
    scripts/bench smollm2 --parts export           needs a finished run of the arm `federated`
    scripts/bench smollm2 --collect                the tables from what has been run

examples/smollm2_sums.toml with 64 further public problems and 512 held-out ones: three clients with 64 problems each,
36 local steps of 4 problems x 8 responses at each client (12 rounds of 3). `alone` trains each client by itself,
`central` one adapter on all 192 problems with as many steps, `pubswap` trades responses to public problems once a
round, at equal optimizer steps, and `int8` is `federated` with messages in int8. Each arm's learning rate is chosen
from four by the score on 128 validation problems at the end of one run at seed 100; the arms are run at seeds from 0.

Parts: `arms`; `drift`, which trains 20 local steps of each client as rounds of 1, 2, 5, 10 and 20 and looks at the
clients' changes before they are averaged; `export`, greedy answers of an exported adapter in PEFT and merged
(smollm2_export.py); `unfinished`, the three values of train.unfinished over 24 rounds of 2 local steps at seeds 0 and
1 (docs/real-model.md has the rule by which its result is read).

Scores are pass@1, one sample at temperature 1. Resumable: neither finished runs nor those in docs/results/smollm2.json
are run again. A run of an arm takes about 300 CPU seconds, of `drift` 90, of `unfinished` 230, and `export` 50. Writes
docs/results/smollm2.json and .md, and a figure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.cells import run_all, timed
from benchmarks.gain_choices import best
from benchmarks.gain_results import first_missing
from benchmarks.smollm2_tables import write
from fedrlvr.reporting.scores import evaluations, totals
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.simulation.sweep import sweep
from fedrlvr.simulation.sweep_plan import plan

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "smollm2_sums.toml"
RUNS = ROOT / "runs" / "smollm2"
FILE = ROOT / "docs" / "results" / "smollm2.json"
COMMON = ["data.public_size=64", "data.validation_size=128", "data.test_size=512", "evaluate.every=4"]
ARMS: dict[str, list[str]] = {
    "federated": ["aggregation.precision=float32"],
    "int8": ["aggregation.precision=int8"],
    "alone": ["federation.arm=local"],
    "central": ["federation.arm=central"],
    "pubswap": [
        "aggregation.precision=float32",
        "coordination.type=pubswap",
        "coordination.exchanges=1",
        "coordination.public_problems=4",
        "coordination.public_steps=1",
        "train.local_steps=2",
    ],
}
"""Settings of each arm. A round of `pubswap` has two private steps and a public one. Clients send float32 but for
`int8`, which is what `auto` chooses at this size."""
LAST = "evaluate.every=0"
"""Evaluates before training and at the end alone."""
RATES = ("1.25e-4", "2.5e-4", "5e-4", "1e-3")
CHOICE_SEED = 100
"""Seed of the runs that learning rates are chosen by; no arm is run at it."""
DRIFT = {
    f"drift-{steps}": [f"train.rounds={20 // steps}", f"train.local_steps={steps}", "data.test_size=128", LAST]
    for steps in (1, 2, 5, 10, 20)
}
"""Numbers of local steps a round, 20 in all, for the distance between clients before they are averaged."""
UNFINISHED = {
    f"unfinished-{value}": [
        f"train.unfinished={value}",
        "train.rounds=24",
        "train.local_steps=2",
        "data.test_size=256",
        "evaluate.every=12",
    ]
    for value in ("grade", "zero", "mask")
}
"""Treatments of a response that was cut at the length limit, where stop strings are set."""
PARTS = ("arms", "drift", "export", "unfinished")
EXPORT = RUNS / "export.json"


def committed() -> dict[str, Any]:
    """The results so far, with empty parts where there are none."""
    empty: dict[str, Any] = {"choices": {}, "runs": {}}
    return {**empty, **json.loads(FILE.read_text("utf-8"))} if FILE.exists() else empty


def choose(arm: str) -> str:
    """The learning rate of an arm, by validation problems; those that are not chosen for take the federation's."""
    if arm not in ("federated", "alone", "central"):
        return choose("federated")
    place = RUNS / "choices" / arm
    kept = place / "scores.json"
    scores = {**committed()["choices"].get(arm, {}), **(json.loads(kept.read_text("utf-8")) if kept.exists() else {})}
    if missing := [rate for rate in RATES if rate not in scores]:
        given = [*COMMON, *ARMS[arm], "evaluate.split=validation", LAST, f"run.seed={CHOICE_SEED}"]
        what = plan(BASE, given, [f"train.learning_rate={','.join(missing)}"], directory=place)
        with timed(place):
            sweep(what, command="scripts/bench smollm2").check()
        curves = [evaluations(read_metrics(planned.directory)) for planned in what.federations]
        scores |= {rate: curve[max(curve)][0].mean for rate, curve in zip(missing, curves, strict=True)}
        kept.write_text(json.dumps(scores), "utf-8")
    return best(scores)


def run_arm(arm: str, seeds: int) -> None:
    """All seeds of an arm that are not there yet, as one cohort; its CPU seconds are added to what it took before."""
    first = first_missing({int(seed) for seed in committed()["runs"].get(arm, {})})
    if first >= seeds:
        return
    place = RUNS / arm
    given = [*COMMON, f"train.learning_rate={choose(arm)}", *{**ARMS, **DRIFT, **UNFINISHED}[arm], f"run.seed={first}"]
    what = plan(BASE, given, seeds=seeds - first, directory=place)
    if all(planned.finished for planned in what.federations):
        return
    with timed(place):
        sweep(what, command="scripts/bench smollm2").check()


def result_of(directory: Path) -> dict[str, Any]:
    """A finished run in numbers: its curve in %, tokens, bytes, and what the clients' changes had in common."""
    records = read_metrics(directory)
    total = totals(records)
    steps = [record["server_step"] for record in records if "server_step" in record]
    return {
        "curve": {str(round_): 100 * score.mean for round_, (score, _) in evaluations(records).items()},
        "tokens_sampled": total.tokens_sampled,
        "tokens_trained": total.tokens_trained,
        "bytes_up": max(total.bytes_up.values(), default=0),
        "cosine": [step["mean_cosine"] for step in steps],
        "server_step": [step["learning_rate"] for step in steps],
        "distance": [max(step["norms"].values()) for step in steps],
        "apart": [apart(step["norms"], step["cosines"]) for step in steps if "cosines" in step],
        "cut": [
            fmean(of_client["unfinished"] for of_client in record["clients"].values())
            for record in records
            if record["round"] and all("unfinished" in of_client for of_client in record["clients"].values())
        ],
    }


def apart(norms: Mapping[str, float], cosines: Mapping[str, Mapping[str, float]]) -> float:
    """Mean distance of two clients' adapters at the end of a round: |a - b|^2 = |a|^2 + |b|^2 - 2 |a| |b| cos(a, b)."""
    pairs = list(combinations(norms, 2))
    squares = [norms[a] ** 2 + norms[b] ** 2 - 2 * norms[a] * norms[b] * cosines[a][b] for a, b in pairs]
    return fmean(math.sqrt(max(square, 0.0)) for square in squares)


def load(seeds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Every finished run by arm and seed, of here and of docs/results/smollm2.json."""
    runs: dict[str, dict[str, dict[str, Any]]] = {arm: dict(of) for arm, of in committed()["runs"].items()}
    for arm in (*ARMS, *DRIFT, *UNFINISHED):
        for seed in range(seeds):
            directory = RUNS / arm / "as-given" / f"seed-{seed}"
            if (directory / "report.html").exists():
                runs.setdefault(arm, {})[str(seed)] = result_of(directory)
    return runs


def export() -> dict[str, Any] | None:
    """The check of an exported adapter: of here, or of docs/results/smollm2.json."""
    if EXPORT.exists():
        return dict(json.loads(EXPORT.read_text("utf-8")))
    return committed().get("export")


def run_export() -> None:
    """Check the adapter of the newest finished run of the arm `federated`.

    Raises:
        SystemExit: there is none on this machine.
    """
    from benchmarks.smollm2_export import same_answers

    finished = sorted(path.parent for path in (RUNS / "federated").glob("as-given/seed-*/report.html"))
    if not finished:
        raise SystemExit("no finished run of the arm `federated` is here: run --parts arms --arms federated first")
    EXPORT.write_text(json.dumps({"run": finished[-1].name, **same_answers(finished[-1])}) + "\n", "utf-8")


def choices() -> Mapping[str, Mapping[str, float]]:
    """Validation scores by learning rate, by arm."""
    here = {
        path.parent.name: json.loads(path.read_text("utf-8")) for path in sorted(RUNS.glob("choices/*/scores.json"))
    }
    return {**committed()["choices"], **here}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 21), metavar="N")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes, one thread each")
    parser.add_argument("--collect", action="store_true", help="only make the tables")
    chosen = parser.parse_args()
    parts = () if chosen.collect else chosen.parts
    if "arms" in parts:
        run_all([(arm,) for arm in chosen.arms], choose, chosen.jobs)
        run_all([(arm, chosen.seeds) for arm in chosen.arms], run_arm, chosen.jobs)
    elif parts and parts != ["export"]:
        run_all([("federated",)], choose, 1)
    if "drift" in parts:
        run_all([(arm, 1) for arm in DRIFT], run_arm, chosen.jobs)
    if "unfinished" in parts:
        run_all([(arm, 2) for arm in UNFINISHED], run_arm, chosen.jobs)
    if "export" in parts:
        run_export()
    spent = [json.loads(path.read_text("utf-8"))["cpu"] for path in RUNS.rglob("seconds.json")]
    write(load(chosen.seeds), choices(), export(), cpu=sum(spent))


if __name__ == "__main__":
    main()
