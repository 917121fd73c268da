"""One client's training metrics of one round: collected step by step, summarised into plain numbers.

Only numbers come out of here; they are what a train reply carries (docs/architecture.md, "What leaves a client").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedrlvr.policy.learner import StepStats
from fedrlvr.rl import CORRECT, Group


@dataclass
class Means:
    """Means by name, each kept as a sum and the weight that divides it."""

    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, total: float, weight: int = 1) -> None:
        """Add a value, or the sum of `weight` values."""
        self.sums[name] = self.sums.get(name, 0.0) + total
        self.weights[name] = self.weights.get(name, 0) + weight

    def __getitem__(self, name: str) -> float:
        """The mean; nan without any weight."""
        weight = self.weights.get(name, 0)
        return self.sums[name] / weight if weight else math.nan

    def values(self) -> dict[str, float]:
        """Every mean by its name."""
        return {name: self[name] for name in self.sums}


@dataclass
class StepMetrics:
    """Means and sums over a round's local steps."""

    means: Means = field(default_factory=Means)
    tokens_sampled: int = 0
    tokens_trained: int = 0
    kl: float = math.nan
    ratio_max: float = math.nan
    seconds: dict[str, float] = field(default_factory=dict)
    last_reward: float = 0.0
    last_tokens: int = 0
    public_tokens_sampled: int = 0
    public_tokens_trained: int = 0

    def sampled(self, groups: Sequence[Group]) -> None:
        """Count one step's graded groups."""
        rewards = [reward for group in groups for reward in group.rewards]
        responses = [response for group in groups for response in group.responses]
        self.last_reward = sum(rewards) / len(rewards)
        self.last_tokens = sum(len(response.token_ids) for response in responses)
        self.tokens_sampled += self.last_tokens
        self.means.add("reward", sum(rewards), len(rewards))
        self.means.add("pass@1", sum(reward >= CORRECT for reward in rewards), len(rewards))
        self.means.add("zero_variance_groups", sum(group.same_rewards for group in groups), len(groups))
        self.means.add("response_length", self.last_tokens, len(responses))
        self.means.add("unfinished", sum(not response.finished for response in responses), len(responses))

    def learned(self, stats: StepStats) -> None:
        """Count one optimizer step."""
        self.means.add("loss", stats.loss)
        self.means.add("grad_norm", stats.grad_norm)
        ratios = stats.ratios
        if tokens := ratios.tokens:
            self.tokens_trained += tokens
            self.means.add("ratio_mean", ratios.mean * tokens, tokens)
            self.means.add("clip_fraction", ratios.clipped * tokens, tokens)
            self.ratio_max = ratios.largest if math.isnan(self.ratio_max) else max(self.ratio_max, ratios.largest)

    def took(self, **seconds: float) -> None:
        """Add seconds to phases."""
        for phase, value in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + value

    def summary(self) -> dict[str, float | int]:
        """The round's numbers; those of trained tokens are missing or nan where no token was trained."""
        public = {
            "public_tokens_sampled": self.public_tokens_sampled,
            "public_tokens_trained": self.public_tokens_trained,
        }
        return {
            **self.means.values(),
            "kl_to_base": self.kl,
            "ratio_max": self.ratio_max,
            "tokens_sampled": self.tokens_sampled,
            "tokens_trained": self.tokens_trained,
            **(public if self.public_tokens_sampled else {}),
            **{f"seconds_{phase}": value for phase, value in self.seconds.items()},
        }


@dataclass
class SwapMetrics:
    """One client's numbers of one exchange: what it answered, what it took of others, and what that did."""

    means: Means = field(default_factory=Means)
    swapped_in: int = 0
    rescued: int = 0
    refused: int = 0
    logp: float = math.nan
    tokens_trained: int = 0
    ratio_max: float = math.nan

    def swapped(self, own_rewards: Sequence[float], ages: Sequence[int]) -> None:
        """Count one group: its own rewards, and the ages of what was swapped in."""
        correct = sum(reward >= CORRECT for reward in own_rewards)
        self.means.add("own_correct", correct, len(own_rewards))
        self.means.add("staleness", sum(ages), len(ages))
        self.swapped_in += len(ages)
        self.rescued += not correct and bool(ages)

    def scored(self, logps: Sequence[Sequence[float]]) -> None:
        """The receiver's own log-probs of the foreign tokens."""
        tokens = sum(map(len, logps))
        if tokens:
            self.logp = sum(map(sum, logps)) / tokens

    def learned(self, stats: StepStats) -> None:
        """Count one public step."""
        self.tokens_trained += stats.ratios.tokens
        if (foreign := stats.foreign) is not None:
            self.means.add("foreign_ratio_mean", foreign.mean * foreign.tokens, foreign.tokens)
            self.means.add("foreign_clip_fraction", foreign.clipped * foreign.tokens, foreign.tokens)
            self.ratio_max = foreign.largest if math.isnan(self.ratio_max) else max(self.ratio_max, foreign.largest)

    def summary(self) -> dict[str, float | int]:
        """The exchange's numbers; nan where there is nothing to say (no foreign token was trained on)."""
        names = ("own_correct", "staleness", "foreign_ratio_mean", "foreign_clip_fraction")
        return {
            **{name: self.means[name] for name in names},
            "swapped_in": self.swapped_in,
            "rescued": self.rescued,
            "refused": self.refused,
            "foreign_logp": self.logp,
            "foreign_ratio_max": self.ratio_max,
            "tokens_trained": self.tokens_trained,
        }
