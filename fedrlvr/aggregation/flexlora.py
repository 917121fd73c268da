"""FlexLoRA (arXiv 2402.11505): the singular value decomposition of the mean update, truncated to each client's rank.

    U S V^T = sum_k p_k s_k B_k A_k        A = V^T        B = U S / s        p_k = w_k / sum_j w_j, s = alpha / rank

Client k goes on with `result.adapter.at_rank(r_k)`: the best approximation of the mean update at its rank.

The d x k product is never formed. With the factors stacked, [p_k s_k B_k] = Q_B R_B and [A_k]^T = Q_A R_A, the small
R_B R_A^T = U' S V'^T is decomposed instead: U = Q_B U', V = Q_A V'.

Exactness: exact up to the truncation to `rank`.
Cost: r_k (d + k) numbers up and down per client and layer; O((d + k) R^2 + R^3) for R = sum_k r_k, in float64; all
adapters are held at once. Not a sum of adapters, so not for secure aggregation. Ranks can be mixed, alphas not.
Known: decomposition and truncation. Our reading: which factor takes S. With it in B, the rows of A are orthonormal, in
size like a fresh adapter's, and a component whose singular value is zero can still learn; and what becomes of
components that nobody gives (`before`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation.lora_rule import Pairs, ProductAggregation, Result, ServerUpdate, check_before, checked, shape
from fedrlvr.aggregation.stacking import of_delta, stacked


class FlexLoRA(ProductAggregation):
    """The mean update at one rank, largest components first, in the first adapter's type."""

    def aggregate(self, pairs: Pairs, *, rank: int | None = None, before: Adapter | None = None) -> Result:
        """Decompose the mean update, and keep the components of one rank, largest first.

        rank: of the result; None: the largest given.
        before: the round's adapter at that rank. Where a layer has fewer components than `rank` (it has
            min(R, d, k)), the others take their A from it, with B zero; without it they are zero in A and in B, and a
            component that is zero in both never learns again.

        Raises:
            ValueError: as `LoraAggregation.aggregate`, for adapters of different layers, alpha or shapes apart from
                rank, or a `before` that is not like the result.
        """
        kept = list(checked(pairs, rule="FlexLoRA", mixed_ranks=True))
        first = kept[0][0]
        rank = rank or max(adapter.rank for adapter, _ in kept)
        if before is not None:
            check_before(before, shape(first), rank)
        total = sum(weight for _, weight in kept)
        return Result(_cut([(adapter, weight / total) for adapter, weight in kept], first, rank, before))

    def stepped(self, pairs: Pairs, update: ServerUpdate, *, rank: int, before: Adapter) -> Result:
        """The update is added to the products that the clients began with, and the sum is decomposed once.

        sum_k p_k (g s_k B_k A_k + (1 - g) s_k B A) + of_memory V, where g is of_mean and B A the start of client k
        """
        kept = list(checked(pairs, rule="FlexLoRA", mixed_ranks=True))
        first = kept[0][0]
        check_before(before, shape(first), rank)
        total = sum(weight for _, weight in kept)
        terms = [(adapter, update.of_mean * weight / total) for adapter, weight in kept]
        for start in sorted({adapter.rank for adapter, _ in kept}):
            share = sum(weight for adapter, weight in kept if adapter.rank == start) / total
            terms.append((before.at_rank(start), (1 - update.of_mean) * share))
        if update.memory is not None:
            terms.append((of_delta(update.memory), update.of_memory))
        return Result(_cut(terms, first, rank, before))


def _cut(terms: list[tuple[Adapter, float]], like: Adapter, rank: int, before: Adapter | None) -> Adapter:
    """The sum of updates at one rank, with the alpha and types of `like`; `before` fills up missing components."""
    layers = {}
    for name, (a_s, b_s) in stacked(terms).items():
        left, right = decompose(a_s, b_s)
        present = min(rank, len(right))
        a = pad(right[:rank], (0, 0, 0, rank - present))
        if before is not None:
            a[present:] = before.layers[name].A[present:]
        b = pad(left[:, :rank] * (rank / like.alpha), (0, rank - present))
        layers[name] = Factors(a.to(like.layers[name].A.dtype), b.to(like.layers[name].B.dtype))
    return Adapter(layers, like.alpha)


def decompose(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """U S [d, m] and V^T [m, k] of b a, for a [R, k] and b [d, R]; m = min(R, d, k), largest singular value first."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return (q_b @ u) * s, vt @ q_a.T
