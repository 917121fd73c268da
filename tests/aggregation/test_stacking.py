"""Sums of updates in factored form against dense sums."""

from __future__ import annotations

import math

import pytest
import torch
from loras import adapter, dense, off, random_adapter

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation.stacking import add, compact, stack, update

ONE, TWO = random_adapter(1, rank=3), random_adapter(2, rank=4, alpha=7.0)


def test_an_update_by_hand() -> None:
    # alpha 6 over rank 2 is 3; B A is (1 x 1 + 2 x 3, 1 x 2 + 2 x 4) = (7, 10).
    result = update(adapter([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0]], alpha=6.0))["q"]
    assert result.tolist() == [[21.0, 30.0]]
    assert result.dtype == torch.float64


def test_a_stack_by_hand() -> None:
    first = adapter([[1.0, 2.0]], [[3.0], [4.0]], alpha=2.0)
    second = adapter([[5.0, 6.0], [7.0, 8.0]], [[1.0, 0.0], [0.0, 1.0]], alpha=1.0)
    both = stack([(first, 0.5), (second, -4.0), (first, 0.0)])
    assert both.layers["q"].A.tolist() == [[1.0, 2.0], [5.0, 6.0], [7.0, 8.0]]
    assert both.layers["q"].B.tolist() == [[3.0, -2.0, 0.0], [4.0, 0.0, -2.0]]
    assert both.alpha == both.rank == 3


def test_weights_of_a_stack_are_not_normalised() -> None:
    both = stack((lora, weight) for lora, weight in ((ONE, 2.0), (TWO, 3.0)))
    assert off(dense(both), {n: 2 * dense(ONE)[n] + 3 * dense(TWO)[n] for n in dense(ONE)}) < 1e-6


def test_what_cannot_be_stacked() -> None:
    for pairs in ([], [(ONE, 0.0)], [(ONE, 1.0), (Adapter({"q": TWO.layers["q"]}, 7.0), 1.0)]):
        with pytest.raises(ValueError, match="nothing to stack"):
            stack(pairs)
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match="must be finite"):
            stack([(ONE, weight)])


def test_sums_of_updates() -> None:
    assert add(None, None) is None
    for lora, other in ((ONE, TWO), (ONE, None), (None, TWO)):
        both = add(lora, other)
        assert both is not None
        assert both.alpha == both.rank == sum(part.rank for part in (lora, other) if part)
        wanted = {name: dense(lora)[name] + dense(other)[name] for name in dense(lora)}
        assert off(dense(both), wanted) < 1e-6


def test_a_long_sum_stays_at_the_layers_own_rank() -> None:
    total, wanted = None, dense(None)
    for seed in range(40):
        total = add(total, random_adapter(seed, rank=2))
        wanted = {name: wanted[name] + update for name, update in dense(random_adapter(seed, rank=2)).items()}
    assert total is not None
    assert total.rank == total.alpha == 9
    assert off(dense(total), wanted) < 1e-6


@pytest.mark.parametrize("rank", [10, 13, 40])
def test_a_rank_above_the_layers_own_is_compacted(rank: int) -> None:
    large = random_adapter(3, rank)
    small = compact(large)
    assert small.rank == small.alpha == 9
    assert off(dense(small), dense(large)) < 1e-6
    # v can hold rank 7: the other two components are empty.
    assert not small.layers["v"].A[7:].any()
    assert not small.layers["v"].B[:, 7:].any()
    assert all(f.A.dtype == f.B.dtype == torch.float32 for f in small.layers.values())


@pytest.mark.parametrize("rank", [1, 8, 9])
def test_a_rank_that_is_small_enough_is_left_alone(rank: int) -> None:
    lora = random_adapter(3, rank)
    assert compact(lora) is lora


def test_a_change_is_compacted_once() -> None:
    small = compact(random_adapter(3, 20))
    assert compact(small) is small
