r"""Validation of a reward: the gold answer must score 1.0 in each spelling, and nonsense 0.0.

The commonest failures of verifiable rewards are a grader that pays for nonsense and one that pays for nothing; both
look like training. So both are tried before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fedrlvr.errors import GradingError
from fedrlvr.tasks.extraction import wrap
from fedrlvr.tasks.golds import examine, misgraded
from fedrlvr.tasks.grading import canonical
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.rewards import Reward, grades_by_kind

_LISTED = ", ".join([*(str(n) for n in range(101)), *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "yes", "no", "maybe"])


class Failure(NamedTuple):
    """A problem on which the reward is wrong, and how."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Validation:
    """Numbers of problems that were checked, and checked with adversarial strings too, and the failures.

    unlabelled: how many have no answer. They are not checked.
    notes: gold answers that are more than a short answer, though one meets them.
    """

    checked: int
    attacked: int
    failures: list[Failure]
    unlabelled: int = 0
    notes: list[Failure] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all of the checked problems passed."""
        return not self.failures


def validate(problems: Sequence[Problem], reward: Reward, *, attacked: int = 100) -> Validation:
    """Score every gold answer and its spellings, and for some problems every adversarial string.

    attacked: problems that get the adversarial strings, spread evenly over the list. Problems without an answer are
    counted and left out. A reward other than the graders by kind is asked for the gold answer's own text only, since
    which spellings it takes is not known.
    """
    failures: list[Failure] = []
    notes: list[Failure] = []
    by_kind = grades_by_kind(reward)
    answered = [problem for problem in problems if problem.answer]
    for problem in answered:
        finding = examine(problem) if by_kind else None
        if finding is not None:
            (notes if finding.reachable else failures).append(Failure(problem.id, finding.reason))
        elif reason := _wrong(reward, wrap(problem.answer, problem.kind), problem, 1.0):
            failures.append(Failure(problem.id, f"the gold answer {reason}"))
        elif by_kind and (missed := misgraded(problem)):
            failures.append(Failure(problem.id, f"{len(missed)} other spellings of the gold answer score 0"))
    count = min(attacked, len(answered))
    for index in range(count):
        problem = answered[index * len(answered) // count]
        for name, completion in adversarial(problem).items():
            if reason := _wrong(reward, completion, problem, 0.0):
                failures.append(Failure(problem.id, f"the adversarial string {name!r} {reason}"))
    return Validation(len(answered), count, failures, len(problems) - len(answered), notes)


def adversarial(problem: Problem) -> dict[str, str]:
    """Completions by name that answer nothing, or answer wrongly, whatever the problem.

    Made from the problem so that none of them is the right answer by chance.
    """
    gold = problem.answer
    tries = {
        "empty": "",
        "white space": " \n\t ",
        "all letters": "ABCD",
        "boxed letters": r"\boxed{ABCD}",
        "nested boxes": rf"\boxed{{\boxed{{{gold}}}}}",
        "empty tags": "<answer></answer>",
        "empty tags after the answer": f"<answer>{gold}</answer> <answer></answer>",
        "empty box": r"\boxed{}",
        "empty hashes": "####",
        "unbalanced box": rf"\boxed{{{gold}",
        "unclosed tag": f"<answer>{gold}",
        "only in thought": f"<think>It must be {wrap(gold, problem.kind)}.</think> I am done.",
        "no marker": f"I believe that it is {gold}, because of what was said before.",
        "everything listed": rf"\boxed{{{_LISTED}}}",
        "everything listed, answer last": f"<answer>{_LISTED}, {gold}</answer>",
        "ten thousand digits": rf"\boxed{{{'7' * 10_000}}}",
        "tower of powers": r"\boxed{9^{9^{9^9}}}",
        "null bytes": f"\\boxed{{{gold}\x00}}",
        "a megabyte of boxes": r"\boxed{" * 150_000,
    }
    if problem.kind != "math" or gold.isdecimal():  # a formula between two factors may be itself: 1 x 1, 7 \infty 7
        tries["inside a longer answer"] = rf"\boxed{{1{gold}1}}"
    if canonical(problem.prompt, problem.kind) != canonical(gold, problem.kind):
        tries["the prompt"] = problem.prompt
    return tries


def _wrong(reward: Reward, completion: str, problem: Problem, expected: float) -> str | None:
    try:
        value = reward(completion, problem)
    except GradingError as error:
        return f"cannot be scored: {error}"
    return None if value == expected else f"scores {value:g} instead of {expected:g}"
