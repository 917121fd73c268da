"""Data sets whose problems are made from a seed instead of being read from files."""

from __future__ import annotations

import itertools
import random
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrlvr.errors import ConfigError, DataError
from fedrlvr.seeds import stream
from fedrlvr.tasks.problem import Kind, Problem
from fedrlvr.tasks.task import Task, check_options

if TYPE_CHECKING:
    from fedrlvr.config import DataConfig

TRAIN_SIZE, TEST_SIZE = 4096, 1024
"""Problems made where data.train_size and data.test_size do not say how many."""


class GeneratedTask(Task):
    """A data set whose problems are made from a seed; a subclass says how."""

    def load(
        self, path: Path | None, split: str, *, unlabelled: bool = False, options: Mapping[str, Any]
    ) -> list[Problem]:
        """The problems of one split; every one has an answer, so `unlabelled` changes nothing.

        Raises:
            ConfigError: a path, or what `generate` refuses.
        """
        if path is not None:
            raise ConfigError(
                f"Data set {self.name!r} is generated: a path ({path}) would have no effect. Leave it out."
            )
        return self.generate(split, options)

    @abstractmethod
    def generate(self, split: str, options: Mapping[str, Any]) -> list[Problem]:
        """Make the problems of one split; `options` holds the size among others."""

    def option_size(self, size: int, options: Mapping[str, Any]) -> int:
        """The value of the option `size` by which at least `size` problems are made."""
        return size

    def options_of(self, data: DataConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of the training and test problems; their `size` follows from the configuration's sizes.

        Raises:
            ConfigError: `size` is among the options.
        """
        if "size" in data.options:
            raise ConfigError("data.options.size: say data.train_size and data.test_size instead.")
        kept = data.train_size or TRAIN_SIZE
        sizes = kept + data.public_size + data.validation_size, data.test_size or TEST_SIZE
        train, test = ({**data.options, "size": self.option_size(size, data.options)} for size in sizes)
        return train, test


class EmbeddedTask(GeneratedTask):
    """The problems of the embedded reasoner; its `size` is that of each family and level."""

    name = "embedded"
    splits = ("train", "public", "test")

    def generate(self, split: str, options: Mapping[str, Any]) -> list[Problem]:
        """Make problems family by family and level by level.

        Raises:
            ConfigError: an option that is unknown or missing.
            DataError: an unknown family or level, or one with fewer problems than asked for.
        """
        from fedrlvr.zoo import problems

        check_options(self.name, options, {"size", "seed", "families", "levels"}, needed={"size"})
        return problems(**{"seed": 0, **options, "split": split})

    def instruction(self, kind: Kind) -> str:
        """Nothing: the embedded reasoner was trained on the bare prompts."""
        return ""

    def example(self, kind: Kind) -> str:
        """A sum, worded as the embedded problems are."""
        return "58 plus 26?"

    def option_size(self, size: int, options: Mapping[str, Any]) -> int:
        """Number of problems for each family and level, so that there are `size` in all."""
        from fedrlvr.zoo import FAMILIES, LEVELS

        cells = len(options.get("families", FAMILIES)) * len(options.get("levels", LEVELS))
        return -(-size // max(cells, 1))


class SumsTask(GeneratedTask):
    """Sums of two numbers of one or two digits, such as `25+31=`: what a small real model can learn in minutes.

    A response is the sum and nothing else, as after examples such as `3+4=7`.

    Each number has one or two digits with equal chances, as long as there are such sums left. A pair of numbers is in
    one split only, whatever the seed.
    """

    name = "sums"
    kinds = ("whole",)

    def generate(self, split: str, options: Mapping[str, Any]) -> list[Problem]:
        """Different sums, drawn by the option `seed` (default 0).

        Raises:
            ConfigError: an option that is unknown or missing.
            DataError: the split has fewer sums than asked for.
        """
        check_options(self.name, options, {"size", "seed"}, needed={"size"})
        size, draw = options["size"], random.Random(stream(options.get("seed", 0), self.name, split))
        cells = [_pairs(a, b, split) for a, b in itertools.product(_NUMBERS, _NUMBERS)]
        if size > (most := sum(map(len, cells))):
            raise DataError(f"Data set {self.name!r} has {most:,} sums in split {split!r}, and {size:,} are asked for.")
        for pairs in cells:
            draw.shuffle(pairs)
        chosen: list[tuple[int, int]] = []
        while len(chosen) < size:
            chosen += [pairs.pop()] if (pairs := draw.choice(cells)) else []
        return [Problem(f"{a}+{b}=", str(a + b), f"{a}+{b}", "sum", "whole", response=str(a + b)) for a, b in chosen]

    def example(self, kind: Kind) -> str:
        """A sum that no split holds."""
        return "0+0="


_NUMBERS = (range(1, 10), range(10, 100))
"""Numbers of one digit, and of two."""


def _pairs(first: range, second: range, split: str) -> list[tuple[int, int]]:
    """The pairs of one split: about every fifth is a test problem."""
    pairs = itertools.product(first, second)
    return [pair for pair in pairs if (stream(0, "sums", *pair) % 5 == 0) == (split == "test")]
