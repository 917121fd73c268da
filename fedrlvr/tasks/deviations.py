"""Problems of a client that deviates from the others in an experiment: wrong labels, and prompts of another form.

Real federations have such clients. What a client does differently in training is in client/local_training.py.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace

from fedrlvr.errors import DataError
from fedrlvr.seeds import stream
from fedrlvr.tasks.grading import is_right
from fedrlvr.tasks.problem import Problem, Turn, conversation_text
from fedrlvr.tasks.prompts import worded

_WHOLE = re.compile(r"[0-9]{1,15}")
"""A whole number. Every grader tells two different ones apart."""


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
    order = list(range(len(problems)))
    random.Random(stream(seed, client, "wrong labels")).shuffle(order)
    changed = list(problems)
    for index in order[: math.floor(share * len(problems) + 0.5)]:
        changed[index] = replace(problems[index], answer=_wrong_answer(client, problems[index], problems, seed))
    return changed


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
