"""An organisation's own, which never leaves its machine: its problems, their answers, its grader and its ledger."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedrlvr.labels.answers import Answers, rewards
from fedrlvr.seeds import stream
from fedrlvr.tasks.problem import Problem, Question
from fedrlvr.tasks.rewards import Reward


@dataclass(frozen=True)
class Site:
    """One organisation's own. Never leaves its machine.

    train: what it trains on, as questions; their answers are sealed in `answers`.
    reward: (completion, problem) -> the true reward.
    instruction: appended to every prompt. rank: of its adapter; None is the run's.
    ledger: the file of the labels it has paid for; None where it has no use for one. run: tells this run's uses of
    labels from those of others that go by the same file.
    """

    name: str
    train: Sequence[Question]
    answers: Answers
    test: Sequence[Problem]
    reward: Reward
    instruction: str = ""
    rank: int | None = None
    ledger: Path | None = None
    run: str = ""

    @classmethod
    def of(cls, name: str, train: Sequence[Problem], test: Sequence[Problem], reward: Reward, **others: Any) -> Self:
        """A site of problems with answers, which are sealed.

        Raises:
            DataError: two training problems have one id.
        """
        return cls(name, [p.question for p in train], Answers(name, train, reward), test, reward, **others)

    def grade(self, problem: Problem, completions: Sequence[str]) -> list[float]:
        """True rewards of a problem whose answer is at hand: a held-out or a public one.

        Raises:
            GradingError: the reward fails; the text names the client.
        """
        return rewards(self.name, self.reward, problem, completions)

    def draw(self, cursor: int, count: int, seed: int) -> list[Question]:
        """The next `count` training problems after `cursor` draws: seeded permutations, one after another."""
        drawn: list[Question] = []
        while len(drawn) < count:
            epoch, index = divmod(cursor + len(drawn), len(self.train))
            order = list(self.train)
            random.Random(stream(seed, self.name, "epoch", epoch)).shuffle(order)
            drawn.extend(order[index : index + count - len(drawn)])
        return drawn
