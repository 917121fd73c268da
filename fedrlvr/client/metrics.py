"""One client's metrics of one round, training, exchanges and labels: summed step by step, numbers at the end.

Only numbers come out of here; they are what a train reply carries (docs/architecture.md, "What leaves a client"). What
no client could know without every answer is summed under `audit` alone, which is for experiments.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from fedrlvr.policy.learner import StepStats
from fedrlvr.rl import CORRECT, Group, is_correct
from fedrlvr.supervision import Clusters, Supervised, true_worth
from fedrlvr.supervision.acquisition import Worth
from fedrlvr.supervision.types import Fate
from fedrlvr.tasks.problem import WeightedReward
from fedrlvr.wire.messages import BINS


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
        """Every mean, by the metric's name."""
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
    redrawn: int | None = None
    """Problems drawn again for one without a gradient; None where no problem is."""

    def sampled(self, groups: Sequence[Group]) -> None:
        """Add the graded groups of one local step, with those that others have taken the place of."""
        rewards = [reward for group in groups for reward in group.rewards]
        responses = [response for group in groups for response in group.responses]
        self.last_reward = sum(rewards) / len(rewards)
        self.last_tokens = sum(len(response.token_ids) for response in responses)
        self.tokens_sampled += self.last_tokens
        self.means.add("reward", sum(rewards), len(rewards))
        self.means.add("pass@1", sum(map(is_correct, rewards)), len(rewards))
        for name, total in _parts(groups).items():
            self.means.add(name, total, len(rewards))
        self.means.add("zero_variance_groups", sum(group.same_rewards for group in groups), len(groups))
        self.means.add("response_length", self.last_tokens, len(responses))
        self.means.add("unfinished", sum(not response.finished for response in responses), len(responses))

    def redrew(self, problems: int) -> None:
        """Add the problems of one local step that were drawn for one without a gradient."""
        self.redrawn = (self.redrawn or 0) + problems

    def read(self, answers: Sequence[Sequence[str | None]]) -> None:
        """Add the answers that were read from the responses of one local step, by problem; None: none could be."""
        every = [answer for of_problem in answers for answer in of_problem]
        self.means.add("unreadable", every.count(None), len(every))

    def learned(self, stats: StepStats) -> None:
        """Add the statistics of one optimizer step on sampled responses."""
        self.imitated(stats)
        ratios = stats.ratios
        if tokens := ratios.tokens:
            self.means.add("ratio_mean", ratios.mean * tokens, tokens)
            self.means.add("clip_fraction", ratios.clipped * tokens, tokens)
            self.ratio_max = ratios.largest if math.isnan(self.ratio_max) else max(self.ratio_max, ratios.largest)

    def imitated(self, stats: StepStats) -> None:
        """Add the statistics of one optimizer step on given responses, which have no policy ratio."""
        self.means.add("loss", stats.loss)
        self.means.add("grad_norm", stats.grad_norm)
        self.tokens_trained += stats.ratios.tokens

    def took(self, **seconds: float) -> None:
        """Add seconds to the time of each phase."""
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
            **({} if self.redrawn is None else {"problems_redrawn": self.redrawn}),
            **{f"seconds_{phase}": value for phase, value in self.seconds.items()},
        }


def _parts(groups: Sequence[Group]) -> dict[str, float]:
    """Sums of each of several rewards over all responses, by name; nothing where there is only one reward. A response
    that is not graded has 0 of each, as it has of their weighted sum."""
    sums = [reward for group in groups for reward in group.rewards if isinstance(reward, WeightedReward)]
    columns = zip(*(reward.parts for reward in sums), strict=True)
    return {name: math.fsum(column) for name, column in zip(sums[0].names, columns, strict=True)} if sums else {}


@dataclass
class SwapMetrics:
    """One client's numbers of one exchange: its own answers, the responses it took, and their effect."""

    means: Means = field(default_factory=Means)
    swapped_in: int = 0
    rescued: int = 0
    refused: int = 0
    logp: float = math.nan
    tokens_trained: int = 0
    ratio_max: float = math.nan

    def swapped(self, own_rewards: Sequence[float], ages: Sequence[int]) -> None:
        """Add one group: its own rewards, and the ages of the responses swapped in."""
        correct = sum(reward >= CORRECT for reward in own_rewards)
        self.means.add("own_correct", correct, len(own_rewards))
        self.means.add("staleness", sum(ages), len(ages))
        self.swapped_in += len(ages)
        self.rescued += not correct and bool(ages)

    def scored(self, logps: Sequence[Sequence[float]]) -> None:
        """Add the receiver's own log-probs of foreign tokens."""
        tokens = sum(map(len, logps))
        if tokens:
            self.logp = sum(map(sum, logps)) / tokens

    def learned(self, stats: StepStats) -> None:
        """Add the statistics of one public step."""
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


