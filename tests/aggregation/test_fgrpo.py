"""FGRPO's client weights, worked out by hand, and what must hold whatever the rewards are."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrlvr.aggregation import FGRPOWeights, client_weights

OPTIONS = [
    {"gain": gain, "baseline": baseline, "shape": shape}
    for gain, baseline, shape in itertools.product(("relative", "zscore"), ("ema", "window"), ("softmax", "positive"))
]
EXAMPLES = {"a": 30, "b": 10, "c": 20}
ROUNDS = [{"a": 0.2, "b": 0.5, "c": 0.1}, {"a": 0.3, "b": 0.5, "c": 0.2}, {"a": 0.25, "b": 0.6, "c": 0.4}]


def after(options: dict[str, Any], rounds: list[dict[str, float]]) -> tuple[FGRPOWeights, dict[str, float]]:
    """Weights of the last of these rounds."""
    weights = FGRPOWeights(**options)
    for rewards in rounds[:-1]:
        weights.weights(rewards, {client: EXAMPLES[client] for client in rewards})
    return weights, weights.weights(rounds[-1], {client: EXAMPLES[client] for client in rounds[-1]})


def test_two_rounds_by_hand() -> None:
    # Baselines 0.4 and 0.5; gains (0.5 - 0.4) / 0.4 = 1/4 and (0.4 - 0.5) / 0.5 = -1/5; equal examples, T = 1.
    weights = FGRPOWeights()
    weights.weights({"a": 0.4, "b": 0.5}, {"a": 7, "b": 7})
    assert weights.gains({"a": 0.5, "b": 0.4}) == pytest.approx({"a": 0.25, "b": -0.2})
    share = 1 / (1 + math.exp(-0.45))
    assert weights.weights({"a": 0.5, "b": 0.4}, {"a": 7, "b": 7}) == pytest.approx({"a": share, "b": 1 - share})
    # beta = 1/2: baselines (0.4 + 0.5) / 2 = 0.45 for both, so the next gains are 0.55 / 0.45 - 1 = 2/9 and 0.
    assert weights.gains({"a": 0.55, "b": 0.45}) == pytest.approx({"a": 2 / 9, "b": 0.0})


def test_a_client_without_a_reward_by_hand() -> None:
    # Baselines 0.4 and 0.5. Then a gains 1/4 and b, which has no reward, nothing: with 7 and 14 examples and T = 1 that
    # is 7 exp(1/4) to 14. After it b's baseline is still 0.5, so 0.6 is a gain of 1/5.
    weights = FGRPOWeights()
    weights.weights({"a": 0.4, "b": 0.5}, {"a": 7, "b": 14})
    assert weights.raw("b", None, 14) / weights.raw("a", 0.5, 7) == pytest.approx(2 / math.exp(0.25))
    shares = weights.weights({"a": 0.5, "b": None}, {"a": 7, "b": 14})
    assert shares == pytest.approx({"a": math.exp(0.25) / (math.exp(0.25) + 2), "b": 2 / (math.exp(0.25) + 2)})
    assert weights.gains({"a": None, "b": 0.6}) == pytest.approx({"a": 0.0, "b": 0.2})


@pytest.mark.parametrize("options", OPTIONS)
def test_a_client_without_a_reward_remembers_what_it_did_and_weighs_as_a_new_one(options: dict[str, Any]) -> None:
    weights, _ = after(options, ROUNDS)
    before = weights.state()
    result = weights.weights(dict.fromkeys(EXAMPLES), EXAMPLES)
    assert weights.state() == before
    assert result == pytest.approx(client_weights(EXAMPLES))
    new = FGRPOWeights(**options)
    new.weights(dict.fromkeys(EXAMPLES), EXAMPLES)
    assert new.state() == {}
    assert new.gains(ROUNDS[0]) == dict.fromkeys(EXAMPLES, 0.0)


def test_a_window_by_hand() -> None:
    # Rewards 1, 2, 3, 6 with a window of 2: the baseline of the fourth is (2 + 3) / 2, its spread 1/2.
    for gain, expected in (("relative", 1.0), ("zscore", 3.0)):
        weights = FGRPOWeights(gain=gain, baseline="window", window=2)
        for reward in (1.0, 2.0, 3.0):
            weights.weights({"a": reward}, {"a": 1})
        assert weights.gains({"a": 6.0})["a"] == expected, "clipped"
        small = {"relative": 0.25 / 2.5, "zscore": 0.25 / 0.5}[gain]
        assert weights.gains({"a": 2.75})["a"] == pytest.approx(small)


def test_a_moving_spread_by_hand() -> None:
    # beta = 1/2, rewards 1, 2: mean 1.5, mean square (1/2)(0 + 1/2 x 1) = 1/4. A reward of 2 is 0.5 / 0.5 = 1 ahead.
    weights = FGRPOWeights(gain="zscore")
    weights.weights({"a": 1.0}, {"a": 1})
    assert weights.gains({"a": 5.0}) == {"a": 0.0}, "one reward has no spread"
    weights.weights({"a": 2.0}, {"a": 1})
    assert weights.gains({"a": 2.0})["a"] == pytest.approx(1.0)


def test_positive_by_hand() -> None:
    # Gains 1/2 and -1/2, floor 0.1: 30 x 0.6 = 18 against 10 x 0.1 = 1.
    weights = FGRPOWeights(shape="positive")
    weights.weights({"a": 0.4, "b": 0.4}, {"a": 30, "b": 10})
    assert weights.weights({"a": 0.6, "b": 0.2}, {"a": 30, "b": 10}) == pytest.approx({"a": 18 / 19, "b": 1 / 19})


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_the_first_round_is_fedavg(options: dict[str, Any]) -> None:
    assert after(options, ROUNDS[:1])[1] == pytest.approx(client_weights(EXAMPLES))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("factor", [1000.0, 1e-6])
def test_one_clients_scale_changes_nothing(options: dict[str, Any], factor: float) -> None:
    scaled = [{**rewards, "b": rewards["b"] * factor} for rewards in ROUNDS]
    for count in (1, 2, 3):
        assert after(options, scaled[:count])[1] == pytest.approx(after(options, ROUNDS[:count])[1], rel=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_equal_gains_are_fedavg(options: dict[str, Any]) -> None:
    rounds = [dict.fromkeys("abc", reward) for reward in (0.2, 0.3, 0.6)]
    assert after(options, rounds)[1] == pytest.approx(client_weights(EXAMPLES))


def test_a_high_temperature_is_fedavg_and_a_low_one_takes_the_best() -> None:
    assert after({"temperature": 1e9}, ROUNDS)[1] == pytest.approx(client_weights(EXAMPLES), rel=1e-6)
    assert after({"temperature": 1e-3}, ROUNDS)[1]["c"] == pytest.approx(1.0)


@pytest.mark.parametrize("options", [o for o in OPTIONS if o["gain"] == "relative"], ids=lambda o: "-".join(o.values()))
def test_who_gains_more_counts_more(options: dict[str, Any]) -> None:
    # In the third round c gains most of all, by its own measure.
    weights = after(options, ROUNDS)[1]
    fedavg = client_weights(EXAMPLES)
    assert weights["c"] / fedavg["c"] > max(weights["a"] / fedavg["a"], weights["b"] / fedavg["b"])


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_absence_keeps_the_baseline(options: dict[str, Any]) -> None:
    weights = FGRPOWeights(**options)
    for rewards in ROUNDS[:2]:
        weights.weights(rewards, EXAMPLES)
    before = weights.gains({"a": 0.9})
    weights.weights({"b": 0.1, "c": 0.7}, {"b": 10, "c": 20})
    assert weights.gains({"a": 0.9}) == before
    assert weights.gains({"d": 0.9}) == {"d": 0.0}, "a newcomer has no history"


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_the_state_goes_through_json_and_goes_on_exactly(options: dict[str, Any]) -> None:
    whole, _ = after(options, ROUNDS[:2])
    again = FGRPOWeights(**options)
    again.load(json.loads(json.dumps(whole.state())))
    assert again.weights(ROUNDS[2], EXAMPLES) == whole.weights(ROUNDS[2], EXAMPLES)


@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), st.floats(-1e3, 1e3), min_size=1), min_size=1, max_size=6),
    st.sampled_from(OPTIONS),
    st.floats(1e-3, 1e3),
)
def test_weights_are_shares_whatever_comes(
    rounds: list[dict[str, float]], options: dict[str, Any], temperature: float
) -> None:
    weights = FGRPOWeights(**options, temperature=temperature)
    for rewards in rounds:
        shares = weights.weights(rewards, {client: 1 + ord(client) % 3 for client in rewards})
        assert sum(shares.values()) == pytest.approx(1.0)
        assert all(0 <= share <= 1 for share in shares.values())
        assert set(shares) == set(rewards)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_by_name_and_not_remembered(reward: float) -> None:
    weights = FGRPOWeights()
    weights.weights({"a": 0.5, "b": 0.5}, {"a": 1, "b": 1})
    before = weights.state()
    with pytest.raises(ValueError, match="b: its mean reward is"):
        weights.weights({"a": 0.9, "b": reward}, {"a": 1, "b": 1})
    assert weights.state() == before


def test_zero_rewards_divide_by_nothing() -> None:
    weights = FGRPOWeights()
    weights.weights({"a": 0.0, "b": 0.0}, {"a": 1, "b": 1})
    assert weights.gains({"a": 0.0, "b": 0.01}) == {"a": 0.0, "b": 1.0}


def test_all_weight_on_a_client_without_examples_is_fedavg() -> None:
    weights = FGRPOWeights(temperature=1e-4)
    weights.weights({"a": 0.5, "b": 0.5}, {"a": 0, "b": 3})
    assert weights.weights({"a": 1.0, "b": 0.1}, {"a": 0, "b": 3}) == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize(
    "options",
    [
        {"gain": "absolute"},
        {"baseline": "last"},
        {"shape": "max"},
        {"temperature": 0.0},
        {"beta": 0.0},
        {"window": 0},
        {"floor": 0.0},
        {"beta": 1.5},
    ],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        FGRPOWeights(**options)


@pytest.mark.parametrize(
    ("rewards", "examples"),
    [({}, {}), ({"a": 1.0}, {"b": 1}), ({"a": 1.0}, {"a": -1}), ({"a": 1.0}, {"a": 0})],
)
def test_rewards_and_examples_that_cannot_be(rewards: dict[str, float], examples: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"give one reward|give each|not negative|no client has"):
        FGRPOWeights().weights(rewards, examples)


@pytest.mark.parametrize(
    "state", [{"a": 3}, {"a": {"mean": 1.0}}, {"a": {"mean": "x", "square": 0, "rounds": 1, "last": []}}]
)
def test_a_state_that_is_none_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"no state of FGRPO|could not convert"):
        FGRPOWeights().load(state)
