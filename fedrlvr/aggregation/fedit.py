"""FedIT (arXiv 2305.05644): average the factors A and B separately.

    A = sum_k p_k A_k        B = sum_k p_k B_k        p_k = w_k / sum_j w_j

Exactness: inexact. The mean of products sum_k p_k B_k A_k is not the product of means unless all share a factor.
Cost: r (d + k) numbers up and down per client and layer; one pass over the adapters, which are summed as they come,
so memory does not grow with their number. Linear in the adapters, so it can be computed under secure aggregation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors


def fedit(adapters: Iterable[tuple[Adapter, float]]) -> Adapter:
    """The weighted mean of (adapter, weight) pairs, summed in float64 and returned in the first one's type.

    Raises:
        ValueError: no adapters, a weight that is negative or not finite, weights that sum to zero, or adapters of
            different shapes or alpha.
    """
    sums: Tensor | None = None
    total = 0.0
    first: Adapter | None = None
    for adapter, weight in adapters:
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weights must be finite and not negative, got {weight}")
        if first is None:
            first = adapter
        if adapter.alpha != first.alpha or adapter.layout != first.layout:
            raise ValueError("FedIT averages adapters of one rank, alpha and set of layers only")
        # End to end: one sum costs less than hundreds of small ones.
        flat = torch.cat([tensor.flatten() for _, tensor in adapter.tensors()])
        sums = torch.zeros_like(flat, dtype=torch.float64) if sums is None else sums
        sums.add_(flat, alpha=weight)
        total += weight
    if first is None or sums is None or total <= 0:
        raise ValueError("there is nothing to average: no adapters, or all weights are zero")
    likes = [tensor for _, tensor in first.tensors()]
    parts = torch.split(sums / total, [like.numel() for like in likes])
    means = iter([part.view(like.shape).to(like.dtype) for part, like in zip(parts, likes, strict=True)])
    return first.alike({name: Factors(next(means), next(means)) for name in first.layers})
