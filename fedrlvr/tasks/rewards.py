"""Rewards: how a response is scored, alone or with the other responses to its problem.

Problems are graded by their kind, reasoning-gym's by its own scorer; functions of the user's own, named by import path,
take that grader's place or stand beside it. Such a function runs in a process of its own with this process's rights: it
is trusted code, but it may hang or take all memory, and then its process is killed and replaced (`sandbox.py`).
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

from fedrlvr.errors import GradingError
from fedrlvr.tasks import extraction
from fedrlvr.tasks.grading import grade
from fedrlvr.tasks.problem import GRADER, Problem, WeightedReward
from fedrlvr.tasks.sandbox import ChildEnded, KillableChild

Reward = Callable[[str, Problem], float]
"""Scores one completion of a problem: (completion, problem) -> reward."""


MOST_CHILDREN = 32
"""Largest number of processes of reward functions that wait for the next response."""


class RewardEntry(Protocol):
    """One of the rewards of a configuration, as `config.problems.RewardConfig` has it."""

    @property
    def use(self) -> str:
        """Import path of the function as `package.module:function`, or `grader`."""

    @property
    def name(self) -> str | None:
        """Public name of the reward; None: its place in the list."""

    @property
    def weight(self) -> float:
        """Weight of the reward in the sum."""

    @property
    def time_limit(self) -> float:
        """Seconds that one call may take."""

    @property
    def memory(self) -> float:
        """GiB that the function may take besides its imports; 0: no limit."""


class ProblemReward(ABC):
    """A reward that scores all responses to a problem together; also a `Reward`."""

    @abstractmethod
    def score(self, problem: Problem, completions: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """Rewards of completions of one problem, in order.

        finished: whether each response ended by itself.

        Raises:
            GradingError: the reward fails; the text has no word of problem or completion.
        """

    def __call__(self, completion: str, problem: Problem) -> float:
        """The reward of one finished completion."""
        return self.score(problem, [completion], [True])[0]


def score(
    reward: Reward, problem: Problem, completions: Sequence[str], finished: Sequence[bool] | None = None
) -> list[float]:
    """Rewards of completions of one problem, in order, by any reward.

    finished: whether each response ended by itself; None: all did.

    Raises:
        GradingError: the reward fails.
    """
    if isinstance(reward, ProblemReward):
        return reward.score(problem, completions, finished or [True] * len(completions))
    return [reward(completion, problem) for completion in completions]


def grader_for(
    path: str | None,
    *,
    arithmetic: bool = False,
    directory: Path | None = None,
    time_limit: float = 10.0,
    memory: float = 4.0,
) -> Reward:
    """The reward named by `package.module:function`, or for None or "grader" the grader of each problem's kind.

    arithmetic: as in `grading.grade`; it means nothing to a user's own function.
    directory: where modules are looked for after the import path; None: the working directory.
    time_limit, memory: seconds of one call, and GiB besides the imports, of a user's own function.

    Raises:
        GradingError: at once if the path cannot be imported or called, or the function's signature is unclear; later,
            from the reward, if the function raises, hangs, returns no finite number, or a problem's `info` has a key
            that is one of its arguments.
    """
    if path is None or path == GRADER:
        return partial(_grade_by_kind, arithmetic=arithmetic)
    directories = (*sys.path, str(directory or Path.cwd()))  # at the end, so that nothing installed is shadowed
    return OwnReward(path, _child(path, directories, time_limit, memory))


@dataclass(frozen=True)
class Rewards:
    """The rewards of a client, by their use.

    verifier: decides whether a response is correct, in evaluations and on public problems.
    training: what private problems are trained on; `verifier` itself where it is the only one, with weight 1.
    """

    verifier: Reward
    training: Reward


def rewards_for(entries: Sequence[RewardEntry], *, arithmetic: bool = False, directory: Path | None = None) -> Rewards:
    """The rewards that a configuration's entries name; without entries the grader alone.

    Raises:
        GradingError: as `grader_for`.
    """
    graders = [
        grader_for(
            entry.use, arithmetic=arithmetic, directory=directory, time_limit=entry.time_limit, memory=entry.memory
        )
        for entry in entries
    ] or [grader_for(None, arithmetic=arithmetic)]
    weights = [entry.weight for entry in entries] or [1.0]
    place = verifier_place([entry.use for entry in entries])
    verifier = graders[place]
    names = [f"reward_{entry.name or number}" for number, entry in enumerate(entries, start=1)]
    return Rewards(verifier, verifier if weights == [1.0] else WeightedRewards(graders, weights, place, names))


def verifier_place(uses: Sequence[str]) -> int:
    """Place of the reward that decides whether a response is correct: the grader, or else the first."""
    return uses.index(GRADER) if GRADER in uses else 0


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


class WeightedRewards(ProblemReward):
    """The weighted sum of several rewards, which are computed in parallel.

    verifier: place of the reward that decides whether a response is correct. names: of the means in metrics; () is by
    place.
    """

    def __init__(
        self, rewards: Sequence[Reward], weights: Sequence[float], verifier: int, names: Sequence[str] = ()
    ) -> None:
        self.rewards, self.weights, self.verifier, self.names = list(rewards), list(weights), verifier, list(names)

    def score(self, problem: Problem, completions: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """The sums, each with the rewards that it is made of."""
        work = [partial(score, reward, problem, completions, finished) for reward in self.rewards]
        elsewhere = {
            place: _threads(os.getpid()).submit(work[place])
            for place, reward in enumerate(self.rewards)
            if isinstance(reward, OwnReward)
        }
        columns = [work[place]() if place not in elsewhere else [] for place in range(len(work))]
        failed = [error for future in elsewhere.values() if (error := future.exception()) is not None]
        if failed:  # of several the first in the configuration's order, so that a run always fails alike
            raise failed[0]
        for place, future in elsewhere.items():
            columns[place] = future.result()
        how = self.weights, self.verifier, self.names
        return [WeightedReward.of(parts, *how) for parts in zip(*columns, strict=True)]


@lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads that wait for the children. process: whose they are; a forked copy has threads of its own."""
    return ThreadPoolExecutor(max_workers=16, thread_name_prefix="rewards")


