"""Runs read from their directories for a comparison, and the comparison's CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrlvr.errors import ConfigError
from fedrlvr.files import read_json
from fedrlvr.reporting.comparison import COSTS, ArmInComparison, RunInComparison, arms_of, flat_settings, moments
from fedrlvr.reporting.loaded_run import LoadedRun, load_run


def read_arms(paths: Sequence[Path]) -> list[ArmInComparison]:
    """The arms of runs and sweeps, in the order given; a run that is named twice counts once.

    Raises:
        ConfigError: a directory is neither a run nor a sweep; the text names it.
        CheckpointError: a run's metrics.jsonl is damaged; the text names the line.
    """
    runs: dict[Path, tuple[str | None, RunInComparison]] = {}
    for path in paths:
        for arm, directory in _run_directories(path, several=len(paths) > 1):
            runs.setdefault(directory.resolve(), (arm, _run(directory, load_run(directory))))
    return arms_of(list(runs.values()))


def _run_directories(path: Path, *, several: bool) -> list[tuple[str | None, Path]]:
    """A run, or the runs of a sweep with the name of their arm. several: the name of the sweep stands before it."""
    if (path / "config.json").is_file():
        return [(None, path)]
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such directory. Give directories of runs or sweeps.")
    parts = sorted((part.parent for part in path.glob("*/seed-*/config.json")), key=str)
    if not parts:
        raise ConfigError(
            f"{path} is neither a run nor a sweep: it holds no config.json, and no ARM/seed-N/config.json. Give "
            "directories of runs or sweeps."
        )
    return [(f"{path.name}/{part.parent.name}" if several else part.parent.name, part) for part in parts]


def _run(directory: Path, run: LoadedRun) -> RunInComparison:
    """The run as it is compared, with notes on what is missing."""
    notes, seed = [], run.settings["run"].get("seed")
    planned, done = run.settings["train"].get("rounds"), max((r["round"] for r in run.records), default=None)
    try:
        read = moments(run.records, run.settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a release whose records are other ones
        read = []
        notes.append(f"metrics.jsonl is not of this release's form ({type(error).__name__}), so there are no numbers")
    if done is None:
        notes.append("no round is finished yet")
    elif isinstance(planned, int) and done < planned:
        notes.append(f"{done} of {planned} rounds are done, and are compared as far as they go")
    if not isinstance(seed, int):
        notes.append("the configuration has no seed, so it counts as seed 0")
        seed = 0
    return RunInComparison(
        str(directory), seed, flat_settings(run.settings), read, _digest(directory), run.version, notes
    )


def _digest(directory: Path) -> str | None:
    """The digest of a run's problems; None where it was not written."""
    try:
        return str(read_json(directory / "holdings.json")["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def to_csv(arms: Sequence[ArmInComparison]) -> str:
    """A line for each round of each run: every cost so far, pass@1 with its interval, and the training reward."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "run", "seed", *COSTS, "pass@1", "low", "high", "n", "reward"])
    for arm in arms:
        for seed, run in arm.runs.items():
            for moment in run.moments:
                score = moment.held_out
                scored: list[Any] = [score.mean, score.low, score.high, score.n] if score else [None] * 4
                costs = [_whole(moment.costs[cost]) for cost in COSTS]
                writer.writerow([arm.name, run.name, seed, *costs, *scored, moment.reward])
    return out.getvalue()


def _whole(value: float | None) -> float | int | None:
    return int(value) if value is not None and value == int(value) else value
