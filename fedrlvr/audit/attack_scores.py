"""Statistics of attacks that tell members from others by a score: AUC, true positives at few false ones, exposure.

A score is higher where the attack takes a problem for a member: one that the model was trained on.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass

Z = 1.959963984540054
"""97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The number and its bounds as a JSON object."""
        return asdict(self)


def auc(members: Sequence[float], others: Sequence[float]) -> Measured:
    """Area under the ROC curve: the chance that a member scores above another problem; ties count half.

    Its interval is DeLong's (Biometrics 44, 1988), cut at 0 and 1.

    Raises:
        ValueError: fewer than two members or others.
    """
    if len(members) < 2 or len(others) < 2:
        raise ValueError("an AUC needs two members and two others at least")
    above = _shares_below(members, others)
    beneath = [1.0 - share for share in _shares_below(others, members)]
    value = sum(above) / len(above)
    error = math.sqrt(_variance(above) / len(above) + _variance(beneath) / len(beneath))
    return Measured(value, max(0.0, value - Z * error), min(1.0, value + Z * error))


def _shares_below(scores: Sequence[float], among: Sequence[float]) -> list[float]:
    """For each score the share of `among` below it; those that are equal count half."""
    ordered = sorted(among)
    return [(bisect_left(ordered, x) + bisect_right(ordered, x)) / 2 / len(ordered) for x in scores]


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def caught(members: Sequence[float], others: Sequence[float], rate: float) -> Measured:
    """Share of the members above the lowest threshold that at most the share `rate` of the others is above.

    With fewer than 1 / rate others no one of them may be above it. The interval is Wilson's, over the members alone.

    Raises:
        ValueError: no members or no others.
    """
    if not members or not others:
        raise ValueError("a share of members needs members and others")
    allowed = math.floor(rate * len(others) + 1e-9)
    falling = sorted(others, reverse=True)
    threshold = falling[allowed] if allowed < len(falling) else -math.inf
    return wilson(sum(score > threshold for score in members), len(members))


def wilson(hits: int, n: int) -> Measured:
    """A share of n with Wilson's interval."""
    share, z2 = hits / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Measured(share, max(0.0, centre - half), min(1.0, centre + half))


def roc(members: Sequence[float], others: Sequence[float]) -> list[tuple[float, float]]:
    """Points (share of others, share of members) above every threshold, from (0, 0) to (1, 1)."""
    points = [(0.0, 0.0)]
    high, low = sorted(members), sorted(others)
    for threshold in sorted({*members, *others}, reverse=True):
        taken = (len(ordered) - bisect_left(ordered, threshold) for ordered in (low, high))
        points.append(tuple(n / len(of) for n, of in zip(taken, (low, high), strict=True)))  # type: ignore[arg-type]
    return points


def exposure(counts: Sequence[float], planted: int) -> float:
    """Exposure of a canary in bits: log2 of the number of candidates, less log2 of the planted one's rank.

    Carlini et al., arXiv 1802.08232, definition 2, with ranks by `counts` (how often each candidate is answered). Equal
    candidates share their mean rank, so that a model that answers none of them is at about 1 bit, and a guess too.

    counts: by candidate. planted: place of the planted one.
    """
    more = sum(count > counts[planted] for count in counts)
    equal = sum(count == counts[planted] for count in counts)
    return math.log2(len(counts)) - math.log2(more + (equal + 1) / 2)


def standardised(values: Sequence[float]) -> list[float]:
    """Values less their mean, over their standard deviation; all 0 where they are equal."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / deviation if deviation else 0.0 for value in values]
