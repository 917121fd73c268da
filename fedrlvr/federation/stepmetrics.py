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
class StepMetrics:
    """Sums over a round's local steps."""

    rewards: float = 0.0
    correct: int = 0
    responses: int = 0
    groups: int = 0
    flat_groups: int = 0
    unfinished: int = 0
    tokens_sampled: int = 0
    tokens_trained: int = 0
    kl: float = math.nan
    ratio_max: float = math.nan
    weighted: dict[str, float] = field(default_factory=dict)
    """Sums weighted by trained tokens."""
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    last_reward: float = 0.0
    last_tokens: int = 0
    public_tokens_sampled: int = 0
    public_tokens_trained: int = 0

    def sampled(self, groups: Sequence[Group]) -> None:
        """Count one step's graded groups."""
        rewards = [reward for group in groups for reward in group.rewards]
        responses = [response for group in groups for response in group.responses]
        self.rewards += sum(rewards)
        self.correct += sum(reward >= CORRECT for reward in rewards)
        self.responses += len(rewards)
        self.groups += len(groups)
        self.flat_groups += sum(group.same_rewards for group in groups)
        self.unfinished += sum(not response.finished for response in responses)
        self.last_reward = sum(rewards) / len(rewards)
        self.last_tokens = sum(len(response.token_ids) for response in responses)
        self.tokens_sampled += self.last_tokens

    def learned(self, stats: StepStats) -> None:
        """Count one optimizer step."""
        self.losses.append(stats.loss)
        self.grad_norms.append(stats.grad_norm)
        if stats.tokens_trained:
            self.tokens_trained += stats.tokens_trained
            for name, value in (("ratio_mean", stats.ratio_mean), ("clip_fraction", stats.clip_fraction)):
                self.weighted[name] = self.weighted.get(name, 0.0) + value * stats.tokens_trained
            self.ratio_max = stats.ratio_max if math.isnan(self.ratio_max) else max(self.ratio_max, stats.ratio_max)

    def took(self, **seconds: float) -> None:
        """Add seconds to phases."""
        for phase, value in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + value

    def summary(self) -> dict[str, float | int]:
        """The round's numbers; nan where there is nothing to say (no token was trained)."""
        trained, public = self.tokens_trained, self.public_tokens_sampled
        return {
            "reward": self.rewards / self.responses,
            "pass@1": self.correct / self.responses,
            "zero_variance_groups": self.flat_groups / self.groups,
            "response_length": self.tokens_sampled / self.responses,
            "unfinished": self.unfinished / self.responses,
            "kl_to_base": self.kl,
            "ratio_mean": self.weighted["ratio_mean"] / trained if trained else math.nan,
            "ratio_max": self.ratio_max,
            "clip_fraction": self.weighted["clip_fraction"] / trained if trained else math.nan,
            "loss": sum(self.losses) / len(self.losses),
            "grad_norm": sum(self.grad_norms) / len(self.grad_norms),
            "tokens_sampled": self.tokens_sampled,
            "tokens_trained": trained,
            **(
                {"public_tokens_sampled": public, "public_tokens_trained": self.public_tokens_trained} if public else {}
            ),
            **{f"seconds_{phase}": value for phase, value in self.seconds.items()},
        }


@dataclass
class SwapMetrics:
    """One client's numbers of one exchange: what it answered, what it took of others, and what that did."""

    own_correct: int = 0
    responses: int = 0
    swapped_in: int = 0
    rescued: int = 0
    refused: int = 0
    ages: list[int] = field(default_factory=list)
    logp: float = math.nan
    tokens: int = 0
    tokens_trained: int = 0
    ratio_sum: float = 0.0
    clipped: float = 0.0
    ratio_max: float = math.nan

    def swapped(self, own_rewards: Sequence[float], ages: Sequence[int]) -> None:
        """Count one group: its own rewards, and the ages of what was swapped in."""
        correct = sum(reward >= CORRECT for reward in own_rewards)
        self.own_correct += correct
        self.responses += len(own_rewards)
        self.swapped_in += len(ages)
        self.rescued += not correct and bool(ages)
        self.ages += ages

    def scored(self, logps: Sequence[Sequence[float]]) -> None:
        """The receiver's own log-probs of the foreign tokens."""
        tokens = sum(map(len, logps))
        if tokens:
            self.logp = sum(map(sum, logps)) / tokens

    def learned(self, stats: StepStats) -> None:
        """Count one public step."""
        self.tokens_trained += stats.tokens_trained
        if stats.foreign is not None:
            foreign = stats.foreign
            self.tokens += foreign.tokens
            self.ratio_sum += foreign.mean * foreign.tokens
            self.clipped += foreign.clipped * foreign.tokens
            self.ratio_max = foreign.largest if math.isnan(self.ratio_max) else max(self.ratio_max, foreign.largest)

    def summary(self) -> dict[str, float | int]:
        """The exchange's numbers; nan where there is nothing to say (no foreign token was trained on)."""
        return {
            "own_correct": self.own_correct / self.responses if self.responses else math.nan,
            "swapped_in": self.swapped_in,
            "rescued": self.rescued,
            "refused": self.refused,
            "staleness": sum(self.ages) / len(self.ages) if self.ages else math.nan,
            "foreign_logp": self.logp,
            "foreign_ratio_mean": self.ratio_sum / self.tokens if self.tokens else math.nan,
            "foreign_ratio_max": self.ratio_max,
            "foreign_clip_fraction": self.clipped / self.tokens if self.tokens else math.nan,
            "tokens_trained": self.tokens_trained,
        }
