"""Steps written in letters, and a ledger that a test holds in its hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

from fedrlvr.rl import Group, Response
from fedrlvr.supervision import Clusters, Query, Step, clusters
from fedrlvr.supervision.features import Features
from fedrlvr.tasks.problem import Question


def group(problem: str, letters: str, logps: Sequence[Sequence[float]] | None = None) -> Group:
    """One response for each letter, which is its answer; "-" is none that could be read."""
    behaviour = logps or [[-1.0]] * len(letters)
    responses = [Response([5], behaviour[i], f"{i}: {letter}", True) for i, letter in enumerate(letters)]
    return Group(Question(f"What is {problem}?", problem, "letters", "exact"), [1, 2], responses)


def voted(letters: str) -> Clusters:
    return clusters([None if letter == "-" else letter for letter in letters])


def step(
    drawn: Mapping[str, str] | Sequence[tuple[str, str]],
    *,
    number: int = 0,
    features: Features | None = None,
    seed: int = 0,
) -> Step:
    """Problems by name, with their answers as letters."""
    items = list(drawn.items()) if isinstance(drawn, Mapping) else list(drawn)
    groups = [group(name, letters) for name, letters in items]
    return Step(number, groups, [voted(letters) for _, letters in items], features, Random(seed))


class FakeLedger:
    """Labels that are single letters. It fails the test that asks twice, or more than there is room for.

    at_once: an answer is there as soon as it is asked for, else when the test calls `arrive`. trained: what an earlier
    step has trained on, as the test says.
    """

    def __init__(
        self, truth: str | Mapping[str, str] = "a", *, known: Iterable[str] = (), at_once: bool = True, most: int = 99
    ) -> None:
        self.truth, self.at_once, self.most = truth, at_once, most
        self.asked: list[Query] = []
        self.reminded: list[Query] = []
        self.trained: set[str] = set()
        self.labels = {name: self._truth(name) for name in known}

    @property
    def names(self) -> list[str]:
        """The ids of the problems that were asked about, in order."""
        return [query.question.id for query in self.asked]

    def grade(
        self, problem: Question, completions: Sequence[str], finished: Sequence[bool] | None = None
    ) -> list[float] | None:
        label = self.labels.get(problem.id)
        return None if label is None else [float(text.endswith(f": {label}")) for text in completions]

    def awaited(self, problem: Question) -> bool:
        return problem.id in self.names and problem.id not in self.labels

    def used(self, problem: Question) -> bool:
        return problem.id in self.trained

    def room(self) -> int | None:
        return None if self.most == 99 else self.most - len(self.asked)

    def ask(self, query: Query) -> None:
        assert query.question.id not in {*self.names, *self.labels}, "paid for twice"
        assert len(self.asked) < self.most, "over the budget"
        self.asked.append(query)
        if self.at_once:
            self.arrive(query.question.id)

    def remind(self, query: Query) -> None:
        assert self.awaited(query.question), "nobody is asked about this"
        self.reminded.append(query)

    def arrive(self, name: str) -> None:
        self.labels[name] = self._truth(name)

    def _truth(self, name: str) -> str:
        return self.truth if isinstance(self.truth, str) else self.truth[name]
