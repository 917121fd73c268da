"""Several runs beside each other on the page: the scores, costs and settings of `fedrlvr compare`, and curves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrlvr.errors import printable
from fedrlvr.reporting.comparison import COSTS, ArmInComparison, Over, compare
from fedrlvr.reporting.comparison_files import read_arms
from fedrlvr.reporting.comparison_table import AXES, EXPLAINED, arms_text, comparison_row, mean_line
from fedrlvr.reporting.figures import ComparedLine
from fedrlvr.reporting.watch.run_files import shown_name
from fedrlvr.reporting.watch.watched_run import finite

MOST = 20
"""Largest number of runs that are compared on the page; `fedrlvr compare` takes more."""


def compared(directories: Sequence[Path], over: Over) -> dict[str, Any]:
    """The comparison of runs up to a cost: curves, scores, costs, and the settings that differ.

    Raises:
        ConfigError: a directory is no run any more.
        CheckpointError: a run's metrics.jsonl is damaged.
    """
    arms = read_arms(directories)
    result = compare(arms, over)
    above = f"{os.path.commonpath([directory.parent for directory in directories])}{os.sep}"
    rows = [comparison_row(line, over) for line in result.results]
    return {
        "over": over,
        "costs": [cost for cost in COSTS if cost != "rounds"],
        "charts": [chart for what in ("curve", "rewards") if (chart := _chart(arms, over, what, above)) is not None],
        "rows": [{**row, "name": shown_name(row["name"].removeprefix(above))} for row in rows],
        "explained": EXPLAINED.format(over=over),
        "differing": [
            {"name": shown_name(name), "values": [[shown_name(value), arms_text(at)] for value, at in values.items()]}
            for name, values in result.differing
        ],
        "notes": [shown_name(note) for note in result.notes],
        "command": printable(shlex.join(["fedrlvr", "compare", *map(str, directories), "--over", over])),
    }


def _chart(arms: Sequence[ArmInComparison], over: Over, what: str, above: str) -> dict[str, Any] | None:
    """A line for each arm; all lines share the costs at which any of them has a value. None without any value.

    above: the directory that holds all runs, which their names leave out.
    """
    lines = [mean_line(arm, over, what, band=False) for arm in arms]
    costs = sorted({cost for line in lines for cost, _ in line.points})
    if not costs:
        return None
    return {
        "title": "Held-out pass@1" if what == "curve" else "Mean reward in training",
        "percent": what == "curve",
        "floor": True,
        "unit": "",
        "over": over,
        "axis": AXES[over],
        "x": [finite(cost, 12) for cost in costs],
        "lines": [
            {
                "name": f"{number} {shown_name(arm.name.removeprefix(above))}",
                "role": "client",
                "colour": number,
                "values": _at(line, costs),
            }
            for number, (arm, line) in enumerate(zip(arms, lines, strict=True), start=1)
        ],
    }


def _at(line: ComparedLine, costs: Sequence[float]) -> list[float | None]:
    values = dict(line.points)
    return [finite(values.get(cost)) for cost in costs]
