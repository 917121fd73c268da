"""HetLoRA (arXiv 2401.06432): zero-pad to the largest rank, weigh by the norm of the update, average, truncate.

    n_k = w_k || s_k B_k A_k ||_F                          over all layers together
    A = sum_k n_k pad(A_k) / sum_j n_j        B = sum_k n_k pad(s_k B_k) / (s sum_j n_j)        s = alpha / rank

Client k goes on with `result.adapter.at_rank(r_k)`: the first r_k components.

Exactness: inexact, as FedIT, and a component that only some clients have is drawn to zero by the others.
Cost: r_k (d + k) numbers up and down per client and layer; one pass, one running sum. The weights depend on the
adapters, so it is no linear sum for secure aggregation. Ranks can be mixed, alphas not.

The norm comes from r x r Gram matrices, || B A ||^2 = tr((B^T B) (A A^T)). If all norms are zero (nobody has learnt
anything yet), the plain weights count. Not built: HetLoRA's pruning, by which a client lowers its own rank.
Known: padding, weighing by norm, truncation. Our reading: that the client weight w_k multiplies the norm; that B takes
the scale, so that a component means the same at every rank; what becomes of components that nobody gives (`before`).
"""

from __future__ import annotations

import math

import torch

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation.lora_rule import LoraAggregation, Pairs, Result, Shape, check_before, checked, shape


class HetLoRA(LoraAggregation):
    """The mean weighed by norms, summed in float64 and returned in the first adapter's type."""

    def aggregate(self, pairs: Pairs, *, rank: int | None = None, before: Adapter | None = None) -> Result:
        """Average the zero-padded factors, each weighted by the norm of its update.

        rank: of the result; None: the largest given.
        before: the round's adapter at that rank. Components above the largest rank that counts are kept from it;
            without it they are zero in A and in B, and a component that is zero in both never learns again.

        Raises:
            ValueError: as `LoraAggregation.aggregate`, for adapters of different layers, alpha or shapes apart from
                rank, or a `before` that is not like the result.
        """
        like: Shape | None = None
        types: list[tuple[torch.dtype, torch.dtype]] = []
        sums: Adapter | None = None
        total, largest, present = 0.0, 0, 0
        normed = False
        for adapter, weight in checked(pairs, rule="HetLoRA", mixed_ranks=True):
            if like is None:
                like, types = shape(adapter), [(a.dtype, b.dtype) for a, b in adapter.layers.values()]
            largest = max(largest, adapter.rank)
            share = weight * norm(adapter)
            if share > 0 and not normed:  # until now plain weights, which now count nothing
                sums, total, present, normed = None, 0.0, 0, True
            share = share if normed else weight
            if share == 0:
                continue
            common = rank or max(adapter.rank, present)
            present, total = max(present, adapter.rank), total + share
            sums = _plus(sums, adapter, share, common)
        assert like is not None
        assert sums is not None
        rank = rank or largest
        sums = sums.at_rank(rank)
        layers = {
            name: Factors((a / total).to(types[at][0]), (b / total).to(types[at][1]))
            for at, (name, (a, b)) in enumerate(sums.layers.items())
        }
        if before is not None:
            check_before(before, like, rank)
            for name, (a, b) in layers.items():
                old = before.layers[name]
                a[present:], b[:, present:] = old.A[present:], old.B[:, present:]
        return Result(Adapter(layers, like.alpha))


def norm(adapter: Adapter) -> float:
    """|| scale B A ||_F over all layers, in float64, without forming B A."""
    squares = 0.0
    for a, b in ((a.double(), b.double()) for a, b in adapter.layers.values()):
        squares += float(((b.T @ b) * (a @ a.T)).sum())
    return adapter.scale * math.sqrt(max(squares, 0.0))


def _plus(sums: Adapter | None, adapter: Adapter, share: float, rank: int) -> Adapter:
    """The running sum at `rank` with one more; None is zero."""
    padded = adapter.at_rank(rank)
    if sums is None:
        return Adapter(
            {n: Factors(a.double() * share, b.double() * share) for n, (a, b) in padded.layers.items()}, padded.alpha
        )
    sums = sums.at_rank(rank)
    for name, (a, b) in padded.layers.items():
        sums.layers[name].A.add_(a, alpha=share)
        sums.layers[name].B.add_(b, alpha=share)
    return sums
