"""One way to score a response: `reward(completion, problem) -> float`.

Problems are graded by their kind, reasoning-gym's by its own scorer, or everything by a function of the user's own,
named by import path. That function runs in this process with this process's rights: it is trusted code.
"""

from __future__ import annotations

import importlib
import math
import numbers
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from fedrlvr.errors import GradingError
from fedrlvr.tasks import extraction
from fedrlvr.tasks.grading import grade
from fedrlvr.tasks.problem import Problem

Reward = Callable[[str, Problem], float]


def grader_for(path: str | None, *, arithmetic: bool = False) -> Reward:
    """The reward named by `package.module:function`, or for None the grader of each problem's kind.

    arithmetic: as in `grading.grade`; it means nothing to a user's own function.

    The user's function is called as `reward(completion, answer, **info)` and must return a finite number. Modules are
    looked for on the import path, then in the working directory.

    Raises:
        GradingError: at once if the path cannot be imported or called; later, from the reward, if the function
            raises, returns no finite number, or `info` has a key that is one of its first two arguments.
    """
    if path is not None:
        return _own(path)
    return partial(_grade_by_kind, arithmetic=arithmetic)


def grades_by_kind(reward: Reward) -> bool:
    """Whether a reward of `grader_for` is the grader of each problem's kind, and not a function of the user's own."""
    return getattr(reward, "func", reward) is _grade_by_kind


def behind_answer(reward: Reward, completion: str, problem: Problem) -> int:
    """Characters of a correct completion behind its answer; 0 with a user's own function, which does not say where in
    the text the answer stands."""
    if not grades_by_kind(reward):
        return 0
    return extraction.behind_answer(completion, "exact" if "reasoning_gym" in problem.info else problem.kind)


def _grade_by_kind(completion: str, problem: Problem, *, arithmetic: bool) -> float:
    if "reasoning_gym" in problem.info:
        from fedrlvr.tasks.gym import score

        return score(completion, problem)
    return grade(completion, problem.answer, problem.kind, arithmetic=arithmetic)


def _own(path: str) -> Reward:
    function = _import(path)

    def reward(completion: str, problem: Problem) -> float:
        if clash := {"completion", "answer"} & problem.info.keys():
            raise GradingError(
                f"Problem {problem.id!r}: info has the key {min(clash)!r}, an argument of {path}. Rename it."
            )
        try:
            value = function(completion, problem.answer, **problem.info)
        except Exception as error:
            raise GradingError(f"The reward {path} raised {type(error).__name__} on problem {problem.id!r}.") from error
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise GradingError(
                f"The reward {path} returned {type(value).__name__} on problem {problem.id!r}. It must return a finite "
                "number."
            )
        return float(value)

    return reward


def _import(path: str) -> Callable[..., Any]:
    module_name, colon, function_name = path.partition(":")
    if not (colon and module_name and function_name):
        raise GradingError(f"The reward {path!r} is no import path. Write it as package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end, so that nothing installed is shadowed
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise GradingError(
            f"The reward {path}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}). Put it "
            "on PYTHONPATH or in the working directory."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise GradingError(f"The reward {path}: module {module_name!r} has no function {function_name!r}.")
    return function  # type: ignore[no-any-return]
