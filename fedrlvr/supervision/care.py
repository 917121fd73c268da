"""CARE: two probes say which few problems to have labelled and which majorities to trust (arXiv 2605.25864).

The rule is in acquisition.py, the probes in judge.py. Three things are ours to say:
1. A problem that has a label already is neither ranked nor paid for again. It counts in full, and the probes learn from
   it as from the newly labelled.
2. Quotas are of all problems of the step, and what is left to rank is what has no label.
3. A problem whose answer is awaited is masked and not trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedrlvr.supervision.acquisition import Acquired, care
from fedrlvr.supervision.features import Labelled, labelled
from fedrlvr.supervision.judge import Judge
from fedrlvr.supervision.settling import look_up, settle
from fedrlvr.supervision.types import Ledger, Step, Supervised, Supervision


@dataclass(frozen=True)
class Judged:
    """Estimates of the probes for the last step's problems, before they learnt from it: P1 and S of each."""

    reliable: list[float]
    scores: list[float]


class Care(Supervision):
    """CARE for one client: its judge, its shares and its thresholds.

    budget: share of a step's problems to ask about. trusted: share to train on by majority vote, after
    `vote_free_steps` steps, where P1 is not below `min_reliability`.
    """

    reads_states = True

    def __init__(
        self, judge: Judge, *, budget: float, trusted: float, vote_free_steps: int, min_reliability: float = 0.0
    ) -> None:
        self.judge = judge
        self.budget, self.trusted = budget, trusted
        self.vote_free_steps, self.min_reliability = vote_free_steps, min_reliability
        self.judged = Judged([], [])
        self._fresh: Labelled | None = None

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """True rewards for what has a label or is asked about now, and the majority's for the others.

        Raises:
            ValueError: a step without features, or with features of other widths than the judge's.
        """
        if step.features is None:
            raise ValueError("CARE needs the policy's hidden states")
        opinion = self.judge.judge(step.features)
        self.judged = Judged(opinion.reliable_P.tolist(), opinion.score_P.tolist())
        drawn = look_up(step, ledger, self.budget)
        acquired = self._acquired(step, drawn.without, drawn.queries)
        verdicts = settle(
            step,
            ledger,
            drawn,
            acquired,
            score=self.judged.scores.__getitem__,
            reliable=self.judged.reliable.__getitem__,
        )
        rows = [place for place, verdict in enumerate(verdicts) if verdict.true]
        votes, rewards = [step.votes[row] for row in rows], [verdicts[row].rewards for row in rows]
        self._fresh = labelled(step.features, rows, votes, rewards) if rows else None
        return verdicts

    def _acquired(self, step: Step, places: list[int], queries: int) -> Acquired:
        return care(
            [self.judged.reliable[place] for place in places],
            [self.judged.scores[place] for place in places],
            queries=queries,
            steps_done=step.number,
            of=len(step.groups),
            trusted_share=self.trusted,
            vote_free_steps=self.vote_free_steps,
            min_reliability=self.min_reliability,
        )

    def learn(self) -> dict[str, float]:
        """Let the probes learn from the labels of the step that was supervised last."""
        with torch.enable_grad():
            return self.judge.learn(self._fresh)
