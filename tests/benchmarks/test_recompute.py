"""`scripts/bench recompute`: p values and Holm's correction by hand, and the committed page from the committed runs."""

from __future__ import annotations

import pytest

from benchmarks.recompute import RESULTS, holm, p_value, page


def test_a_p_value_by_hand() -> None:
    # Two differences: one degree of freedom, t = 2 / (sqrt(2) / sqrt(2)) = 2, and P(|T| > t) = 1 - 2 atan(t) / pi.
    assert p_value([1.0, 3.0]) == pytest.approx(0.295167, abs=1e-6)
    # The 95 % quantile of four degrees of freedom is 2.776445. Deviations c (-1, 0, 0, 0, 1) have a variance of c^2 / 2
    # and so a standard error of c / sqrt(10).
    assert p_value([2.776445 + 10**0.5 * d for d in (-1, 0, 0, 0, 1)]) == pytest.approx(0.05, abs=1e-6)
    assert p_value([0.5, 0.5, 0.5]) == 1.0


def test_holm_by_hand() -> None:
    # Ranked 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1 are 0.04, 0.06, 0.06, 0.5, and a running maximum.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_committed_page_is_what_the_committed_runs_give() -> None:
    assert (RESULTS / "recompute.md").read_text("utf-8") == page()
