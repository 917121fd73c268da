"""Intervals over seeds, worked out by hand: alone, paired by seed, and unpaired (Welch)."""

from __future__ import annotations

import math

import pytest

from fedrlvr.reporting.spread import paired, spread, unpaired


def test_a_mean_with_its_interval() -> None:
    value = spread({0: 1.0, 1: 3.0})
    assert value is not None
    assert value.mean == 2
    assert value.half == pytest.approx(12.7062 * math.sqrt(2) / math.sqrt(2), rel=1e-4)  # s = sqrt(2), n = 2
    assert spread({}) is None
    assert spread({4: 1.5}).half is None  # type: ignore[union-attr]


def test_pairs_are_seeds_that_both_have() -> None:
    value = paired({0: 1.0, 1: 5.0, 2: 9.0}, {1: 4.0, 2: 7.0, 3: 0.0}, lambda number: 10 * number)
    assert value is not None
    assert value.by_seed == {1: 10, 2: 20}
    assert value.mean == 15
    # differences 10 and 20: s = 7.0711, t = 12.7062 for one degree of freedom
    assert value.half == pytest.approx(12.7062 * 7.0711 / math.sqrt(2), rel=1e-4)
    assert paired({0: 1.0}, {1: 1.0}, float) is None


def test_what_seeds_do_to_both_arms_cancels_in_pairs_alone() -> None:
    first, second = {0: 0.1, 1: 0.5, 2: 0.9}, {0: 0.0, 1: 0.4, 2: 0.8}
    together, apart = paired(first, second, float), unpaired(first, second)
    assert together is not None
    assert apart is not None
    assert together.mean == pytest.approx(apart.mean) == pytest.approx(0.1)
    assert together.half == pytest.approx(0, abs=1e-12)
    # Both variances are 0.16: sqrt(0.16 / 3 + 0.16 / 3) = 0.3266, four degrees of freedom, t = 2.7764.
    assert apart.half == pytest.approx(2.7764 * 0.3266, rel=1e-3)


def test_welch_s_degrees_of_freedom_are_rounded_down() -> None:
    value = unpaired({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0, 2: 3.0})
    assert value is not None
    assert value.mean == 1
    # Variances 2 and 3, so 2/2 = 1 and 3/3 = 1: (1 + 1)^2 / (1/1 + 1/2) = 2.67, rounded down to 2; t = 4.3027.
    assert value.half == pytest.approx(4.3027 * math.sqrt(2), rel=1e-4)


def test_unpaired_without_an_interval() -> None:
    assert unpaired({}, {0: 1.0}) is None
    lone = unpaired({0: 1.0}, {0: 0.5, 1: 0.7})
    assert lone is not None
    assert (lone.mean, lone.half) == (pytest.approx(0.4), None)
    equal = unpaired({0: 1.0, 1: 1.0}, {5: 0.5, 6: 0.5})
    assert equal is not None
    assert (equal.mean, equal.half) == (0.5, 0.0)
