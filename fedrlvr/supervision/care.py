"""CARE: two probes say which few problems to have labelled and which majorities to trust (arXiv 2605.25864).

The rule is in acquisition.py, the probes in judge.py. These things are ours to say:
1. A problem that has a label already is neither ranked nor paid for again. It counts in full, and the probes learn from
   it as from the newly labelled.
2. Quotas are of all problems of the step, and what is left to rank is what has no label.
3. A problem whose answer is awaited is masked and not trusted.
4. Problems are ranked by the value that a label has beside masked problems, `mixed`; the authors' is `gap` (cag.py).
5. Queries are drawn by chance until the probes tell right majorities from wrong ones (held_out.py), since a ranking by
   probes that know nothing is no better and less varied than chance. The authors rank from the first step on.
6. Queries by chance together with CARE's trust (`selection = "random"`) are a control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedrlvr.supervision.acquisition import QuerySelection, Spending, Worth, care
from fedrlvr.supervision.features import Labelled, labelled
from fedrlvr.supervision.judge import Judge
from fedrlvr.supervision.settling import look_up, settle
from fedrlvr.supervision.types import Ledger, State, Step, Supervised, Supervision


@dataclass(frozen=True)
class Judged:
    """Estimates of the probes for the last step's problems, before they learnt from it: P1 and S of each."""

    reliable: list[float]
    scores: list[float]


class Care(Supervision):
    """CARE for one client: its judge, its shares and its thresholds.

    spending: how many problems a step may ask about. trusted: share of a step to train on by majority vote, after
    `vote_free_steps` steps, where P1 is not below `min_reliability`. selection, min_auc: queries are by chance with
    `random`, and while the probes' held-out AUC is unknown or below `min_auc`; 0 asks for no AUC.
    """

    reads_states = True

    def __init__(
        self,
        judge: Judge,
        *,
        spending: Spending,
        trusted: float,
        vote_free_steps: int,
        min_reliability: float = 0.0,
        selection: QuerySelection = "probes",
        min_auc: float = 0.0,
    ) -> None:
        self.judge = judge
        self.spending, self.trusted = spending, trusted
        self.vote_free_steps, self.min_reliability = vote_free_steps, min_reliability
        self.selection, self.min_auc = selection, min_auc
        self.judged = Judged([], [])
        self._fresh: Labelled | None = None

    @property
    def worth(self) -> Worth:
        """Value of a label that the scores estimate."""
        return self.judge.settings.worth

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """True rewards for what has a label or is asked about now, and the majority's for the others.

        Raises:
            ValueError: a step without features, or with features of other widths than the judge's.
        """
        if step.features is None:
            raise ValueError("CARE needs the policy's hidden states")
        opinion = self.judge.judge(step.features)
        self.judged = Judged(opinion.reliable_P.tolist(), opinion.score_P.tolist())
        drawn = look_up(step, ledger, self.spending)
        ranked = self._probes_choose()
        scores = [self.judged.scores[place] if ranked else step.rng.random() for place in drawn.without]
        acquired = care(
            [self.judged.reliable[place] for place in drawn.without],
            scores,
            queries=drawn.queries,
            steps_done=step.number,
            of=len(step.groups),
            trusted_share=self.trusted,
            vote_free_steps=self.vote_free_steps,
            min_reliability=self.min_reliability,
        )
        verdicts = settle(
            step,
            ledger,
            drawn,
            acquired,
            score=self.judged.scores.__getitem__ if ranked else None,
            reliable=self.judged.reliable.__getitem__,
        )
        rows = [place for place, verdict in enumerate(verdicts) if verdict.true]
        votes, rewards = [step.votes[row] for row in rows], [verdicts[row].rewards for row in rows]
        self._fresh = labelled(step.features, rows, votes, rewards) if rows else None
        self._hold_out(step, ledger, rows, verdicts)
        return verdicts

    def _hold_out(self, step: Step, ledger: Ledger, rows: list[int], verdicts: list[Supervised]) -> None:
        """Note what was said of problems whose label is new to the probes; a problem drawn twice counts once."""
        noted = set()
        for row in rows:
            question = step.groups[row].problem.question
            if question.id not in noted and not ledger.used(question):
                noted.add(question.id)
                right, _ = step.votes[row].judged(verdicts[row].rewards)
                self.judge.hold_out(self.judged.reliable[row], right)

    def _probes_choose(self) -> bool:
        """Whether queries are ranked by the probes, rather than drawn."""
        if self.selection == "random" or not self.min_auc:
            return self.selection == "probes"
        return self.judge.auc is not None and self.judge.auc >= self.min_auc

    def learn(self) -> dict[str, float]:
        """Let the probes learn from the labels of the step that was supervised last."""
        with torch.enable_grad():
            return self.judge.learn(self._fresh)

    def state(self) -> State:
        """State of the judge's training, as tensors and as JSON."""
        return self.judge.state()

    def load(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore the judge's training from its state.

        Raises:
            ValueError: as `Judge.load`.
        """
        self.judge.load(tensors, dict(plain))
