"""An organisation's own, which never leaves its machine: its problems and its grader."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedrlvr.errors import GradingError
from fedrlvr.seeds import stream
from fedrlvr.tasks.problem import Problem


@dataclass(frozen=True)
class Site:
    """One organisation's own: its problems and its grader. Never leaves its machine.

    reward: (completion, problem) -> the true reward.
    instruction: appended to every prompt. rank: of its adapter; None is the run's.
    """

    name: str
    train: Sequence[Problem]
    test: Sequence[Problem]
    reward: Callable[[str, Problem], float]
    instruction: str = ""
    rank: int | None = None

    def grade(self, problem: Problem, completions: Sequence[str]) -> list[float]:
        """The site's ledger of true labels (supervision's `Ledger`).

        Raises:
            GradingError: the reward fails; the text names the client.
        """
        try:
            return [self.reward(completion, problem) for completion in completions]
        except GradingError as error:
            raise GradingError(f"{self.name}: {error}") from (error.__cause__ or error)

    def draw(self, cursor: int, count: int, seed: int) -> list[Problem]:
        """The next `count` training problems after `cursor` draws: seeded permutations, one after another."""
        drawn: list[Problem] = []
        while len(drawn) < count:
            epoch, index = divmod(cursor + len(drawn), len(self.train))
            order = list(self.train)
            random.Random(stream(seed, self.name, "epoch", epoch)).shuffle(order)
            drawn.extend(order[index : index + count - len(drawn)])
        return drawn
