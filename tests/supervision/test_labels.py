"""Supervision by true labels."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fedrlvr.rl import Group, Response
from fedrlvr.supervision import Supervised, TrueLabels
from fedrlvr.tasks import Problem


class Labels:
    """A ledger of one label."""

    def __init__(self, known: str | None) -> None:
        self.known = known
        self.asked: list[tuple[str, list[str]]] = []

    def grade(self, problem: Problem, completions: Sequence[str]) -> list[float] | None:
        self.asked.append((problem.id, list(completions)))
        return None if self.known is None else [float(text == self.known) for text in completions]


def group() -> Group:
    responses = [Response([5], [-1.0], text, True) for text in ("4", "5", "4")]
    return Group(Problem("2 + 2", "4", "sum-7", "sum", "math"), [1, 2], responses)


def test_the_true_rewards_count_in_full_and_nothing_is_bought() -> None:
    ledger = Labels("4")
    assert TrueLabels().supervise(group(), ledger) == Supervised([1.0, 0.0, 1.0], multiplier=1.0, query=False)
    assert ledger.asked == [("sum-7", ["4", "5", "4"])]


def test_the_group_itself_is_left_as_it_is() -> None:
    mine = group()
    TrueLabels().supervise(mine, Labels("4"))
    assert [response.reward for response in mine.responses] == [None, None, None]
    assert mine.multiplier == 1.0


def test_a_problem_without_a_label_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="problem sum-7 has no label"):
        TrueLabels().supervise(group(), Labels(None))
