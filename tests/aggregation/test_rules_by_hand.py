"""Every rule on two clients with factors of 2 x 2 or less, worked out by hand."""

from __future__ import annotations

import torch
from loras import adapter

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import aggregate
from fedrlvr.aggregation.hetlora import norm
from fedrlvr.aggregation.stacking import update

ONE = adapter([[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]])
TWO = adapter([[5.0, 6.0], [7.0, 8.0]], [[0.0, 2.0], [2.0, 0.0]])
SWAPPED = [[0.0, 2.0], [2.0, 0.0]]


def factors(result: Adapter | None) -> tuple[list[list[float]], list[list[float]]]:
    assert result is not None
    a, b = result.layers["q"]
    return a.tolist(), b.tolist()


def test_fedit() -> None:
    result = aggregate({"a": ONE, "b": TWO}, {"a": 1.0, "b": 3.0})
    assert factors(result.adapter) == ([[4.0, 5.0], [6.0, 7.0]], [[0.25, 1.5], [1.5, 0.25]])
    assert result.adapter is not None
    assert result.adapter.alpha == 4.0
    assert result.change is None


def test_ffa_averages_b() -> None:
    other = adapter([[1.0, 2.0], [3.0, 4.0]], SWAPPED)
    result = aggregate({"a": ONE, "b": other}, {"a": 1.0, "b": 3.0}, rule="ffa")
    assert factors(result.adapter) == ([[1.0, 2.0], [3.0, 4.0]], [[0.25, 1.5], [1.5, 0.25]])
    assert result.change is None


def test_rolora_averages_whichever_is_not_shared() -> None:
    same_a = adapter([[1.0, 2.0], [3.0, 4.0]], SWAPPED)
    result = aggregate({"a": ONE, "b": same_a}, {"a": 1.0, "b": 3.0}, rule="rolora")
    assert factors(result.adapter) == ([[1.0, 2.0], [3.0, 4.0]], [[0.25, 1.5], [1.5, 0.25]])
    same_b = adapter([[5.0, 6.0], [7.0, 8.0]], [[1.0, 0.0], [0.0, 1.0]])
    result = aggregate({"a": ONE, "b": same_b}, {"a": 1.0, "b": 3.0}, rule="rolora")
    assert factors(result.adapter) == ([[4.0, 5.0], [6.0, 7.0]], [[1.0, 0.0], [0.0, 1.0]])
    assert result.change is None


def test_flora_adds_the_mean_update_to_the_base() -> None:
    # Both have scale 4 / 2. Row 1: 0.25 x 2 x (1, 2) + 0.75 x 2 x 2 x (7, 8). Row 2 alike with (3, 4) and (5, 6).
    result = aggregate({"a": ONE, "b": TWO}, {"a": 1.0, "b": 3.0}, rule="flora")
    assert result.adapter is None
    assert result.change is not None
    assert update(result.change)["q"].tolist() == [[21.5, 25.0], [16.5, 20.0]]
    assert result.change.alpha == result.change.rank == 2


def test_flora_stacks_where_there_is_room() -> None:
    # 3 x 3 layers hold rank 2 = 1 + 1. Scales 3 and 6, weights a third and two thirds: 1 and 4 in front of B.
    narrow = adapter([[1.0, 2.0, 3.0]], [[1.0], [0.0], [2.0]], alpha=3.0)
    wide = adapter([[4.0, 5.0, 6.0]], [[0.0], [1.0], [1.0]], alpha=6.0)
    result = aggregate({"a": narrow, "b": wide}, {"a": 1.0, "b": 2.0}, rule="flora")
    assert factors(result.change) == ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[1.0, 0.0], [0.0, 4.0], [2.0, 4.0]])


def test_fedex_averages_and_adds_the_rest_to_the_base() -> None:
    # Means of A: (3, 4), (5, 6); of B: (0.5, 1), (1, 0.5). Their product is (6.5, 8), (5.5, 7), the mean of the
    # products (7.5, 9), (6.5, 8): one less everywhere, and the scale is 2.
    result = aggregate({"a": ONE, "b": TWO}, {"a": 1.0, "b": 1.0}, rule="fedex")
    assert factors(result.adapter) == ([[3.0, 4.0], [5.0, 6.0]], [[0.5, 1.0], [1.0, 0.5]])
    assert result.change is not None
    assert update(result.change)["q"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    # p_1 s (B_1 - Bbar) with p_1 s = 1, and A_1 - A_2.
    assert factors(result.change) == ([[-4.0, -4.0], [-4.0, -4.0]], [[0.5, -1.0], [-1.0, 0.5]])


def test_hetlora_pads_and_weighs_by_norm() -> None:
    # 2 (3, 4) has norm 10; diag(3, 4) with scale 1 has norm 5 and twice the weight: half and half.
    small = adapter([[3.0, 4.0]], [[1.0], [0.0]], alpha=2.0)
    large = adapter([[1.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 4.0]], alpha=2.0)
    assert (norm(small), norm(large)) == (10.0, 5.0)
    result = aggregate({"a": small, "b": large}, {"a": 1.0, "b": 2.0}, rule="hetlora")
    # The small one at rank 2: A (3, 4), (0, 0); B doubled, since the scale is halved: (2, 0), (0, 0).
    assert factors(result.adapter) == ([[2.0, 2.0], [0.0, 0.5]], [[2.5, 0.0], [0.0, 2.0]])
    assert result.change is None


def test_flexlora_sorts_the_mean_update_by_singular_values() -> None:
    # 1/4 of (4, 0), (0, 0) and 3/4 of (0, 0), (0, 2): diag(1, 1.5), whose larger value is the second.
    small = adapter([[1.0, 0.0]], [[2.0], [0.0]], alpha=2.0)
    large = adapter([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 2.0]], alpha=2.0)
    result = aggregate({"a": small, "b": large}, {"a": 1.0, "b": 3.0}, rule="flexlora").adapter
    assert result is not None
    a, b = result.layers["q"]
    torch.testing.assert_close(a.abs(), torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=a.abs().dtype), rtol=0, atol=1e-7)
    torch.testing.assert_close(b.abs(), torch.tensor([[0.0, 1.0], [1.5, 0.0]], dtype=b.abs().dtype), rtol=0, atol=1e-7)
    torch.testing.assert_close(
        update(result)["q"], torch.tensor([[1.0, 0.0], [0.0, 1.5]], dtype=update(result)["q"].dtype), rtol=0, atol=1e-7
    )
    torch.testing.assert_close(
        update(result.at_rank(1))["q"],
        torch.tensor([[0.0, 0.0], [0.0, 1.5]], dtype=update(result.at_rank(1))["q"].dtype),
        rtol=0,
        atol=1e-7,
    )
