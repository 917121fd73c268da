"""Problems of a reasoning-gym family (extra `reasoning-gym`), scored by the family's own scorer.

The scorer sees the extracted answer only, and only its full credit counts: several give part of it to wrong text. It
runs in a child process with a time limit (`sandbox.py`), where it makes the problem again from family, settings and
index; an exception in it scores 0.0. Problems are made in such a process too, with a fixed hash seed: five families
of version 0.1.25 walk through sets of strings, so elsewhere one seed would give other problems in every process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from fedrlvr.errors import ConfigError, DataError, MissingExtraError
from fedrlvr.tasks.extraction import extract
from fedrlvr.tasks.generated import GeneratedTask
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.sandbox import GraderChild

# Families draw problem i from seed + i, so the splits' seeds lie further apart than any size.
_TEST_OFFSET = 500_000_000

_MAKING_S = 60.0  # for one problem; some families search for a solvable one

_child = GraderChild()


class GymTask(GeneratedTask):
    """The problems of one reasoning-gym family; its scorer takes no label that people give."""

    takes_labels = False
    kinds = ("exact",)

    def __init__(self, family: str) -> None:
        self.name, self.family = f"reasoning_gym:{family}", family

    def generate(self, split: str, options: Mapping[str, Any]) -> list[Problem]:
        """Make problems of the family; the other options are the family's own settings.

        Raises:
            MissingExtraError, ConfigError, DataError: as the function `generate`.
        """
        return generate(self.family, split, **options)


def generate(family: str, split: str, *, size: int = 500, seed: int = 0, **config: Any) -> list[Problem]:
    """`size` problems of a family; `config` is the family's own (its dataclass in reasoning-gym).

    Raises:
        MissingExtraError: reasoning-gym is not installed.
        ConfigError: an unknown family, or settings it does not take.
        DataError: a problem without an answer in text.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise MissingExtraError(
            "reasoning_gym problems need the library of that name. Run `pip install 'fedrlvr[reasoning-gym]'`."
        )
    if not (0 < size <= _TEST_OFFSET and 0 <= seed <= _TEST_OFFSET):
        raise ConfigError(f"reasoning_gym:{family}: size must be from 1 and seed from 0 to {_TEST_OFFSET:,}.")
    settings = {**config, "size": size, "seed": seed + 2 * _TEST_OFFSET * (split == "test")}
    maker = GraderChild(limit_s=_MAKING_S)
    try:
        return [_problem(maker, family, split, settings, index) for index in range(size)]
    finally:
        maker.close()


def _problem(maker: GraderChild, family: str, split: str, settings: dict[str, Any], index: int) -> Problem:
    recipe = {"family": family, "config": settings, "index": index}
    entry = maker.call(recipe)
    if "question" not in entry:
        raise ConfigError(
            f"reasoning_gym:{family} cannot be made with {settings} ({entry.get('error', 'it took too long')}). Check "
            "the family's name and settings."
        )
    if not isinstance(entry["answer"], str) or not entry["answer"].strip():
        raise DataError(f"reasoning_gym:{family}, problem {index} has no answer in text. Choose another family.")
    name = f"{family}-{split}-{index}"
    return Problem(entry["question"], entry["answer"], name, family, "exact", {"reasoning_gym": recipe})


def score(completion: str, problem: Problem) -> float:
    """1.0 if the family's scorer gives the completion's extracted answer full credit, else 0.0."""
    answer = extract(completion, "exact")
    if answer is None:
        return 0.0
    return float(_child.ask({**problem.info["reasoning_gym"], "answer": answer}) >= 1.0)
