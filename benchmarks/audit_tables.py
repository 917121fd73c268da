"""The results of `scripts/bench audit` as tables and JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.tables import table
from fedrlvr.audit.membership import Figures, ProblemScores
from fedrlvr.machine import description
from fedrlvr.reporting.spread import spread
from fedrlvr.version import __version__

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SHOWN = (
    *(("server", attack) for attack in ("gain", "diba", "drift", "loss", "reference")),
    *(("site", attack) for attack in ("gain", "diba", "reference")),
)
"""Views and attacks of the tables; what the public has is the gain of the global adapter, as another site."""


def write(runs: Path, cells: Sequence[str]) -> None:
    """Write docs/results/audit.json and .md from what has been run."""
    results = [row for cell in cells for row in rows_of(cell, load(runs / cell.replace(" ", "-")))]
    content = {
        "command": "scripts/bench audit",
        "date": datetime.date.today().isoformat(),
        "machine": description(),
        "fedrlvr": __version__,
        "cpu_seconds": sum(json.loads(path.read_text("utf-8"))["cpu"] for path in runs.glob("*/*/seconds.json")),
        "cells": results,
    }
    (RESULTS / "audit.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    (RESULTS / "audit.md").write_text(page(content), "utf-8")


def load(directory: Path) -> dict[int, list[dict[str, Any]]]:
    """Results of the runs of a cell, by seed."""
    return {
        int(path.parent.name): json.loads(path.read_text("utf-8")) for path in sorted(directory.glob("*/found.json"))
    }


def rows_of(cell: str, by_seed: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The figures of a cell, one row for each round that it was attacked at."""
    rounds = sorted({result["round"] for results in by_seed.values() for result in results})
    rows = []
    for round_ in rounds:
        of_round = {
            seed: result for seed, results in by_seed.items() for result in results if result["round"] == round_
        }
        membership = []
        for view, attack in SHOWN:
            scores = {seed: scores_of(result, view, attack) for seed, result in of_round.items()}
            pooled = ProblemScores(
                [s for of_seed in scores.values() for s in of_seed.members],
                [s for of_seed in scores.values() for s in of_seed.others],
            )
            figures = {seed: Figures.of(of_seed).auc.value for seed, of_seed in scores.items()}
            membership.append({"view": view, "attack": attack, "auc": figures, "pooled": Figures.of(pooled).to_json()})
        rows.append(
            {
                "cell": cell,
                "round": round_,
                "membership": membership,
                "canaries": canaries_of(of_round),
                "returned": returned(of_round),
            }
        )
    return rows


def scores_of(result: Mapping[str, Any], view: str, attack: str) -> ProblemScores:
    (row,) = (row for row in result["scores"] if (row["view"], row["attack"]) == (view, attack))
    return ProblemScores(row["members"], row["others"])


def canaries_of(of_round: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By view and times planted: the mean rise of the exposure, and the share of responses that return it, by seed."""
    rows = []
    for view in ("server", "site"):
        for times in sorted({c["times"] for result in of_round.values() for c in result["canaries"][view]}):
            of = {
                seed: [c for c in result["canaries"][view] if c["times"] == times] for seed, result in of_round.items()
            }
            rises = {seed: fmean(c["exposure"] - c["base"] for c in some) for seed, some in of.items()}
            shares = {seed: fmean(c["returned"] for c in some) for seed, some in of.items()}
            rows.append({"view": view, "times": times, "rise": rises, "returned": shares})
    return rows


def returned(of_round: Mapping[int, Mapping[str, Any]]) -> dict[str, list[int]]:
    """By view the number of responses that held private text, and of all responses."""
    views = ("server", "site")
    counts = {view: [result["returned"][view] for result in of_round.values()] for view in views}
    return {view: [sum(c["private"] for c in of), sum(c["responses"] for c in of)] for view, of in counts.items()}


def shown(by_seed: Mapping[Any, float]) -> str:
    """Mean and 95 % interval over seeds; the mean alone of of_seed seed."""
    result = spread(by_seed)
    return (
        "" if result is None else f"{result.mean:.2f}" if len(by_seed) < 2 else f"{result.mean:.2f} ± {result.half:.2f}"
    )


def share(measured: Mapping[str, float]) -> str:
    return f"{100 * measured['value']:.1f} % ({100 * measured['low']:.1f} to {100 * measured['high']:.1f})"


def page(content: Mapping[str, Any]) -> str:
    """The tables as markdown."""
    cells = content["cells"]
    about = (
        f"`{content['command']}`, {content['date']}, fedrlvr {content['fedrlvr']}, {content['machine']}, "
        f"{content['cpu_seconds'] / 60:.0f} CPU minutes. AUC: mean and 95 % interval (Student's t) over the seeds. "
        "True positives: problems of all seeds pooled, Wilson's interval."
    )
    lines = [about, "", "## AUC", ""]
    header = ["cell", "rounds", "seeds", *(f"{view}: {attack}" for view, attack in SHOWN)]
    name = [[row["cell"], str(row["round"]), str(len(row["membership"][0]["auc"]))] for row in cells]
    rows = [[*n, *(shown(m["auc"]) for m in row["membership"])] for n, row in zip(name, cells, strict=True)]
    lines += [table(header, rows)]
    lines += ["", "## True positives", ""]
    rows = []
    for n, row in zip(name, cells, strict=True):
        for m in row["membership"]:
            if (m["view"], m["attack"]) in (("server", "gain"), ("server", "diba"), ("server", "reference")):
                p = m["pooled"]
                rates = [share(of) for of in p["true_positives"].values()]
                rows.append([*n, f"{m['view']}: {m['attack']}", *rates, f"{p['members']} and {p['others']}"])
    lines += [table(["cell", "rounds", "seeds", "who: attack", "at 1 %", "at 0.1 %", "problems"], rows)]
    lines += [
        "",
        "## Canaries: exposure over the base model, in bits of 3.3, and share of responses that return it",
        "",
    ]
    rows = []
    for n, row in zip(name, cells, strict=True):
        for c in row["canaries"]:
            rows.append([*n, c["view"], str(c["times"]), shown(c["rise"]), shown(c["returned"])])
    lines += [table(["cell", "rounds", "seeds", "who", "planted", "bits more", "returned"], rows)]
    lines += ["", "## Private text in responses to problems that are not private", ""]
    rows = [
        [*n, *(f"{hits} of {total}" for hits, total in row["returned"].values())]
        for n, row in zip(name, cells, strict=True)
    ]
    lines += [table(["cell", "rounds", "seeds", "server", "site"], rows)]
    return "\n".join(lines).rstrip() + "\n"
