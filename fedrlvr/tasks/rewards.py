"""One way to score a response: `reward(completion, problem) -> float`.

Problems are graded by their kind, reasoning-gym's by its own scorer, or everything by a function of the user's own,
named by import path. That function runs in this process with this process's rights: it is trusted code.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import numbers
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fedrlvr.errors import GradingError
from fedrlvr.tasks import extraction
from fedrlvr.tasks.grading import grade
from fedrlvr.tasks.problem import Problem

Reward = Callable[[str, Problem], float]


def grader_for(path: str | None, *, arithmetic: bool = False, directory: Path | None = None) -> Reward:
    """The reward named by `package.module:function`, or for None the grader of each problem's kind.

    arithmetic: as in `grading.grade`; it means nothing to a user's own function.

    directory: where modules are looked for after the import path; None: the working directory.

    The user's function is called as `reward(completion, answer, **info)` and must return a finite number.

    Raises:
        GradingError: at once if the path cannot be imported or called; later, from the reward, if the function
            raises, returns no finite number, or `info` has a key that is one of its first two arguments.
    """
    if path is not None:
        return _own(path, directory or Path.cwd())
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


def _own(path: str, directory: Path) -> Reward:
    function = _import(path, directory)

    def reward(completion: str, problem: Problem) -> float:
        if clash := {"completion", "answer"} & problem.info.keys():
            raise GradingError(
                f"Problem {problem.id!r}: info has the key {min(clash)!r}, an argument of {path}. Rename it."
            )
        try:
            value = function(completion, problem.answer, **problem.info)
        except Exception as error:
            raise GradingError(f"The reward {path} raised {type(error).__name__} on problem {problem.id!r}.") from error
        number = math.nan
        if isinstance(value, numbers.Real):
            with contextlib.suppress(OverflowError):  # a whole number beyond every float
                number = float(value)
        if not math.isfinite(number):
            raise GradingError(
                f"The reward {path} returned {type(value).__name__} on problem {problem.id!r}. It must return a finite "
                "number."
            )
        return number

    return reward


def _import(path: str, directory: Path) -> Callable[..., Any]:
    module_name, colon, function_name = path.partition(":")
    if not (colon and module_name and function_name):
        raise GradingError(f"The reward {path!r} is no import path. Write it as package.module:function.")
    if str(directory) not in sys.path:
        sys.path.append(str(directory))  # at the end, so that nothing installed is shadowed
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise GradingError(
            f"The reward {path}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}). Put it "
            f"on PYTHONPATH or into {directory}."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise GradingError(f"The reward {path}: module {module_name!r} has no function {function_name!r}.")
    return function  # type: ignore[no-any-return]
