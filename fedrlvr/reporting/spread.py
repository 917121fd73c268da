"""Numbers over seeds: their mean and 95 % interval, and differences of two arms, paired by seed or not.

Of n values with standard deviation s the interval is Student's, mean +- t s / sqrt(n), with t the 97.5 % quantile for
n - 1 degrees of freedom. It says how far another set of seeds might lead.

- Paired: of two arms with the same seeds, the interval is that of the n differences, seed by seed. What the seeds do to
  both arms alike cancels.
- Unpaired (Welch 1947): with v = s^2 / n of each arm, the interval is difference +- t sqrt(v1 + v2), with
  (v1 + v2)^2 / (v1^2 / (n1 - 1) + v2^2 / (n2 - 1)) degrees of freedom, here rounded down.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fedrlvr.reporting.scores import t95

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """A number over seeds: its mean, half of its 95 % interval (None with one seed), and each seed's own."""

    mean: float
    half: float | None
    by_seed: dict[int, float]


def spread(by_seed: Mapping[int, float]) -> Spread | None:
    """Mean and interval over seeds; None without any."""
    if not by_seed:
        return None
    values = list(by_seed.values())
    half = None
    if len(values) > 1:
        half = t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Spread(statistics.fmean(values), half, dict(by_seed))


def paired(runs: Mapping[int, T], others: Mapping[int, T], value: Callable[[T], float]) -> Spread | None:
    """Difference of two arms, seed by seed, on the seeds that both have; None without any.

    runs, others: by seed.
    """
    return spread({seed: value(run) - value(others[seed]) for seed, run in runs.items() if seed in others})


def unpaired(values: Mapping[int, float], others: Mapping[int, float]) -> Spread | None:
    """The difference of two means with Welch's interval; None where one arm has no value. `by_seed` is empty.

    half is None where an arm has one value.
    """
    if not values or not others:
        return None
    both = [list(values.values()), list(others.values())]
    mean = statistics.fmean(both[0]) - statistics.fmean(both[1])
    if min(map(len, both)) < 2:
        return Spread(mean, None, {})
    parts = [(statistics.variance(part) / len(part), len(part) - 1) for part in both]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Spread(mean, 0.0, {})
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return Spread(mean, t95(max(1, math.floor(freedom))) * math.sqrt(variance), {})