@dataclass
class Calibration:
    """Calibration of P1 in tenths: number of problems, sum of their P1, and number of correct majorities."""

    n: list[int] = field(default_factory=lambda: [0] * BINS)
    total: list[float] = field(default_factory=lambda: [0.0] * BINS)
    right: list[int] = field(default_factory=lambda: [0] * BINS)

    def add(self, reliable: float, right: bool) -> None:
        """Add one problem to its tenth of P1."""
        at = min(int(reliable * BINS), BINS - 1)
        self.n[at] += 1
        self.total[at] += reliable
        self.right[at] += right

    def lists(self, prefix: str) -> dict[str, list[int] | list[float]]:
        """The three lists by name, if there is anything in them."""
        if not any(self.n):
            return {}
        return {f"{prefix}_n": self.n, f"{prefix}_sum": self.total, f"{prefix}_right": self.right}


@dataclass
class Pairs:
    """Pairs of numbers, for their correlation: means, and sums of squares and products about them."""

    n: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        """Add one pair of numbers to the correlation."""
        # About the means, or what does not vary would seem to, by its rounding (Welford's method).
        self.n += 1
        dx, dy = x - self.x, y - self.y
        self.x, self.y = self.x + dx / self.n, self.y + dy / self.n
        self.xx, self.yy, self.xy = (
            self.xx + dx * (x - self.x),
            self.yy + dy * (y - self.y),
            self.xy + dx * (y - self.y),
        )

    @property
    def correlation(self) -> float:
        """Pearson's; nan where one of the two does not vary."""
        spread = math.sqrt(self.xx) * math.sqrt(self.yy)
        return min(max(self.xy / spread, -1.0), 1.0) if spread > 0 else math.nan


_SHARES = {
    Fate.QUERIED: "share_query",
    Fate.KNOWN: "share_known",
    Fate.TRUSTED: "share_reliable",
    Fate.MASKED: "share_masked",
}


@dataclass
class LabelMetrics:
    """Numbers about labels, as means and sums over a round's local steps.

    probe_auc: held-out AUC of the probes at the end of the round; None where there is none.
    """

    means: Means = field(default_factory=Means)
    asked: int = 0
    used: int = 0
    total: int = 0
    probe_auc: float | None = None
    calibration: Calibration = field(default_factory=Calibration)
    audit_calibration: Calibration = field(default_factory=Calibration)
    gaps: Pairs = field(default_factory=Pairs)

    def supervised(
        self,
        votes: Sequence[Clusters],
        verdicts: Sequence[Supervised],
        reliable: Sequence[float] | None,
        learnt: Collection[int] = (),
    ) -> None:
        """Add the supervision of one local step.

        reliable: P1 of each problem, where there are probes. learnt: places of problems that these have learnt from
        before, on which their calibration would look better than it is.
        """
        for place, verdict in enumerate(verdicts):
            for fate, share in _SHARES.items():
                self.means.add(share, verdict.fate is fate)
            self.asked += verdict.fate is Fate.QUERIED
            if not verdict.true:
                continue
            self.used += 1
            right, _ = votes[place].judged(verdict.rewards)
            self.means.add("verified_reward", sum(verdict.rewards) / len(verdict.rewards))
            self.means.add("majority_right", right)
            if reliable is not None and place not in learnt:
                self.calibration.add(reliable[place], right)

    def audit(
        self,
        votes: Sequence[Clusters],
        verdicts: Sequence[Supervised],
        true_rewards: Sequence[Sequence[float]],
        reliable: Sequence[float] | None,
        scores: Sequence[float] | None,
        worth: Worth = "gap",
    ) -> None:
        """Add the accuracies of one step that only experiments know.

        scores: S of each problem, where there are probes. worth: what S estimates.
        """
        for place, (clusters, rewards) in enumerate(zip(votes, true_rewards, strict=True)):
            right, _ = clusters.judged(rewards)
            self.means.add("pass@1", sum(reward >= CORRECT for reward in rewards) / len(rewards))
            self.means.add("audit_majority_right", right)
            if verdicts[place].fate is Fate.TRUSTED:
                self.means.add("audit_reliable_right", right)
            if reliable is not None:
                self.audit_calibration.add(reliable[place], right)
            if scores is not None:
                self.gaps.add(scores[place], true_worth(clusters, rewards, worth))

    def learned(self, losses: dict[str, float]) -> None:
        """Add the losses of one update of the probes."""
        for name, loss in losses.items():
            self.means.add(name, loss)

    def summary(self) -> dict[str, float | int | list[int] | list[float]]:
        """The round's numbers; missing or nan where there is nothing to say."""
        return {
            "pass@1": math.nan,  # known under audit alone; the step's own is that of the rewards trained on
            **self.means.values(),
            "labels_asked": self.asked,
            "labels_used": self.used,
            "labels_total": self.total,
            "probe_auc": math.nan if self.probe_auc is None else self.probe_auc,
            "audit_gap_correlation": self.gaps.correlation,
            **self.calibration.lists("p1"),
            **self.audit_calibration.lists("audit_p1"),
        }
