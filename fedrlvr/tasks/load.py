"""The table of all tasks, and `load`: a data set's name, a path or the hub, and a split, to a list of problems.

A task is added by an object here: published files by an entry in `rows.py`, anything else by a class of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedrlvr.errors import ConfigError, DataError, suggestion
from fedrlvr.tasks.generated import EmbeddedTask, SumsTask
from fedrlvr.tasks.gym import GymTask
from fedrlvr.tasks.own import OwnTask
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.rows import PUBLISHED
from fedrlvr.tasks.task import Task

TASKS: Mapping[str, Task] = {task.name: task for task in (*PUBLISHED, OwnTask(), EmbeddedTask(), SumsTask())}
"""Every data set by its name."""
FAMILIES: Mapping[str, Callable[[str], Task]] = {"reasoning_gym": GymTask}
"""Data sets that are named `<prefix>:<family>`, by their prefix."""


def task_of(name: str) -> Task:
    """The task that a data set's name stands for.

    name: gsm8k, math, svamp, medqa, medmcqa, pubmedqa, jsonl, embedded, sums, or `reasoning_gym:<family>`.

    Raises:
        ConfigError: there is no such data set.
    """
    prefix, colon, family = name.partition(":")
    if colon and prefix in FAMILIES:
        return FAMILIES[prefix](family)
    if name not in TASKS:
        raise ConfigError(f"There is no data set {name!r} ({suggestion(name, [*TASKS])}).")
    return TASKS[name]


def load(
    name: str, path: Path | str | None = None, split: str = "train", *, unlabelled: bool = False, **options: Any
) -> list[Problem]:
    """The problems of one split of a data set, in the order of its file.

    name: as `task_of` takes it.
    path: a directory laid out as published, or one file; None takes the hub, by the `datasets` library.
    split: train or test; `embedded` also has public.
    unlabelled: own rows (jsonl) for training may do without an answer and become problems with the answer "", as where
        people give the labels. Other data sets have answers, and it changes nothing there.
    options: hub (an id other than the well-known one; a local directory works too), cop_from (medmcqa: the number of
        the first option; 1 in the published file, 0 on the hub), kind (jsonl: of rows that state none, default math);
        `embedded`, `sums` and `reasoning_gym` take their own (size, seed, ...).

    Raises:
        ConfigError: an unknown name, split or option, or one that would have no effect.
        DataError: a file or row that cannot be used, with its place.
        MissingExtraError: the hub or reasoning-gym is asked for and its extra is not installed.
    """
    task = task_of(name)
    if split not in task.splits:
        raise ConfigError(f"Data set {name!r} has no split {split!r}. Use one of {', '.join(task.splits)}.")
    location = None if path is None else Path(path).expanduser()
    problems = task.load(location, split, unlabelled=unlabelled, options=options)
    if not problems:
        raise DataError(
            f"Data set {name!r} ({location or 'no path'}) has no problem in split {split!r}. A single file is split by "
            "content, 80 to 20: give more rows, or a directory with a file for each split."
        )
    _check_ids(problems, name)
    return problems


def _check_ids(problems: list[Problem], name: str) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(f"Data set {name!r}: two problems have the id {problem.id!r}. Give each its own.")
        seen.add(problem.id)
