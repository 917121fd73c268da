"""CPU time and memory of a round against Flower + TRL, each switch alone, the matmul floor, and how cost grows.

    scripts/bench speed                        everything, E2 the longest by far
    scripts/bench speed --quick                a few rounds of each
    scripts/bench speed --cases E1,E4          E1 E2 E3 E4 E5 clients length
    scripts/bench speed --medqa DIR            E2's prompts are MedQA questions; else random words of the same lengths
    scripts/bench speed --rounds 9             pairs against the baseline, other than planned
    scripts/bench speed --again                measure anew what earlier runs left in runs/bench/speed

A round is one local step of every client and the aggregation, through the whole federation code of each side, without
evaluation and checkpoint. Every side is a process with one torch thread; two sides take turns, round by round. What is
measured is kept in runs/bench/speed, so an interrupted command goes on; a change of the code needs --again.
Writes docs/results/speed.json, docs/results/speed.md and docs/figures/growth_{clients,length}.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import comparison, growth, sweeps, tables
from benchmarks.cases import ROOT
from benchmarks.measure import machine, today

CASES = ("E1", "E2", "E3", "E4", "E5", "clients", "length")
TITLES = {
    "E1": "E1: the embedded reasoner, 8 clients x 8 problems x 8 responses of at most 32 tokens",
    "E2": "E2: the shape of SmolLM2-135M, 4 clients x 2 problems x 8 responses of 32 tokens, prompts of 200-300 tokens",
    "E3": "E3: one learning step on 4,096 response tokens with a vocabulary of 151,936",
    "E4": "E4: everything but the model, at E1",
    "E5": "E5: five seeds of the embedded example with {settings}",
    "clients": "How cost grows with clients, at E1",
    "length": "How cost grows with the length of every response, 2 clients x 8 problems x 8 responses",
}
CHUNK_OFF = "engine.response_logits=false"
ROOM = 8
"""Whole micro-batches are tried only where this many times their bytes are free."""
SWEEP_SETTINGS = ("train.rounds=2", "data.test_size=512")


class Keeper:
    """Measurements on disk by name, each with when and how it was made."""

    def __init__(self, directory: Path, command: str, again: bool) -> None:
        self.directory = directory
        self.command = command
        self.again = again
        self.when: set[str] = set()

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """The measurement of this name: the one on disk, or a new one."""
        path = self.directory / f"{''.join(c if c.isalnum() or c in '-_' else '_' for c in name)}.json"
        if self.again or not path.exists():
            value = measure()
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = {"date": today(), "machine": machine(), "command": self.command, "value": value}
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(kept) + "\n", "utf-8")
            unfinished.replace(path)
        kept = json.loads(path.read_text("utf-8"))
        self.when.add(f"{kept['date']}, {kept['machine']}")
        return kept["value"]


def say(text: str) -> None:
    """Tell what is being measured."""
    print(text, flush=True)


def one_json(module: str, *arguments: str) -> Any:
    """What a module of ours prints, run in a process of its own with one thread."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: str, chosen: argparse.Namespace, kept: Keeper) -> Any:
    """One case's measurements."""
    if case in ("E1", "E2", "TINY"):
        plan = (comparison.QUICK if chosen.quick else comparison.PLANS)[case]
        if chosen.rounds is not None:
            plan = replace(plan, rounds=chosen.rounds)
        medqa = chosen.medqa.resolve() if chosen.medqa else None
        return comparison.compare(case, plan=plan, medqa=medqa, kept=kept, say=say)
    if case == "E3":
        return kept("E3", measure_vocabulary)
    if case == "E4":
        say("E4")
        replayed = "10" if chosen.quick else "30"
        return kept("E4", lambda: one_json("benchmarks.bookkeeping", "--rounds", replayed))
    if case == "E5":
        settings = ("train.rounds=1", "train.local_steps=2", "data.test_size=64") if chosen.quick else SWEEP_SETTINGS
        result = kept("E5", lambda: sweeps.measure(settings, 1 if chosen.quick else chosen.rounds or 2, say))
        return {"settings": settings, "found": result}
    rounds = 1 if chosen.quick else chosen.rounds or 2
    return growth.measure(case, points=3 if chosen.quick else None, warm=1, rounds=rounds, kept=kept, say=say)


def measure_vocabulary() -> Any:
    """E3 with the logits in chunks, and whole where there is room."""
    import psutil

    say("E3: logits in chunks")
    result = {"in chunks": one_json("benchmarks.vocabulary")}
    if psutil.virtual_memory().available > ROOM * result["in chunks"]["whole"]:
        say("E3: all logits of a micro-batch at once")
        result["a micro-batch at once"] = one_json("benchmarks.vocabulary", "--set", CHUNK_OFF)
    return result


def shown(case: str, result: Any) -> str:
    """One case's tables."""
    if case in ("E1", "E2", "TINY"):
        return tables.comparison(result)
    if case == "E3":
        return tables.vocabulary(result)
    if case == "E4":
        return tables.bookkeeping(result)
    if case == "E5":
        return tables.sweep(result["found"])
    return tables.growth(result, "clients" if case == "clients" else "tokens a response")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write numbers, tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="which, separated by commas")
    parser.add_argument("--rounds", type=int, help="pairs of rounds (sweeps, in E5) in the main comparisons")
    parser.add_argument("--medqa", type=Path, help="directory of MedQA")
    parser.add_argument("--quick", action="store_true", help="few rounds, small growth; for a look, not for the docs")
    parser.add_argument("--again", action="store_true", help="do not take up what is in runs/bench/speed")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="directory of results/ and figures/")
    chosen = parser.parse_args(arguments)
    cases = chosen.cases.split(",")
    if unknown := set(cases) - {*CASES, "TINY"}:
        parser.error(f"--cases: there is no {', '.join(sorted(unknown))}; choose from {','.join(CASES)}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error("--rounds must be at least 1")
    # A directory is private data's place: it is named by its option, not by its path.
    options = ["--medqa DIR" if chosen.medqa else "", "--quick" if chosen.quick else ""]
    options += [f"--rounds {chosen.rounds}" if chosen.rounds else "", f"--cases {chosen.cases}"]
    command = " ".join(["scripts/bench speed", *filter(None, options)])
    kept = Keeper(ROOT / "runs" / "bench" / ("quick" if chosen.quick else "speed"), command, chosen.again)
    results: dict[str, Any] = {}
    texts = []
    for case in cases:
        kept.when.clear()
        result = measure(case, chosen, kept)
        results[case] = {"command": command, "measured": sorted(kept.when), "torch threads": 1, "found": result}
        title = TITLES.get(case, case)
        if case == "E5":
            title = title.format(settings=", ".join(result["settings"]))
        about = f"`{command}`; {'; '.join(sorted(kept.when))}; one torch thread. Median (smallest to largest)."
        texts.append(f"## {title}\n\n{about}\n\n{shown(case, result)}")
        print(texts[-1], flush=True)
        if case in ("clients", "length"):
            label = "clients" if case == "clients" else "tokens of each response"
            growth.draw(chosen.out / "figures" / f"growth_{case}.svg", result, label)
    write(chosen.out / "results", results, texts)


def write(directory: Path, results: dict[str, Any], texts: Sequence[str]) -> None:
    """speed.json and speed.md; cases that were not measured now stay in the JSON as they were."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "speed.json"
    earlier = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**earlier, **results}, indent=1) + "\n", "utf-8")
    (directory / "speed.md").write_text("\n".join(texts), "utf-8")


if __name__ == "__main__":
    main()
