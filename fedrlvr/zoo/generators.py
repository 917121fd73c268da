"""Seeded problems and worked solutions of the eight families.

Which split a problem belongs to follows from its prompt alone (a hash modulo 100), so the three splits, and the
demonstrations the weights were trained on (train split only), share no problem whatever the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, get_args

from fedrlvr.errors import DataError
from fedrlvr.tasks.problem import Problem
from fedrlvr.zoo.families import ALL, LEVELS, Family, Level, Pen

FAMILIES: tuple[str, ...] = tuple(family.name for family in ALL)
Split = Literal["train", "public", "test"]
BUCKETS: Mapping[Split, range] = {"train": range(70), "public": range(70, 80), "test": range(80, 100)}
"""Hash buckets, out of 100, of each split."""

MAX_RESPONSE = 31
"""Characters in the longest response, right or wrong; with the end-of-sequence token, 32 new tokens."""

NOISE: Mapping[tuple[str, Level], float] = {
    ("sum", "easy"): 0.35,
    ("sum", "hard"): 0.87,
    ("difference", "easy"): 0.68,
    ("difference", "hard"): 0.90,
    ("product", "easy"): 0.35,
    ("product", "hard"): 0.88,
    ("remainder", "easy"): 0.70,
    ("remainder", "hard"): 0.90,
    ("dose", "easy"): 0.33,
    ("dose", "hard"): 0.85,
    ("drip", "easy"): 0.30,
    ("drip", "hard"): 0.85,
    ("unit", "easy"): 0.70,
    ("unit", "hard"): 0.90,
    ("score", "easy"): 0.68,
    ("score", "hard"): 0.90,
}
"""Share of demonstrations whose answer is wrong. The rest are right, so this sets the sampled accuracy from above."""

_BY_NAME = {family.name: family for family in ALL}
_PATIENCE = 20_000  # draws without a new problem before a space of 2,000 or more counts as used up


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One worked solution to learn from; `correct` says whether its answer is right."""

    prompt: str
    response: str
    family: str
    level: Level
    correct: bool


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
    found: list[Problem] = []
    for name in FAMILIES if families is None else families:
        family = _family(name)
        for level in levels:
            found += _distinct(family, _level(level), split, size, seed)
    return found


def _family(name: str) -> Family:
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
    found: dict[str, Problem] = {}
    in_vain = 0
    while len(found) < size and in_vain < _PATIENCE:
        problem = problem_of(family, level, family.draw(rng, level))
        in_vain += 1
        if split_of(problem) == split and problem.prompt not in found:
            found[problem.prompt] = problem
            in_vain = 0
    if len(found) < size:
        raise DataError(
            f"Family {family.name}, level {level}, split {split} of the embedded problems gave {len(found)} distinct "
            f"problems where {size} were asked for: ask for fewer."
        )
    return list(found.values())


def problem_of(family: Family, level: Level, operands: tuple[int, ...]) -> Problem:
    """The problem with these operands."""
    problem = Problem(
        prompt=family.ask(operands),
        answer=str(family.answer(operands)),
        id="",
        source=family.name,
        kind="math",
        info={"level": level, "domain": family.domain, "error": family.error},
    )
    return replace(problem, id=f"{family.name}-{level}-{problem.content_key[:8]}")


def demonstrations(
    *,
    seed: int,
    noise: Mapping[tuple[str, Level], float] = NOISE,
    families: Sequence[str] | None = None,
    levels: Sequence[str] = LEVELS,
) -> Iterator[Demonstration]:
    """An endless stream of worked solutions of train problems, families and levels by turns.

    A share `noise[family, level]` of them is wrong; a cell that `noise` leaves out is always right.
    """
    rng = Random(f"{seed} demonstrations")
    chosen = [_family(name) for name in (FAMILIES if families is None else families)]
    while True:
        for family in chosen:
            for name in levels:
                level = _level(name)
                problem, operands = _train_problem(family, level, rng)
                share = noise.get((family.name, level), 0.0)
                wrong = rng.random() < share
                response = wrong_solution(family, operands, share, rng) if wrong else family.solution(operands, Pen())
                yield Demonstration(problem.prompt, response, family.name, level, correct=not wrong)


def _train_problem(family: Family, level: Level, rng: Random) -> tuple[Problem, tuple[int, ...]]:
    while True:
        operands = family.draw(rng, level)
        problem = problem_of(family, level, operands)
        if split_of(problem) == "train":
            return problem, operands


def wrong_solution(family: Family, operands: tuple[int, ...], share: float, rng: Random) -> str:
    """A solution with the family's kind of error and a wrong answer.

    Numbers slip at the rate at which a `share` of solutions as long as this one would hold a slip.
    """
    if family.error == "systematic":
        return family.solution(operands, Pen(misconceived=True))
    clean = Pen()
    right = family.solution(operands, clean)
    rate = 1 - (1 - share) ** (1 / clean.numbers)
    while True:
        written = family.solution(operands, Pen(rng, rate))
        # A slip can be lost on the way (a quotient that comes out alike): such a solution is not a wrong one.
        if written.rsplit(" ", 1)[1] != right.rsplit(" ", 1)[1]:
            return written
