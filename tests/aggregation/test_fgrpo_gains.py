"""FGRPO's gains against the other clients of a round, and gains shrunk by their noise, worked out by hand."""

from __future__ import annotations

import math
from statistics import fmean

import pytest

from fedrlvr.aggregation import FGRPOWeights, client_weights
from fedrlvr.aggregation.client_weights import shrunk

SAME = {"a": 10, "b": 10, "c": 10}


def test_gains_against_the_round_by_hand() -> None:
    # Mean (0.2 + 0.3 + 0.4) / 3 = 0.3, so the gains are -1/3, 0 and 1/3; of deviations, 0.1 / sqrt(2/300).
    rewards = {"a": 0.2, "b": 0.3, "c": 0.4}
    relative, deviations = FGRPOWeights(baseline="peers"), FGRPOWeights(baseline="peers", gain="zscore")
    assert relative.gains(rewards) == pytest.approx({"a": -1 / 3, "b": 0.0, "c": 1 / 3})
    assert deviations.gains(rewards) == pytest.approx({"a": -math.sqrt(1.5), "b": 0.0, "c": math.sqrt(1.5)})
    total = sum(math.exp(gain / 0.5) for gain in (-1 / 3, 0.0, 1 / 3))
    shares = FGRPOWeights(baseline="peers", temperature=0.5).weights(rewards, SAME)
    assert shares == pytest.approx({"a": math.exp(-2 / 3) / total, "b": 1 / total, "c": math.exp(2 / 3) / total})


def test_gains_against_the_round_remember_nothing() -> None:
    weights = FGRPOWeights(baseline="peers")
    first = weights.weights({"a": 0.2, "b": 0.3, "c": 0.4}, SAME)
    weights.weights({"a": 0.9, "b": 0.1, "c": 0.4}, SAME)
    assert weights.state() == {}
    assert weights.weights({"a": 0.2, "b": 0.3, "c": 0.4}, SAME) == first


def test_alone_or_without_a_reward_there_is_no_gain_against_the_round() -> None:
    weights = FGRPOWeights(baseline="peers")
    assert weights.gains({"a": 0.4, "b": None}) == {"a": 0.0, "b": 0.0}
    assert weights.gains({"a": 0.4, "b": 0.4}) == {"a": 0.0, "b": 0.0}


def test_a_baseline_of_earlier_rounds_favours_who_stands_still_and_the_round_does_not() -> None:
    # Public scores after local steps: a learns 0.2 beyond the model that the round began with, b sends that model back.
    # The mean of both takes half of what a learnt: the model goes 0.2, 0.3, 0.4.
    rounds = [{"a": 0.4, "b": 0.2}, {"a": 0.5, "b": 0.3}]
    shares = {}
    for baseline in ("ema", "peers"):
        weights = FGRPOWeights(baseline=baseline)  # type: ignore[arg-type]
        shares[baseline] = [weights.weights(rewards, {"a": 5, "b": 5}) for rewards in rounds][-1]
    assert shares["ema"]["b"] > shares["ema"]["a"], "gains 1/4 and 1/2"
    assert shares["peers"]["a"] > shares["peers"]["b"], "gains 1/4 and -1/4"


def test_shrinkage_by_hand() -> None:
    # Sample variance of 0.5 and 0.1: 0.08. Less the mean noise 0.02 the signal is 0.06; factors 0.06 / (0.06 + noise).
    assert shrunk({"a": 0.5, "b": 0.1}, {"a": 0.02, "b": 0.02}) == pytest.approx({"a": 0.375, "b": 0.075})
    assert shrunk({"a": 0.5, "b": 0.1}, {"a": 0.0, "b": 0.04}) == pytest.approx({"a": 0.5, "b": 0.06})
    assert shrunk({"a": 0.5, "b": 0.1}, {"a": 0.08, "b": 0.08}) == {"a": 0.0, "b": 0.0}
    assert shrunk({"a": 0.5}, {"a": 0.0}) == {"a": 0.0}
    assert shrunk({}, {}) == {}


def test_noise_of_a_gain_over_its_own_history_by_hand() -> None:
    # One earlier round: the baseline 0.5 has the noise of one round. a: (0.6 0.4 + 0.5 0.5) / (25 0.5^2) = 0.0784,
    # b the same over 100 problems and for 0.9: (0.9 0.1 + 0.25) / 25 = 0.0136. Gains 0.2 and 0.8: variance 0.18, signal
    # 0.18 - 0.046 = 0.134.
    weights = FGRPOWeights(shrink=True)
    weights.weights({"a": 0.5, "b": 0.5}, {"a": 1, "b": 1}, {"a": 25, "b": 100})
    gains = weights.gains({"a": 0.6, "b": 0.9}, {"a": 25, "b": 100})
    assert gains == pytest.approx({"a": 0.2 / (1 + 0.0784 / 0.134), "b": 0.8 / (1 + 0.0136 / 0.134)})


