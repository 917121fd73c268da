"""Group advantages, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrlvr.rl import Group, Response, assign_advantages, group_advantages
from fedrlvr.tasks import Problem


def graded_group(rewards: list[float | None], multiplier: float = 1.0) -> Group:
    responses = [Response([5], [-1.0], "x", True, reward=reward) for reward in rewards]
    return Group(Problem("p", "a", "id", "s", "exact"), [1], responses, multiplier=multiplier)


def test_with_std_by_hand() -> None:
    # mean 0.25, population variance (0.75^2 + 3 x 0.25^2) / 4 = 0.1875, std 0.4330127
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64))
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25]], dtype=torch.float64) / 0.4330127018922193
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=0)


def test_without_std_is_the_distance_from_the_mean() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 1.0, 0.0, 0.5]])
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0, 0.5, -0.5, 0.0]])
    assert torch.equal(group_advantages(rewards, scale_by_std=False), expected)


def test_eps_is_added_to_the_std() -> None:
    # mean 0.5, population std 0.5: +-0.5 / (0.5 + 0.5)
    assert group_advantages(torch.tensor([[1.0, 0.0]]), eps=0.5).tolist() == [[0.5, -0.5]]


def test_half_correct_is_plus_and_minus_one() -> None:
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]]))
    expected = torch.tensor([[1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0]])
    torch.testing.assert_close(advantages, expected, rtol=3e-6, atol=0)  # eps / std = 2e-6


@pytest.mark.parametrize("scale_by_std", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -0.3, 1e-7, 1e9])
def test_equal_rewards_give_exactly_zero(value: float, scale_by_std: bool) -> None:
    # 0.1 has no exact binary form, and the mean of eight of them is not 0.1: the difference must not be divided by eps.
    for dtype in (torch.float32, torch.float64):
        advantages = group_advantages(torch.full((1, 8), value, dtype=dtype), scale_by_std)
        assert advantages.tolist() == [[0.0] * 8]


def test_groups_do_not_see_each_other() -> None:
    both = group_advantages(torch.tensor([[1.0, 0.0, 0.0], [3.0, 3.0, 3.0]]))
    assert torch.equal(both[0], group_advantages(torch.tensor([[1.0, 0.0, 0.0]]))[0])
    assert both[1].tolist() == [0.0, 0.0, 0.0]


def test_integer_rewards_are_taken_as_float32() -> None:
    advantages = group_advantages(torch.tensor([[1, 0]]), scale_by_std=False)
    assert advantages.dtype == torch.float32
    assert advantages.tolist() == [[0.5, -0.5]]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9), st.booleans())
def test_advantages_sum_to_zero_and_keep_the_order_of_rewards(rewards: list[float], scale_by_std: bool) -> None:
    row = group_advantages(torch.tensor([rewards], dtype=torch.float64), scale_by_std)[0]
    assert abs(float(row.sum())) < 1e-6
    for i, higher in enumerate(rewards):
        for j, lower in enumerate(rewards):
            if higher > lower:
                assert row[i] >= row[j]


@pytest.mark.parametrize(
    ("rewards", "text"),
    [
        (torch.tensor([[1.0]]), "responses >= 2"),
        (torch.tensor([1.0, 0.0]), "responses >= 2"),
        (torch.tensor([[1.0, float("nan")]]), "finite"),
        (torch.tensor([[1.0, float("inf")]]), "finite"),
    ],
)
def test_bad_rewards_are_refused(rewards: torch.Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        group_advantages(rewards)


def test_assign_advantages_multiplies_each_group_by_its_own_multiplier() -> None:
    groups = [graded_group([1.0, 0.0], 0.5), graded_group([1.0, 0.0], 0.0), graded_group([1.0, 1.0], 3.0)]
    assign_advantages(groups, scale_by_std=False)
    assert [group.advantages for group in groups] == [[0.25, -0.25], [0.0, -0.0], [0.0, 0.0]]


def test_assign_advantages_of_no_groups_does_nothing() -> None:
    groups: list[Group] = []
    assign_advantages(groups)
    assert groups == []


def test_an_ungraded_response_is_an_error() -> None:
    group = graded_group([1.0, None])
    with pytest.raises(ValueError, match="not been graded"):
        assign_advantages([group])
    assert group.advantages == []


def test_same_rewards() -> None:
    assert graded_group([0.5, 0.5]).same_rewards
    assert not graded_group([0.5, 0.25]).same_rewards
