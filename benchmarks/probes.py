"""What CARE's probes cost a client: time of one step's judging and learning, and what they keep in memory.

    scripts/bench probes          writes docs/results/probes.md

A step of 20 problems with 8 responses, four of them labelled, at the widths of the embedded reasoner (128) and of
models of 135 million, half a billion and 7 billion parameters; hidden states are random numbers. One torch thread.
The replay is warm: each update takes 16 problems of it besides the four. Beside it their share of a step's seconds in
short runs of the embedded reasoner, in the two settings of `scripts/bench care` without its audit.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.care_cells import BASE, SETTINGS, overrides
from benchmarks.measure import MEBI, machine, today
from benchmarks.tables import table
from fedrlvr.supervision import clusters
from fedrlvr.supervision.features import Features, Labelled, features, labelled
from fedrlvr.supervision.judge import Judge, Settings

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "probes.md"
WIDTHS = {128: "embedded reasoner", 576: "135M", 896: "0.5B", 3584: "7B"}
PROBLEMS, GROUP, LABELLED, LONGEST = 20, 8, 4, 32
WARM, TIMED = 8, 25


def step(width: int, rng: random.Random, numbers: torch.Generator) -> tuple[Features, Labelled]:
    """What the probes get in a step: all problems, and those with a label."""
    votes = [clusters([rng.choice("abcd") for _ in range(GROUP)]) for _ in range(PROBLEMS)]
    seen = features(
        torch.randn(PROBLEMS, width, generator=numbers),
        torch.randn(PROBLEMS, GROUP, width, generator=numbers),
        votes,
        [[rng.randint(8, LONGEST) for _ in range(GROUP)] for _ in range(PROBLEMS)],
        LONGEST,
    )
    rows = list(range(LABELLED))
    rewards = [[float(member == 1) for member in votes[row].members] for row in rows]
    return seen, labelled(seen, rows, [votes[row] for row in rows], rewards)


def measure(width: int) -> list[str]:
    """One line of the table."""
    rng, numbers = random.Random(0), torch.Generator().manual_seed(0)
    judge = Judge(width, GROUP, torch.Generator().manual_seed(1))
    milliseconds = []
    for number in range(WARM + TIMED):
        seen, known = step(width, rng, numbers)
        started = time.process_time()
        judge.judge(seen)
        judge.learn(known)
        if number >= WARM:
            milliseconds.append((time.process_time() - started) * 1e3)
    tensors, _ = judge.state()
    size = dict.fromkeys(("weights", "moments", "replay"), 0)
    for name, tensor in tensors.items():
        if (part := name.partition("/")[0]) in size:
            size[part] += tensor.numel() * tensor.element_size()
    kept = (WARM + TIMED) * LABELLED
    whole = size["replay"] / kept * Settings().replay
    low, middle, high = min(milliseconds), statistics.median(milliseconds), max(milliseconds)
    return [
        f"{width} ({WIDTHS[width]})",
        f"{middle:.0f} ({low:.0f} to {high:.0f})",
        f"{judge.flattened().numel():,}",
        f"{(size['weights'] + size['moments']) / MEBI:.1f}",
        f"{whole / MEBI:.1f}",
    ]


def shares(setting: str) -> list[str]:
    """What a client's step is made of in two rounds of a run, one after another on this machine."""
    from fedrlvr.config import load_config
    from fedrlvr.simulation.run import run

    with tempfile.TemporaryDirectory() as directory:
        short = ["train.rounds=2", "evaluate.every=0", "data.test_size=64", "supervision.audit=false"]
        where = [f"run.directory={directory}/run", "engine.threads=1"]
        records = run(load_config(BASE, [*overrides(setting, "care-20"), *short, *where])).records
    reports = [numbers for record in records if record["round"] for numbers in record["clients"].values()]
    phases = {
        phase: sum(report[f"seconds_{phase}"] for report in reports) for phase in ("sample", "grade", "train", "probes")
    }
    whole = sum(phases.values())
    return [setting, *(f"{100 * seconds / whole:.1f}" for seconds in phases.values())]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    head = ["width H (model)", "CPU-ms a step", "weights", "MiB of weights and moments", "MiB of 2,048 replayed"]
    lines = table(head, [measure(width) for width in WIDTHS])
    how = f"`scripts/bench probes`; {today()}, {machine()}; one torch thread. Median of {TIMED} (smallest to largest)."
    head = ["setting", "sample, %", "grade", "train", "probes"]
    parts = table(head, [shares(setting) for setting in SETTINGS])
    about = "A step's seconds in two rounds of the embedded reasoner, seed 0, settings of `scripts/bench care`, 20 %:"
    text = "\n".join(
        ["# CARE's probes: what they cost a client", "", how, "", lines.strip(), "", about, "", parts.strip(), ""]
    )
    OUT.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
