"""One client's data, which never leaves its machine: its problems, their answers, its grader and its ledger."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from fedrlvr.config.prompt import Wording
from fedrlvr.errors import DataError
from fedrlvr.labels.answers import Answers, rewards
from fedrlvr.seeds import private_seed, stream
from fedrlvr.tasks.problem import Problem, Question
from fedrlvr.tasks.prompts import Instruction, Prompts, no_instruction
from fedrlvr.tasks.rewards import Reward


@dataclass(frozen=True)
class ClientData:
    """The data of one client, which never leaves the client's machine.

    train: training problems as questions; their answers are sealed in `answers`.
    test: held-out problems. validation: problems to choose settings on, if any are set aside.
    reward: (completion, problem) -> the true reward.
    wording: how prompts are worded. instruction: kind of problem -> the sentence appended to prompts of that kind.
    seed: of the run, by which examples are drawn.
    rank: of the client's adapter; None is the run's.
    free_rider: the client sends back what it is sent, in a simulated experiment.
    ledger: file of the labels the client has paid for; None for a client that pays for none.
    run: tells this run's uses of labels from those of other runs that share the ledger.
    secret: mixed into the client's private random streams; empty in a simulation.
    """

    name: str
    train: Sequence[Question]
    answers: Answers
    test: Sequence[Problem]
    reward: Reward
    wording: Wording = field(default_factory=Wording)
    instruction: Instruction = no_instruction
    seed: int = 0
    validation: Sequence[Problem] = ()
    rank: int | None = None
    free_rider: bool = False
    ledger: Path | None = None
    run: str = ""
    secret: bytes = field(default=b"", repr=False)

    @classmethod
    def of(
        cls,
        name: str,
        train: Sequence[Problem],
        test: Sequence[Problem],
        reward: Reward,
        *,
        training_reward: Reward | None = None,
        **others: Any,
    ) -> Self:
        """The data of a client whose problems have answers, which are sealed.

        training_reward: of the training problems, where it is not `reward`.

        Raises:
            DataError: two training problems have one id.
        """
        return cls(
            name, [p.question for p in train], Answers(name, train, training_reward or reward), test, reward, **others
        )

    def split(self, name: str) -> Sequence[Problem]:
        """The problems that an evaluation of this split measures: `test` or `validation`."""
        return self.validation if name == "validation" else self.test

    @cached_property
    def prompts(self) -> Prompts:
        """Maker of this client's prompts, with the examples of this run.

        Raises:
            DataError: there are too few training problems to draw the examples from.
        """
        return Prompts(self.wording, self.instruction, self._examples())

    def _examples(self) -> list[Problem]:
        """The training problems that are shown as examples, and one more in the place of an example that is asked."""
        count = self.wording.examples
        if not count:
            return []
        answered = [problem for problem in self.answers.everything() if problem.answer]
        if len(answered) <= count:
            raise DataError(
                f"{self.name}: prompt.examples = {count} needs {count + 1} training problems with an answer, and there "
                f"are {len(answered)}. Lower it, or give prompt.shots."
            )
        rng = random.Random(stream(private_seed(self.seed, self.secret), self.name, "examples"))
        return rng.sample(answered, count + 1)

    def grade(
        self, problem: Problem, completions: Sequence[str], finished: Sequence[bool] | None = None
    ) -> list[float]:
        """True rewards of a problem whose answer is at hand: a held-out or a public one.

        finished: whether each response ended by itself; None: all did.

        Raises:
            GradingError: the reward fails; the text names the client.
        """
        return rewards(self.name, self.reward, problem, completions, finished)

    def draw(self, cursor: int, count: int, seed: int) -> list[Question]:
        """The next `count` training problems after `cursor` draws: seeded permutations, one after another."""
        drawn: list[Question] = []
        seed = private_seed(seed, self.secret)
        while len(drawn) < count:
            epoch, index = divmod(cursor + len(drawn), len(self.train))
            order = list(self.train)
            random.Random(stream(seed, self.name, "epoch", epoch)).shuffle(order)
            drawn.extend(order[index : index + count - len(drawn)])
        return drawn
