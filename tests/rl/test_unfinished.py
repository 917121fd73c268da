"""Responses that were cut at the length limit: graded, worth nothing, or out of the gradient."""

from __future__ import annotations

import math

import pytest

from fedrlvr.policy.batches import packs_of
from fedrlvr.rl import Group, Response, assign_advantages, withhold_unfinished
from fedrlvr.tasks import Problem


def group(treatment: str) -> Group:
    """Two finished responses, one right, and two cut ones, whose text would be right if it were graded."""
    responses = [
        Response([5, 1], [-1.0, -1.0], r"\boxed{4}", finished=True),
        Response([6, 1], [-1.0, -1.0], r"\boxed{5}", finished=True),
        Response([7, 7], [-1.0, -1.0], r"\boxed{4}", finished=False),
        Response([8, 8], [-1.0, -1.0], r"\boxed{4}", finished=False),
    ]
    withhold_unfinished(responses, treatment)
    for response in responses:
        response.reward = float(response.text == r"\boxed{4}")
    graded = Group(Problem("2 + 2", "4", "id", "s", "math"), [3], responses)
    assign_advantages([graded])
    return graded


def test_graded_like_any_other() -> None:
    graded = group("grade")
    assert graded.rewards == [1.0, 0.0, 1.0, 1.0]
    # mean 3/4, population std sqrt(3)/4: 1/4 over it is 1/sqrt(3)
    assert graded.advantages == pytest.approx(
        [1 / math.sqrt(3), -math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)], rel=1e-5
    )


def test_zero_is_reward_0_with_its_gradient() -> None:
    graded = group("zero")
    assert graded.rewards == [1.0, 0.0, 0.0, 0.0]
    assert [response.text for response in graded.responses[2:]] == ["", ""], "no answer: no vote, no place in a pool"
    # mean 1/4, population std sqrt(3)/4
    assert graded.advantages == pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3], rel=1e-5)
    (pack,) = packs_of(0, [graded], keep_zero=False)
    assert len(pack.rows) == 4


@pytest.mark.parametrize("keep_zero", [False, True])
def test_masked_counts_in_the_mean_and_has_no_gradient(keep_zero: bool) -> None:
    """keep_zero: also not that of the KL term, which responses without an advantage have."""
    graded = group("mask")
    assert graded.rewards == [1.0, 0.0, 0.0, 0.0]
    assert graded.advantages == pytest.approx([math.sqrt(3), -1 / math.sqrt(3), 0.0, 0.0], rel=1e-5)
    (pack,) = packs_of(0, [graded], keep_zero=keep_zero)
    assert [list(row.token_ids) for row in pack.rows] == [[5, 1], [6, 1]]


@pytest.mark.parametrize("treatment", ["zero", "mask"])
def test_whatever_a_reward_gives_for_a_withheld_response_it_counts_as_0(treatment: str) -> None:
    graded = group(treatment)
    for response in graded.responses:
        response.reward = 0.5
    assert graded.rewards == [0.5, 0.5, 0.0, 0.0]
