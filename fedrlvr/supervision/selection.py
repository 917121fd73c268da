"""Supervision without probes: labels for all of a step's problems, for none, or for a share of them.

`TrueLabels` is plain RLVR. `MajorityVotes` trusts the policy's own majority everywhere (TTRL, arXiv 2504.16084): it
collapses where the majority is confidently wrong, and is here to be compared with. `Selection` has a share labelled,
by one number or by chance, as CARE is compared with:

    random        any
    entropy       the largest entropy of the answers
    probability   the lowest mean probability of the responses' tokens
    oracle        the largest true value of a label: takes every answer to know, so it is for experiments only
The rest is masked (label-only training), or trained on as voted. A new selection is one more entry of `SELECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from fedrlvr.rl.samples import Group
from fedrlvr.supervision.acquisition import (
    WORTHS,
    Rest,
    Spending,
    Worth,
    answer_entropy,
    highest,
    mean_probability,
    true_worth,
)
from fedrlvr.supervision.majority import Clusters
from fedrlvr.supervision.settling import look_up, settle
from fedrlvr.supervision.types import Fate, Ledger, Step, Supervised, Supervision
from fedrlvr.tasks.problem import Question

Peek = Callable[[Question, Sequence[str]], list[float]]
"""True rewards of completions, paid for or not."""
TrueWorth = Callable[[Group, Clusters], float]
"""True value of a group's label."""


class TrueLabels(Supervision):
    """Every problem's own answer decides, and every group counts in full."""

    reads_votes = False

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """The true rewards of every group.

        Raises:
            ValueError: the ledger has no label for a problem; this supervision has nothing to put in its place.
        """
        verdicts = []
        for group in step.groups:
            rewards = ledger.grade(group.problem.question, group.texts, group.finished)
            if rewards is None:
                raise ValueError(f"problem {group.problem.id} has no label, and supervision by true labels needs one")
            verdicts.append(Supervised(rewards))
        return verdicts


class MajorityVotes(Supervision):
    """The policy's own majority vote decides, for every problem. No label is asked for."""

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """1 for each response of its group's majority, 0 for the others."""
        return [Supervised(votes.pseudo_rewards, fate=Fate.TRUSTED, true=False) for votes in step.votes]


@dataclass(frozen=True)
class SelectionRule:
    """One rule that ranks the problems to ask about.

    value(group, votes, rng, worth): the largest are asked about. ranks: the value says something of the problem, so
        that the ledger notes it. peeks: it takes every answer to know, and is given `worth`, the true value of a label.
    """

    value: Callable[[Group, Clusters, Random, TrueWorth | None], float]
    ranks: bool = True
    peeks: bool = False


def _true(group: Group, votes: Clusters, rng: Random, worth: TrueWorth | None) -> float:
    assert worth is not None
    return worth(group, votes)


SELECTIONS = {
    "random": SelectionRule(lambda group, votes, rng, worth: rng.random(), ranks=False),
    "entropy": SelectionRule(lambda group, votes, rng, worth: answer_entropy(votes)),
    "probability": SelectionRule(
        lambda group, votes, rng, worth: -mean_probability([r.logps for r in group.responses])
    ),
    "oracle": SelectionRule(_true, peeks=True),
}
"""Rule of every selection, by its name in `supervision.type`."""


class Selection(Supervision):
    """Labels for a share of each step's problems.

    peek: what the oracle sees; the others have none. worth: the value of a label that the oracle ranks by; None: the
    one that suits `rest`.

    Raises:
        ValueError: an oracle without `peek`, or another selection with it.
    """

    def __init__(
        self, by: str, *, spending: Spending, rest: Rest, peek: Peek | None = None, worth: Worth | None = None
    ) -> None:
        self.rule = SELECTIONS[by]
        if self.rule.peeks != (peek is not None):
            raise ValueError(
                f"selection by {by!r} {'needs' if peek is None else 'must not have'} a look at the answers"
            )
        self.spending, self.rest, self.peek, self.worth = spending, rest, peek, worth or WORTHS[rest]

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """True rewards for what has a label or is asked about now, and the majority's for the others."""
        drawn = look_up(step, ledger, self.spending)
        worth = self._true_worth if self.rule.peeks else None
        values = [self.rule.value(step.groups[at], step.votes[at], step.rng, worth) for at in drawn.without]
        acquired = highest(values, queries=drawn.queries, rest=self.rest)
        score = dict(zip(drawn.without, values, strict=True)).get if self.rule.ranks else None
        return settle(step, ledger, drawn, acquired, rest=float(self.rest == "pseudo"), score=score)

    def _true_worth(self, group: Group, votes: Clusters) -> float:
        assert self.peek is not None
        return true_worth(votes, self.peek(group.problem.question, group.texts), self.worth)
