"""The labels that a client's supervision may see: the ledger on disk, the budget, and the source of answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from fedrlvr.labels.answers import Answers
from fedrlvr.labels.ledger import LabelLedger
from fedrlvr.supervision.types import Query
from fedrlvr.tasks.problem import Question
from fedrlvr.tasks.voting import sameness

DAY = 86_400.0
"""Length in seconds of the day that `budget_per_day` counts."""


@dataclass(frozen=True)
class Budget:
    """Labels that may be asked for besides a step's share.

    total, per_day: in all, and in the last 24 hours. share: of `problems`, the run's training problems by id; labels
    that the ledger has of these already are part of it.
    """

    total: int | None = None
    per_day: int | None = None
    share: int | None = None
    problems: Set[str] = frozenset()


class NoLabels:
    """The ledger of a client without labels, which asks no one (supervision's `Ledger`)."""

    def grade(
        self, problem: Question, completions: Sequence[str], finished: Sequence[bool] | None = None
    ) -> list[float] | None:
        """None for every problem, since none has a label."""
        return None

    def label(self, problem: Question) -> str | None:
        """Label of a problem: None, since none can be asked for."""
        return None

    def awaited(self, problem: Question) -> bool:
        """Whether a label is awaited: never, since none can be asked for."""
        return False

    def used(self, problem: Question) -> bool:
        """Whether a step has trained on the problem's label: never, as far as this ledger knows."""
        return False

    def room(self) -> int | None:
        """Number of problems that may be asked about: 0."""
        return 0

    def ask(self, query: Query) -> None:
        """Refuse every question, since there is nobody to ask.

        Raises:
            ValueError: always.
        """
        raise ValueError("nobody is there to be asked")

    def remind(self, query: Query) -> None:
        """Do nothing, since no label is awaited."""


class AllLabels(NoLabels):
    """The ledger of a client that has every label, and so never asks (supervision's `Ledger`)."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def grade(
        self, problem: Question, completions: Sequence[str], finished: Sequence[bool] | None = None
    ) -> list[float]:
        """True rewards of the completions, by the problem's own answer.

        finished: whether each response ended by itself; None: all did.

        Raises:
            GradingError: the reward fails.
        """
        return self._answers.grade(problem, self.label(problem), completions, finished)

    def label(self, problem: Question) -> str:
        """Label of a problem: the data set's own answer."""
        return self._answers.price(problem)


class ClientLedger:
    """One client's labels on its own disk (supervision's `Ledger`).

    desk: answers come from people, when they have the time; else from the data set, at once.
    clock: unix seconds.
    """

    def __init__(
        self,
        disk: LabelLedger,
        answers: Answers,
        budget: Budget,
        *,
        desk: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.disk = disk
        self._answers, self._budget, self._desk, self._clock = answers, budget, desk, clock

    def grade(
        self, problem: Question, completions: Sequence[str], finished: Sequence[bool] | None = None
    ) -> list[float] | None:
        """True rewards by the label that was paid for, or None.

        Raises:
            GradingError: the reward fails.
            LedgerError: the ledger cannot be read.
        """
        label = self.label(problem)
        return None if label is None else self._answers.grade(problem, label, completions, finished)

    def label(self, problem: Question) -> str | None:
        """Label of a problem that was paid for, or None.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        return self.disk.label(problem.id, sameness(problem.kind))

    def awaited(self, problem: Question) -> bool:
        """Whether the problem was asked about. Callers ask this only for problems without a label."""
        return self.disk.was_asked(problem.id)

    def used(self, problem: Question) -> bool:
        """Whether an earlier step of this run has trained on the problem's label.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        return self.disk.uses(problem.id, this_run=True) > 0

    def room(self) -> int | None:
        """Number of labels that the budget still allows: in all, of the run's problems, and today; None: no limit."""
        left = []
        if self._budget.total is not None:
            left.append(self._budget.total - self.disk.asked())
        if self._budget.share is not None:
            left.append(self._budget.share - self.disk.asked_among(self._budget.problems))
        if self._budget.per_day is not None:
            left.append(self._budget.per_day - self.disk.asked(since=self._clock() - DAY))
        return max(min(left), 0) if left else None

    def ask(self, query: Query) -> None:
        """Enter the question into the ledger; without a desk, its answer too.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        now = self._clock()
        if self._desk:
            self.disk.ask(query, at=now)
        else:
            self.disk.buy(query, self._answers.price(query.question), at=now)

    def remind(self, query: Query) -> None:
        """Update the vote that an expert will see on a problem that was asked about.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        if self._desk:
            self.disk.ask(query, at=self._clock())
