"""Published data sets: where their files lie, on a disk or on the hub, and how they are split.

A directory is read by its published files. A data set whose publisher names no test set (SVAMP, MedMCQA's dev file),
and any single file, is split by content (`splits.in_split`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedrlvr.errors import ConfigError, DataError, MissingExtraError
from fedrlvr.output import logger
from fedrlvr.tasks.files import DataRow, read_rows
from fedrlvr.tasks.problem import Kind, Problem
from fedrlvr.tasks.splits import in_split
from fedrlvr.tasks.task import Task, check_options

_log = logger("tasks")


class ToProblem(Protocol):
    """One row of a split to a problem; None for a row without an answer, which is left out."""

    def __call__(self, row: DataRow, split: str, /) -> Problem | None:
        """
        Raises:
            DataError: the row does not fit, with its place.
        """


@dataclass(frozen=True)
class PublishedTask(Task):
    """A published data set. Each pair is (train, test); one file or hub split for both is split by content.

    to_problem: reads one row.
    files: names in a directory.
    hub: id and configuration of either split.
    hub_splits: names of the two splits on the hub.
    kinds: as of every `Task`.
    """

    name: str
    to_problem: ToProblem
    files: tuple[str, str]
    hub: tuple[tuple[str, str | None], tuple[str, str | None]]
    hub_splits: tuple[str, str] = ("train", "test")
    kinds: tuple[Kind, ...] = ("math",)

    def load(
        self, path: Path | None, split: str, *, unlabelled: bool = False, options: Mapping[str, Any]
    ) -> list[Problem]:
        """Load a published data set. Every row has an answer or is dropped, so that `unlabelled` changes nothing."""
        side, to_problem = int(split == "test"), self.reader(path, options)
        if path is not None and "hub" in options:
            raise ConfigError(
                f"Data set {self.name!r} has a path ({path}), so the option hub would have no effect. Leave one out."
            )
        if path is None:
            where, raw = self._hub_rows(side, options.get("hub"))
            problems = _problems(raw, to_problem, split, where)
            return in_split(problems, split) if len(set(self.hub_splits)) == 1 else problems
        file = path / self.files[side] if path.is_dir() else path
        problems = _problems(read_rows(file), to_problem, split, str(file))
        if path.is_dir() and self.files[0] != self.files[1]:
            return problems
        return self.split(problems, split, file)

    def reader(self, path: Path | None, options: Mapping[str, Any]) -> ToProblem:
        """`to_problem` with the data set's own options.

        Raises:
            ConfigError: an option that the data set does not take.
        """
        check_options(self.name, options, {"hub"})
        return self.to_problem

    def split(self, problems: list[Problem], split: str, file: Path) -> list[Problem]:
        """The problems of one split of a file that holds both."""
        return in_split(problems, split)

    def _hub_rows(self, side: int, override: str | None) -> tuple[str, Iterator[DataRow]]:
        try:
            import datasets
        except ImportError:
            raise MissingExtraError(
                "Data sets from the hub need the `datasets` library. Run `pip install 'fedrlvr[hub]'`, or give "
                "data.path."
            ) from None
        name, config = (override, None) if override else self.hub[side]
        try:
            table = datasets.load_dataset(name, config, split=self.hub_splits[side])
        except Exception as error:  # the library raises a dozen kinds, its own and its dependencies'
            raise DataError(
                f"The hub data set {name!r} cannot be loaded ({type(error).__name__}: {error}). Check the id and the "
                "connection, or give a local path."
            ) from error
        return str(name), (DataRow(f"{name}, row {index} (from 0)", index, row) for index, row in enumerate(table))


def _problems(raw: Iterable[DataRow], to_problem: ToProblem, split: str, where: str) -> list[Problem]:
    problems, skipped = [], []
    for row in raw:
        problem = to_problem(row, split)
        if problem is None:
            skipped.append(row.index)
        else:
            problems.append(problem)
    if skipped:
        listed = ", ".join(map(str, skipped[:20])) + (", ..." if len(skipped) > 20 else "")
        _log.info("%s: skipped %d rows without an answer (counted from 0): %s", where, len(skipped), listed)
    return problems