def test_noise_of_a_gain_against_the_round_by_hand() -> None:
    # Three clients, 10 problems each: variances 0.016, 0.024 and 0.021, sum 0.061. Mean 0.4. Of a's gain:
    # (0.016 / 3 + 0.061 / 9) / 0.16, and so on; gains -0.5, 0 and 0.75.
    rewards, problems = {"a": 0.2, "b": 0.4, "c": 0.7}, dict.fromkeys("abc", 10)
    mean = 1.3 / 3
    raw = {client: reward / mean - 1 for client, reward in rewards.items()}
    noises = {c: (variance / 3 + 0.061 / 9) / mean**2 for c, variance in zip("abc", (0.016, 0.024, 0.021), strict=True)}
    signal = sum((gain - fmean(raw.values())) ** 2 for gain in raw.values()) / 2 - fmean(noises.values())
    expected = {client: gain / (1 + noises[client] / signal) for client, gain in raw.items()}
    assert FGRPOWeights(baseline="peers", shrink=True).gains(rewards, problems) == pytest.approx(expected)


@pytest.mark.parametrize(("baseline", "left"), [("ema", [1.0, 0.5, 0.375]), ("window", [1.0, 0.5, 1 / 3])])
def test_noise_left_in_a_baseline_by_hand(baseline: str, left: list[float]) -> None:
    # ema with beta 1/2: q <- q / 4 + 1/4.
    weights = FGRPOWeights(baseline=baseline, shrink=True)  # type: ignore[arg-type]
    for expected in left:
        weights.weights({"a": 0.5, "b": 0.5}, {"a": 1, "b": 1}, {"a": 9, "b": 9})
        assert weights._left("a") == pytest.approx(expected)


def test_fewer_problems_make_a_smaller_gain_and_none_beyond_chance_the_weights_of_examples() -> None:
    weights, examples = FGRPOWeights(shrink=True, temperature=0.25), {"a": 5, "b": 5, "c": 20}
    weights.weights(dict.fromkeys("abc", 0.4), examples, dict.fromkeys("abc", 400))
    few = weights.gains({"a": 0.6, "b": 0.6, "c": 0.4}, {"a": 40, "b": 400, "c": 400})
    assert 0 < few["a"] < few["b"] < 0.5
    noise_only = {"a": 0.42, "b": 0.4, "c": 0.38}
    shares = weights.weights(noise_only, examples, dict.fromkeys("abc", 20))
    assert shares == pytest.approx(client_weights(examples))


def test_gains_of_a_baseline_of_zero_are_shrunk_by_the_whole_range() -> None:
    weights = FGRPOWeights(shrink=True)
    weights.weights({"a": 0.0, "b": 0.5, "c": 0.5}, SAME, SAME)
    gains = weights.gains({"a": 0.1, "b": 0.5, "c": 0.5}, {"a": 10, "b": 1000, "c": 1000})
    # Gains 1, 0 and 0: variance 1/3; noises 1 and 2 x 0.002: the bound of the range alone is more than they differ by.
    assert gains == {"a": 0.0, "b": 0.0, "c": 0.0}


@pytest.mark.parametrize(("reward", "problems"), [(1.5, 10), (-0.1, 10), (0.5, 0)])
def test_what_cannot_be_shrunk_names_the_client(reward: float, problems: int) -> None:
    weights = FGRPOWeights(shrink=True)
    weights.weights({"a": 0.5, "b": 0.5}, {"a": 1, "b": 1}, {"a": 9, "b": 9})
    before = weights.state()
    with pytest.raises(ValueError, match=r"^b: shrinking"):
        weights.weights({"a": 0.5, "b": reward}, {"a": 1, "b": 1}, {"a": 9, "b": problems})
    assert weights.state() == before


def test_weights_that_compare_clients_are_not_known_before_the_others() -> None:
    for options in ({"shrink": True}, {"baseline": "peers"}):
        weights = FGRPOWeights(**options)  # type: ignore[arg-type]
        assert weights.compares
        with pytest.raises(ValueError, match="once all clients"):
            weights.raw("a", 0.5, 3)
    assert not FGRPOWeights().compares
