"""What a foreign response's ratio is taken against: each rule by hand, with probabilities rather than their logs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedrlvr.coordination import RATIO_RULES, reference
from fedrlvr.rl import ratio_sums

LOCAL = [math.log(0.5), math.log(0.2), math.log(0.6)]  # p_old
SENDER = [math.log(0.4), math.log(0.8), math.log(0.2)]  # q
# p_old / q = 1.25, 0.25, 3
BOTH: dict[str, Any] = {"tokens": 3, "local_logps": LOCAL, "sender_logps": SENDER}


def test_local_old_is_the_receivers_own_policy_and_corrects_for_nothing() -> None:
    result = reference("local_old", **BOTH)
    assert (result.behaviour_logps, result.weights, result.shaping) == (LOCAL, None, 0.0)


def test_behaviour_is_the_senders_policy() -> None:
    result = reference("behaviour", **BOTH)
    assert (result.behaviour_logps, result.weights, result.shaping) == (SENDER, None, 0.0)


def test_truncated_is_the_receivers_policy_with_weights_up_to_the_cap() -> None:
    result = reference("truncated", **BOTH)
    assert (result.behaviour_logps, result.shaping) == (LOCAL, 0.0)
    assert result.weights == pytest.approx([1.25, 0.25, 2.0], rel=1e-12)


@pytest.mark.parametrize(
    ("cap", "weights"),
    [(0.1, [0.1, 0.1, 0.1]), (1.0, [1.0, 0.25, 1.0]), (1.5, [1.25, 0.25, 1.5]), (5.0, [1.25, 0.25, 3.0])],
)
def test_the_cap_by_hand(cap: float, weights: list[float]) -> None:
    assert reference("truncated", **BOTH, cap=cap).weights == pytest.approx(weights, rel=1e-12)


def test_shaped_asks_for_no_log_probs() -> None:
    result = reference("shaped", tokens=3)
    assert (result.behaviour_logps, result.weights, result.shaping) == ([0.0, 0.0, 0.0], None, 0.1)
    assert reference("shaped", **BOTH, gamma=0.4).shaping == 0.4


def test_cap_and_gamma_touch_no_other_rule() -> None:
    for rule in ("local_old", "behaviour"):
        assert reference(rule, **BOTH, cap=0.1, gamma=3.0) == reference(rule, **BOTH)
    assert reference("truncated", **BOTH, gamma=3.0) == reference("truncated", **BOTH)
    assert reference("shaped", **BOTH, cap=0.1) == reference("shaped", **BOTH)


@pytest.mark.parametrize("rule", RATIO_RULES)
@pytest.mark.parametrize("given", [0, 2, 4])
def test_missing_log_probs_are_refused_by_the_rules_that_need_them(rule: str, given: int) -> None:
    others = [-1.0] * given
    cases: list[tuple[str, bool, dict[str, Any]]] = [
        ("receiver", RATIO_RULES[rule].needs_local, {"local_logps": others, "sender_logps": SENDER}),
        ("sender", RATIO_RULES[rule].needs_sender, {"local_logps": LOCAL, "sender_logps": others}),
    ]
    for party, needs, given_logps in cases:
        if needs:
            with pytest.raises(ValueError, match=f"'{rule}' .*{party}'s log-probs of 3 tokens.* {given}"):
                reference(rule, tokens=3, **given_logps)
        else:
            assert reference(rule, tokens=3, **given_logps) == reference(rule, **BOTH)


def test_which_rules_need_whose_log_probs() -> None:
    """What travels and what is computed is decided by these; `shaped` needs neither."""
    assert {name: (rule.needs_local, rule.needs_sender) for name, rule in RATIO_RULES.items()} == {
        "local_old": (True, False),
        "behaviour": (False, True),
        "truncated": (True, True),
        "shaped": (False, False),
    }


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="local_old, behaviour, truncated, shaped, got 'exact'"):
        reference("exact", **BOTH)


def test_huge_differences_do_not_overflow() -> None:
    # exp(1e6) has no float; e^-1e6 is zero.
    result = reference("truncated", tokens=2, local_logps=[0.0, -1e6], sender_logps=[-1e6, 0.0], cap=3.0)
    assert result.weights == [pytest.approx(3.0), 0.0]


def test_between_equal_policies_the_behaviour_ratio_is_one() -> None:
    result = reference("behaviour", tokens=3, sender_logps=SENDER)
    policy = torch.tensor([SENDER], dtype=torch.float64)
    behaviour = torch.tensor([result.behaviour_logps], dtype=torch.float64)
    assert torch.exp(policy - behaviour).tolist() == [[1.0, 1.0, 1.0]]
    mask = torch.ones(1, 3)
    sums = ratio_sums(policy, behaviour, torch.ones(1), mask, loss="dapo", clip_low=0.2, clip_high=0.2)
    assert sums.tolist() == [[3.0, 1.0, 0.0]]
    assert reference("truncated", tokens=3, local_logps=SENDER, sender_logps=SENDER).weights == [1.0, 1.0, 1.0]


def test_what_comes_back_is_a_copy() -> None:
    for rule in ("local_old", "behaviour", "truncated"):
        result = reference(rule, **BOTH)
        result.behaviour_logps[0] = 7.0
    assert 7.0 not in LOCAL + SENDER
