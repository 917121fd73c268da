"""Sums of updates in factored form: stacked, added, and brought back to the smallest rank that can hold them.

    sum_k w_k s_k B_k A_k = [w_1 s_1 B_1, ..., w_K s_K B_K] [A_1; ...; A_K]

What comes out has scale 1 (alpha = rank) and is float32, computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation.lora_rule import Delta, Pairs, shape


def of_scale_1(layers: Mapping[str, tuple[Tensor, Tensor]]) -> Adapter:
    """An update B A, as float32, whose rank is also its alpha."""
    made = {name: Factors(a.float(), b.float()) for name, (a, b) in layers.items()}
    return Adapter(made, float(next(iter(made.values())).A.shape[0]))


def of_delta(delta: Delta) -> Adapter:
    """A change of products as an update of scale 1."""
    return Adapter.from_tensors(delta, float(len(next(tensor for name, tensor in delta.items() if name[-1] == "A"))))


def stacked(pairs: Pairs) -> dict[str, tuple[Tensor, Tensor]]:
    """Stack the factors of all adapters, by layer, in float64: the A's above each other [R, k], and the w_k s_k B_k
    side by side [d, R], R = sum r_k.

    Weights are taken as they are, and may be negative. Pairs of weight 0 are left out.

    Raises:
        ValueError: a weight that is not finite, different layers or shapes apart from rank, or nothing to stack.
    """
    kept: list[tuple[Adapter, float]] = []
    for adapter, weight in pairs:
        if not math.isfinite(weight):
            raise ValueError(f"weights must be finite, got {weight}")
        if weight != 0:
            kept.append((adapter, weight))
    if len({shape(adapter).layers for adapter, _ in kept}) != 1:
        raise ValueError("nothing to stack: no adapters of one set of layers and shapes, or all weights are zero")
    return {
        name: (
            torch.cat([adapter.layers[name].A.double() for adapter, _ in kept]),
            torch.cat([adapter.layers[name].B.double() * (w * adapter.scale) for adapter, w in kept], dim=1),
        )
        for name in kept[0][0].layers
    }


def stack(pairs: Pairs) -> Adapter:
    """sum_k w_k s_k B_k A_k as one adapter of rank sum_k r_k. Ranks and alphas may differ.

    Raises:
        ValueError: as `stacked`.
    """
    return of_scale_1(stacked(pairs))


def add(*updates: Adapter | None) -> Adapter | None:
    """The sum of updates, compacted; None is no update.

    Raises:
        ValueError: different layers, or shapes apart from rank.
    """
    adapters = [adapter for adapter in updates if adapter is not None]
    return compact(stack((adapter, 1.0) for adapter in adapters)) if adapters else None


def compact(adapter: Adapter) -> Adapter:
    """The same update at a rank not above R, the largest min(d, k) of all layers: beyond it a rank holds nothing more.

    An adapter of rank R or less comes back as it is. Else one factor of each layer becomes the identity, the other
    the update itself, and zeros fill up to R where min(d, k) is smaller.
    """
    largest = max(min(a.shape[1], b.shape[0]) for a, b in adapter.layers.values())
    if adapter.rank <= largest:
        return adapter
    layers = {}
    for name, dense in update(adapter).items():
        d, k = dense.shape
        identity = torch.eye(min(d, k), dtype=dense.dtype, device=dense.device)
        a, b = (dense, identity) if d <= k else (identity, dense)
        layers[name] = (pad(a, (0, 0, 0, largest - len(a))), pad(b, (0, largest - len(a))))
    return of_scale_1(layers)


def update(adapter: Adapter) -> dict[str, Tensor]:
    """Change of the weights by an adapter: scale B A [d, k] by layer, dense, in float64."""
    return {name: adapter.scale * (b.double() @ a.double()) for name, (a, b) in adapter.layers.items()}
