"""Seeded problems of the eight families.

Which split a problem belongs to follows from its prompt alone (a hash modulo 100), so the three splits, and the
demonstrations the weights were trained on (train split only), share no problem whatever the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Literal, get_args

from fedrlvr.errors import DataError
from fedrlvr.tasks.problem import Problem
from fedrlvr.zoo.arithmetic import DIFFERENCE, PRODUCT, REMAINDER, SUM
from fedrlvr.zoo.clinical import DOSE, DRIP, SCORE, UNIT
from fedrlvr.zoo.family import LEVELS, Family, Level

ALL: tuple[Family, ...] = (SUM, DIFFERENCE, PRODUCT, REMAINDER, DOSE, DRIP, UNIT, SCORE)
FAMILIES: tuple[str, ...] = tuple(family.name for family in ALL)
Split = Literal["train", "public", "test"]
BUCKETS: Mapping[Split, range] = {"train": range(70), "public": range(70, 80), "test": range(80, 100)}
"""Hash buckets, out of 100, of each split."""

_BY_NAME = {family.name: family for family in ALL}
_PATIENCE = 20_000  # draws without a new problem before a space of 2,000 or more counts as used up


def split_of(problem: Problem) -> Split:
    """The split a problem belongs to, from its content key."""
    bucket = int(problem.content_key[:12], 16) % 100
    return next(split for split, buckets in BUCKETS.items() if bucket in buckets)


def problems(
    *,
    split: Split,
    size: int,
    seed: int,
    families: Sequence[str] | None = None,
    levels: Sequence[str] = LEVELS,
) -> list[Problem]:
    """`size` distinct problems for each family and level, family by family and level by level.

    Raises DataError on an unknown split, family or level, and where a family's space holds fewer problems than asked.
    """
    if split not in BUCKETS:
        raise DataError(f"Unknown split {split!r} of the embedded problems: use one of {', '.join(get_args(Split))}.")
    chosen: list[Problem] = []
    for name in FAMILIES if families is None else families:
        family = family_of(name)
        for level in levels:
            chosen += _distinct(family, _level(level), split, size, seed)
    return chosen


def family_of(name: str) -> Family:
    """The family of this name. Raises DataError if there is none."""
    if name not in _BY_NAME:
        raise DataError(f"Unknown family {name!r} of the embedded problems: use any of {', '.join(FAMILIES)}.")
    return _BY_NAME[name]


def _level(name: str) -> Level:
    for level in LEVELS:
        if name == level:
            return level
    raise DataError(f"Unknown level {name!r} of the embedded problems: use any of {', '.join(LEVELS)}.")


def _distinct(family: Family, level: Level, split: Split, size: int, seed: int) -> list[Problem]:
    rng = Random(f"{seed} {split} {family.name} {level}")
    drawn: dict[str, Problem] = {}
    in_vain = 0
    while len(drawn) < size and in_vain < _PATIENCE:
        problem = problem_of(family, level, family.draw(rng, level))
        in_vain += 1
        if split_of(problem) == split and problem.prompt not in drawn:
            drawn[problem.prompt] = problem
            in_vain = 0
    if len(drawn) < size:
        raise DataError(
            f"Family {family.name}, level {level}, split {split} of the embedded problems gave {len(drawn)} distinct "
            f"problems where {size} were asked for: ask for fewer."
        )
    return list(drawn.values())


def problem_of(family: Family, level: Level, operands: tuple[int, ...]) -> Problem:
    """Problem of a family and level with these operands."""
    problem = Problem(
        prompt=family.ask(operands),
        answer=str(family.answer(operands)),
        id="",
        source=family.name,
        kind="math",
        info={"level": level, "domain": family.domain, "error": family.error},
    )
    return replace(problem, id=f"{family.name}-{level}-{problem.content_key[:8]}")
