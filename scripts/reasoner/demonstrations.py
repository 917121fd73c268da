"""Worked solutions of train problems, right and wrong, which the embedded reasoner learns from.

Only prompts of the train split are shown, so the splits for evaluation and for exchanges stay unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from fedrlvr.tasks.problem import Problem
from fedrlvr.zoo import FAMILIES
from fedrlvr.zoo.family import LEVELS, Family, Level, Pen
from fedrlvr.zoo.generators import family_of, problem_of, split_of

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


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One worked solution to learn from; `correct` says whether its answer is right."""

    prompt: str
    response: str
    family: str
    level: Level
    correct: bool


def demonstrations(
    *,
    seed: int,
    noise: Mapping[tuple[str, Level], float] = NOISE,
    families: Sequence[str] | None = None,
) -> Iterator[Demonstration]:
    """An endless stream of worked solutions of train problems, families and levels by turns.

    A share `noise[family, level]` of them is wrong; a cell that `noise` leaves out is always right.
    """
    rng = Random(f"{seed} demonstrations")
    chosen = [family_of(name) for name in (FAMILIES if families is None else families)]
    while True:
        for family in chosen:
            for level in LEVELS:
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
