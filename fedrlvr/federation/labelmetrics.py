"""One client's numbers on its labels, of one round: summed step by step, plain numbers at the end.

What no client could know without every answer is summed under `audit` alone, which is for experiments.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from fedrlvr.federation.messages import BINS
from fedrlvr.rl import CORRECT
from fedrlvr.supervision import Clusters, Supervised, oracle_gap
from fedrlvr.supervision.types import Fate


def _none() -> list[int]:
    return [0] * BINS


def _zeros() -> list[float]:
    return [0.0] * BINS


@dataclass
class Calibration:
    """How often the majority is right, by what P1 said: problems, their P1 in sum, and those that are right."""

    n: list[int] = field(default_factory=_none)
    total: list[float] = field(default_factory=_zeros)
    right: list[int] = field(default_factory=_none)

    def add(self, reliable: float, right: bool) -> None:
        """Count one problem."""
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
        """Count one pair."""
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


@dataclass
class LabelMetrics:
    """Sums over a round's local steps."""

    problems: int = 0
    fates: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    used: int = 0
    total: int = 0
    verified: float = 0.0
    """Mean true rewards of labelled groups, in sum."""
    majority_right: int = 0
    calibration: Calibration = field(default_factory=Calibration)
    losses: dict[str, float] = field(default_factory=dict)
    updates: int = 0
    audited: int = 0
    audit_correct: float = 0.0
    audit_majority_right: int = 0
    audit_trusted: int = 0
    audit_trusted_right: int = 0
    audit_calibration: Calibration = field(default_factory=Calibration)
    gaps: Pairs = field(default_factory=Pairs)

    def supervised(
        self,
        votes: Sequence[Clusters],
        verdicts: Sequence[Supervised],
        reliable: Sequence[float] | None,
        learnt: Collection[int] = (),
    ) -> None:
        """Count one step.

        reliable: P1 of each problem, where there are probes. learnt: places of problems that these have learnt from
        before, on which their calibration would look better than it is.
        """
        self.problems += len(verdicts)
        for place, verdict in enumerate(verdicts):
            self.fates[verdict.fate.value] = self.fates.get(verdict.fate.value, 0) + 1
            self.asked += verdict.fate is Fate.QUERIED
            if not verdict.true:
                continue
            self.used += 1
            self.verified += sum(verdict.rewards) / len(verdict.rewards)
            right, _ = votes[place].judged(verdict.rewards)
            self.majority_right += right
            if reliable is not None and place not in learnt:
                self.calibration.add(reliable[place], right)

    def audit(
        self,
        votes: Sequence[Clusters],
        verdicts: Sequence[Supervised],
        true_rewards: Sequence[Sequence[float]],
        reliable: Sequence[float] | None,
        scores: Sequence[float] | None,
    ) -> None:
        """Count what only experiments know of one step.

        scores: S of each problem, where there are probes.
        """
        for place, (one, rewards) in enumerate(zip(votes, true_rewards, strict=True)):
            right, _ = one.judged(rewards)
            self.audited += 1
            self.audit_correct += sum(reward >= CORRECT for reward in rewards) / len(rewards)
            self.audit_majority_right += right
            if verdicts[place].fate is Fate.TRUSTED:
                self.audit_trusted += 1
                self.audit_trusted_right += right
            if reliable is not None:
                self.audit_calibration.add(reliable[place], right)
            if scores is not None:
                self.gaps.add(scores[place], oracle_gap(one, rewards))

    def learned(self, losses: dict[str, float]) -> None:
        """Count one update of the probes."""
        if losses:
            self.updates += 1
            self.losses = {name: self.losses.get(name, 0.0) + loss for name, loss in losses.items()}

    def summary(self) -> dict[str, float | int | list[int] | list[float]]:
        """The round's numbers; nan where there is nothing to say."""

        def share(part: float, whole: float) -> float:
            return part / whole if whole else math.nan

        def fate(one: Fate) -> float:
            return share(self.fates.get(one.value, 0), self.problems)

        found: dict[str, float | int | list[int] | list[float]] = {
            "pass@1": share(self.audit_correct, self.audited),
            "verified_reward": share(self.verified, self.used),
            "labels_asked": self.asked,
            "labels_used": self.used,
            "labels_total": self.total,
            "share_query": fate(Fate.QUERIED),
            "share_known": fate(Fate.KNOWN),
            "share_reliable": fate(Fate.TRUSTED),
            "share_masked": fate(Fate.MASKED),
            "majority_right": share(self.majority_right, self.used),
            **{name: total / self.updates for name, total in self.losses.items()},
            **self.calibration.lists("p1"),
        }
        if self.audited:
            found |= {
                "audit_majority_right": self.audit_majority_right / self.audited,
                "audit_reliable_right": share(self.audit_trusted_right, self.audit_trusted),
                "audit_gap_correlation": self.gaps.correlation,
                **self.audit_calibration.lists("audit_p1"),
            }
        return found


def restored(kept: dict[str, object]) -> LabelMetrics:
    """The inverse of `dataclasses.asdict`."""
    nested = {
        "calibration": Calibration(**kept["calibration"]),  # type: ignore[arg-type]
        "audit_calibration": Calibration(**kept["audit_calibration"]),  # type: ignore[arg-type]
        "gaps": Pairs(**kept["gaps"]),  # type: ignore[arg-type]
    }
    return LabelMetrics(**{**kept, **nested})  # type: ignore[arg-type]
