"""A task: what the name of a data set stands for. `load.py` has the table of all tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedrlvr.errors import ConfigError, suggestion
from fedrlvr.tasks.extraction import instruction
from fedrlvr.tasks.problem import Kind, Problem

if TYPE_CHECKING:
    from fedrlvr.config import DataConfig

EXAMPLES: Mapping[str, str] = {
    "math": "A clinic has 3 wards with 14 beds each, and 25 of these beds are taken. How many beds are free?",
    "choice": "Which planet is the closest to the sun?\n\nA. Venus\nB. Mercury\nC. Mars\nD. Jupiter",
    "yes_no_maybe": "Water boils at a lower temperature on a high mountain.\n\nQuestion: Does the pressure of the air "
    "change the boiling point of water?",
    "exact": "Write the letters of the word stone in the reverse order.",
    "whole": "48 + 16 = ",
}
"""A made-up problem of each kind, for documentation; it is in no data set."""


class Task(ABC):
    """One data set: its loader, and the properties of its problems.

    name: the data set's name, for messages.
    splits: names of the splits that `load` knows.
    takes_labels: a label that people give decides the reward. False for a data set with a scorer of its own, for which
        such a label would have no effect.
    kinds: kinds of its problems, the usual kind first.
    """

    name: str
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    takes_labels: ClassVar[bool] = True
    kinds: tuple[Kind, ...] = ("math",)

    @abstractmethod
    def load(
        self, path: Path | None, split: str, *, unlabelled: bool = False, options: Mapping[str, Any]
    ) -> list[Problem]:
        """The problems of one split, in the order of the data set.

        unlabelled: training rows may come without an answer; only a data set of the user's own has such rows.

        Raises:
            ConfigError: an unknown option, or a path that is needed, or that would have no effect.
            DataError: a file or row that cannot be used, with its place.
            MissingExtraError: an extra that the data set needs is not installed.
        """

    def instruction(self, kind: Kind) -> str:
        """The sentence appended to prompts of one kind, unless the configuration says another."""
        return instruction(kind)

    def example(self, kind: Kind) -> str:
        """A made-up problem of one kind, worded as the problems of the data set are."""
        return EXAMPLES[kind]

    def options_of(self, data: DataConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of `load` for the train (public problems included) and the test split of a configuration.

        A data set in files is loaded whole; a generated one makes as many problems as the configuration wants.

        Raises:
            ConfigError: an option that contradicts another setting.
        """
        return data.options, data.options


def check_options(
    name: str, options: Mapping[str, Any], allowed: AbstractSet[str], needed: AbstractSet[str] = frozenset()
) -> None:
    """Make sure that a data set gets only options it knows, and all it needs.

    Raises:
        ConfigError: names the option, and the nearest one that is known.
    """
    for key in options:
        if key not in allowed:
            raise ConfigError(f"Data set {name!r} has no option {key!r} ({suggestion(key, sorted(allowed))}).")
    if missing := sorted(needed - options.keys()):
        raise ConfigError(f"Data set {name!r} needs the option {missing[0]!r}.")
