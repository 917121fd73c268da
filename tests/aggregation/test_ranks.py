"""Mixed ranks: hetlora and flexlora against their formulas, and components that nobody gives."""

from __future__ import annotations

import pytest
import torch
from loras import SHAPES, aggregated, dense, ideal, off, random_adapter

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation.hetlora import norm

MIXED = [(random_adapter(1, rank=3), 1.0), (random_adapter(2, rank=1), 2.0), (random_adapter(3, rank=5), 0.5)]
ZERO = [(random_adapter(4, rank=2), 0.0)]


def aggregated_adapter(pairs: object, rule: str, **options: object) -> Adapter:
    result = aggregated(pairs, rule=rule, **options)  # type: ignore[arg-type]
    assert result.change is None
    assert result.adapter is not None
    return result.adapter


def without_b(adapter: Adapter) -> Adapter:
    """A fresh adapter: B is zero, so its norm is."""
    return adapter.alike({name: Factors(a, torch.zeros_like(b)) for name, (a, b) in adapter.layers.items()})


def same(adapter: Adapter, other: Adapter, tolerance: float = 0.0) -> None:
    assert (adapter.alpha, adapter.rank) == (other.alpha, other.rank)
    for (_, x), (_, y) in zip(adapter.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_flora_is_exact_for_mixed_ranks_and_alphas() -> None:
    pairs = [*MIXED[:2], (random_adapter(5, rank=2, alpha=7.0), 3.0), *ZERO]
    change = aggregated(pairs, "flora").change
    assert change is not None
    assert change.rank == 3 + 1 + 2
    assert off(dense(change), ideal(pairs)) < 1e-6


# HetLoRA.


def test_the_norm_is_that_of_the_dense_update() -> None:
    for rank in (1, 2, 8):
        adapter = random_adapter(6, rank)
        wanted = torch.cat([update.flatten() for update in dense(adapter).values()]).norm()
        assert norm(adapter) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_hetlora_is_its_formula(order: tuple[int, ...]) -> None:
    pairs = [[*MIXED, *ZERO][at] for at in order]
    result = aggregated_adapter(pairs, "hetlora")
    shares = [
        weight * float(torch.cat([u.flatten() for u in dense(adapter).values()]).norm()) for adapter, weight in pairs
    ]
    for name, (d, k) in SHAPES.items():
        a, b = torch.zeros(5, k, dtype=torch.float64), torch.zeros(d, 5, dtype=torch.float64)
        for (adapter, _), share in zip(pairs, shares, strict=True):
            factors = adapter.layers[name]
            a[: adapter.rank] += share / sum(shares) * factors.A
            b[:, : adapter.rank] += share / sum(shares) * (4.0 / adapter.rank) / (4.0 / 5) * factors.B
        torch.testing.assert_close(result.layers[name].A.double(), a, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(result.layers[name].B.double(), b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_hetlora_at_a_lower_rank_is_the_truncation(rank: int) -> None:
    same(aggregated_adapter(MIXED, "hetlora", rank=rank), aggregated_adapter(MIXED, "hetlora").at_rank(rank), 1e-6)


def test_where_nobody_has_learnt_anything_hetlora_takes_the_plain_weights() -> None:
    pairs = [(without_b(adapter), weight) for adapter, weight in MIXED]
    result = aggregated_adapter(pairs, "hetlora")
    for name, (a, b) in result.layers.items():
        wanted = torch.zeros_like(a)
        for adapter, weight in pairs:
            wanted[: adapter.rank] += weight / 3.5 * adapter.layers[name].A
        torch.testing.assert_close(a, wanted, rtol=1e-6, atol=1e-6)
        assert not b.any()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_client_that_has_learnt_nothing_does_not_count_where_another_has(at: int) -> None:
    pairs = [(adapter if at == here else without_b(adapter), weight) for here, (adapter, weight) in enumerate(MIXED)]
    alone = aggregated_adapter([MIXED[at]], "hetlora", rank=5)
    same(aggregated_adapter(pairs, "hetlora"), alone, 1e-6)


def test_hetlora_keeps_the_components_that_nobody_gives() -> None:
    before = random_adapter(9, rank=7)
    filled, bare = (aggregated_adapter(MIXED, "hetlora", rank=7, before=b) for b in (before, None))
    for name, (a, b) in filled.layers.items():
        old, plain = before.layers[name], bare.layers[name]
        assert torch.equal(a[:5], plain.A[:5])
        assert torch.equal(b[:, :5], plain.B[:, :5])
        assert torch.equal(a[5:], old.A[5:])
        assert torch.equal(b[:, 5:], old.B[:, 5:])
        assert not plain.A[5:].any()
        assert not plain.B[:, 5:].any()
    same(bare, aggregated_adapter(MIXED, "hetlora").at_rank(7), 1e-6)


def test_components_of_a_client_that_does_not_count_are_kept_too() -> None:
    """Else the first round, where a large client has learnt nothing, would kill what only it has."""
    before = random_adapter(9, rank=5)
    for large, weight in ((without_b(MIXED[2][0]), 0.5), (MIXED[2][0], 0.0)):
        for pairs in ([*MIXED[:2], (large, weight)], [(large, weight), *MIXED[:2]]):
            result = aggregated_adapter(pairs, "hetlora", before=before)
            for name, (a, b) in result.layers.items():
                assert torch.equal(a[3:], before.layers[name].A[3:])
                assert torch.equal(b[:, 3:], before.layers[name].B[:, 3:])
                assert not torch.equal(a[:3], before.layers[name].A[:3])


# FlexLoRA.


@pytest.mark.parametrize("rank", [1, 4, 7, 9])
def test_flexlora_is_the_truncated_decomposition_of_the_dense_mean(rank: int) -> None:
    # Ranks 3 + 1 + 5 make 9, which is above min(d, k) = 7 of v.
    result = aggregated_adapter([*MIXED, *ZERO], "flexlora", rank=rank)
    assert (result.rank, result.alpha) == (rank, 4.0)
    for at in {1, min(rank, 3), rank}:
        for name, mean in ideal(MIXED).items():
            u, s, vt = torch.linalg.svd(mean, full_matrices=False)
            wanted = (u[:, :at] * s[:at]) @ vt[:at]
            assert off({name: dense(result.at_rank(at))[name]}, {name: wanted}) < 1e-6


def test_the_rows_of_flexloras_a_are_orthonormal_also_where_there_is_nothing() -> None:
    low = random_adapter(1, rank=1)
    for pairs in (MIXED, [(low, 1.0), (low.at_rank(4), 1.0)], [(without_b(adapter), 1.0) for adapter, _ in MIXED]):
        result = aggregated_adapter(pairs, "flexlora")
        for a, _ in result.layers.values():
            torch.testing.assert_close(a @ a.T, torch.eye(len(a)), rtol=0, atol=1e-5)


def test_flexlora_takes_fresh_rows_where_the_mean_has_no_more_components() -> None:
    before = random_adapter(9, rank=8)
    few = [(random_adapter(1, rank=2), 1.0), (random_adapter(2, rank=3), 1.0)]
    for pairs, result in ((few, {"q": 5, "v": 5}), (MIXED, {"q": 8, "v": 7})):
        filled, bare = (aggregated_adapter(pairs, "flexlora", rank=8, before=b) for b in (before, None))
        for name, (a, b) in filled.layers.items():
            here = result[name]
            assert torch.equal(a[:here], bare.layers[name].A[:here])
            assert torch.equal(a[here:], before.layers[name].A[here:])
            assert torch.equal(b, bare.layers[name].B)
            assert b[:, :here].any(dim=0).all()
            assert not b[:, here:].any()
            assert not bare.layers[name].A[here:].any()


# The result's rank, and what is refused.


@pytest.mark.parametrize("rule", ["hetlora", "flexlora"])
def test_the_rank_is_the_largest_given_unless_told(rule: str) -> None:
    assert aggregated_adapter(MIXED, rule).rank == 5
    assert aggregated_adapter([*MIXED, (random_adapter(1, rank=6), 0.0)], rule).rank == 6
    assert aggregated_adapter(MIXED, rule, rank=2).rank == 2
    assert aggregated_adapter(MIXED, rule, rank=8).rank == 8


@pytest.mark.parametrize("rule", ["hetlora", "flexlora"])
@pytest.mark.parametrize(
    "before",
    [
        random_adapter(1, rank=5, alpha=5.0),
        random_adapter(1, rank=6),
        Adapter({"q": random_adapter(1, 5).layers["q"]}, 4.0),
    ],
)
def test_a_before_that_is_not_like_the_result(rule: str, before: Adapter) -> None:
    with pytest.raises(ValueError, match=r"`before` .*rank 5"):
        aggregated(MIXED, rule, before=before)
