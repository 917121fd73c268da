"""Rewards and multipliers of a step's problems, from those asked, trusted and masked; the same for every selection.

    has a label             true rewards      multiplier 1
    asked about just now    true rewards      1 if the label is there at once, else 0
    trusted                 the majority's    as the choice says
    all others              the majority's    0

A problem that was asked about before and has no label yet is not asked about again. It is masked, or counts as voted
where all others do. A problem that is drawn twice in a step, as at the end of an epoch, is ranked once, where it comes
first; the second time it has its label or counts as all others do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedrlvr.rl.samples import Group
from fedrlvr.supervision.acquisition import Acquired, Spending
from fedrlvr.supervision.majority import Clusters
from fedrlvr.supervision.types import Fate, Ledger, Query, Step, Supervised

LONGEST_SHOWN = 20_000
"""Largest number of characters of a response that an expert is shown, from its end."""


@dataclass(frozen=True)
class Drawn:
    """State of a step's problems in the ledger, by their place in the step.

    known: true rewards of those with a label. without: those that have none and may be asked about.
    queries: how many of these may be: the step's share, within what is left of the budget.
    awaited: those that were asked about and have no label.
    """

    known: dict[int, list[float]]
    without: list[int]
    queries: int
    awaited: tuple[int, ...] = ()


def look_up(step: Step, ledger: Ledger, spending: Spending) -> Drawn:
    """Look up a step's problems in the client's ledger.

    Raises:
        ValueError: a share that is not from 0 to 1.
    """
    known: dict[int, list[float]] = {}
    places: dict[str, int] = {}
    awaited = []
    for place, group in enumerate(step.groups):
        question = group.problem.question
        rewards = ledger.grade(question, group.texts, group.finished)
        if rewards is not None:
            known[place] = rewards
        elif ledger.awaited(question):
            awaited.append(place)
        else:
            places.setdefault(question.id, place)
    share, room = spending.queries(step.number, len(step.groups)), ledger.room()
    queries = share if room is None else min(share, max(room, 0))
    return Drawn(known, list(places.values()), queries, tuple(awaited))


def settle(
    step: Step,
    ledger: Ledger,
    drawn: Drawn,
    acquired: Acquired,
    *,
    rest: float = 0.0,
    score: Callable[[int], float | None] | None = None,
    reliable: Callable[[int], float] | None = None,
) -> list[Supervised]:
    """Ask for the step's labels, and give every group its rewards.

    acquired: of `drawn.without`, by place in that list. rest: the multiplier of what is asked about and unanswered, now
    or since an earlier step. score, reliable: of a place, for the ledger to note why a problem was asked about.
    """
    others = Fate.TRUSTED if rest else Fate.MASKED
    verdicts = {place: Supervised(rewards) for place, rewards in drawn.known.items()}

    def voted(place: int, multiplier: float, fate: Fate) -> Supervised:
        return Supervised(step.votes[place].pseudo_rewards, multiplier, fate, true=False)

    def query(place: int, rank: int) -> Query:
        group, votes = step.groups[place], step.votes[place]
        return Query(
            question=group.problem.question,
            step=step.number,
            rank=rank,
            score=score(place) if score else None,
            reliable=reliable(place) if reliable else None,
            majority=votes.label,
            votes=votes.votes,
            group=len(votes.members),
            responses=_that_disagree(group, votes),
        )

    for at, place in enumerate(drawn.without):
        fate = Fate.TRUSTED if at in acquired.trusted else others
        verdicts[place] = voted(place, acquired.multipliers[at], fate)
    for rank, at in enumerate(acquired.queries, start=1):
        place = drawn.without[at]
        ledger.ask(query(place, rank))
        group = step.groups[place]
        rewards = ledger.grade(group.problem.question, group.texts, group.finished)
        if rewards is None:
            verdicts[place] = voted(place, rest, Fate.QUERIED)
        else:
            verdicts[place] = Supervised(rewards, acquired.multipliers[at], Fate.QUERIED)
    for rank, place in enumerate(drawn.awaited, start=len(acquired.queries) + 1):
        ledger.remind(query(place, rank))
    asked = {step.groups[drawn.without[at]].problem.id for at in acquired.queries}
    for place, group in enumerate(step.groups):
        if place not in verdicts:  # awaited, or drawn twice
            rewards = (
                ledger.grade(group.problem.question, group.texts, group.finished) if group.problem.id in asked else None
            )
            verdicts[place] = voted(place, rest, others) if rewards is None else Supervised(rewards)
    return [verdicts[place] for place in range(len(step.groups))]


def _that_disagree(group: Group, votes: Clusters) -> tuple[str, ...]:
    """One response of the majority and one of the largest cluster besides it, or else one without an answer."""
    shown = []
    if votes.majority is not None:
        shown.append(_member(group, votes, votes.majority))
    others: Sequence[int] = [cluster for cluster in range(len(votes.sizes)) if cluster != votes.majority]
    if others:
        shown.append(_member(group, votes, max(others, key=votes.sizes.__getitem__)))
    elif None in votes.members:
        shown.append(_member(group, votes, None))
    return tuple(shown)


def _member(group: Group, votes: Clusters, cluster: int | None) -> str:
    return group.responses[votes.members.index(cluster)].text[-LONGEST_SHOWN:]
