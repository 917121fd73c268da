"""The files of a run's directory besides its numbers: settings and state, and the search for directories of runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedrlvr.errors import printable
from fedrlvr.files import is_locked, read_json
from fedrlvr.reporting.responses import FILE as RESPONSES_FILE

DEEPEST = 5
"""Number of directories below a given one in which runs are looked for."""
MOST_RUNS = 2_000
"""Largest number of runs on the page."""
LONGEST_NAME = 200
"""Largest number of characters of a name on the page."""
_METRICS, _CONFIG, _LOCK = "metrics.jsonl", "config.json", "run.lock"


class RunState(StrEnum):
    """The state of a run: under way, ended, or stopped before its end."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    ELSEWHERE = "on the server"


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run that the page needs, each in the type it should have.

    budget: share of a step's problems whose label is asked for, of each client. budget_total: largest number of labels
    of a client. labels_from: who gives them. All three None where no labels are asked for.
    """

    name: str = ""
    rounds: int | None = None
    clients: tuple[str, ...] = ()
    arm: str = ""
    supervision: str = ""
    demonstrations: bool = False
    budget: float | None = None
    budget_total: int | None = None
    labels_from: str | None = None


def read_settings(directory: Path) -> RunSettings:
    """The settings in a run's config.json; those that are missing or of another type have their defaults."""
    try:
        tree = read_json(directory / _CONFIG)
    except (OSError, ValueError):
        return RunSettings()

    def setting(section: str, key: str, kind: type) -> Any:
        part = tree.get(section) if isinstance(tree, dict) else None
        value = part.get(key) if isinstance(part, dict) else None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return value if isinstance(value, kind) and not isinstance(value, bool) else None

    clients = setting("federation", "clients", list) or []
    supervision = setting("supervision", "type", str) or ""
    return RunSettings(
        name=shown_name(setting("run", "name", str) or ""),
        rounds=setting("train", "rounds", int),
        clients=tuple(client for client in clients if isinstance(client, str)),
        arm=shown_name(setting("federation", "arm", str) or ""),
        supervision=shown_name(supervision),
        demonstrations=supervision == "demonstrations",
        budget=setting("supervision", "budget", float),
        budget_total=setting("supervision", "budget_total", int),
        labels_from=setting("supervision", "labels_from", str),
    )


def shown_name(name: str) -> str:
    """A name or reason from a file as the page shows it: printable, and of a bounded length."""
    cut = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return printable(cut)


def read_state(directory: Path, done: int | None, rounds: int | None) -> RunState:
    """The state of a run, which is under way while a process holds the lock of its directory and no adapter is written.

    done: the newest round that is written down. rounds: of the whole run.
    """
    locked = is_run_locked(directory)
    if not locked and not (directory / _CONFIG).exists() and not (directory / _METRICS).exists():
        return RunState.ELSEWHERE  # at an organisation only its own part of the run is on disk
    complete = rounds is None or (done is not None and done >= rounds)
    if complete and (directory / "adapter").is_dir():
        return RunState.FINISHED  # a sweep holds the locks of finished runs until all are finished
    return RunState.RUNNING if locked else RunState.INTERRUPTED


def is_run_locked(directory: Path) -> bool:
    """Whether a process is at work on the run in a directory."""
    return is_locked(directory / _LOCK)


def is_run(directory: Path) -> bool:
    """Whether a directory is a run's: of a server or simulation, or an organisation's part of one."""
    if (directory / _CONFIG).is_file() and not (directory / "adapter_model.safetensors").exists():
        return any((directory / name).exists() for name in (_METRICS, _LOCK, "checkpoints"))
    return (directory / "clients").is_dir() and any(directory.glob(f"clients/*/{RESPONSES_FILE}"))


def run_directories(roots: list[Path]) -> Iterator[Path]:
    """The directories of runs at and below the given ones, each once; symbolic links are not followed."""
    seen: set[Path] = set()
    for root in roots:
        for directory in _below(root.absolute(), DEEPEST):
            if directory not in seen:
                seen.add(directory)
                yield directory
            if len(seen) >= MOST_RUNS:
                return


def _below(directory: Path, deepest: int) -> Iterator[Path]:
    if is_run(directory):
        yield directory
        return
    if deepest == 0:
        return
    try:
        entries = sorted(
            entry.name
            for entry in os.scandir(directory)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )
    except OSError:
        return
    for name in entries:
        yield from _below(directory / name, deepest - 1)


def run_id(directory: Path) -> str:
    """The name of a run in addresses of the page, which hold no path."""
    return hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
