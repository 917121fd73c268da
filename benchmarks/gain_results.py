"""What docs/results/gain.json already holds, so that `scripts/bench gain` goes on from it on any machine."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from benchmarks.gain_cells import ROOT

FILE = ROOT / "docs" / "results" / "gain.json"


def committed() -> dict[str, Any]:
    """The results so far, with empty parts where there are none."""
    empty: dict[str, Any] = {"choices": {}, "runs": [], "sites": []}
    return {**empty, **json.loads(FILE.read_text("utf-8"))} if FILE.exists() else empty


def committed_choice(place: str) -> dict[str, float] | None:
    """The validation scores of a choice as shares of 1; None if it was not made. place: under runs/gain/choices."""
    scores = committed()["choices"].get(place)
    return None if scores is None else {value: score / 100 for value, score in scores.items()}


def committed_runs() -> dict[tuple[str, int, str], dict[int, dict[str, Any]]]:
    """The runs of each cell by seed: federation, tau and the arm's name."""
    cells: dict[tuple[str, int, str], dict[int, dict[str, Any]]] = {}
    for run in committed()["runs"]:
        numbers = dict(run)
        cell = numbers.pop("federation"), numbers.pop("tau"), numbers.pop("arm")
        cells.setdefault(cell, {})[numbers.pop("seed")] = numbers
    return cells


def committed_verdicts() -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """The verdicts by federation and kind of personal adapter, by seed."""
    verdicts: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for verdict in committed()["sites"]:
        verdicts.setdefault((verdict["federation"], verdict["kind"]), {})[verdict["seed"]] = verdict
    return verdicts


def first_missing(done: Collection[int]) -> int:
    """The smallest seed from 0 on that is not done."""
    return next(seed for seed in range(len(done) + 1) if seed not in done)
