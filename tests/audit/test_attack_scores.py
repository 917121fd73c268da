"""Statistics of attacks, with numbers by hand."""

from __future__ import annotations

import math

import pytest

from fedrlvr.audit.attack_scores import auc, caught, exposure, roc, standardised, wilson


def test_auc_counts_pairs_and_halves_ties() -> None:
    """Members 3, 2, 1 and others 2, 0: of six pairs 3>2, 3>0, 2=2, 2>0, 1<2, 1>0 are 4.5."""
    result = auc([3, 2, 1], [2, 0])
    assert result.value == pytest.approx(4.5 / 6)
    # by member 1, 0.75 and 0.5: variance 0.0625. By other 1/2 (of 2: 3 above, 2 equal) and 1: variance 0.125.
    error = math.sqrt(0.0625 / 3 + 0.125 / 2)
    assert result.low == pytest.approx(0.75 - 1.95996 * error, abs=1e-4)
    assert result.high == 1.0


def test_auc_of_scores_that_tell_nothing_and_everything() -> None:
    assert auc([1, 1], [1, 1, 1]).value == 0.5
    assert auc([5, 6], [1, 2]).value == 1.0
    with pytest.raises(ValueError, match="two"):
        auc([1], [0, 0])


def test_members_caught_at_few_false_positives() -> None:
    others = [float(i) for i in range(100)]
    assert caught([99.5, 98.5, 97.5, 3.0], others, 0.01).value == 0.5, "one of 100 others may be above: 99"
    assert caught([99.5, 98.5, 97.5, 3.0], others, 0.001).value == 0.25, "none may"
    assert caught([1.0], [0.0], 1.0).value == 1.0


def test_wilsons_interval_of_nine_in_ten() -> None:
    """(0.9 + 0.19207) / 1.38415 = 0.78898; half 1.95996 / 1.38415 * sqrt(0.009 + 0.0096037) = 0.19313."""
    result = wilson(9, 10)
    assert (result.value, result.low, result.high) == pytest.approx((0.9, 0.5958, 0.9821), abs=1e-3)


def test_roc_goes_through_every_threshold() -> None:
    assert roc([2, 1], [1, 0]) == [(0, 0), (0, 0.5), (0.5, 1.0), (1.0, 1.0)]


def test_exposure_by_rank() -> None:
    assert exposure([5, 1, 0, 0], 0) == 2.0
    assert exposure([5, 1, 0, 0], 1) == 1.0
    assert exposure([5, 1, 0, 0], 3) == pytest.approx(2 - math.log2(3.5))
    assert exposure([0, 0, 0, 0], 2) == pytest.approx(2 - math.log2(2.5))


def test_standardised_values() -> None:
    assert standardised([1.0, 3.0]) == [-1.0, 1.0]
    assert standardised([2.0, 2.0]) == [0.0, 0.0]
