"""The results of `scripts/bench privacy` as tables and JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gain_cells import ROOT
from benchmarks.tables import table
from fedrlvr.machine import description
from fedrlvr.privacy.accountant import noise_for
from fedrlvr.reporting.spread import spread
from fedrlvr.version import __version__

FILE = ROOT / "docs" / "results" / "privacy.json"
NAMES = {"fedit": "FedIT", "ffa": "FFA-LoRA"}
SHARE = 0.5
"""Share of the gain without noise that a federation has to keep to count as large enough."""

Runs = Mapping[str, Mapping[str, Any]]
"""The levels of a cell by seed."""


def load(root: Path) -> list[dict[str, Any]]:
    """Every finished cell: federation, rule, CPU seconds and the levels by seed."""
    cells = []
    for path in sorted(root.glob("*/*/sweep.json")):
        directory = path.parent
        federation, rule = directory.parent.name, directory.name
        files = sorted(directory.rglob("levels.json"))
        levels = {file.parent.name.removeprefix("seed-"): json.loads(file.read_text("utf-8")) for file in files}
        seconds = json.loads((directory / "seconds.json").read_text("utf-8"))["cpu"]
        cells.append({"federation": federation, "rule": rule, "cpu": seconds, "runs": levels})
    return cells


def shown(values: Sequence[float]) -> str:
    """Mean in % with half of its interval over seeds."""
    of_seeds = spread(dict(enumerate(100 * value for value in values)))
    assert of_seeds is not None
    return f"{of_seeds.mean:.1f}" + ("" if of_seeds.half is None else f" ± {of_seeds.half:.1f}")


def at_level(runs: Runs, clip: float, epsilon: float | None, sites: int) -> list[float]:
    """pass@1 of each seed."""
    return [
        score["pass@1"]
        for levels in runs.values()
        for score in levels["scores"]
        if (score["clip"], score["epsilon"], score["sites"]) == (clip, epsilon, sites)
    ]


def enough_sites(runs: Runs, clip: float, epsilon: float = 8.0) -> int | None:
    """The smallest measured number of sites that keeps half of the gain without noise; None if none does."""
    base = sum(levels["base"] for levels in runs.values()) / len(runs)
    plain = at_level(runs, 1.0, None, 4)
    needed = base + SHARE * (sum(plain) / len(plain) - base)
    sizes = sorted({s["sites"] for levels in runs.values() for s in levels["scores"] if s["epsilon"] == epsilon})
    for sites in sizes:
        scores = at_level(runs, clip, epsilon, sites)
        if scores and sum(scores) / len(scores) >= needed:
            return sites
    return None


def scaled_sites(sites: int, epsilon: float, delta: float, rounds: int = 1, measured: float = 8.0) -> int:
    """The number of sites whose mean has as little noise at another epsilon and number of rounds."""
    ratio = noise_for(epsilon, delta, rounds) / noise_for(measured, delta, 1)
    return round(sites * ratio * ratio)


def text(cells: Sequence[Mapping[str, Any]], about: str) -> str:
    """The page docs/results/privacy.md."""
    rows, sizes = [], []
    for cell in cells:
        runs, rule = cell["runs"], NAMES[cell["rule"]]
        place = [cell["federation"], rule]
        clips = sorted({score["clip"] for levels in runs.values() for score in levels["scores"]}, reverse=True)
        levels = next(iter(runs.values()))["scores"]
        rows.append([*place, "base model", "", *[shown([run["base"] for run in runs.values()])] * len(clips)])
        for epsilon, sites in dict.fromkeys((score["epsilon"], score["sites"]) for score in levels):
            stated = "no noise" if epsilon is None else f"{epsilon:g}"
            scores = [shown(values) if (values := at_level(runs, clip, epsilon, sites)) else "" for clip in clips]
            rows.append([*place, stated, f"{sites:,}", *scores])
        measured = [n for n in (enough_sites(runs, clip) for clip in clips) if n is not None]
        needed = ["more than 1,000,000"] * 5
        if measured:
            best = min(measured)
            needed = [f"{scaled_sites(best, epsilon, 1e-5):,}" for epsilon in (8.0, 4.0, 2.0, 1.0)]
            needed += [f"{scaled_sites(best, 8.0, 1e-5, 10):,}"]
        norms = [norm for run in runs.values() for norm in run["norms"]]
        numbers = next(iter(runs.values()))["numbers"]
        sizes.append([*place, f"{numbers:,}", f"{min(norms):.2f} to {max(norms):.2f}", *needed])
    scores_table = table(
        ["federation", "rule", "epsilon", "sites", "pass@1, clip at the usual norm", "clip at a tenth of it"], rows
    )
    sizes_table = table(
        ["federation", "rule", "numbers sent", "norm of a change", "epsilon 8", "4", "2", "1", "8, ten rounds"], sizes
    )
    return "\n".join(
        [
            about,
            "",
            "### pass@1 against epsilon",
            "",
            scores_table,
            "### Sites at which half of the gain is left",
            "",
            "The first number is measured (the smallest size above that keeps half); the others are computed from it: "
            "the noise of the mean is the same where sites grow with the square of the noise multiplier.",
            "",
            sizes_table,
        ]
    )


def write(root: Path) -> None:
    """Write docs/results/privacy.json and .md from what lies under `root`, or from the committed JSON."""
    cells = load(root)
    if not cells and FILE.exists():
        kept = json.loads(FILE.read_text("utf-8"))
    else:
        hours = sum(cell["cpu"] for cell in cells) / 60
        about = (
            f"`scripts/bench privacy`, {datetime.date.today()}, fedrlvr {__version__}, {description()}, one torch "
            f"thread, {hours:.0f} CPU minutes. One round of 60 local steps; delta 1e-5; pass@1 in %, 512 held-out "
            "problems, one sample each; mean and 95 % interval (Student's t) over seeds from 0."
        )
        kept = {"about": about, "cells": cells}
        FILE.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    FILE.with_suffix(".md").write_text(text(kept["cells"], kept["about"]), "utf-8")
