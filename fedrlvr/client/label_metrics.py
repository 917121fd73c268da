"""One client's numbers on its labels, of one round: summed step by step, plain numbers at the end.

What no client could know without every answer is summed under `audit` alone, which is for experiments.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from fedrlvr.client.metrics import Means
from fedrlvr.rl import CORRECT
from fedrlvr.supervision import Clusters, Supervised, oracle_gap
from fedrlvr.supervision.types import Fate
from fedrlvr.wire.messages import BINS


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


_SHARES = {
    Fate.QUERIED: "share_query",
    Fate.KNOWN: "share_known",
    Fate.TRUSTED: "share_reliable",
    Fate.MASKED: "share_masked",
}


@dataclass
class LabelMetrics:
    """Means and sums over a round's local steps."""

    means: Means = field(default_factory=Means)
    asked: int = 0
    used: int = 0
    total: int = 0
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
        """Count one step.

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
    ) -> None:
        """Count what only experiments know of one step.

        scores: S of each problem, where there are probes.
        """
        for place, (one, rewards) in enumerate(zip(votes, true_rewards, strict=True)):
            right, _ = one.judged(rewards)
            self.means.add("pass@1", sum(reward >= CORRECT for reward in rewards) / len(rewards))
            self.means.add("audit_majority_right", right)
            if verdicts[place].fate is Fate.TRUSTED:
                self.means.add("audit_reliable_right", right)
            if reliable is not None:
                self.audit_calibration.add(reliable[place], right)
            if scores is not None:
                self.gaps.add(scores[place], oracle_gap(one, rewards))

    def learned(self, losses: dict[str, float]) -> None:
        """Count one update of the probes."""
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
            "audit_gap_correlation": self.gaps.correlation,
            **self.calibration.lists("p1"),
            **self.audit_calibration.lists("audit_p1"),
        }


def restored(kept: dict[str, object]) -> LabelMetrics:
    """The inverse of `dataclasses.asdict`."""
    nested = {
        "means": Means(**kept["means"]),  # type: ignore[arg-type]
        "calibration": Calibration(**kept["calibration"]),  # type: ignore[arg-type]
        "audit_calibration": Calibration(**kept["audit_calibration"]),  # type: ignore[arg-type]
        "gaps": Pairs(**kept["gaps"]),  # type: ignore[arg-type]
    }
    return LabelMetrics(**{**kept, **nested})  # type: ignore[arg-type]
