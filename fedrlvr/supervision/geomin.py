"""GeoMin: majority votes are trusted where their responses look like right ones (arXiv 2606.04516).

This is our reading of the abstract, which is all that could be read, and no reproduction. The authors model the feature
distributions of right and wrong responses to labelled problems, and take the difference for a prior on how reliable a
self-reward is. Which features, which distributions and which rule they use is not known here. We take

    h           the policy's last hidden state at a response's last token, as CARE's probes do
    N(m_c, s)   one Gaussian for right (c = 1) and one for wrong responses (c = 0) to labelled problems, of all steps so
                far, with a common diagonal variance s
    L(h)        log n_1 N(h; m_1, s) - log n_0 N(h; m_0, s): above 0 the response looks right
    trusted     the votes with the largest mean L of their responses, if that is above 0

Labels are asked for by chance within the budget, as with TraPO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedrlvr.rl.samples import CORRECT
from fedrlvr.supervision.acquisition import Spending, by_chance
from fedrlvr.supervision.settling import look_up, settle
from fedrlvr.supervision.types import Ledger, State, Step, Supervised, Supervision

LEAST = 2
"""Responses of each kind from which on there are distributions."""
SMALLEST_VARIANCE = 1e-12


class TwoGaussians:
    """Gaussians of right and of wrong responses with a common diagonal variance, from running sums in float64."""

    def __init__(self, width: int) -> None:
        self.count_C = torch.zeros(2, dtype=torch.float64)
        self.sum_CH = torch.zeros(2, width, dtype=torch.float64)
        self.square_CH = torch.zeros(2, width, dtype=torch.float64)

    def add(self, hidden_NH: Tensor, right_N: Tensor) -> None:
        """Add responses; right_N: bool, whether each is right."""
        hidden_NH, right_N = hidden_NH.detach().cpu().double(), right_N.cpu()
        for kind in (0, 1):
            rows = hidden_NH[right_N == bool(kind)]
            self.count_C[kind] += len(rows)
            self.sum_CH[kind] += rows.sum(dim=0)
            self.square_CH[kind] += rows.square().sum(dim=0)

    @property
    def known(self) -> bool:
        """Whether there are enough responses of each kind."""
        return bool((self.count_C >= LEAST).all())

    def log_odds(self, hidden_NH: Tensor) -> Tensor:
        """L of each response, float64 [N] on the CPU.

        Raises:
            ValueError: too few responses of one kind.
        """
        if not self.known:
            raise ValueError(f"{self.count_C.tolist()} wrong and right responses are too few for a distribution")
        mean_CH = self.sum_CH / self.count_C.unsqueeze(1)
        within_CH = (self.square_CH - self.count_C.unsqueeze(1) * mean_CH.square()).clamp(min=0)
        variance_H = (within_CH.sum(dim=0) / self.count_C.sum()).clamp(min=SMALLEST_VARIANCE)
        offset_NCH = hidden_NH.detach().cpu().double().unsqueeze(1) - mean_CH
        distance_NC = (offset_NCH.square() / variance_H).sum(dim=2)
        prior = (self.count_C[1] / self.count_C[0]).log()
        return (distance_NC[:, 0] - distance_NC[:, 1]) / 2 + prior


class Geomin(Supervision):
    """GeoMin, as we read it, for one client.

    spending: how many problems a step may ask about, by chance. trusted: largest share of a step whose votes are
    trusted, after `vote_free_steps` steps.
    """

    reads_states = True

    def __init__(self, width: int, *, spending: Spending, trusted: float, vote_free_steps: int) -> None:
        self.spending, self.trusted, self.vote_free_steps = spending, trusted, vote_free_steps
        self.gaussians = TwoGaussians(width)

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """True rewards for what has a label or is asked about now, and the majority's for the others.

        Raises:
            ValueError: a step without features.
        """
        if step.features is None:
            raise ValueError("GeoMin needs the policy's hidden states")
        drawn = look_up(step, ledger, self.spending)
        odds = self._odds(step, drawn.without)
        acquired = by_chance(odds, step.rng, queries=drawn.queries, share=self.trusted, of=len(step.groups), least=0.0)
        verdicts = settle(step, ledger, drawn, acquired)
        for place, verdict in enumerate(verdicts):
            if verdict.true:
                right = torch.tensor([reward >= CORRECT for reward in verdict.rewards])
                self.gaussians.add(step.features.response_PGH[place], right)
        return verdicts

    def _odds(self, step: Step, places: Sequence[int]) -> list[float | None]:
        """Mean L of the responses that gave each problem's majority answer; None where no vote can be trusted."""
        if step.number < self.vote_free_steps or not self.gaussians.known:
            return [None] * len(places)
        assert step.features is not None
        odds: list[float | None] = []
        for place in places:
            voted = torch.tensor(step.votes[place].pseudo_rewards) > 0
            hidden_NH = step.features.response_PGH[place].cpu()[voted]
            odds.append(float(self.gaussians.log_odds(hidden_NH).mean()) if len(hidden_NH) else None)
        return odds

    def state(self) -> State:
        """The running sums over labelled responses, as tensors."""
        sums = self.gaussians
        return {name: getattr(sums, name).clone() for name in ("count_C", "sum_CH", "square_CH")}, {}

    def load(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore the running sums from a state.

        Raises:
            ValueError: the state is of another supervision, or of hidden states of another width. Nothing has changed
                then.
        """
        expected, _ = self.state()
        if tensors.keys() != expected.keys() or any(tensors[k].shape != v.shape for k, v in expected.items()):
            raise ValueError(f"the state has no sums of hidden states of width {expected['sum_CH'].shape[1]}")
        for name, tensor in tensors.items():
            setattr(self.gaussians, name, tensor.clone())
