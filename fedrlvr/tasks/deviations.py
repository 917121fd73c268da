"""Problems and rewards of a client that deviates from the others in an experiment: wrong labels, problems that nobody
can solve, answers that contradict another client's, prompts of another form, and a grader that errs.

Real federations have such clients. What a client does differently in training is in client/local_training.py.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from fedrlvr.errors import DataError
from fedrlvr.seeds import stream
from fedrlvr.tasks.grading import is_right
from fedrlvr.tasks.problem import Problem, Turn, conversation_text
from fedrlvr.tasks.prompts import worded
from fedrlvr.tasks.rewards import ProblemReward, Reward, score

_WHOLE = re.compile(r"[0-9]{1,15}")
"""A whole number. Every grader tells two different ones apart."""
_SIGNED = re.compile(r"-?[0-9]{1,15}")


def reworded(problem: Problem, template: str | None) -> Problem:
    """The problem with its prompt in a template; None leaves it as it is.

    Raises:
        DataError: the template does not fit the problem.
    """
    if template is None:
        return problem
    text = worded(problem, template)
    messages = (*problem.messages[:-1], Turn("user", text)) if problem.messages else ()
    return replace(problem, prompt=conversation_text(messages) if messages else text, messages=messages)


def with_wrong_labels(client: str, problems: Sequence[Problem], share: float, seed: int) -> list[Problem]:
    """The problems, in order, with a wrong answer for the nearest whole number to `share` of them, drawn by seed.

    The wrong answer is that of another of the problems, of the same source if one of them has a different answer. A
    larger share keeps the wrong answers of a smaller one.

    Raises:
        DataError: a problem has no counterpart with a different answer of its kind.
    """
    changed = list(problems)
    for index in _drawn(len(problems), share, stream(seed, client, "wrong labels")):
        changed[index] = replace(problems[index], answer=_wrong_answer(client, problems[index], problems, seed))
    return changed


def _drawn(size: int, share: float, seed: int) -> list[int]:
    """Places of the nearest whole number to `share` of `size` problems; those of a smaller share come first."""
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order[: math.floor(share * size + 0.5)]


def contradicting(client: str, problems: Sequence[Problem]) -> list[Problem]:
    """Another client's problems, in order, with answers that contradict its answers. Their ids say so.

    Raises:
        DataError: an answer has no opposite: it is neither a whole number, nor yes or no, nor a letter.
    """
    return [replace(p, answer=_opposite(client, p), id=f"{p.id}-contradicted") for p in problems]


def _opposite(client: str, problem: Problem) -> str:
    answer = problem.answer.strip()
    if problem.kind == "math" and _SIGNED.fullmatch(answer):
        return str(int(answer) + 1)
    if problem.kind == "choice":
        return "B" if answer.upper() == "A" else "A"
    if problem.kind == "yes_no_maybe" and answer.casefold() in ("yes", "no"):
        return "no" if answer.casefold() == "yes" else "yes"
    raise DataError(
        f"federation.deviations.{client}.contradicts: the answer of problem {problem.id!r} has no opposite, since it "
        "is no whole number, no letter, and neither yes nor no. Leave contradicts out."
    )


class DeviantReward(ProblemReward):
    """A client's training reward as its deviation changes it.

    unsolvable: share of the `problems` on which every response gets 0. flipped: share of the responses whose reward r
    becomes 1 - r, after that. Both are drawn by seed and client; of equal responses to a problem each is drawn for
    itself.
    """

    def __init__(
        self, reward: Reward, client: str, problems: Sequence[Problem], *, unsolvable: float, flipped: float, seed: int
    ) -> None:
        self.reward, self.client, self.flipped, self.seed = reward, client, flipped, seed
        places = _drawn(len(problems), unsolvable, stream(seed, client, "unsolvable"))
        self.unsolvable = frozenset(problems[place].id for place in places)

    def score(self, problem: Problem, completions: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """Rewards of completions of one problem, in order.

        Raises:
            GradingError: the reward fails.
        """
        rewards = score(self.reward, problem, completions, finished)
        if problem.id in self.unsolvable:
            rewards = [0.0] * len(rewards)
        seen: Counter[str] = Counter()
        result = []
        for completion, reward in zip(completions, rewards, strict=True):
            seed = stream(self.seed, self.client, "flipped", problem.id, completion, seen[completion])
            seen[completion] += 1
            result.append(1.0 - reward if self.flipped and random.Random(seed).random() < self.flipped else reward)
        return result


def _differ(problem: Problem, other: Problem) -> bool:
    """Whether two problems are of one kind, and its grader calls the answer of the second wrong for the first."""
    answers = problem.answer, other.answer
    if other.kind != problem.kind or not other.answer or other.answer == problem.answer:
        return False
    whole = all(_WHOLE.fullmatch(answer) for answer in answers)
    if whole and int(answers[0]) != int(answers[1]):  # most pairs, and a grader takes a hundred times as long
        return True
    return not is_right(other.answer, problem.answer, problem.kind, arithmetic=True)


def _wrong_answer(client: str, problem: Problem, problems: Sequence[Problem], seed: int) -> str:
    of_source = [other for other in problems if other.source == problem.source and _differ(problem, other)]
    different = of_source or [other for other in problems if _differ(problem, other)]
    if not different:
        raise DataError(
            f"federation.deviations.{client}.wrong_labels: the client holds no problem with another answer than "
            f"problem {problem.id!r}. Give the client more problems, or leave wrong_labels out."
        )
    rng = random.Random(stream(seed, client, "wrong label", problem.id))
    return rng.choice(different).answer
