"""From what is to be asked, trusted and masked to rewards and multipliers: the same for every way to choose.

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
from fedrlvr.supervision.acquisition import Acquired, quota
from fedrlvr.supervision.majority import Clusters
from fedrlvr.supervision.types import Fate, Ledger, Query, Step, Supervised

LONGEST_SHOWN = 20_000
"""Characters of a response that an expert is shown, from its end."""


@dataclass(frozen=True)
class Drawn:
    """What the ledger says of a step's problems, by their place in it.

    known: true rewards of those with a label. without: those that have none and may be asked about.
    queries: how many of these may be: the step's share, within what is left of the budget.
    awaited: those that were asked about and have no label.
    """

    known: dict[int, list[float]]
    without: list[int]
    queries: int
    awaited: tuple[int, ...] = ()


def look_up(step: Step, ledger: Ledger, budget: float) -> Drawn:
    """What the ledger says of this step's problems.

    Raises:
        ValueError: a budget that is not from 0 to 1.
    """
    known: dict[int, list[float]] = {}
    places: dict[str, int] = {}
    awaited = []
    for place, group in enumerate(step.groups):
        question = group.problem.question
        rewards = ledger.grade(question, group.texts)
        if rewards is not None:
            known[place] = rewards
        elif ledger.awaited(question):
            awaited.append(place)
        else:
            places.setdefault(question.id, place)
    share, room = quota(budget, len(step.groups)), ledger.room()
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
    """Ask what is to be asked, and give every group its rewards.

    acquired: of `drawn.without`, by place in that list. rest: the multiplier of what is asked about and unanswered, now
    or since an earlier step. score, reliable: of a place, for the ledger to note why a problem was asked about.
    """
    fates = dict.fromkeys(drawn.known, Fate.KNOWN)
    multipliers = dict.fromkeys(drawn.known, 1.0)
    labels = dict(drawn.known)
    for place, multiplier in zip(drawn.without, acquired.multipliers, strict=True):
        multipliers[place] = multiplier
    fates |= {drawn.without[at]: Fate.TRUSTED for at in acquired.trusted}

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

    for rank, at in enumerate(acquired.queries, start=1):
        place = drawn.without[at]
        ledger.ask(query(place, rank))
        fates[place] = Fate.QUERIED
        group = step.groups[place]
        rewards = ledger.grade(group.problem.question, group.texts)
        if rewards is None:
            multipliers[place] = rest
        else:
            labels[place] = rewards
    for rank, place in enumerate(drawn.awaited, start=len(acquired.queries) + 1):
        ledger.remind(query(place, rank))
    asked = {step.groups[drawn.without[at]].problem.id for at in acquired.queries}
    for place, group in enumerate(step.groups):
        if place not in multipliers and group.problem.id in asked:  # drawn twice
            rewards = ledger.grade(group.problem.question, group.texts)
            if rewards is not None:
                labels[place], multipliers[place], fates[place] = rewards, 1.0, Fate.KNOWN
    return [
        Supervised(
            rewards=labels.get(place, votes.pseudo_rewards),
            multiplier=multipliers.get(place, rest),
            fate=fates.get(place, Fate.TRUSTED if rest else Fate.MASKED),
            true=place in labels,
        )
        for place, votes in enumerate(step.votes)
    ]


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
