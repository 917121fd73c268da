"""Intervals and sums, by numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_samples import numbers, run_records, score

from fedrlvr.reporting.scores import (
    Estimate,
    Z,
    difference,
    estimate,
    evaluations,
    macro_mean,
    mean_reward,
    natural,
    personal_scores,
    series,
    summarise,
    totals,
)


def test_one_sample_per_problem_gives_wilsons_interval():
    # Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662, 15 of 148 is 0.0624 to 0.1605, 0 of 20 is 0 to 0.1611.
    for n, right, low, high in ((263, 81, 0.2553, 0.3662), (148, 15, 0.0624, 0.1605), (20, 0, 0.0, 0.1611)):
        result = estimate(n, right, right)
        assert result.mean == pytest.approx(right / n)
        assert (result.low, result.high) == pytest.approx((low, high), abs=5e-5)


def test_an_all_right_source_still_has_room_below():
    result = estimate(29, 29, 29)  # Newcombe 1998: 29 of 29 is 0.8830 to 1
    assert (result.mean, result.high) == (1.0, 1.0)
    assert result.low == pytest.approx(0.8830, abs=5e-5)


def test_several_samples_narrow_the_interval():
    # Rates 1/2, 1/2, 1, 0: m = 1/2, S = 1/2, v = (1/2 + 1/4) / 5 = 0.15, effective n = 4 (1/4) / 0.15 = 20/3.
    result = estimate(4, 2.0, 1.5)
    effective = 20 / 3
    half = Z / (1 + Z**2 / effective) * math.sqrt(0.25 / effective + Z**2 / (4 * effective**2))
    assert (result.mean, result.low, result.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    binary = estimate(4, 2.0, 2.0)
    assert binary.low < result.low
    assert result.high < binary.high


def test_many_problems_approach_the_normal_interval():
    n = 10_000  # half the problems at 1/4, half at 3/4: standard deviation 1/4
    result = estimate(n, n / 2, n / 2 * (1 / 16 + 9 / 16))
    assert result.high - result.low == pytest.approx(2 * Z * 0.25 / math.sqrt(n), rel=1e-3)


def test_equal_rates_of_few_problems_are_not_certainty():
    result = estimate(2, 1.0, 0.5)  # two problems, both right half the time
    assert result.low < 0.25
    assert result.high > 0.75


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_an_interval_holds_its_mean_and_stays_within_0_and_1(rights):
    rates = [right / 4 for right in rights]
    result = estimate(len(rates), sum(rates), sum(r * r for r in rates))
    assert 0 <= result.low <= result.mean <= result.high <= 1
    assert result.high > result.low


def test_an_estimate_needs_problems():
    with pytest.raises(ValueError, match="at least one"):
        estimate(0, 0.0, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        macro_mean([])


def test_difference_by_newcombes_method_10():
    # Newcombe 1998 (differences), table II: 56/70 - 48/80 is 0.2000 with 0.0524 to 0.3339; 10/10 - 0/10 is 1 with
    # 0.6075 to 1.
    result = difference(estimate(70, 56, 56), estimate(80, 48, 48))
    assert (result.mean, result.low, result.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert result.n == 70
    extreme = difference(estimate(10, 10, 10), estimate(10, 0, 0))
    assert (extreme.mean, extreme.low, extreme.high) == pytest.approx((1.0, 0.6075, 1.0), abs=5e-5)


def test_macro_mean_counts_each_source_the_same_and_adds_squares():
    result = macro_mean([Estimate(0.2, 0.1, 0.4, 10), Estimate(0.6, 0.4, 0.7, 1000)])
    # Down: sqrt(0.1^2 + 0.2^2) / 2; up: sqrt(0.2^2 + 0.1^2) / 2.
    assert result.mean == pytest.approx(0.4)
    assert result.low == pytest.approx(0.4 - math.sqrt(0.05) / 2)
    assert result.high == pytest.approx(0.4 + math.sqrt(0.05) / 2)
    assert result.n == 1010


def test_macro_mean_of_one_is_itself():
    score = estimate(20, 7, 7)
    again = macro_mean([score])
    assert (again.mean, again.low, again.high) == pytest.approx((score.mean, score.low, score.high))


def test_summarise_before_and_after_by_client_source_and_overall():
    scores = summarise(run_records())
    assert scores is not None
    assert scores.after_round == 2
    rates = {(line.client, line.source): (line.before.mean, line.after.mean) for line in scores.lines}
    assert rates == {("alpha", "sum"): (0.2, 0.4), ("beta", "dose"): (0.5, 0.6), ("beta", "sum"): (0.4, 0.6)}
    pooled = {line.source: (line.before.mean, line.before.n) for line in scores.sources}
    assert pooled == {"dose": (0.5, 20), "sum": (0.3, 20)}  # sum: (2 + 4) of 20
    assert [line.before.mean for line in scores.clients] == pytest.approx([0.2, 0.45])
    assert scores.overall.before.mean == pytest.approx(0.4)
    assert scores.overall.after.mean == pytest.approx(0.55)
    assert scores.overall.change.mean == pytest.approx(0.15)


def test_summarise_without_evaluation_or_with_one():
    assert summarise(run_records(evaluated=())) is None
    assert summarise([]) is None
    before_only = summarise(run_records(evaluated=(0,)))
    assert before_only.after_round is None
    assert before_only.overall.after is None
    assert before_only.overall.change is None
    after_only = summarise(run_records(evaluated=(2,)))
    assert after_only.overall.before is None
    assert after_only.overall.after.mean == pytest.approx(0.55)


def test_a_source_without_problems_is_left_out():
    records = [{"round": 0, "clients": {}, "seconds": {}, "evaluate": {"a": {"x": score(0, 0), "y": score(4, 1)}}}]
    assert [line.source for line in summarise(records).lines] == ["y"]


def test_evaluations_by_round():
    result = evaluations(run_records(rounds=3, evaluated=(0, 1, 3)))
    assert list(result) == [0, 1, 3]
    overall, sources = result[1]
    assert overall.mean == pytest.approx((0.4 + 0.55) / 2)  # sum: 8 of 20; dose: 11 of 20
    assert sources["sum"].mean == pytest.approx(0.4)


def test_totals_add_rounds_and_forgive_nulls():
    records = run_records()
    records[1]["clients"]["alpha"]["tokens_trained"] = None
    sums = totals(records)
    assert sums.rounds == 2
    assert sums.bytes_up == {"alpha": 2010, "beta": 2010}
    assert sums.bytes_down == {"alpha": 4500, "beta": 4500}
    assert (sums.tokens_sampled, sums.tokens_trained) == (400, 180)
    assert sums.wall == {"train": 8.0, "evaluate": 3.0}
    assert sums.client_seconds == {"sample": 4.0, "train": 8.0}


def test_series_leaves_nulls_and_absences_out():
    records = run_records(rounds=3)
    records[2]["clients"]["alpha"]["reward"] = None
    del records[3]["clients"]["beta"]
    assert series(records, "reward") == {"alpha": [(1, 0.1), (3, 0.1 * 3)], "beta": [(1, 0.2), (2, 0.4)]}


def test_mean_reward_is_over_those_who_trained():
    assert mean_reward({"clients": {"a": numbers(0.2), "b": numbers(0.6), "c": {"bytes_up": 1}}}) == pytest.approx(0.4)
    assert mean_reward({"clients": {"a": numbers(None)}}) is None


def test_natural_order():
    assert sorted(["client-10", "client-2", "b", "client-1"], key=natural) == ["b", "client-1", "client-2", "client-10"]


def test_personal_scores_compare_with_the_last_global_adapter_and_count_in_the_totals() -> None:
    def scores(total: float) -> dict[str, Any]:
        return {"ann": {"sums": {"n": 10, "total": total, "squares": total}}}

    numbers = {"bytes_up": 1, "bytes_down": 2, "tokens_sampled": 30}
    last = {"round": 2, "clients": {"ann": numbers}, "seconds": {"train": 1.0}, "evaluate": scores(4.0)}
    assert personal_scores([last]) is None
    personal = {"clients": {"ann": numbers}, "seconds": {"train": 2.0}, "evaluate": scores(7.0)}
    compared = personal_scores([{**last, "evaluate": scores(1.0), "round": 1}, {**last, "personal": personal}])
    assert compared is not None
    (line,) = compared.clients
    assert line.before is not None
    assert line.after is not None
    assert (line.before.mean, line.after.mean) == (0.4, 0.7)
    sums = totals([{**last, "personal": personal}])
    assert (sums.bytes_up, sums.bytes_down, sums.tokens_sampled, sums.rounds) == ({"ann": 2}, {"ann": 4}, 60, 2)
    assert sums.wall == {"train": 3.0}
    overall = summarise([{**last, "personal": personal}])
    assert overall is not None
    assert overall.overall.after is not None
    assert overall.overall.after.mean == 0.4, "the global adapter's scores are not mixed with personal ones"
