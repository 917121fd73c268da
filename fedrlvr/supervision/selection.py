"""The selections that CARE is compared with: a share of each step's problems gets labels, by one number or by chance.

    random        any
    entropy       the largest entropy of the answers
    probability   the lowest mean probability of the responses' tokens
    oracle        the largest true gap: takes every answer to know, so it is for experiments only
The rest is masked (label-only training), or trained on as voted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from fedrlvr.supervision.acquisition import (
    Rest,
    answer_entropy,
    at_random,
    highest,
    mean_probability,
    oracle_gap,
)
from fedrlvr.supervision.settling import look_up, settle
from fedrlvr.supervision.types import Ledger, Step, Supervised
from fedrlvr.tasks.problem import Question

By = Literal["random", "entropy", "probability", "oracle"]
Peek = Callable[[Question, Sequence[str]], list[float]]
"""True rewards of completions, paid for or not."""


class Selection:
    """Labels for `budget` of each step's problems.

    peek: what the oracle sees; the others have none.

    Raises:
        ValueError: an oracle without it, or another selection with it.
    """

    reads_votes = True
    reads_states = False

    def __init__(self, by: By, *, budget: float, rest: Rest, peek: Peek | None = None) -> None:
        if (by == "oracle") != (peek is not None):
            raise ValueError(
                f"selection by {by!r} {'needs' if peek is None else 'must not have'} a look at the answers"
            )
        self.by, self.budget, self.rest, self.peek = by, budget, rest, peek

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """True rewards for what has a label or is asked about now, and the majority's for the others."""
        drawn = look_up(step, ledger, self.budget)
        score: Callable[[int], float | None] | None = None
        if self.by == "random":
            acquired = at_random(len(drawn.without), step.rng, queries=drawn.queries, rest=self.rest)
        else:
            values = [self._value(step, place) for place in drawn.without]
            score = dict(zip(drawn.without, values, strict=True)).get
            acquired = highest(values, queries=drawn.queries, rest=self.rest)
        return settle(step, ledger, drawn, acquired, rest=float(self.rest == "pseudo"), score=score)

    def _value(self, step: Step, place: int) -> float:
        group, votes = step.groups[place], step.votes[place]
        if self.by == "entropy":
            return answer_entropy(votes)
        if self.by == "probability":
            return -mean_probability([response.logps for response in group.responses])
        assert self.peek is not None
        return oracle_gap(votes, self.peek(group.problem.question, [response.text for response in group.responses]))

    def learn(self) -> dict[str, float]:
        """Nothing."""
        return {}