class _FunctionChild(KillableChild):
    """The child of one reward function."""

    def failure(self, reason: str) -> GradingError:
        """The error of a function that cannot be served."""
        return GradingError(f"The reward {self._setup['path']}: {reason}.")


_children: dict[tuple[str, tuple[str, ...], float, float], KillableChild] = {}
"""The children by what they serve, the newest last: one for all clients and federations of this process."""


def _child(path: str, directories: tuple[str, ...], time_limit: float, memory: float) -> KillableChild:
    """The child that serves a function; it is started, so that a function that cannot be used is an error now."""
    module, colon, name = path.partition(":")
    if not (colon and module and name):
        raise GradingError(f"The reward {path!r} is no import path. Write it as package.module:function.")
    key = path, directories, time_limit, memory
    child = _children.pop(key, None) or _FunctionChild(
        {"serves": "function", "path": path, "directories": directories},
        limit_s=time_limit,
        memory_bytes=int(memory * 2**30),
        what=f"the reward {path}",
    )
    child.start()
    _children[key] = child
    while len(_children) > MOST_CHILDREN:
        _children.pop(next(iter(_children))).close()  # it starts again if it is asked after all
    return child


class OwnReward(ProblemReward):
    """A reward function of the user's own, in its child. path: `package.module:function`."""

    def __init__(self, path: str, child: KillableChild) -> None:
        self.path, self.child = path, child

    def score(self, problem: Problem, completions: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """The function's rewards: one call for each completion, or one for all, as its signature says."""
        together = self.child.ready["form"] != "response"
        parts = [slice(None)] if together else [slice(i, i + 1) for i in range(len(completions))]
        return [value for part in parts for value in self._call(problem, completions[part], finished[part])]

    def _call(self, problem: Problem, completions: Sequence[str], finished: Sequence[bool]) -> list[float]:
        about = {"answer": problem.answer, "prompt": problem.prompt, "info": dict(problem.info)}
        place = f"on problem {problem.id!r}"
        try:
            reply = self.child.request({**about, "completions": list(completions), "finished": list(finished)})
        except TimeoutError:
            raise GradingError(
                f"The reward {self.path} took longer than {self.child.limit_s:g} s {place}, so its process was killed. "
                "Make it faster, or raise its time_limit."
            ) from None
        except ChildEnded:
            raise GradingError(
                f"The reward {self.path} ended its process twice {place}. It crashed, or the system was out of memory."
            ) from None
        except (TypeError, ValueError) as error:  # info from Python code may hold what JSON cannot
            raise GradingError(
                f"The reward {self.path}: info of problem {problem.id!r} cannot be sent to it as JSON "
                f"({type(error).__name__})."
            ) from None
        if "values" in reply:
            return [float(value) for value in reply["values"]]
        if "clash" in reply:
            raise GradingError(
                f"Problem {problem.id!r}: info has the key {reply['clash']!r}, an argument of {self.path}. Rename it."
            )
        if "returned" in reply:
            raise GradingError(
                f"The reward {self.path} returned {reply['returned']} {place}. It must return a finite number for each "
                "completion."
            )
        memory = " It may take more memory with its setting memory." if reply.get("raised") == "MemoryError" else ""
        raised = reply.get("raised", "an exception of its process")
        raise GradingError(f"The reward {self.path} raised {raised} {place} ({reply.get('at', '')}).{memory}")
