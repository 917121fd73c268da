"""TraPO: majority votes are trusted where a problem's pass rates develop as those of labelled problems do
(arXiv 2512.13106, and the authors' public code).

    rate(x, draw)   share of the G responses that are right by the label, or without one that voted with the majority
    T(x)            the rates of a problem over its draws so far
    similarity(x)   mean over the references r of the correlation of T(x) and T(r)
    trusted         the largest similarities of a step, and all from `min_similarity` on; none early in the run
    references      the labelled problems, and those that were trusted when they were drawn last

No hidden states and no probes are needed, but problems must be drawn several times: a trajectory of one draw is like no
other. As the authors' code has it, trajectories of unequal lengths are compared over the draws that both have, and are
standardised before the cosine (their paper's formula is the cosine itself, which is near 1 for all positive rates); a
trajectory that does not vary is like no other. Where ours departs:
1. The authors are given a labelled set. Here labels are asked for by chance within the budget.
2. The authors compare all trajectories over the shortest one's length. Here each pair is compared over its own.
3. Their share is of the unlabelled problems of the step, rounded down but at least one; ours is of all its problems,
   rounded up, as everywhere here.
4. A problem that is labelled late keeps the rates of its earlier votes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedrlvr.rl.samples import CORRECT
from fedrlvr.supervision.acquisition import Spending, by_chance
from fedrlvr.supervision.settling import look_up, settle
from fedrlvr.supervision.types import Fate, Ledger, State, Step, Supervised, Supervision

SHORTEST = 2
"""Draws that two trajectories must have in common to be compared."""


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation of two trajectories over the draws that both have; 0 where one of them does not vary."""
    pairs = list(zip(first, second, strict=False))
    means = [math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    offsets = [(a - means[0], b - means[1]) for a, b in pairs]
    sizes = [math.sqrt(math.fsum(offset[side] ** 2 for offset in offsets)) for side in (0, 1)]
    return math.fsum(a * b for a, b in offsets) / (sizes[0] * sizes[1]) if min(sizes) > 1e-12 else 0.0


def similarity(trajectory: Sequence[float], references: Iterable[Sequence[float]]) -> float | None:
    """Mean correlation of a trajectory with those references that have enough draws in common; None without any."""
    likeness = [correlation(trajectory, r) for r in references if min(len(trajectory), len(r)) >= SHORTEST]
    return math.fsum(likeness) / len(likeness) if likeness else None


def _share_right(rewards: Sequence[float]) -> float:
    return sum(reward >= CORRECT for reward in rewards) / len(rewards)


class Trapo(Supervision):
    """TraPO for one client: its trajectories, share and threshold.

    spending: how many problems a step may ask about, by chance. trusted: share of a step whose votes are trusted, after
    `vote_free_steps` steps. min_similarity: similarity from which on a vote is trusted beyond that share.
    """

    def __init__(self, *, spending: Spending, trusted: float, vote_free_steps: int, min_similarity: float) -> None:
        self.spending, self.trusted = spending, trusted
        self.vote_free_steps, self.min_similarity = vote_free_steps, min_similarity
        self.trajectories: dict[str, list[float]] = {}
        self.references: set[str] = set()

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """True rewards for what has a label or is asked about now, and the majority's for the others."""
        drawn = look_up(step, ledger, self.spending)
        draws = [self._drew(step, place, drawn.known.get(place)) for place in range(len(step.groups))]
        similar = [self._similarity(step, place) for place in drawn.without]
        acquired = by_chance(
            similar,
            step.rng,
            queries=drawn.queries,
            share=self.trusted,
            of=len(step.groups),
            least=-math.inf,
            from_=self.min_similarity,
        )
        verdicts = settle(step, ledger, drawn, acquired)
        for group, verdict, draw in zip(step.groups, verdicts, draws, strict=True):
            problem = group.problem.id
            if verdict.true:
                self.trajectories[problem][draw] = _share_right(verdict.rewards)
            is_reference = verdict.true or verdict.fate is Fate.TRUSTED
            (self.references.add if is_reference else self.references.discard)(problem)
        return verdicts

    def _drew(self, step: Step, place: int, rewards: Sequence[float] | None) -> int:
        """Add this draw to its problem's trajectory, by its rewards if it has a label. Returns its place there."""
        votes = step.votes[place]
        trajectory = self.trajectories.setdefault(step.groups[place].problem.id, [])
        trajectory.append(votes.votes / len(votes.members) if rewards is None else _share_right(rewards))
        return len(trajectory) - 1

    def _similarity(self, step: Step, place: int) -> float | None:
        """Similarity of a problem to the labelled ones and to those that were trusted before; None early in a run."""
        if step.number < self.vote_free_steps:
            return None
        problem = step.groups[place].problem.id
        references = (self.trajectories[name] for name in sorted(self.references) if name != problem)
        return similarity(self.trajectories[problem], references)

    def state(self) -> State:
        """The trajectories, and which of them are references."""
        names = sorted(self.trajectories)
        rates = [self.trajectories[name] for name in names]
        tensors = {
            "rates": torch.tensor([rate for of_problem in rates for rate in of_problem], dtype=torch.float64),
            "draws": torch.tensor([len(of_problem) for of_problem in rates], dtype=torch.int64),
            "references": torch.tensor([name in self.references for name in names], dtype=torch.bool),
        }
        return tensors, {"problems": names}

    def load(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore the trajectories and references from a state.

        Raises:
            ValueError: the state is of another supervision, or not whole. Nothing has changed then.
        """
        names = plain.get("problems")
        if not isinstance(names, list) or tensors.keys() != {"rates", "draws", "references"}:
            raise ValueError("the state has no trajectories of pass rates")
        rates, draws = tensors["rates"].tolist(), tensors["draws"].tolist()
        if not len(names) == len(draws) == len(tensors["references"]) or sum(draws) != len(rates):
            raise ValueError(f"{len(names)} problems with {sum(draws)} draws do not fit {len(rates)} pass rates")
        self.trajectories, start = {}, 0
        for name, count in zip(names, draws, strict=True):
            self.trajectories[name] = rates[start : start + count]
            start += count
        flags = zip(names, tensors["references"].tolist(), strict=True)
        self.references = {name for name, is_reference in flags if is_reference}
