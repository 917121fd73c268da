"""Exact accounting for the Gaussian mechanism: privacy loss as mu, and its conversion to epsilon and delta.

A mechanism that adds Gaussian noise of standard deviation sigma to a value of L2 sensitivity s is mu-Gaussian
differentially private with mu = s / sigma (Gaussian differential privacy, arXiv 1905.02383). Any number of them, each
chosen by what the earlier ones gave, are together one of

    mu = sqrt(mu_1^2 + mu_2^2 + ...)                                                               (composition)

and mu-GDP is (epsilon, delta)-DP exactly for the pairs of

    delta(epsilon) = Phi(-epsilon / mu + mu / 2) - exp(epsilon) Phi(-epsilon / mu - mu / 2)        (arXiv 1805.06530)

Nothing is estimated here and no sampling is assumed, so no library is needed; tests hold it against Opacus.

Here the value is a site's clipped change of its adapter, of norm up to the clip C, and two neighbouring sites differ in
all of their training problems. Their changes may point in opposite directions, so the sensitivity is 2 C.
"""

from __future__ import annotations

import math
from functools import lru_cache

import mpmath

SENSITIVITY = 2.0
"""Largest distance of two clipped changes, as a multiple of the clip: a change and its negative."""
_DIGITS = 50
"""Decimal digits of the computation; exp(epsilon) times a tiny probability would lose those of a float."""
_STEPS = 60
"""Bisections of a search: more than the bits of a float."""
_MARGIN = 1e-9
"""Relative surplus of noise, so that rounding never takes the rounds of a run beyond their epsilon."""


def delta_of(epsilon: float, mu: float) -> float:
    """The smallest delta at which mu-GDP is (epsilon, delta)-DP.

    epsilon: zero or more. mu: zero or more; 0 is no privacy loss.
    """
    if mu == 0:
        return 0.0
    with mpmath.workdps(_DIGITS):
        e, m = mpmath.mpf(epsilon), mpmath.mpf(mu)
        return float(mpmath.ncdf(-e / m + m / 2) - mpmath.exp(e) * mpmath.ncdf(-e / m - m / 2))


@lru_cache(maxsize=1024)
def epsilon_of(mu: float, delta: float) -> float:
    """Epsilon of mu-GDP at a delta: the smallest one for which the bound holds.

    delta: above 0 and below 1.
    """
    if delta_of(0.0, mu) <= delta:
        return 0.0
    low, high = (
        0.0,
        mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)),
    )  # where the first term alone is at most delta
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, mu) > delta else (low, middle)
    return high


@lru_cache(maxsize=1024)
def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu at which mu-GDP is (epsilon, delta)-DP: all that may be spent.

    epsilon: above 0. delta: above 0 and below 1.
    """
    low, high = 0.0, 1.0
    while delta_of(epsilon, high) <= delta:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(epsilon, middle) <= delta else (low, middle)
    return low


def noise_for(epsilon: float, delta: float, rounds: int) -> float:
    """The noise multiplier, sigma as a multiple of the clip, with which `rounds` changes of one site together are
    (epsilon, delta)-DP."""
    return SENSITIVITY * math.sqrt(rounds) / mu_of(epsilon, delta) * (1 + _MARGIN)


def mu_after(noise: float, rounds: int = 1) -> float:
    """The privacy loss mu of `rounds` changes of one site. noise: the noise multiplier."""
    return SENSITIVITY * math.sqrt(rounds) / noise
